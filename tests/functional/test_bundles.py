"""The layout bundles, end to end: one machine fills the bucket, an empty one reads from it."""

import os
import random
import re
import shutil
import time
from pathlib import Path

from bundle_sessions import (
    bundle_gets,
    close_and_leave,
    expect_all,
    fill,
    get_all,
    keys,
    noise,
    put_all,
    some,
    take_requests,
)
from helpers import (
    DEADLINE_S,
    KEYS,
    action_id,
    b64,
    output_id,
    proc,
    stored_bodies,
    temporaries,
    wait_until,
)

NO_KEYS = dict.fromkeys(KEYS, "")


# -- uploads and fetches ---------------------------------------------------------------------------


def test_deleted_directory_is_filled_by_three_requests(machine, fake_s3, tmp_path):
    """A listing, a manifest and a range bring all bodies with their times; no get is a miss."""
    puts = some(60)
    plugin = machine("a")
    put_all(plugin, puts)
    times = expect_all(plugin, puts)
    counts = plugin.finish()
    assert counts["put_s3_action"] == 60 and "put_s3_error" not in counts
    assert counts["put_s3_found"] == 1  # one body was put twice
    assert [method for method, _ in fake_s3.requests].count("PUT") == 2

    shutil.rmtree(tmp_path / "a")
    take_requests(fake_s3)
    plugin = machine("a")
    assert expect_all(plugin, puts) == times
    counts = plugin.finish()
    assert counts["get_fault_hit"] == counts["get_requests"] == 60
    assert not {"get_misses", "put_s3_action", "get_local_hit"} & set(counts)
    assert [key.partition("/")[0] for _, key in take_requests(fake_s3)] == [
        "?list manifest",
        "manifest",
        "bundle",
    ]
    bodies = stored_bodies(tmp_path / "a")
    assert set(bodies) == {output_id(body) for body in puts.values()}
    assert all(output_id(body) == name for name, body in bodies.items())
    assert not temporaries(tmp_path / "a")


def test_concurrent_gets(machine, fake_s3):
    """Gets that are sent without waiting for answers are all answered."""
    puts = some(40) | noise(5, 1 << 20)
    fill(machine("a"), puts)
    plugin = machine("b")
    answers = get_all(plugin, puts)
    assert [got["OutputID"] for got in answers] == [b64(output_id(body)) for body in puts.values()]
    assert all(
        Path(got["DiskPath"]).read_bytes() == body for got, body in zip(answers, puts.values())
    )
    counts = plugin.finish()
    assert counts["get_fault_hit"] == len(puts)
    assert 5 << 20 < counts["get_fault_bytes"] < 6 << 20
    assert bundle_gets(fake_s3) <= 4


def test_session_of_local_hits_starts_no_pool(machine, fake_s3, processes):
    """It sends no request either."""
    puts = some(10)
    fill(machine("a"), puts)
    take_requests(fake_s3)
    plugin = machine("a")
    expect_all(plugin, puts)
    assert not processes.running("cacheplugin.pool.supervisor")
    counts = plugin.finish()
    assert counts["get_local_hit"] == counts["get_requests"] == 10
    assert not take_requests(fake_s3)


def test_empty_directory_is_filled_before_any_get(machine, fake_s3, tmp_path):
    puts = some(10)
    fill(machine("a"), puts)
    plugin = machine("b")
    wait_until(lambda: len(list(tmp_path.glob("b/action/*/*"))) == 10, "all entries")
    take_requests(fake_s3)
    expect_all(plugin, puts)
    assert plugin.finish()["get_fault_hit"] == 10
    assert not take_requests(fake_s3)


def test_unnamed_action_is_a_miss_without_a_request(machine, fake_s3):
    fill(machine("a"), some(3))
    plugin = machine("b")
    plugin.expect_miss(action_id("unknown"))  # answered once the manifests are loaded
    take_requests(fake_s3)
    for n in range(5):
        plugin.expect_miss(action_id(f"unknown {n}"))
    assert not [
        key for _, key in take_requests(fake_s3) if not key.startswith("bundle/")
    ]  # prefetched
    assert plugin.finish()["get_fault_miss"] == 6


def test_empty_bucket_is_listed_once(machine, fake_s3):
    """After that every get is a miss at once."""
    plugin = machine("a")
    plugin.expect_miss(action_id("a"))
    take_requests(fake_s3)
    plugin.expect_miss(action_id("b"))
    plugin.finish()
    assert not take_requests(fake_s3)


