"""The spool: however a session ends, a flush uploads every entry that was answered."""

import functools
import os
import random
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from cacheplugin.store.spool import count_pending, session_directories
from cacheplugin.store.tree import Store
from fakes3 import FakeS3
from helpers import DEADLINE_S, Plugin, action_id, kill, output_id, time_ns, wait_until

BODY = b"what the build made" * 1000


@pytest.fixture
def begin_flush(begin_flush_of):
    """begin_flush(*flags) starts ``flush`` on the cache directory of the test; returns a Popen."""
    return functools.partial(begin_flush_of, "cache")


@pytest.fixture
def flush(begin_flush):
    """flush(*flags) runs ``flush`` to its end; returns (exit status, stdout, stderr)."""

    def flush(*flags):
        process = begin_flush(*flags)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    return flush


@pytest.fixture
def other_s3():
    server = FakeS3()
    yield server
    server.stop()


def put_all(plugin, puts) -> None:
    """Put {action: body}; each must be answered."""
    for action, body in puts.items():
        assert "DiskPath" in plugin.answer(plugin.put(action, body))


def some(count, word="x") -> dict:
    """{action: body}: bodies of different sizes, among them an empty one and two equal ones."""
    bodies = [b"", *(f"{word} {max(n, 2)}".encode() * 50**n for n in range(1, count))]
    return {action_id(f"{word} {n}"): body for n, body in enumerate(bodies)}


def in_spool(cache_dir) -> list:
    """The paths of all files and directories of sessions in the spool."""
    return sorted(str(p.relative_to(cache_dir)) for p in Path(cache_dir).glob("spool/*/*/**/*"))


def stored_time_ns(cache_dir, action) -> int:
    return time_ns(Store(str(cache_dir)).lookup(action)[2])


def expect_uploaded(objects, cache_dir, puts, prefix="") -> None:
    """Assert: the bucket has ``puts``, {action: body}, as objects; the spool is empty."""
    for action, body in puts.items():
        output = output_id(body)
        assert objects[f"{prefix}output/{output[:2]}/{output}"] == body
        record = f"{output} {stored_time_ns(cache_dir, action)}".encode()
        assert objects[f"{prefix}action/{action[:2]}/{action}"] == record
    assert session_directories(str(cache_dir)) == []


def leave(start, fake_s3, puts, *flags) -> None:
    """Run a session that leaves ``puts``, {action: body}, in the spool."""
    plugin = start(*fake_s3.flags(), "--upload=off", *flags).hello()
    put_all(plugin, puts)
    plugin.finish()


def summary(uploaded, dropped=0, remain=0) -> str:
    """The last line that flush prints."""
    return (
        f"{uploaded} entries uploaded, {dropped} dropped (their bodies are damaged or gone), "
        f"{remain} remain\n"
    )


def hang(fake_s3, method="PUT") -> None:
    """From now on S3 does not answer requests of this method."""
    fake_s3.faulty = lambda got, key: got == method
    fake_s3.fail("hang")


def mend(fake_s3) -> None:
    fake_s3.fail(None)
    fake_s3.release()


def leaders(processes) -> list:
    """The process ids of detached uploaders, each of which leads a session."""
    found = processes.running("cacheplugin.pool.uploader")
    return [pid for pid in found if os.getsid(pid) == pid]


# -- every end of a session ------------------------------------------------------------------------


def put_until_killed(plugin, source, after_s) -> dict:
    """Put random bodies and close, until killed; returns the answered puts, {action: body}."""
    answered = {}
    timer = threading.Timer(after_s, plugin.process.kill)
    timer.start()
    try:
        for _ in range(60):
            body = source.randbytes(int(source.paretovariate(0.4)) % 100_000)
            if source.random() < 0.2 and answered:
                body = source.choice(list(answered.values()))
            action = action_id(source.randrange(10**9))
            number = plugin.put(action, body)
            got = plugin.line()
            if got is None:
                break
            assert got["ID"] == number and "DiskPath" in got
            answered[action] = body
        plugin.close()
        plugin.line()
    except (BrokenPipeError, ConnectionResetError):
        pass
    plugin.process.wait(DEADLINE_S)
    timer.cancel()
    return answered


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_any_moment_and_flushed(start, fake_s3, processes, cache_dir, flush, seed):
    """SIGKILL at random moments: every answered put reaches the bucket."""
    source = random.Random(seed)
    answered = {}
    for _ in range(6):
        plugin = start(*fake_s3.flags(), "--prefix=team").hello()
        answered |= put_until_killed(plugin, source, source.random() ** 2 * 1.5)
    processes.expect_none()  # waits for an uploader that a session may have started
    status, out, err = flush()
    assert (status, err) == (0, "") and out == summary(int(out.partition(" ")[0]))
    assert len(answered) > 20
    expect_uploaded(fake_s3.objects, cache_dir, answered, "team/")


