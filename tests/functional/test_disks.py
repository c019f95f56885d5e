"""Directories that are full, not writable, or of another user; and a body of 256 MB."""

import base64
import ctypes
import hashlib
import os
import resource
import threading
from pathlib import Path

import pytest

from helpers import NOBODY, action_id, memory_kb, output_id, stored_bodies, temporaries

MB = 1 << 20

PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER = 1, 2, 3


@pytest.fixture
def as_stranger():
    """Arguments of Popen for a child of an unprivileged user."""
    if os.getuid():
        pytest.skip("only root can give files to another user")
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def give_up_roots_rights():
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER):
            if prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "prctl")

    return {"preexec_fn": give_up_roots_rights}


def give_to_another_user(cache_dir) -> None:
    for path in [cache_dir, *cache_dir.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)


def test_a_body_that_a_full_disk_does_not_take_is_kept_for_the_session(start, full_disk, tmp_path):
    body = os.urandom(2 * MB)
    plugin = start(cache_dir=full_disk / "cache").hello()
    small = plugin.expect_stored(action_id("small"), b"small")
    large = plugin.expect_stored(action_id("large"), body)
    assert Path(small["DiskPath"]).is_relative_to(full_disk)
    assert Path(large["DiskPath"]).is_relative_to(tmp_path / "tmp")
    plugin.finish()
    assert Path(large["DiskPath"]).read_bytes() == body  # tools open it after the session
    assert stored_bodies(full_disk / "cache") == {output_id(b"small"): b"small"}
    assert not temporaries(full_disk / "cache")


def test_old_unused_entries_are_removed_on_a_full_disk(start, full_disk):
    cache_dir = full_disk / "cache"
    plugin = start(cache_dir=cache_dir).hello()
    old, new, lately = (os.urandom(400_000) for _ in range(3))
    plugin.expect_stored(action_id("old"), old)
    plugin.expect_stored(action_id("lately"), lately)
    os.utime(cache_dir / "output" / output_id(old)[:2] / output_id(old), (1e9, 1e9))
    got = plugin.expect_stored(action_id("new"), new)
    assert Path(got["DiskPath"]).is_relative_to(full_disk)
    plugin.expect_hit(action_id("lately"), lately)
    plugin.expect_miss(action_id("old"))
    plugin.finish()


def test_a_body_that_fits_nowhere_fails_the_put_with_a_clear_message(start, small_disk, fake_s3):
    disk, temporary = small_disk("disk"), small_disk("tmp")
    cache_dir = disk / "cache"
    plugin = start(*fake_s3.flags(), cache_dir=cache_dir).hello()
    answer = plugin.answer(plugin.put(action_id("large"), os.urandom(2 * MB)))
    assert answer["Err"] == "cannot store the output: No space left on device"
    plugin.expect_miss(action_id("large"))
    plugin.expect_stored(action_id("small"), b"small")  # this one fits
    plugin.finish()
    assert stored_bodies(cache_dir) == {output_id(b"small"): b"small"}
    assert not [
        path
        for path in [*disk.rglob("*"), *temporary.rglob("*")]
        if path.is_file() and path.stat().st_size > 1000
    ]
    assert fake_s3.count("PUT") == 2


def test_a_fetch_that_a_full_disk_does_not_take_is_a_miss(start, full_disk, fake_s3):
    body = os.urandom(2 * MB)
    action, output = action_id("a"), output_id(body)
    fake_s3.objects[f"action/{action[:2]}/{action}"] = f"{output} 1700000000000000001".encode()
    fake_s3.objects[f"output/{output[:2]}/{output}"] = body
    plugin = start(*fake_s3.flags(), cache_dir=full_disk / "cache").hello()
    plugin.expect_miss(action)
    plugin.finish()
    assert stored_bodies(full_disk / "cache") == {} and not temporaries(full_disk / "cache")


def test_a_file_size_limit_fails_the_put_with_a_clear_message(start, cache_dir):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (MB, MB))

    plugin = start(preexec_fn=limit).hello()
    answer = plugin.answer(plugin.put(action_id("large"), os.urandom(2 * MB)))
    assert answer["Err"] == "cannot store the output: File too large"
    plugin.expect_stored(action_id("small"), b"small")
    plugin.finish()
    assert stored_bodies(cache_dir) == {output_id(b"small"): b"small"}
    assert not temporaries(cache_dir)


