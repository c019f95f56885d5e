"""store/crash_safety.py: markers of open sessions; checks after an unclean shutdown."""

import fcntl
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

import cacheplugin
from cacheplugin.store import contents, crash_safety, verify
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.crash_safety import (
    CheckedStore,
    OpenMarker,
    open_store,
    settle,
    suspect_since,
)
from cacheplugin.store.tree import EMPTY_OUTPUT, Store
from entries import action_id, files, output_id, put, read

BODY = b"package main\n" * 50
A, OUT = action_id("a"), output_id(BODY)
OTHER_BOOT = "00000000-1111-2222-3333-444444444444"


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "cache"
    path.mkdir()
    return str(path)


@pytest.fixture
def cache(root):
    return LocalCache(Store(root))


def markers(root) -> list:
    try:
        return sorted(os.listdir(f"{root}/open"))
    except FileNotFoundError:
        return []


def leave_marker(root, boot=OTHER_BOOT, start=1.0, name="4242-abcd") -> str:
    """Create a marker of a dead process whose session began at ``start``."""
    os.makedirs(f"{root}/open", exist_ok=True)
    path = f"{root}/open/{boot}-{name}"
    open(path, "w").close()
    os.utime(path, (start, start))
    return path


def damage(path, size) -> None:
    """Fill a file with zeros, as a power cut may leave it."""
    with open(path, "r+b") as file:
        file.write(bytes(size))


# -- the marker ------------------------------------------------------------------------------------


def test_a_marker_lasts_as_long_as_its_session(root):
    """Its name has the boot id and process id, its mtime is now, and close removes it."""
    before = time.time() - 1
    marker = OpenMarker(root)
    (name,) = markers(root)
    assert name.startswith(f"{crash_safety.boot_id()}-{os.getpid()}-")
    assert before < os.stat(f"{root}/open/{name}").st_mtime < time.time() + 1
    marker.close()
    marker.close()
    assert markers(root) == [] and os.listdir(f"{root}/tmp") == []


def test_the_marker_is_synced(root, monkeypatch):
    """The file is synced first, then its directories, in a thread; at the end everything is synced
    before the marker is removed."""
    monkeypatch.setattr(crash_safety, "start_new_thread", lambda call, arguments: call(*arguments))
    calls = []

    def fsync(fd):
        path = os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), root)
        if not path.startswith(".."):  # of an earlier test
            calls.append((path.split("/")[0], len(markers(root))))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "sync", lambda: calls.append(("sync", len(markers(root)))))
    marker = OpenMarker(root)
    assert calls == [("open", 1), ("open", 1), (".", 1)]
    marker.close()
    assert calls[3:] == [("sync", 1)]
    OpenMarker(root)
    assert [what for what, _ in calls[4:]] == ["open"] * 3


def test_markers_of_this_boot_are_no_suspicion(root):
    """Neither live nor killed sessions of this boot: their data is in the page cache."""
    assert suspect_since(root) is None
    marker = OpenMarker(root)
    leave_marker(root, crash_safety.boot_id())
    assert suspect_since(root) is None
    marker.close()


def test_markers_of_dead_processes_of_this_boot_are_replaced(root):
    """A new marker replaces them and takes over their start: their data was never synced."""
    leave_marker(root, crash_safety.boot_id(), 500.0, "1-a")
    leave_marker(root, crash_safety.boot_id(), 300.0, "2-b")
    stale = leave_marker(root)
    live = OpenMarker(root)
    left = set(markers(root)) - {os.path.basename(stale)}
    assert len(left) == 1 and f"-{os.getpid()}-" in left.pop()
    (path,) = (f"{root}/open/{name}" for name in markers(root) if OTHER_BOOT not in name)
    assert os.stat(path).st_mtime == 300.0
    second = OpenMarker(root)
    assert len(markers(root)) == 3  # the first process lives
    live.close()
    second.close()
    assert markers(root) == [os.path.basename(stale)]


def be_killed(root, pipe):
    marker = OpenMarker(root)
    pipe.send(markers(root))
    pipe.recv()
    marker.close()


