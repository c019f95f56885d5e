"""Measures against a full disk: free space in the store, or a directory for one session."""

import errno
import os
import shutil
import time

from .locks import try_lock
from .removal import Remover
from .tree import MIN_AGE_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "go-cache-plugin-"
_UNKNOWN_FREE_BYTES = 1 << 62


def free_bytes(root: str) -> int:
    """Return how many bytes this user can still write to a file system; 2**62 if unknown."""
    try:
        status = os.statvfs(root)
    except OSError:
        return _UNKNOWN_FREE_BYTES
    return status.f_bavail * status.f_frsize


def free_space(root: str, wanted: int, min_age_s: float) -> int:
    """Remove the least recently used bodies of a store until ``wanted`` bytes have been freed.

    Files used within ``min_age_s`` seconds stay. Older temporary files are left over from dead
    processes and are removed too. Returns the bytes freed, by disk blocks; a body with a second
    hard link frees none and stays. Records left without a body become misses.
    """
    oldest_kept = time.time() - min_age_s
    remover = Remover(root)
    freed = 0
    for mtime, path, size in sorted(_removable(root, oldest_kept)):
        if freed >= wanted:
            break
        try:
            # Unchanged: not used since the scan.
            if os.lstat(path).st_mtime == mtime and remover.remove(path, int(oldest_kept * 1e9)):
                freed += size
        except OSError:
            continue
    return freed


def removable_bytes(root: str, min_age_s: float) -> int:
    """Return how many bytes ``free_space`` could free at most."""
    return sum(size for _, _, size in _removable(root, time.time() - min_age_s))


def _removable(root: str, oldest_kept: float) -> "Iterator[tuple[float, str, int]]":
    """Yield (mtime, path, bytes on disk) of each file that was last used before ``oldest_kept``."""
    for directory in (_tmp(root), *(entry.path for entry in _scan(f"{root}/output"))):
        for entry in _scan(directory):
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if status.st_mtime < oldest_kept and status.st_nlink == 1 and status.st_blocks:
                yield status.st_mtime, entry.path, status.st_blocks * 512


def _tmp(root: str) -> str:
    return f"{root}/tmp"  # noqa: S108 - inside the store, not the shared /tmp


class SessionDir:
    """A directory for one session under the temporary directory, locked while its process lives.

    It remains after the session, because tools open the files of a build after its end. A later
    session that creates such a directory removes it once it has not changed for MIN_AGE_S. Raises
    OSError.
    """

    def __init__(self) -> None:
        self.path = _session_path()
        _remove_abandoned(os.path.dirname(self.path), f"{_PREFIX}{os.getuid()}-")
        os.mkdir(self.path, 0o755)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._lock = os.open(self.path, flags)
        if os.fstat(self._lock).st_uid != os.geteuid():
            os.close(self._lock)
            raise PermissionError(errno.EACCES, "the directory is another user's", self.path)
        try:
            try_lock(self._lock, shared=True)
        except OSError:
            pass  # no file system without locks finds a directory abandoned


def temporary_directory() -> str:
    """Return TMPDIR or /tmp. (tempfile.gettempdir falls back to the working directory.)"""
    return os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - names made below it are random


def _session_path() -> str:
    """Return a path for a SessionDir that nobody else can guess. Raises OSError."""
    base = temporary_directory()
    try:
        base.encode()
    except UnicodeEncodeError as error:  # the protocol cannot express such a path
        raise OSError(errno.EINVAL, "TMPDIR is not valid UTF-8") from error
    return f"{os.path.abspath(base)}/{_PREFIX}{os.getuid()}-{os.urandom(8).hex()}"


def _remove_abandoned(base: str, prefix: str) -> None:
    """Remove directories of this user's dead processes that have not changed for MIN_AGE_S."""
    for entry in _scan(base):
        if not entry.name.startswith(prefix):
            continue
        try:
            fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            status = os.fstat(fd)
            is_old = status.st_uid == os.getuid() and status.st_mtime < time.time() - MIN_AGE_S
            if is_old and try_lock(fd):
                shutil.rmtree(entry.path, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(fd)


def _scan(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError:
        return []