def test_read_only_over_a_directory_that_cannot_be_written(
    start, cache_dir, tmp_path, as_stranger, fake_s3
):
    owner = start().hello()
    owner.expect_stored(action_id("theirs"), b"theirs")
    owner.finish()
    give_to_another_user(cache_dir)
    files = sorted(cache_dir.rglob("*"))
    body = b"in the bucket"
    action, output = action_id("remote"), output_id(body)
    fake_s3.objects[f"action/{action[:2]}/{action}"] = f"{output} 1700000000000000001".encode()
    fake_s3.objects[f"output/{output[:2]}/{output}"] = body
    plugin = start(*fake_s3.flags(), "--read-only", **as_stranger).hello()
    plugin.expect_hit(action_id("theirs"), b"theirs")
    got = plugin.expect_stored(action_id("ours"), b"ours")
    assert Path(got["DiskPath"]).is_relative_to(tmp_path / "tmp")
    plugin.expect_hit(action, body)
    plugin.finish()
    assert sorted(cache_dir.rglob("*")) == files and plugin.stderr == ""


def test_a_directory_that_cannot_be_written_is_one_line_and_exit_2(start, cache_dir, as_stranger):
    cache_dir.mkdir()
    give_to_another_user(cache_dir)
    plugin = start(**as_stranger)
    assert plugin.line() is None and plugin.wait() == 2
    (line,) = plugin.stderr.splitlines()
    assert str(cache_dir) in line and "permission denied" in line


def test_a_shared_directory_with_another_users_files(start, cache_dir, tmp_path, as_stranger):
    """Entries of the other user are hits; puts that cannot be written there serve the session."""
    theirs = start().hello()
    theirs.expect_stored(action_id("theirs"), b"theirs")
    for n in range(20):
        theirs.expect_stored(action_id(n), b"body %d" % n)
    theirs.finish()
    give_to_another_user(cache_dir)
    for path in [cache_dir, *cache_dir.glob("*")]:
        path.chmod(0o777)  # shared; the first user owns the directories below
    ours = start(**as_stranger).hello()
    ours.expect_hit(action_id("theirs"), b"theirs")
    for n in range(40):
        ours.expect_stored(action_id(n), b"new %d" % n)
    ours.expect_stored(
        action_id("ours"), b"theirs"
    )  # a body of the other user under an action of this one
    ours.finish()
    assert ours.stderr == ""
    assert stored_bodies(cache_dir)[output_id(b"theirs")] == b"theirs"
    assert not temporaries(cache_dir)


def test_eight_processes_put_the_same_entries(start, cache_dir):
    bodies = [os.urandom(1000 * n) for n in range(12)]
    plugins = [start() for _ in range(8)]
    for plugin in plugins:
        plugin.hello()
    for _ in range(3):
        for n, body in enumerate(bodies):
            numbers = [plugin.put(action_id(n), body) for plugin in plugins]
            for plugin, number in zip(plugins, numbers):
                assert Path(plugin.answer(number)["DiskPath"]).read_bytes() == body
    for plugin in plugins:
        for n, body in enumerate(bodies):
            plugin.expect_hit(action_id(n), body)
        plugin.finish()
    assert stored_bodies(cache_dir) == {output_id(body): body for body in bodies}
    assert len(list(cache_dir.glob("action/*/*"))) == 12 and not temporaries(cache_dir)


def test_a_body_of_256_mb_needs_constant_memory(start):
    size = 256 * MB
    sha256, zeros = hashlib.sha256(), bytes(3 * MB // 4)
    for _ in range(size // len(zeros)):
        sha256.update(zeros)
    sha256.update(bytes(size % len(zeros)))
    plugin = start().hello()
    plugin.expect_stored(action_id("small"), b"small")
    before = memory_kb(plugin.pid, "VmRSS")
    number = plugin.begin_put(action_id("a"), sha256.hexdigest(), size)
    encoded = base64.b64encode(zeros)
    plugin.send(b'"')

    def feed():
        for _ in range(size // len(zeros)):
            plugin.process.stdin.write(encoded)
        plugin.process.stdin.write(base64.b64encode(bytes(size % len(zeros))) + b'"\n')

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert os.path.getsize(plugin.answer(number, 60)["DiskPath"]) == size
    feeder.join()
    assert memory_kb(plugin.pid, "VmHWM") - before <= 16 * 1024
    plugin.finish()
