"""Measures against a full disk: free space in the store, or a directory for one session."""

import errno
import os
import shutil
import tempfile
import time

from .locks import try_lock
from .tree import MIN_AGE_S

_PREFIX = "go-cache-plugin-"


def free_space(root: str, wanted: int, min_age_s: float) -> int:
    """Remove the least recently used bodies of a store until ``wanted`` bytes have been freed.

    Files used within ``min_age_s`` seconds stay. Older temporary files are left over from dead
    processes and are removed too. Returns the bytes freed, by disk blocks; a body with a second
    hard link frees none and stays. Records left without a body become misses.
    """
    oldest_kept = time.time() - min_age_s
    candidates: list[tuple[float, str, int]] = []
    temporary = f"{root}/tmp"  # noqa: S108 - inside the store, not the shared /tmp
    for directory in (temporary, *(entry.path for entry in _scan(f"{root}/output"))):
        for entry in _scan(directory):
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if status.st_mtime < oldest_kept and status.st_nlink == 1 and status.st_blocks:
                candidates.append((status.st_mtime, entry.path, status.st_blocks * 512))
    candidates.sort()
    freed = 0
    for mtime, path, size in candidates:
        if freed >= wanted:
            break
        try:
            if os.stat(path).st_mtime == mtime:  # unchanged: not used since the scan
                os.unlink(path)
                freed += size
        except OSError:
            continue
    return freed


class SessionDir:
    """A directory for one session under the temporary directory, locked while its process lives.

    It remains after the session, because tools open the files of a build after its end. A later
    session that creates such a directory removes it once it has not changed for MIN_AGE_S.
    """

    def __init__(self) -> None:
        prefix = f"{_PREFIX}{os.getuid()}-"
        # Not tempfile.gettempdir: it falls back to the working directory.
        base = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - mkdtemp below picks a unique name
        _remove_abandoned(base, prefix)
        try:
            base.encode()
        except UnicodeEncodeError as error:  # the protocol cannot express such a path
            raise OSError(errno.EINVAL, "TMPDIR is not valid UTF-8") from error
        self.path = tempfile.mkdtemp(prefix=prefix, dir=base)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try_lock(self._lock)
        os.chmod(self.path, 0o755)  # noqa: S103 - as a store: the go command's tools read it


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