@pytest.mark.parametrize("end", ["interrupt", "terminate", "drain timeout", "kill", "all killed"])
def test_unfinished_uploads_stay_for_flush(start, fake_s3, processes, cache_dir, flush, end):
    """Ctrl-C, SIGTERM, --drain-timeout and SIGKILL while S3 hangs: flush uploads the rest."""
    hang(fake_s3)
    puts = some(3)
    flags = ["--drain-timeout=50ms"] if end == "drain timeout" else []
    plugin = start(*fake_s3.flags(), *flags).hello()
    put_all(plugin, puts)
    wait_until(lambda: fake_s3.held, "the upload")
    if end == "interrupt":
        os.killpg(plugin.pid, signal.SIGINT)
    elif end == "terminate":
        kill(plugin.pid, signal.SIGTERM)
    elif end == "kill":
        kill(plugin.pid)
    elif end == "all killed":
        for pid in processes.running():
            kill(pid)
    if end in ("interrupt", "drain timeout"):
        plugin.finish()
    plugin.wait()
    processes.expect_none()  # no uploader is started: S3 hangs, or the user wants an end
    assert not fake_s3.objects
    assert count_pending(Store(str(cache_dir))) == len(puts)
    mend(fake_s3)
    assert flush() == (0, summary(len(puts)), "")
    expect_uploaded(fake_s3.objects, cache_dir, puts)


def test_upload_off_uploads_nothing_until_flush(start, fake_s3, cache_dir, flush, processes):
    """--upload=off sends no requests for puts; flush does."""
    puts = some(4)
    leave(start, fake_s3, puts, "--prefix=a/b")
    processes.expect_none()
    assert fake_s3.requests == []
    assert flush() == (0, summary(4), "")
    expect_uploaded(fake_s3.objects, cache_dir, puts, "a/b/")
    assert flush() == (0, summary(0), "")


def test_a_session_that_uploads_everything_leaves_no_spool(start, fake_s3, cache_dir, processes):
    """After a close that waited for uploads the spool is empty, and no uploader runs."""
    puts = some(4)
    plugin = start(*fake_s3.flags()).hello()
    put_all(plugin, puts)
    plugin.finish()
    expect_uploaded(fake_s3.objects, cache_dir, puts)
    assert fake_s3.count("PUT", "action/") == 4


def test_the_latest_of_two_spooled_puts_is_uploaded(start, fake_s3, cache_dir, flush):
    """Two sessions spooled a put of the same action: the bucket has the later one."""
    a = action_id("a")
    leave(start, fake_s3, {a: b"first"})
    leave(start, fake_s3, {a: b"second"})
    assert flush() == (0, summary(2), "")
    expect_uploaded(fake_s3.objects, cache_dir, {a: b"second"})


def test_a_late_upload_does_not_replace_a_later_put(start, fake_s3, cache_dir, processes):
    """An older put of a dead session is uploaded when the bucket has a newer record."""
    a = action_id("a")
    leave(start, fake_s3, {a: b"first"})
    plugin = start(*fake_s3.flags()).hello()
    put_all(plugin, {a: b"second"})
    plugin.finish()  # its uploader then uploads the first put
    processes.expect_none()
    expect_uploaded(fake_s3.objects, cache_dir, {a: b"second"})


