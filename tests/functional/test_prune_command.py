"""The command prune: exit status, signals, and use beside other processes."""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cacheplugin.store.cache import LocalCache
from cacheplugin.store.prune import prune
from cacheplugin.store.tree import Store
from helpers import DEADLINE_S, PROGRAM, action_id, output_id, wait_until

HOUR_S = 3600

# Runs the program with os.unlink replaced: before call number AT it sends itself the signal NUMBER.
SIGNALLED = """
import os, sys
at, number = int(sys.argv.pop(1)), int(sys.argv.pop(1))
unlink, calls = os.unlink, []
def signalled(path, **where):
    calls.append(path)
    if len(calls) == at:
        os.kill(os.getpid(), number)
    unlink(path, **where)
os.unlink = signalled
from cacheplugin.main import main
main()
"""

# Puts entries, makes some look old, and reads them; a hit with a wrong body is a failure. Two
# actions share each body; the first ten are never made old. Ends at the end of stdin and prints the
# number of hits.
BUSY = """
import hashlib, os, random, select, sys, time
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.tree import Store
cache = LocalCache(Store(sys.argv[1]))
hits = 0
while not select.select([0], [], [], 0)[0]:
    number = random.randrange(30)
    action = hashlib.sha256(b"action %d" % number).hexdigest()
    body = b"%d" % (number // 2) * 3000
    found = cache.lookup(action)
    if found is not None:
        output, size, _, path, _ = found
        try:
            with open(path, "rb") as file:
                assert file.read() == body, (number, path)
            hits += 1
        except FileNotFoundError:
            assert number >= 10, "an entry that was never old is gone"
    else:
        assert number >= 10, "an entry that was never old is a miss"
        with cache.writer(action, hashlib.sha256(body).hexdigest(), len(body)) as writer:
            writer.write(body)
            path = writer.commit(time.time_ns())
    if number >= 10 and random.random() < 0.2:
        for old in (path, cache.store.action_path(action)):
            try:
                os.utime(old, (time.time() - 7200,) * 2)
            except FileNotFoundError:
                pass
print(hits)
"""


@pytest.fixture
def cache(cache_dir):
    return LocalCache(Store(str(cache_dir)))


@pytest.fixture
def run(processes, cache_dir):
    """run(*flags, program=[...]): runs ``prune`` on the test's directory to its end."""

    def run(*flags, program=(PROGRAM,)):
        return subprocess.run(
            [*program, "prune", f"--cache-dir={cache_dir}", *flags],
            env=processes.environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )

    return run


def store(cache, name, hours: float) -> bytes:
    """Store an entry last used ``hours`` ago; return its body."""
    body = f"body of {name} ".encode() * 100
    with cache.writer(action_id(name), output_id(body), len(body)) as writer:
        writer.write(body)
        path = writer.commit(time.time_ns())
    used = time.time() - hours * HOUR_S
    for used_path in (path, cache.store.action_path(action_id(name))):
        os.utime(used_path, (used, used))
    return body


def found(cache, bodies) -> list:
    """Return the names that a lookup finds, after checking their bodies."""
    names = []
    for name, body in bodies.items():
        hit = cache.lookup(action_id(name))
        if hit is not None:
            with open(hit[3], "rb") as file:
                assert file.read() == body
            names.append(name)
    return names


def test_it_prunes_by_age_and_size_and_reports(run, cache):
    """It prints two lines to stdout, none to a stderr that is no terminal; --json is one object."""
    bodies = {hours: store(cache, hours, hours) for hours in (0, 2, 30)}
    done = run("--expiry=24h", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "") and "would remove 1 actions" in done.stdout
    assert found(cache, bodies) == [0, 2, 30]
    done = run("--expiry", "24h")
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 2)
    assert found(cache, bodies) == [0, 2]
    done = run("--max-size=1", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["removed"]["outputs"]["count"] == 1
    assert found(cache, bodies) == [0]
    run("--max-size=1", "--min-age=0s")
    assert found(cache, bodies) == []


def test_a_second_prune_prints_a_line_and_exits_0(run, cache, cache_dir):
    bodies = {"a": store(cache, "a", 30)}
    with open(cache_dir / "prune.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run("--expiry=1h")
        assert done.returncode == 0 and done.stdout == ""
        assert len(done.stderr.splitlines()) == 1 and "another prune" in done.stderr
        assert found(cache, bodies) == ["a"]
    assert run("--expiry=1h").returncode == 0
    assert found(cache, bodies) == []


def test_a_bad_directory_is_one_line_and_exit_2(run, cache_dir):
    """A missing directory is no error."""
    done = run("--expiry=1h")
    assert done.returncode == 0 and not cache_dir.exists()
    cache_dir.write_text("a file")
    done = run("--expiry=1h")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [1, 3, 4, 5, 8])
def test_a_signal_during_a_prune_leaves_a_valid_store(run, cache, at, number):
    """Recent entries are hits, others right or a miss, and the next prune completes the work."""
    bodies = {f"old{i}": store(cache, f"old{i}", 30) for i in range(4)}
    bodies |= {f"new{i}": store(cache, f"new{i}", 0) for i in range(2)}
    program = [sys.executable, "-c", SIGNALLED, str(at), str(int(number))]
    done = run("--expiry=24h", program=program)
    if number == signal.SIGINT:
        assert done.returncode == 130
        assert len(done.stderr.splitlines()) == 1 and "interrupted" in done.stderr
    else:
        assert done.returncode == -number
    hits = found(cache, bodies)
    assert {"new0", "new1"} <= set(hits) and len(hits) == 2 + max(0, 4 - (at - 1))
    assert run("--expiry=24h").returncode == 0
    assert found(cache, bodies) == ["new0", "new1"]


def test_readers_and_writers_during_prunes_get_right_answers(processes, cache, cache_dir):
    """While prune runs in a loop, hits have the right body and recent entries stay."""
    for number in range(10):
        body = b"%d" % (number // 2) * 3000
        action = hashlib.sha256(b"action %d" % number).hexdigest()
        with cache.writer(action, hashlib.sha256(body).hexdigest(), len(body)) as writer:
            writer.write(body)
            writer.commit(time.time_ns())
    busy = [
        subprocess.Popen(
            [sys.executable, "-c", BUSY, str(cache_dir)],
            env=processes.environ(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    removed = rounds = 0
    try:
        wait_until(lambda: found_any_new(cache), "the first put")
        end = time.monotonic() + 2
        while time.monotonic() < end or removed < 100:
            result = prune(str(cache_dir), expiry_s=1, max_size_bytes=1, min_age_s=HOUR_S)
            assert result.failure is None
            removed += sum(tally.count for tally in result.removed.values())
            rounds += 1
            assert time.monotonic() < end + DEADLINE_S, f"{removed} removed in {rounds} rounds"
    finally:
        outs = [process.communicate("", DEADLINE_S)[0] for process in busy]
    assert [process.returncode for process in busy] == [0, 0]
    assert all(int(hits) > 100 for hits in outs)


def found_any_new(cache) -> bool:
    return any(
        cache.lookup(hashlib.sha256(b"action %d" % number).hexdigest()) for number in range(10, 30)
    )
