"""store/full_disk.py: which files are removed on a full disk, and session directories."""

import errno
import fcntl
import os
import stat
import time

import pytest

from cacheplugin.store.cache import LocalCache
from cacheplugin.store.full_disk import SessionDir, free_space
from cacheplugin.store.tree import MIN_AGE_S, Store
from entries import action_id, files, put, read

MIN_AGE = 3600
BODY_BYTES = 100_000


@pytest.fixture
def cache(tmp_path):
    return LocalCache(Store(str(tmp_path / "cache")))


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A temporary directory of this test, in which session directories are created."""
    base = tmp_path / "tmpdir"
    base.mkdir()
    monkeypatch.setenv("TMPDIR", str(base))
    return base


def store_aged(cache, name, hours) -> str:
    """Store an entry with a body of its own, last used ``hours`` ago; return the body's path."""
    path = put(cache, name, os.urandom(BODY_BYTES))
    used = time.time() - hours * 3600
    os.utime(path, (used, used))
    return path


def left(cache, paths) -> list:
    return [name for name, path in paths.items() if os.path.exists(path)]


def test_least_recently_used_is_removed_first(cache):
    """Bodies are removed in the order of their last use, and no more than needed."""
    paths = {hours: store_aged(cache, f"{hours}", hours) for hours in (5, 2, 9, 3)}
    freed = free_space(cache.store.root, 1, MIN_AGE)
    assert left(cache, paths) == [5, 2, 3]
    assert BODY_BYTES <= freed < 2 * BODY_BYTES
    freed = free_space(cache.store.root, BODY_BYTES + 50_000, MIN_AGE)
    assert left(cache, paths) == [2]
    assert freed >= BODY_BYTES + 50_000
    assert cache.lookup(action_id("9")) is None
    assert cache.lookup(action_id("2"))[3] == paths[2]


def test_recently_used_bodies_stay(cache):
    """No file younger than the minimum age is removed, however many bytes are wanted."""
    paths = {hours: store_aged(cache, f"{hours}", hours) for hours in (0, 0.9, 1.1, 30)}
    freed = free_space(cache.store.root, 1 << 40, MIN_AGE)
    assert left(cache, paths) == [0, 0.9]
    assert freed >= 2 * BODY_BYTES
    assert free_space(cache.store.root, 1 << 40, MIN_AGE) == 0


def test_linked_bodies_stay(cache, tmp_path):
    """A body that is linked elsewhere frees nothing, so it stays."""
    path = store_aged(cache, "a", 50)
    os.link(path, tmp_path / "pin")
    assert free_space(cache.store.root, 1, MIN_AGE) == 0
    assert os.path.exists(path)


def test_old_temporary_files_are_removed(cache):
    """Files that a dead process left in tmp/ are removed; files being written stay."""
    with cache.store.temporary() as dead, cache.store.temporary() as alive:
        for temp in (dead, alive):
            temp.write(bytes(BODY_BYTES))
        os.utime(dead.path, (1, 1))
        assert free_space(cache.store.root, 1 << 40, MIN_AGE) >= BODY_BYTES
        assert not os.path.exists(dead.path)
        assert os.path.exists(alive.path)


def test_body_used_meanwhile_stays(cache, monkeypatch):
    """A body used between the scan and its removal stays."""
    paths = {hours: store_aged(cache, f"{hours}", hours) for hours in (5, 9)}
    unlink = os.unlink

    def use_the_other(path):
        unlink(path)
        os.utime(paths[5])

    monkeypatch.setattr(os, "unlink", use_the_other)
    free_space(cache.store.root, 1 << 40, MIN_AGE)
    assert left(cache, paths) == [5]


def test_bodies_that_cannot_be_removed(cache, monkeypatch):
    """A body that cannot be removed is skipped and not counted."""
    paths = {hours: store_aged(cache, f"{hours}", hours) for hours in (5, 9)}
    unlink = os.unlink

    def refuse_one(path):
        if path == paths[9]:
            raise PermissionError(errno.EPERM, "no")
        unlink(path)

    monkeypatch.setattr(os, "unlink", refuse_one)
    assert BODY_BYTES <= free_space(cache.store.root, 1 << 40, MIN_AGE) < 2 * BODY_BYTES
    assert left(cache, paths) == [9]


def test_no_store(tmp_path):
    """Without a store nothing is freed."""
    assert free_space(str(tmp_path / "none"), 1, MIN_AGE) == 0


# -- session directories ---------------------------------------------------------------------------


def end_session(session, age_s: float) -> None:
    """Make a session look as if its process had ended ``age_s`` seconds ago."""
    os.close(session._lock)
    used = time.time() - age_s
    os.utime(session.path, (used, used))


def test_session_directory(base):
    """It is in the temporary directory, readable by others, and locked."""
    session = SessionDir()
    try:
        assert os.path.dirname(session.path) == str(base)
        assert stat.S_IMODE(os.stat(session.path).st_mode) == 0o755
        path = put(LocalCache(Store(session.path)), "a", b"body")
        assert read(path) == b"body"
        other = os.open(session.path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
    finally:
        os.close(session._lock)


def test_abandoned_session_directories_are_removed(base):
    """The directory of a process that ended long ago is removed when the next session starts."""
    old = SessionDir()
    put(LocalCache(Store(old.path)), "a", b"body")
    end_session(old, MIN_AGE_S + 60)
    new = SessionDir()
    os.close(new._lock)
    assert os.listdir(base) == [os.path.basename(new.path)]


def test_recent_session_directories_stay(base):
    """The directory of a recent session stays: tools open the files of a build after its end."""
    recent = SessionDir()
    path = put(LocalCache(Store(recent.path)), "a", b"body")
    end_session(recent, MIN_AGE_S - 60)
    os.close(SessionDir()._lock)
    assert read(path) == b"body"


def test_live_session_directories_stay(base):
    """The directory of a live process stays, however old it is."""
    live = SessionDir()
    path = put(LocalCache(Store(live.path)), "a", b"body")
    os.utime(live.path, (1, 1))
    os.close(SessionDir()._lock)
    assert read(path) == b"body"
    os.close(live._lock)


def test_foreign_directories_stay(base):
    """Other names, files, links and other users' directories are left alone."""
    prefix = f"go-cache-plugin-{os.getuid()}-"
    target = base / "precious"
    target.mkdir()
    (target / "file").write_text("x")
    (base / f"{prefix}file").write_text("x")
    (base / f"{prefix}link").symlink_to(target)
    (base / "go-cache-plugin-99999-dir").mkdir()
    for entry in os.scandir(base):
        os.utime(entry.path, (1, 1), follow_symlinks=False)
    before = set(os.listdir(base))
    new = SessionDir()
    os.close(new._lock)
    assert set(os.listdir(base)) == before | {os.path.basename(new.path)}
    assert files(target) == {"file": b"x"}