def test_an_older_put_replaces_a_damaged_one(start, fake_s3, cache_dir, flush):
    """If the body of the latest put is damaged, the put before it is uploaded."""
    a = action_id("a")
    leave(start, fake_s3, {a: b"first"})
    first_time_ns = stored_time_ns(cache_dir, a)
    leave(start, fake_s3, {a: b"second"})
    os.truncate(next(cache_dir.glob(f"output/*/{output_id(b'second')}")), 3)
    assert flush() == (0, summary(1, dropped=1), "")
    output = output_id(b"first")
    assert fake_s3.objects == {
        f"action/{a[:2]}/{a}": f"{output} {first_time_ns}".encode(),
        f"output/{output[:2]}/{output}": b"first",
    }


def test_small_bodies_are_not_spooled(start, fake_s3, cache_dir, flush):
    """Bodies below --min-upload-size are never uploaded."""
    leave(start, fake_s3, {action_id("s"): b"123", action_id("l"): b"1234"}, "--min-upload-size=4")
    assert flush() == (0, summary(1), "")
    expect_uploaded(fake_s3.objects, cache_dir, {action_id("l"): b"1234"})
    assert len(fake_s3.objects) == 2


def test_without_a_bucket_nothing_is_spooled(start, cache_dir):
    """A session without a bucket makes no spool."""
    plugin = start().hello()
    plugin.expect_stored(action_id("a"), BODY)
    plugin.finish()
    assert not (cache_dir / "spool").exists()


def test_a_pruned_entry_is_uploaded(start, fake_s3, cache_dir, flush):
    """The link in the spool keeps a body whose output and record were removed from the store."""
    plugin = start(*fake_s3.flags(), "--upload=off").hello()
    put_time = plugin.expect_stored(action_id("a"), BODY)["Time"]
    plugin.finish()
    shutil.rmtree(cache_dir / "output")
    shutil.rmtree(cache_dir / "action")
    assert flush() == (0, summary(1), "")
    a, output = action_id("a"), output_id(BODY)
    assert fake_s3.objects == {
        f"action/{a[:2]}/{a}": f"{output} {time_ns(put_time)}".encode(),
        f"output/{output[:2]}/{output}": BODY,
    }


# -- background uploads ----------------------------------------------------------------------------


def test_background_answers_close_at_once(start, fake_s3, cache_dir, processes):
    """While S3 blocks, close is answered, stderr is closed, and one uploader goes on."""
    fake_s3.hold = lambda method, key: method == "PUT"
    puts = some(4)
    plugin = start(*fake_s3.flags(), "--upload=background").hello()
    put_all(plugin, puts)
    plugin.finish()  # which reads stdout to its end
    (uploader,) = wait_until(lambda: leaders(processes), "the uploader")
    stderr = str(plugin._stderr_path)
    for pid in processes.running():
        assert stderr not in _open_files(pid)
    assert set(_open_files(uploader)[:3]) == {os.devnull}
    wait_until(lambda: fake_s3.held, "the upload")
    assert not fake_s3.objects
    fake_s3.release()
    processes.expect_none()
    expect_uploaded(fake_s3.objects, cache_dir, puts)
    assert plugin.stderr == ""


def _open_files(pid) -> list:
    """The paths of the open files of a process, by descriptor."""
    found = []
    for fd in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            pass  # closed meanwhile
    return found


def test_one_uploader_for_many_sessions(start, fake_s3, cache_dir, processes):
    """A running uploader also uploads for sessions that end meanwhile."""
    fake_s3.hold = lambda method, key: method == "PUT"
    everything = {}
    for n in range(3):
        puts = some(3, f"session {n}")
        everything |= puts
        plugin = start(*fake_s3.flags(), "--upload=background").hello()
        put_all(plugin, puts)
        plugin.finish()
        (first,) = wait_until(
            lambda: len(leaders(processes)) == 1 and leaders(processes), "one uploader"
        )
        if n == 0:
            uploader = first
            wait_until(lambda: processes.pool(), "its pool")
        assert first == uploader
    fake_s3.release()
    processes.expect_none()
    expect_uploaded(fake_s3.objects, cache_dir, everything)


def test_the_next_session_starts_an_uploader_for_a_dead_one(start, fake_s3, cache_dir, processes):
    """A session of hits starts the uploader for a session that was killed."""
    hang(fake_s3)
    puts = some(3)
    plugin = start(*fake_s3.flags()).hello()
    put_all(plugin, puts)
    plugin.kill()
    processes.expect_none()
    mend(fake_s3)
    plugin = start(*fake_s3.flags()).hello()
    plugin.expect_hit(*next(iter(puts.items())))
    plugin.finish()
    processes.expect_none()
    expect_uploaded(fake_s3.objects, cache_dir, puts)


