"""The layout bundles while S3 fails, objects are damaged and processes die.

Never a wrong body, never a failed session; what was answered gets into the bucket in the end.
"""

import signal
import time
from pathlib import Path

import pytest

from bundle_sessions import close_and_leave, expect_all, fill, keys, noise, put_all
from cacheplugin.store.spool import session_directories
from fakes3 import FakeS3
from helpers import Plugin, Processes, action_id, b64, kill, output_id, wait_until

OLD, LATE = noise(3, 40_000, "old"), noise(3, 40_000, "late")  # each in a block of its own
NEW = noise(3, 2000, "new")


@pytest.fixture(scope="module")
def two_sessions(tmp_path_factory):
    """The objects that two sessions leave: OLD in a bundle, LATE in another, a manifest by each."""
    path = tmp_path_factory.mktemp("filled")
    server, processes = FakeS3(), Processes(path)
    for name, puts in (("old", OLD), ("late", LATE)):
        flags = [f"--cache-dir={path / name}", "--scope=ours", *server.flags(layout="bundles")]
        plugin = Plugin(flags, processes.environ(), path / f"stderr-{name}").hello()
        fill(plugin, puts)
        plugin.kill()
    server.stop()
    processes.expect_none()
    return dict(server.objects)


@pytest.fixture
def filled(fake_s3, two_sessions):
    """A FakeS3 with what ``two_sessions`` left."""
    fake_s3.objects.update(two_sessions)
    return fake_s3


def hits_of(plugin, puts) -> list:
    """The actions that are hits; the rest are misses, and no body is wrong."""
    hits = []
    for number, action in [(plugin.get(action), action) for action in puts]:
        got = plugin.answer(number)
        if not got.get("Miss"):
            assert got["OutputID"] == b64(output_id(puts[action]))
            assert Path(got["DiskPath"]).read_bytes() == puts[action]
            hits.append(action)
    return hits


def rebuild(plugin, puts) -> list:
    """Get, and put what is a miss, as a build does; returns the actions that were hits."""
    hits = hits_of(plugin, puts)
    put_all(plugin, {action: body for action, body in puts.items() if action not in hits})
    return hits


def expect_from_a_fresh_machine(machine, puts, name="fresh") -> dict:
    """All are hits there; the counters."""
    plugin = machine(name)
    expect_all(plugin, puts)
    counts = plugin.finish()
    assert counts["get_fault_hit"] == len(puts)
    return counts


# -- requests that fail ----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["500", "die", "flip"])
def test_a_failure_of_any_request(machine, filled, flush_of, two_sessions, tmp_path, fault):
    """A session that restores and puts; each of its requests in turn fails, also when repeated."""
    plugin = machine("counted")
    hits_of(plugin, OLD | LATE)
    fill(plugin, NEW)
    requests = filled.requests[:]
    assert len(requests) == 6
    for n, (method, key) in enumerate(requests):
        if fault != "500" and (method == "PUT" or key.startswith("?")):
            continue  # it has no body to damage
        filled.objects.clear()
        filled.objects.update(two_sessions)
        filled.fail_nth(n + 1, fault)
        filled.fail_nth(n + 2, fault)
        struck = filled.served + 2
        plugin = machine(f"struck {n}")
        rebuild(plugin, OLD | LATE)
        put_all(plugin, NEW)
        counts = plugin.finish()
        assert filled.served >= struck, "nothing failed"
        assert "put_errors" not in counts and "Traceback" not in plugin.stderr
        if session_directories(str(tmp_path / f"struck {n}")):
            assert flush_of(f"struck {n}")[::2] == (0, 0)
        expect_from_a_fresh_machine(machine, OLD | LATE | NEW, f"after {n}")


@pytest.mark.parametrize("fault", ["403", "die"])
def test_a_bucket_that_fails_from_the_first_range_on(machine, filled, fault):
    """The manifests are known, and no range comes whole: misses, counted."""
    filled.faulty = lambda method, key: key.startswith("bundle/")
    filled.fail(fault)
    plugin = machine("a")
    hits = rebuild(plugin, OLD | LATE)  # what came whole before the connection ended is right
    filled.fail(None)
    counts = plugin.finish()
    missed = ("get_fault_damaged", "get_fault_error", "get_fault_skipped")
    assert sum(counts.get(name, 0) for name in missed) == counts["get_misses"] == 6 - len(hits) > 2
    expect_from_a_fresh_machine(machine, OLD | LATE)


def test_a_bucket_that_hangs(machine, filled):
    """Given up after one time-out, with a warning; the session goes on as a local cache."""
    filled.fail("hang")
    began = time.monotonic()
    plugin = machine("a")
    assert rebuild(plugin, OLD) == []
    expect_all(plugin, OLD)
    plugin.finish()
    assert time.monotonic() - began < 15
    (warning,) = [line for line in plugin.stderr.splitlines() if "failed repeatedly" in line]
    assert "fetching from bucket bucket" in warning