def test_a_killed_process_unlocks_its_marker(root):
    """SIGKILL leaves the marker unlocked; the next session removes it."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=be_killed, args=(root, theirs), daemon=True)
    process.start()
    (name,) = ours.recv()
    first = OpenMarker(root)
    assert name in markers(root)
    first.close()
    process.kill()
    process.join()
    assert markers(root) == [name]
    OpenMarker(root).close()
    assert markers(root) == []


def test_suspicion_starts_with_the_earliest_stale_marker(root):
    leave_marker(root, start=900.0, name="1-a")
    leave_marker(root, start=700.0, name="2-b")
    leave_marker(root, crash_safety.boot_id(), 100.0)
    assert suspect_since(root) == 700.0


def test_a_live_session_of_another_machine_is_no_suspicion(root):
    """Its marker has another boot id and is locked, on a file system that both machines share."""
    with open(leave_marker(root)) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert suspect_since(root) is None
        assert settle(root) is None and len(markers(root)) == 1
    assert suspect_since(root) == 1.0


def test_without_a_boot_id_nothing_is_marked(root, monkeypatch):
    monkeypatch.setattr(crash_safety, "boot_id", lambda: None)
    leave_marker(root)
    OpenMarker(root).close()
    assert (
        len(markers(root)) == 1 and suspect_since(root) is None and type(open_store(root)) is Store
    )


@pytest.mark.parametrize("name", ["fsync", "utime"])
def test_a_marker_that_cannot_be_made_is_no_error(root, monkeypatch, name):
    """On a full or read-only disk the session works without a marker and leaves no file."""

    def fail(*_, **__):
        raise OSError(28, "no space left")

    monkeypatch.setattr(os, name, fail)
    OpenMarker(root).close()
    assert files(root) == {}


def test_a_file_or_nothing_in_place_of_the_root(tmp_path):
    """Neither raises an exception."""
    (tmp_path / "file").write_text("x")
    OpenMarker(str(tmp_path / "file")).close()
    assert suspect_since(str(tmp_path / "file")) is None
    assert suspect_since(str(tmp_path / "none")) is None


def test_asking_imports_nothing():
    """suspect_since runs before the first hit: without markers it imports only os and the store."""
    code = (
        "import sys; before = set(sys.modules); import cacheplugin.store.crash_safety as s;"
        "s.suspect_since('/nonexistent'); print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=os.path.dirname(cacheplugin.__path__[0]),
    )
    assert set(done.stdout.split()) <= {
        "cacheplugin",
        "cacheplugin.store",
        "cacheplugin.store.crash_safety",
        "cacheplugin.store.tree",
        "cacheplugin.store.record",
        "cacheplugin.errors",
        "binascii",
        "errno",
    }


# -- suspect entries -------------------------------------------------------------------------------


def test_a_body_of_zeros_is_not_served(cache):
    """A body of zeros with the right size is a hit for a plain store and a miss when checked."""
    path = put(cache, "a", BODY)
    damage(path, len(BODY))
    assert cache.lookup(A)
    leave_marker(cache.store.root)
    cache = LocalCache(open_store(cache.store.root))
    assert type(cache.store) is CheckedStore and cache.store.is_checked
    assert cache.lookup(A) is None
    assert files(f"{cache.store.root}/output") == files(f"{cache.store.root}/action") == {}


def test_good_entries_are_served_and_read_once(cache, monkeypatch):
    """An entry is read at its first get only; so is a body shared by two actions."""
    put(cache, "a", BODY)
    put(cache, "b", BODY)
    put(cache, "empty", b"")
    plain = {name: cache.lookup(action_id(name)) for name in ("a", "b", "empty", "none")}
    reads = []
    digest = contents.digest
    monkeypatch.setattr(contents, "digest", lambda path: reads.append(path) or digest(path))
    checked = CheckedStore(cache.store.root, 0)
    for _ in range(2):
        assert {name: checked.lookup(action_id(name)) for name in plain} == plain
    assert reads == [plain["a"][3]]


def test_earlier_entries_are_served_unread(cache, monkeypatch):
    """Files that have not changed since the session began were safe on disk."""
    path = put(cache, "a", BODY)
    monkeypatch.setattr(contents, "digest", lambda path: pytest.fail("it was read"))
    checked = CheckedStore(cache.store.root, os.stat(cache.store.action_path(A)).st_ctime + 1)
    assert checked.lookup(A)[3] == path


@pytest.mark.parametrize("part", ["body", "record"])
def test_one_later_file_makes_an_entry_suspect(cache, monkeypatch, part):
    """A later body or a later record is enough."""
    path = put(cache, "a", BODY)
    damage(path, len(BODY))
    checked = CheckedStore(cache.store.root, 0)
    later = path if part == "body" else cache.store.action_path(A)
    monkeypatch.setattr(checked, "_is_suspect", lambda path: path == later)
    assert checked.lookup(A) is None


def test_a_put_replaces_a_suspect_body(cache):
    """A put replaces a body of zeros, even without a record that shows the damage."""
    damage(put(cache, "a", BODY), len(BODY))
    os.unlink(cache.store.action_path(A))
    leave_marker(cache.store.root)
    cache = LocalCache(open_store(cache.store.root))
    path = put(cache, "b", BODY)
    assert read(path) == BODY
    inode = os.stat(path).st_ino
    put(cache, "c", BODY)  # now the body is known to be good
    assert os.stat(path).st_ino == inode
    assert read(cache.lookup(action_id("c"))[3]) == BODY
    assert os.listdir(f"{cache.store.root}/tmp") == []


def test_the_empty_body_needs_no_reading(cache):
    put(cache, "empty", b"")
    assert CheckedStore(cache.store.root, 0).lookup(action_id("empty"))[0] == EMPTY_OUTPUT


def test_an_entry_put_and_lost_meanwhile_is_a_miss(cache, monkeypatch):
    """A body pruned right before its check raises no exception."""
    path = put(cache, "a", BODY)
    checked = CheckedStore(cache.store.root, 0)
    digest = contents.digest

    def vanish(name):
        os.unlink(name)
        return digest(name)

    monkeypatch.setattr(contents, "digest", vanish)
    assert checked.lookup(A) is None and not os.path.exists(path)


# -- settle ----------------------------------------------------------------------------------------


def test_settle_repairs_and_removes_markers(cache):
    """Suspect files are checked, damaged ones removed, then stale markers; a live marker stays."""
    root = cache.store.root
    damage(put(cache, "a", BODY), len(BODY))
    put(cache, "b", b"good")
    put(cache, "c", b"good")
    os.truncate(cache.store.action_path(action_id("c")), 20)
    leave_marker(root, name="1-a")
    leave_marker(root, name="2-b")
    live = OpenMarker(root)
    report = settle(root)
    assert (report.faults, report.removed) == (2, 2)
    assert suspect_since(root) is None and len(markers(root)) == 1
    live.close()
    assert cache.lookup(A) is None and read(cache.lookup(action_id("b"))[3]) == b"good"
    assert verify.check(cache.store, sha256=True).faults == 0
    assert settle(root) is None


def test_settle_syncs_before_the_markers_go(cache, monkeypatch):
    """The removals are on disk before the markers are removed."""
    root = cache.store.root
    path = put(cache, "a", BODY)
    damage(path, len(BODY))
    leave_marker(root)
    seen = []
    monkeypatch.setattr(os, "sync", lambda: seen.append((os.path.exists(path), len(markers(root)))))
    settle(root)
    assert seen == [(False, 1)] and markers(root) == []


def test_an_interrupted_settle_keeps_the_markers(cache, monkeypatch):
    """After an error the files are still suspect in the next session."""
    leave_marker(cache.store.root)

    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(verify, "check", fail)
    with pytest.raises(OSError):
        settle(cache.store.root)
    assert suspect_since(cache.store.root) == 1.0


def test_settle_runs_in_one_process_at_a_time(cache):
    """A second process leaves the check to the first."""
    root = cache.store.root
    leave_marker(root)
    fd = os.open(f"{root}/open", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert settle(root) is None and len(markers(root)) == 1
    os.close(fd)
    assert settle(root).faults == 0


def test_settle_reads_only_later_files(cache):
    """Files on disk from before the session are not read."""
    put(cache, "a", BODY)
    leave_marker(cache.store.root, start=time.time() + 100)
    assert settle(cache.store.root).bodies == 0
    leave_marker(cache.store.root)
    assert settle(cache.store.root).bodies == 1