def test_only_new_entries_are_bundled(machine, fake_s3):
    """A later session that puts one entry writes a small bundle, and a manifest of all entries."""
    old, new = noise(2, 100_000, "old"), noise(1, 1000, "new")
    fill(machine("a"), old)
    plugin = machine("b")
    expect_all(plugin, old)
    fill(plugin, new)
    first, second = keys(fake_s3, "bundle")
    assert len(fake_s3.objects[first]) > 200_000 and len(fake_s3.objects[second]) < 5000
    take_requests(fake_s3)
    plugin = machine("c")
    expect_all(plugin, old | new)
    assert plugin.finish()["get_fault_hit"] == 3
    assert len([key for _, key in take_requests(fake_s3) if key.startswith("manifest/")]) == 1


def test_body_in_the_bucket_is_not_uploaded_again(machine, fake_s3):
    """A second action with the same output is a row in a manifest, without a bundle."""
    fill(machine("a"), {action_id("a"): b"body" * 100})
    counts = fill(machine("b"), {action_id("b"): b"body" * 100})
    assert counts["put_s3_found"] == 1 and "put_s3_object" not in counts
    assert len(keys(fake_s3, "bundle")) == 1
    plugin = machine("c")
    expect_all(plugin, {action_id("a"): b"body" * 100, action_id("b"): b"body" * 100})
    assert plugin.finish()["get_fault_hit"] == 2


def test_later_put_of_an_action_counts(machine):
    """In whatever order the two sessions end."""
    early, late = machine("a"), machine("b")
    put_all(early, {action_id("a"): b"early"})
    put_all(late, {action_id("a"): b"late"})
    late.finish()
    early.finish()
    plugin = machine("c")
    plugin.expect_hit(action_id("a"), b"late")
    plugin.finish()


def test_truncated_local_bodies_are_fetched_again(machine, tmp_path):
    """A truncated local body is no local hit."""
    puts = noise(3, 500)
    fill(machine("a"), puts)
    for body in puts.values():
        os.truncate(tmp_path / "a" / "output" / output_id(body)[:2] / output_id(body), 10)
    plugin = machine("a")
    expect_all(plugin, puts)
    assert plugin.finish()["get_fault_hit"] == 3


def test_large_bodies(start, bucket, tmp_path):
    """Bodies over 8 MiB, compressible or not, are uploaded in parts and fetched."""
    source = random.Random(1)
    puts = {
        action_id("noise"): source.randbytes((9 << 20) + 1),
        action_id("small"): b"small",
        action_id("text"): b"over and over again " * (1 << 20),
    }
    flags = [*bucket.server.flags(bucket.name, layout="bundles"), "--metrics"]
    plugin = start(*flags).hello()
    put_all(plugin, puts)
    times = expect_all(plugin, puts)
    assert plugin.finish()["put_s3_action"] == 3
    found = [key for key in bucket.keys() if key.startswith("bundle/")]  # noqa: SIM118 # no dict
    (bundle,) = found
    head = bucket.client.head_object(Bucket=bucket.name, Key=bundle)
    assert 9 << 20 < head["ContentLength"] < 10 << 20 and "-2" in head["ETag"]  # two parts
    plugin = start(*flags, cache_dir=tmp_path / "fresh").hello()
    assert expect_all(plugin, puts) == times
    counts = plugin.finish()
    assert counts["get_fault_hit"] == 3 and "get_fault_damaged" not in counts
    assert not temporaries(tmp_path / "fresh")


# -- flags -----------------------------------------------------------------------------------------


def test_min_upload_size(machine):
    puts = {action_id("s"): b"123", action_id("l"): b"1234"}
    counts = fill(machine("a", "--min-upload-size=4"), puts)
    assert counts["put_skip_small"] == 1 and counts["put_s3_action"] == 1
    plugin = machine("b")
    plugin.expect_hit(action_id("l"), b"1234")
    plugin.expect_miss(action_id("s"))
    plugin.finish()


def test_read_only_fetches_but_does_not_upload(machine, fake_s3):
    """It writes no bundle, no manifest though its scope has none, and no spool for a flush."""
    puts = some(5)
    fill(machine("a"), puts)
    plugin = machine("b", "--read-only", "--scope=theirs")
    expect_all(plugin, puts)
    plugin.expect_stored(action_id("own"), b"own")
    counts = plugin.finish()
    assert counts["get_fault_hit"] == 5 and counts["put_skip_read_only"] == 1
    assert fake_s3.count("PUT") == 2 and len(fake_s3.objects) == 2