@pytest.mark.parametrize("held", ["bundled", "gathered"])
def test_credentials_that_expire_do_not_hold_up_close(machine, filled, flush_of, held):
    """What was put before stays in the spool, whether its body is in a bundle already or not."""
    action = action_id("a")
    body = next(iter(OLD.values())) if held == "bundled" else b"a new body"
    plugin = machine("a", "--prefetch-limit=0")
    plugin.expect_miss(action_id("unknown"))  # the manifests are here
    put_all(plugin, {action: body})
    filled.fail("ExpiredToken")
    assert hits_of(plugin, LATE) == []
    wait_until(lambda: "is not used: " in plugin.stderr, "the warning")
    number = plugin.close()
    assert plugin.answer(number, timeout_s=10) == {"ID": number}
    plugin.end_input()
    assert plugin.wait() == 0
    filled.fail(None)
    assert flush_of("a") == (0, 1, 0)
    expect_from_a_fresh_machine(machine, OLD | LATE | {action: body})


@pytest.mark.parametrize("fault", ["403", "503"])
def test_uploads_that_are_not_taken_are_said_once(machine, fake_s3, begin_flush_of, fault):
    """A bundle carries so much that its failure is worth a line; flush says what it is about."""
    fake_s3.faulty = lambda method, key: method == "PUT"
    fake_s3.fail(fault)
    plugin = machine("a")
    put_all(plugin, NEW)
    counts = plugin.finish()
    assert counts["put_s3_error"] == len(NEW)
    (warning,) = [line for line in plugin.stderr.splitlines() if "bucket bucket" in line]
    assert "uploading to bucket bucket failed, entries stay in the spool" in warning
    flush = begin_flush_of("a")
    _, err = flush.communicate(timeout=60)
    assert flush.returncode == 1 and "3 entries for bucket bucket at http://127.0.0.1:" in err
    fake_s3.fail(None)
    flush = begin_flush_of("a")
    assert flush.communicate(timeout=60)[1] == "" and flush.returncode == 0


def test_an_endpoint_that_is_no_s3_is_given_up(machine, fake_s3):
    """A listing cannot be absent: one warning, and nothing more is asked."""
    fake_s3.fail("NoSuchKey")
    plugin = machine("a")
    assert hits_of(plugin, OLD) == []
    asked = len(fake_s3.requests)
    assert hits_of(plugin, LATE) == []
    put_all(plugin, NEW)
    plugin.finish()
    assert len(fake_s3.requests) == asked
    (warning,) = [line for line in plugin.stderr.splitlines() if "bucket bucket" in line]
    assert "is not used: the bucket cannot be listed" in warning