def test_a_killed_uploader_is_followed_by_another(start, fake_s3, cache_dir, processes):
    """The next session starts another uploader for the rest."""
    hang(fake_s3)
    puts = some(3)
    plugin = start(*fake_s3.flags(), "--upload=background").hello()
    put_all(plugin, puts)
    plugin.finish()
    wait_until(lambda: fake_s3.held, "the upload")
    for pid in processes.running():
        kill(pid)
    processes.expect_none()
    mend(fake_s3)
    start(*fake_s3.flags(), "--upload=background").hello().finish()
    processes.expect_none()
    expect_uploaded(fake_s3.objects, cache_dir, puts)


def test_entries_go_to_their_own_bucket_and_prefix(
    start, fake_s3, other_s3, cache_dir, processes, flush
):
    """The spool keeps apart sessions with different buckets and prefixes."""
    here, there, prefixed = some(3, "here"), some(3, "there"), some(3, "prefixed")
    leave(start, fake_s3, here)
    leave(start, fake_s3, prefixed, "--prefix=p")
    plugin = start(*other_s3.flags()).hello()
    put_all(plugin, there)
    plugin.finish()  # its uploader then uploads the other entries
    processes.expect_none()
    objects = fake_s3.objects
    expect_uploaded(other_s3.objects, cache_dir, there)
    expect_uploaded({k: v for k, v in objects.items() if k[:2] != "p/"}, cache_dir, here)
    expect_uploaded({k: v for k, v in objects.items() if k[:2] == "p/"}, cache_dir, prefixed, "p/")
    assert len(objects) == 12 and len(other_s3.objects) == 6


@pytest.mark.parametrize("flags", [["--read-only"], ["--read-only", "--upload=background"]])
def test_a_read_only_session_leaves_the_spool_alone(
    start, fake_s3, cache_dir, processes, flush, flags
):
    """It spools none of its puts, and starts no uploader for what is in the spool."""
    puts = some(3)
    leave(start, fake_s3, puts)
    before = in_spool(cache_dir)
    plugin = start(*fake_s3.flags(), *flags).hello()
    plugin.expect_stored(action_id("read only"), b"read only")
    plugin.finish()
    processes.expect_none()
    assert in_spool(cache_dir) == before and fake_s3.count("PUT") == 0
    assert flush() == (0, summary(3), "")
    expect_uploaded(fake_s3.objects, cache_dir, puts)
    assert len(fake_s3.objects) == 6


# -- the command flush -----------------------------------------------------------------------------


def test_two_flushes_at_once_are_one_uploader_at_a_time(
    start, fake_s3, cache_dir, processes, begin_flush
):
    """The second flush waits for the first and finds nothing to do; nothing is sent twice."""
    puts = some(3)
    leave(start, fake_s3, puts)
    fake_s3.hold = lambda method, key: method == "PUT"
    first = begin_flush()
    wait_until(lambda: fake_s3.held, "the upload")
    second = begin_flush()
    wait_until(lambda: _waits_for_a_lock(second), "its wait for the first")
    assert len(processes.pool()) == 1 and first.poll() is None
    fake_s3.release()
    assert first.communicate(timeout=DEADLINE_S) == (summary(3), "")
    assert second.communicate(timeout=DEADLINE_S) == (summary(0), "")
    assert first.returncode == second.returncode == 0
    expect_uploaded(fake_s3.objects, cache_dir, puts)
    assert fake_s3.count("PUT", "action/") == 3


def _waits_for_a_lock(process) -> bool:
    waits = rf"-> FLOCK +ADVISORY +WRITE {process.pid} "
    return bool(re.search(waits, Path("/proc/locks").read_text()))


def test_flush_waits_for_another_up_to_its_timeout(start, fake_s3, begin_flush, flush):
    """Then it prints why and exits with 1."""
    leave(start, fake_s3, some(2))
    hang(fake_s3)
    first = begin_flush()
    wait_until(lambda: fake_s3.held, "the upload")
    status, out, err = flush("--timeout=200ms")
    assert (status, err) == (1, "") and "another uploader" in out
    mend(fake_s3)
    first.communicate(timeout=DEADLINE_S)