def test_upload_off_uploads_nothing_until_flush(machine, fake_s3, flush_of, processes):
    puts = some(5)
    fill(machine("a", "--upload=off"), puts)
    processes.expect_none()
    assert not fake_s3.objects
    assert flush_of("a") == (0, 5, 0)
    plugin = machine("b")
    expect_all(plugin, puts)
    assert plugin.finish()["get_fault_hit"] == 5
    assert flush_of("a") == (0, 0, 0)


def test_flush_uses_the_scope_of_the_session(machine, flush_of):
    """Whatever --scope flush itself is given."""
    for scope in ("one", "two"):
        fill(machine("a", "--upload=off", f"--scope={scope}"), {action_id(scope): b"body"})
    assert flush_of("a", "--scope=three") == (0, 2, 0)
    for scope, other in (("one", "two"), ("two", "one")):
        plugin = machine(f"fresh {scope}", f"--scope={scope}")
        plugin.expect_hit(action_id(scope), b"body")
        plugin.expect_miss(action_id(other))
        plugin.finish()


def _waits_for_a_lock(process) -> bool:
    waits = rf"-> FLOCK +ADVISORY +WRITE {process.pid} "
    return bool(re.search(waits, Path("/proc/locks").read_text()))


def test_background_upload_and_flush(machine, fake_s3, begin_flush_of):
    """The session uploads after the go command has ended.

    A flush waits for it and uploads nothing.
    """
    puts = some(5)
    fake_s3.hold = lambda method, key: method == "PUT"
    plugin = machine("a", "--upload=background")
    put_all(plugin, puts)
    close_and_leave(plugin)
    wait_until(lambda: fake_s3.held, "the bundle")
    assert plugin.process.poll() is None
    flush = begin_flush_of("a")
    wait_until(lambda: _waits_for_a_lock(flush), "the flush to wait for the session")
    fake_s3.release()
    out, err = flush.communicate(timeout=DEADLINE_S)
    assert (flush.returncode, err.count("\n")) == (0, 1) and "waiting for a session" in err
    assert out.startswith("0 entries uploaded")
    assert out.endswith(" 0 remain\n") and plugin.wait() == 0
    assert fake_s3.count("PUT") == 2
    plugin = machine("b")
    expect_all(plugin, puts)
    assert plugin.finish()["get_fault_hit"] == 5


def activity(pid):
    """(voluntary context switches, clock ticks of CPU time) of a process since its start."""
    sleeps = re.search(rb"\nvoluntary_ctxt_switches:\s+(\d+)", proc(pid, "status"))[1]
    user, system = proc(pid, "stat").rpartition(b")")[2].split()[11:13]
    return int(sleeps), int(user) + int(system)


def test_waiting_session_takes_no_cpu(machine, fake_s3):
    """A session that waits for S3 leaves the CPU to the builds beside it."""
    fake_s3.hold = lambda method, key: method == "PUT"
    plugin = machine("a", "--upload=background", "--drain-timeout=10ms")
    put_all(plugin, some(1))
    close_and_leave(plugin)
    wait_until(lambda: fake_s3.held, "the bundle")
    sleeps, ticks = activity(plugin.pid)
    time.sleep(0.5)
    sleeps_later, ticks_later = activity(plugin.pid)
    fake_s3.release()
    assert plugin.wait() == 0
    assert sleeps_later - sleeps < 25 and ticks_later - ticks < 10


def test_drain_timeout_leaves_entries_for_flush(machine, fake_s3, flush_of, processes):
    """stderr says how many entries were not uploaded."""
    puts = some(5)
    fake_s3.hold = lambda method, key: method == "PUT" and key.startswith("manifest/")
    plugin = machine("a", "--drain-timeout=300ms")
    put_all(plugin, puts)
    plugin.finish()
    assert "5 uploads not finished within --drain-timeout" in plugin.stderr
    processes.expect_none()
    fake_s3.release()
    assert flush_of("a") == (0, 5, 0)
    plugin = machine("b")
    expect_all(plugin, puts)
    assert plugin.finish()["get_fault_hit"] == 5


def test_missing_credentials(machine, fake_s3):
    """The session prints one warning and is a local cache."""
    plugin = machine("a", environ=NO_KEYS)
    plugin.expect_miss(action_id("unknown"))
    for n in range(3):
        plugin.expect_stored(action_id(n), b"body")
    plugin.finish()
    warning, *_, state = (line for line in plugin.stderr.splitlines() if "gocache_" not in line)
    assert "is not used: no AWS credentials found" in warning
    assert plugin.stderr.count("is not used: ") == 1
    assert "bucket bucket: not used, no AWS credentials found" in state
    assert not fake_s3.requests
