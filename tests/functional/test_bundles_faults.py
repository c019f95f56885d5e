"""The layout bundles while S3 fails, objects are damaged and processes die.

No body is wrong, no session fails, and all puts that were answered get into the bucket in the end.
"""

import signal
import time
from pathlib import Path

import pytest

from bundle_sessions import close_and_leave, expect_all, fill, keys, noise, put_all
from cacheplugin.store.spool import session_directories
from fakes3 import FakeS3
from helpers import Plugin, Processes, action_id, b64, kill, output_id, wait_until

OLD, LATE = noise(3, 40_000, "old"), noise(3, 40_000, "late")  # each body has its own block
NEW = noise(3, 2000, "new")


@pytest.fixture(scope="module")
def two_sessions(tmp_path_factory):
    """The objects of two sessions: a bundle with OLD, one with LATE, and two manifests."""
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
    """A FakeS3 with the objects of ``two_sessions``."""
    fake_s3.objects.update(two_sessions)
    return fake_s3


def hits_of(plugin, puts) -> list:
    """The actions that are hits, checked to have the right body; the others are misses."""
    hits = []
    for number, action in [(plugin.get(action), action) for action in puts]:
        got = plugin.answer(number)
        if not got.get("Miss"):
            assert got["OutputID"] == b64(output_id(puts[action]))
            assert Path(got["DiskPath"]).read_bytes() == puts[action]
            hits.append(action)
    return hits


def rebuild(plugin, puts) -> list:
    """Get these entries and put those that are misses, as a build does; returns the hits."""
    hits = hits_of(plugin, puts)
    put_all(plugin, {action: body for action, body in puts.items() if action not in hits})
    return hits


def expect_from_a_fresh_machine(machine, puts, name="fresh") -> dict:
    """Check that all are hits on an empty machine; returns the counters."""
    plugin = machine(name)
    expect_all(plugin, puts)
    counts = plugin.finish()
    assert counts["get_fault_hit"] == len(puts)
    return counts


# -- failing requests ------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["500", "die", "flip"])
def test_failure_of_any_request(machine, filled, flush_of, two_sessions, tmp_path, fault):
    """Each request of a session that gets and puts fails in turn, twice."""
    plugin = machine("counted")
    hits_of(plugin, OLD | LATE)
    fill(plugin, NEW)
    requests = filled.requests[:]
    assert len(requests) == 6
    for n, (method, key) in enumerate(requests):
        if fault != "500" and (method == "PUT" or key.startswith("?")):
            continue  # the response has no body to damage
        filled.objects.clear()
        filled.objects.update(two_sessions)
        filled.fail_nth(n + 1, fault)
        filled.fail_nth(n + 2, fault)
        expected = filled.served + 2
        plugin = machine(f"failing {n}")
        rebuild(plugin, OLD | LATE)
        put_all(plugin, NEW)
        counts = plugin.finish()
        assert filled.served >= expected, "no request failed"
        assert "put_errors" not in counts and "Traceback" not in plugin.stderr
        if session_directories(str(tmp_path / f"failing {n}")):
            assert flush_of(f"failing {n}")[::2] == (0, 0)
        expect_from_a_fresh_machine(machine, OLD | LATE | NEW, f"after {n}")


@pytest.mark.parametrize("fault", ["403", "die"])
def test_all_ranges_fail(machine, filled, fault):
    """The manifests are loaded, but all ranges fail: the gets are misses and counted."""
    filled.faulty = lambda method, key: key.startswith("bundle/")
    filled.fail(fault)
    plugin = machine("a")
    hits = rebuild(plugin, OLD | LATE)  # entries before the end of a connection may hit
    filled.fail(None)
    counts = plugin.finish()
    missed = ("get_fault_damaged", "get_fault_error", "get_fault_skipped")
    assert sum(counts.get(name, 0) for name in missed) == counts["get_misses"] == 6 - len(hits) > 2
    expect_from_a_fresh_machine(machine, OLD | LATE)


def test_hanging_bucket(machine, filled):
    """The bucket is given up after one time-out with a warning; the session is a local cache."""
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
def test_expired_credentials_do_not_delay_close(machine, filled, flush_of, held):
    """Puts stay in the spool, whether or not their body is in a bundle already."""
    action = action_id("a")
    body = next(iter(OLD.values())) if held == "bundled" else b"a new body"
    plugin = machine("a", "--prefetch-limit=0")
    plugin.expect_miss(action_id("unknown"))  # answered once the manifests are loaded
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
def test_failing_uploads_are_logged_once(machine, fake_s3, begin_flush_of, fault):
    """A failed bundle is worth a warning, because it has many entries; flush names the bucket."""
    fake_s3.faulty = lambda method, key: method == "PUT"
    fake_s3.fail(fault)
    plugin = machine("a")
    put_all(plugin, NEW)
    counts = plugin.finish()
    assert counts["put_s3_error"] == len(NEW)
    warning, state = [line for line in plugin.stderr.splitlines() if "bucket bucket" in line]
    assert "uploading to bucket bucket failed, entries stay in the spool" in warning
    assert "bucket bucket: it answers; the last failure: " in state
    flush = begin_flush_of("a")
    _, err = flush.communicate(timeout=60)
    assert flush.returncode == 1 and "3 entries for bucket bucket at http://127.0.0.1:" in err
    fake_s3.fail(None)
    flush = begin_flush_of("a")
    assert flush.communicate(timeout=60)[1] == "" and flush.returncode == 0