def test_flush_gives_up_a_hanging_s3_at_its_timeout(start, fake_s3, cache_dir, processes, flush):
    """Exit status 1; the remaining entries are counted and stay in the spool."""
    puts = some(3)
    leave(start, fake_s3, puts)
    hang(fake_s3)
    began = time.monotonic()
    status, out, err = flush("--timeout=1500ms")
    assert (status, out) == (1, summary(0, remain=3))
    assert "3 entries for bucket bucket at http://127.0.0.1:" in err and err.count("\n") == 1
    assert time.monotonic() - began < 15
    processes.expect_none()
    mend(fake_s3)
    assert flush("--timeout=60s") == (0, summary(3), "")
    expect_uploaded(fake_s3.objects, cache_dir, puts)


@pytest.mark.parametrize("fault", ["refuse", "503", "403", "InvalidAccessKeyId"])
def test_flush_with_s3_down(start, fake_s3, cache_dir, flush, fault):
    """Exit status 1; everything stays in the spool for the next flush."""
    puts = some(3)
    leave(start, fake_s3, puts)
    fake_s3.fail(fault)
    status, out, err = flush()
    assert (status, out) == (1, summary(0, remain=3)) and "Traceback" not in err
    assert count_pending(Store(str(cache_dir))) == 3
    if fault != "refuse":
        fake_s3.fail(None)
        assert flush() == (0, summary(3), "")
        expect_uploaded(fake_s3.objects, cache_dir, puts)


def test_flush_without_a_usable_spool_directory(processes, cache_dir, flush):
    """If the lock cannot be made: one line on stderr, exit status 2."""
    cache_dir.mkdir()
    (cache_dir / "spool").write_text("in the way")
    status, out, err = flush()
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert err.startswith(f"go-cache-plugin: the cache directory {cache_dir} cannot be used: ")


def test_flush_drops_damaged_entries(start, fake_s3, cache_dir, flush):
    """Entries with damaged or missing bodies are counted as dropped, and never uploaded."""
    puts = {action_id(word): word.encode() * 99 for word in ("right", "flipped", "cut", "gone")}
    leave(start, fake_s3, puts)

    def outputs(word):
        return cache_dir.glob(f"**/{output_id(puts[action_id(word)])}")

    with open(next(outputs("flipped")), "r+b") as file:  # the link in the spool has the same inode
        file.write(b"F")
    os.truncate(next(outputs("cut")), 10)
    for path in list(outputs("gone")):
        path.unlink()
    assert flush() == (0, summary(1, dropped=3), "")
    right = {action_id("right"): puts[action_id("right")]}
    expect_uploaded(fake_s3.objects, cache_dir, right)
    assert len(fake_s3.objects) == 2


@pytest.mark.parametrize("layout", ["objects", "bundles"])
def test_an_unreadable_body_keeps_back_no_other(start, fake_s3, cache_dir, flush, layout):
    """Its entry stays in the spool, and each flush names it once, until it can be read."""
    puts = {action_id(word): word.encode() * 99 for word in ("one", "two", "three")}
    plugin = start(*fake_s3.flags(layout=layout), "--upload=off", "--scope=s").hello()
    put_all(plugin, puts)
    plugin.finish()
    output = output_id(b"two" * 99)
    (link,) = cache_dir.glob(f"spool/*/*/{output}")
    (path,) = cache_dir.glob(f"output/*/{output}")
    link.unlink()
    path.rename(tmp := cache_dir / "aside")
    path.symlink_to(path)  # no user can read it
    reason = f"{path} cannot be read: too many levels of symbolic links"
    for uploaded in (2, 0):
        status, out, err = flush()
        assert (status, out) == (1, summary(uploaded, remain=1))
        assert err.count(f"an entry was not uploaded and stays in the spool: {reason}\n") == 1
        assert err.count("\n") == 2
    tmp.rename(path)
    assert flush() == (0, summary(1), "")
    fresh = start(*fake_s3.flags(layout=layout), "--scope=s", cache_dir=cache_dir / "fresh").hello()
    for action, body in puts.items():
        fresh.expect_hit(action, body)
    fresh.finish()