# -- objects that are damaged ----------------------------------------------------------------------


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE = {
    "flipped": flip,
    "cut": lambda data: data[: len(data) // 2],
    "newer": lambda data: data[:4] + b"\2" + data[5:],  # the version
    "gone": None,
}


def damage(fake_s3, key, kind) -> None:
    if DAMAGE[kind] is None:
        del fake_s3.objects[key]
    else:
        fake_s3.objects[key] = DAMAGE[kind](fake_s3.objects[key])


@pytest.mark.parametrize("kind, lost", [("flipped", 1), ("cut", 3), ("gone", 3), ("newer", 0)])
def test_a_damaged_bundle(machine, filled, kind, lost):
    """What is wrong is a counted miss, the rest hits; what a session makes again is right again."""
    damage(filled, keys(filled, "bundle")[0], kind)
    plugin = machine("a")
    hits = rebuild(plugin, OLD | LATE)
    counts = plugin.finish()
    assert set(hits) >= set(LATE) and len(hits) == 6 - lost
    assert counts.get("get_fault_damaged", 0) == counts.get("put_s3_object", 0) == lost
    counts = expect_from_a_fresh_machine(machine, OLD | LATE)
    assert "get_fault_damaged" not in counts


def test_a_damaged_bundle_of_which_nothing_is_made_again(machine, filled):
    """Nobody is sent there twice: the next session's manifest leaves out what was damaged."""
    damage(filled, keys(filled, "bundle")[0], "gone")
    plugin = machine("a")
    assert len(hits_of(plugin, OLD | LATE)) == 3
    fill(plugin, NEW)
    plugin = machine("b")
    assert len(hits_of(plugin, OLD | LATE | NEW)) == 6
    assert "get_fault_damaged" not in plugin.finish()


@pytest.mark.parametrize("kind", ["flipped", "newer", "gone"])
def test_a_damaged_manifest(machine, filled, kind):
    """The one before it is used; what only the damaged one named is made and named again."""
    damage(filled, keys(filled, "manifest")[1], kind)
    plugin = machine("a")
    hits = rebuild(plugin, OLD | LATE)
    counts = plugin.finish()
    assert hits == list(OLD) and "Traceback" not in plugin.stderr
    assert counts.get("get_fault_damaged", 0) == (kind != "gone")
    assert counts["put_s3_action"] == 3
    expect_from_a_fresh_machine(machine, OLD | LATE)


# -- processes that die ----------------------------------------------------------------------------


def kill_all(pids) -> None:
    assert pids
    for pid in pids:
        kill(pid)


@pytest.mark.parametrize("victims, held", [("workers", "bundle/"), ("pool", "manifest/")])
def test_a_bundle_whose_process_is_killed_is_made_by_another(
    machine, filled, processes, victims, held
):
    """Close waits for it, and all is there."""
    filled.hold = lambda method, key: method == "PUT" and key.startswith(held)
    plugin = machine("a")
    assert hits_of(plugin, OLD | LATE) == list(OLD | LATE)
    put_all(plugin, NEW)
    number = plugin.close()
    wait_until(lambda: filled.held, "the request")
    before = filled.held
    kill_all(getattr(processes, victims)())
    wait_until(lambda: filled.held > before, "the request, once more")
    filled.release()
    assert plugin.answer(number) == {"ID": number}
    assert plugin.wait() == 0
    assert "put_s3_action=3" in plugin.stderr and "put_s3_error" not in plugin.stderr
    expect_from_a_fresh_machine(machine, OLD | LATE | NEW)


@pytest.mark.parametrize("victims", ["workers", "pool"])
def test_puts_whose_process_is_killed_while_it_reads_the_manifests(
    machine, filled, processes, victims
):
    """As with any other process that dies: the uploads are another's, and close waits for them."""
    filled.hold = lambda method, key: key.startswith("?list")
    plugin = machine("a")
    put_all(plugin, NEW)
    wait_until(lambda: filled.held, "the listing")
    kill_all(getattr(processes, victims)())
    filled.release()
    counts = plugin.finish()
    assert counts["put_s3_action"] == 3 and "put_s3_error" not in counts
    expect_from_a_fresh_machine(machine, OLD | LATE | NEW)


@pytest.mark.parametrize(
    "held, mode, number",
    [
        ("bundle/", "wait", signal.SIGKILL),
        ("manifest/", "background", signal.SIGKILL),
        ("manifest/", "wait", signal.SIGINT),
        ("bundle/", "background", signal.SIGTERM),
    ],
)
def test_a_session_that_is_stopped_while_it_uploads_is_finished_by_flush(
    machine, filled, processes, flush_of, held, mode, number
):
    """While close waits, and one that lingers without its go command."""
    filled.hold = lambda method, key: method == "PUT" and key.startswith(held)
    plugin = machine("a", f"--upload={mode}")
    put_all(plugin, NEW)
    plugin.close() if mode == "wait" else close_and_leave(plugin)
    wait_until(lambda: filled.held, "the request")
    kill(plugin.pid, number)
    plugin.wait()
    processes.expect_none()
    assert len(keys(filled, "manifest")) == 2
    filled.release()
    assert flush_of("a") == (0, 3, 0)
    expect_from_a_fresh_machine(machine, OLD | LATE | NEW)


@pytest.mark.parametrize("victims", ["workers", "pool"])
def test_a_prefetch_whose_process_is_killed(machine, filled, processes, tmp_path, victims):
    """Who waits gets a miss, and what comes later hits."""
    filled.hold = lambda method, key: key.startswith("bundle/")
    plugin = machine("a")
    number = plugin.get(next(iter(OLD)))
    wait_until(lambda: filled.held == 2, "both ranges")
    kill_all(getattr(processes, victims)())
    assert plugin.answer(number)["Miss"]
    filled.release()
    expect_all(plugin, OLD | LATE)
    counts = plugin.finish()
    assert counts["get_fault_error"] == 1 and counts["get_fault_hit"] == 6
    processes.expect_none()
    assert not list((tmp_path / "a" / "tmp").iterdir())


def test_another_session_takes_over_when_the_one_that_prefetches_is_killed(
    machine, filled, processes
):
    """The lock goes with its process, and the directory is left as it should be."""
    filled.hold = lambda method, key: key.startswith("bundle/")
    first = machine("a")
    wait_until(lambda: filled.held == 2, "its prefetch")
    second = machine("a")
    second.expect_miss(action_id("unknown"))
    assert filled.held == 2
    first.kill()
    wait_until(lambda: len(processes.pool()) == 1, "the end of its pool")
    number = second.get(next(iter(OLD)))
    wait_until(lambda: filled.held == 4, "both ranges, one of which was not asked for")
    filled.release()
    assert second.answer(number)["OutputID"]
    expect_all(second, OLD | LATE)
    assert second.finish()["get_fault_hit"] == 6


def test_the_front_killed_while_it_prefetches(machine, filled, processes, tmp_path):
    """Nothing partial is in the directory; the next session there gets all of it."""
    filled.hold = lambda method, key: key.startswith("bundle/")
    plugin = machine("a")
    wait_until(lambda: filled.held == 2, "the prefetch")
    plugin.kill()
    processes.expect_none()
    filled.release()
    plugin = machine("a")
    expect_all(plugin, OLD | LATE)
    assert plugin.finish()["get_fault_hit"] == 6
    assert not list((tmp_path / "a" / "tmp").iterdir())