def test_endpoint_that_is_no_s3(machine, fake_s3):
    """A 404 for a listing makes the bucket unusable: one warning and no more requests."""
    fake_s3.fail("NoSuchKey")
    plugin = machine("a")
    assert hits_of(plugin, OLD) == []
    requests = len(fake_s3.requests)
    assert hits_of(plugin, LATE) == []
    put_all(plugin, NEW)
    plugin.finish()
    assert len(fake_s3.requests) == requests
    warning, state = [line for line in plugin.stderr.splitlines() if "bucket bucket" in line]
    assert "is not used: the bucket cannot be listed" in warning
    assert "bucket bucket: not used, the bucket cannot be listed" in state


# -- damaged objects -------------------------------------------------------------------------------


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE = {
    "flipped": flip,
    "cut": lambda data: data[: len(data) // 2],
    "newer": lambda data: data[:4] + b"\2" + data[5:],  # the version
    "deleted": None,
}


def damage(fake_s3, key, kind) -> None:
    if DAMAGE[kind] is None:
        del fake_s3.objects[key]
    else:
        fake_s3.objects[key] = DAMAGE[kind](fake_s3.objects[key])


@pytest.mark.parametrize("kind, lost", [("flipped", 1), ("cut", 3), ("deleted", 3), ("newer", 0)])
def test_damaged_bundle(machine, filled, kind, lost):
    """Damaged entries are counted misses, the others hit; after a rebuild all hit."""
    damage(filled, keys(filled, "bundle")[0], kind)
    plugin = machine("a")
    hits = rebuild(plugin, OLD | LATE)
    counts = plugin.finish()
    assert set(hits) >= set(LATE) and len(hits) == 6 - lost
    assert counts.get("get_fault_damaged", 0) == counts.get("put_s3_object", 0) == lost
    counts = expect_from_a_fresh_machine(machine, OLD | LATE)
    assert "get_fault_damaged" not in counts


def test_damaged_bundle_without_rebuild(machine, filled):
    """The next session's manifest leaves out the damaged entries."""
    damage(filled, keys(filled, "bundle")[0], "deleted")
    plugin = machine("a")
    assert len(hits_of(plugin, OLD | LATE)) == 3
    fill(plugin, NEW)
    plugin = machine("b")
    assert len(hits_of(plugin, OLD | LATE | NEW)) == 6
    assert "get_fault_damaged" not in plugin.finish()


@pytest.mark.parametrize("kind", ["flipped", "newer", "deleted"])
def test_damaged_manifest(machine, filled, kind):
    """The manifest before it is used; entries that only the damaged one named are put again."""
    damage(filled, keys(filled, "manifest")[1], kind)
    plugin = machine("a")
    hits = rebuild(plugin, OLD | LATE)
    counts = plugin.finish()
    assert hits == list(OLD) and "Traceback" not in plugin.stderr
    assert counts.get("get_fault_damaged", 0) == (kind != "deleted")
    assert counts["put_s3_action"] == 3
    expect_from_a_fresh_machine(machine, OLD | LATE)


# -- killed processes ------------------------------------------------------------------------------


def kill_all(pids) -> None:
    assert pids
    for pid in pids:
        kill(pid)


@pytest.mark.parametrize("victims, held", [("workers", "bundle/"), ("pool", "manifest/")])
def test_process_killed_while_it_uploads(machine, filled, processes, victims, held):
    """Another process repeats the upload, and close waits for it."""
    filled.hold = lambda method, key: method == "PUT" and key.startswith(held)
    plugin = machine("a")
    assert hits_of(plugin, OLD | LATE) == list(OLD | LATE)
    put_all(plugin, NEW)
    number = plugin.close()
    wait_until(lambda: filled.held, "the request")
    before = filled.held
    kill_all(getattr(processes, victims)())
    wait_until(lambda: filled.held > before, "the repeated request")
    filled.release()
    assert plugin.answer(number) == {"ID": number}
    assert plugin.wait() == 0
    assert "put_s3_action=3" in plugin.stderr and "put_s3_error" not in plugin.stderr
    expect_from_a_fresh_machine(machine, OLD | LATE | NEW)


@pytest.mark.parametrize("victims", ["workers", "pool"])
def test_process_killed_while_it_loads_manifests(machine, filled, processes, victims):
    """Another process uploads, and close waits for it."""
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
def test_session_stopped_while_it_uploads(machine, filled, processes, flush_of, held, mode, number):
    """A flush uploads what the session has not, before or after the go command has ended."""
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
def test_process_killed_while_it_prefetches(machine, filled, processes, tmp_path, victims):
    """The waiting get is a miss, later gets hit."""
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


def test_another_session_takes_over_the_prefetch(machine, filled, processes):
    """The lock ends with the killed process, and the other session prefetches."""
    filled.hold = lambda method, key: key.startswith("bundle/")
    first = machine("a")
    wait_until(lambda: filled.held == 2, "the prefetch")
    second = machine("a")
    second.expect_miss(action_id("unknown"))
    assert filled.held == 2
    first.kill()
    wait_until(lambda: len(processes.pool()) == 1, "the pool of the killed session to end")
    number = second.get(next(iter(OLD)))
    wait_until(lambda: filled.held == 4, "both ranges, one of them prefetched")
    filled.release()
    assert second.answer(number)["OutputID"]
    expect_all(second, OLD | LATE)
    assert second.finish()["get_fault_hit"] == 6


def test_front_killed_while_it_prefetches(machine, filled, processes, tmp_path):
    """No partial entry is left in the directory, and the next session has all entries."""
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