def test_flush_does_not_upload_for_a_live_session(start, fake_s3, cache_dir, flush):
    """Flush reports that the entries of the session remain."""
    dead, live = some(3, "dead"), some(3, "live")
    leave(start, fake_s3, dead)
    plugin = start(*fake_s3.flags(), "--upload=off").hello()
    put_all(plugin, live)
    status, out, err = flush()
    assert (status, out) == (1, summary(3, remain=3))
    assert err.endswith("; a session is still running\n") and err.count("\n") == 1
    assert len(fake_s3.objects) == 6
    plugin.finish()
    assert flush() == (0, summary(3), "")
    expect_uploaded(fake_s3.objects, cache_dir, dead | live)


def test_flush_leaves_a_target_of_another_version_alone(start, fake_s3, cache_dir, flush):
    """Entries spooled by a newer program are reported and stay in the spool."""
    leave(start, fake_s3, some(2))
    (target,) = cache_dir.glob("spool/*/target")
    target.write_text(target.read_text().replace('"objects"', '"newer"'))
    before = in_spool(cache_dir)
    status, out, err = flush()
    assert (status, out) == (1, summary(0, remain=2))
    assert err.count("\n") == 2 and "another version" in err
    assert in_spool(cache_dir) == before and not fake_s3.requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_flush_that_is_stopped_loses_nothing(
    start, fake_s3, cache_dir, processes, flush, begin_flush, number
):
    """After Ctrl-C, SIGTERM or SIGKILL the next flush uploads the rest."""
    puts = some(4)
    leave(start, fake_s3, puts)
    hang(fake_s3)
    fake_s3.faulty = lambda method, key: key.startswith("action/")
    stopped = begin_flush()
    wait_until(lambda: fake_s3.held, "the upload of a record")
    os.killpg(stopped.pid, number)
    _, err = stopped.communicate(timeout=DEADLINE_S)
    assert stopped.returncode != 0 and "Traceback" not in err
    processes.expect_none()
    mend(fake_s3)
    assert flush() == (0, summary(4), "")
    expect_uploaded(fake_s3.objects, cache_dir, puts)


def test_flush_without_a_cache_directory(flush, cache_dir):
    """A missing directory is not an error, and is not created; a plain file is an error."""
    assert flush() == (0, f"{cache_dir} does not exist: nothing to upload\n", "")
    assert not cache_dir.exists()
    cache_dir.write_text("")
    status, out, err = flush()
    assert (status, out) == (2, "") and err.count("\n") == 1 and str(cache_dir) in err


def test_flush_of_a_directory_without_a_spool(start, flush, cache_dir):
    """Without anything to upload flush succeeds."""
    cache_dir.mkdir()
    assert flush() == (0, summary(0), "")


# -- large bodies, on a server with multipart uploads ----------------------------------------------


def test_unfinished_multipart_uploads_are_aborted(processes, cache_dir, tmp_path, bucket, flush):
    """After a kill between two parts flush aborts the upload of that output, and repeats it."""
    body = random.Random(1).randbytes(40 << 20)
    output = output_id(body)
    key = f"output/{output[:2]}/{output}"

    def unfinished():
        found = bucket.client.list_multipart_uploads(Bucket=bucket.name)
        return [upload["Key"] for upload in found.get("Uploads", ())]

    bucket.client.create_multipart_upload(Bucket=bucket.name, Key="output/of-another-client")
    plugin = Plugin(
        [f"--cache-dir={cache_dir}", *bucket.flags], processes.environ(), tmp_path / "stderr"
    )
    try:
        plugin.hello()
        plugin.answer(plugin.put(action_id("large"), body))
        wait_until(lambda: key in unfinished(), "its first part")
    finally:
        for pid in processes.running():
            kill(pid)
        plugin.kill()
    processes.expect_none()
    assert sorted(unfinished()) == sorted([key, "output/of-another-client"])
    assert flush() == (0, summary(1), "")
    assert unfinished() == ["output/of-another-client"]
    assert bucket.read(key) == body
    assert len(bucket.keys()) == 2 and session_directories(str(cache_dir)) == []
