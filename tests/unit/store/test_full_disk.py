"""space.py: what goes when a disk is full, and the directory of one session."""

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
    """A temporary directory of the test's own, where session directories are made."""
    base = tmp_path / "tmpdir"
    base.mkdir()
    monkeypatch.setenv("TMPDIR", str(base))
    return base


def store_aged(cache, name, hours) -> str:
    """An entry with a body of its own that was used ``hours`` ago."""
    path = put(cache, name, os.urandom(BODY_BYTES))
    used = time.time() - hours * 3600
    os.utime(path, (used, used))
    return path


def left(cache, paths) -> list:
    return [name for name, path in paths.items() if os.path.exists(path)]


def test_least_recently_used_goes_first(cache):
    """Bodies go in the order of their last use, and no more of them than are needed."""
    paths = {hours: store_aged(cache, f"{hours}", hours) for hours in (5, 2, 9, 3)}
    freed = free_space(cache.store.root, 1, MIN_AGE)
    assert left(cache, paths) == [5, 2, 3]
    assert BODY_BYTES <= freed < 2 * BODY_BYTES
    freed = free_space(cache.store.root, BODY_BYTES + 50_000, MIN_AGE)
    assert left(cache, paths) == [2]
    assert freed >= BODY_BYTES + 50_000
    assert cache.lookup(action_id("9")) is None
    assert cache.lookup(action_id("2"))[3] == paths[2]


def test_what_was_used_lately_stays(cache):
    """Nothing younger than the minimum age goes, however much is wanted."""
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


def test_old_temporary_files_go(cache):
    """What a dead process left in tmp/ goes; what is being written stays."""
    with cache.store.temporary() as dead, cache.store.temporary() as alive:
        for temp in (dead, alive):
            temp.write(bytes(BODY_BYTES))
        os.utime(dead.path, (1, 1))
        assert free_space(cache.store.root, 1 << 40, MIN_AGE) >= BODY_BYTES
        assert not os.path.exists(dead.path)
        assert os.path.exists(alive.path)


def test_body_used_while_room_is_made(cache, monkeypatch):
    """A body that is used between the search and its turn stays."""
    paths = {hours: store_aged(cache, f"{hours}", hours) for hours in (5, 9)}
    unlink = os.unlink

    def use_the_other(path):
        unlink(path)
        os.utime(paths[5])

    monkeypatch.setattr(os, "unlink", use_the_other)
    free_space(cache.store.root, 1 << 40, MIN_AGE)
    assert left(cache, paths) == [5]


def test_bodies_that_cannot_be_removed(cache, monkeypatch):
    """What may not be removed is passed over and not counted."""
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
    """Where there is no store there is nothing to free."""
    assert free_space(str(tmp_path / "none"), 1, MIN_AGE) == 0


# -- session directories ---------------------------------------------------------------------------


def end_session(session, age_s: float) -> None:
    """As if its process had ended ``age_s`` seconds ago."""
    os.close(session._lock)
    used = time.time() - age_s
    os.utime(session.path, (used, used))


def test_session_directory(base):
    """It lies in the temporary directory, others may read it, and its lock is held."""
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


def test_abandoned_session_directories_go(base):
    """A session whose process ended long ago is removed when the next one begins."""
    old = SessionDir()
    put(LocalCache(Store(old.path)), "a", b"body")
    end_session(old, MIN_AGE_S + 60)
    new = SessionDir()
    os.close(new._lock)
    assert os.listdir(base) == [os.path.basename(new.path)]


def test_recent_session_directories_stay(base):
    """A session that ended lately is kept: tools open a build's files after it."""
    recent = SessionDir()
    path = put(LocalCache(Store(recent.path)), "a", b"body")
    end_session(recent, MIN_AGE_S - 60)
    os.close(SessionDir()._lock)
    assert read(path) == b"body"


def test_live_session_directories_stay(base):
    """However old, the directory of a process that lives is kept."""
    live = SessionDir()
    path = put(LocalCache(Store(live.path)), "a", b"body")
    os.utime(live.path, (1, 1))
    os.close(SessionDir()._lock)
    assert read(path) == b"body"
    os.close(live._lock)


def test_what_is_no_session_directory_stays(base):
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
