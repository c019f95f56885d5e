"""What is done when a disk is full: room made in the store, or a store for one session."""

import errno
import fcntl
import os
import shutil
import tempfile
import time

from .tree import MIN_AGE_S

_PREFIX = "go-cache-plugin-"


def free_space(root: str, wanted: int, min_age_s: float) -> int:
    """Remove the least recently used bodies of the store at ``root`` until ``wanted`` bytes are free.

    What was used within ``min_age_s`` seconds stays; older temporary files are a dead process's.
    Returns the bytes freed (disk blocks, so that a body that is linked elsewhere counts for
    nothing). Records left without a body are misses.
    """
    oldest_kept = time.time() - min_age_s
    candidates = []
    for directory in (f"{root}/tmp", *(entry.path for entry in _scan(f"{root}/output"))):
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
            if os.stat(path).st_mtime == mtime:  # not used since it was seen
                os.unlink(path)
                freed += size
        except OSError:
            continue
    return freed


class SessionDir:
    """A directory for one session under the temporary directory, locked while its process lives.

    It outlives the session, because tools open the files of a build after it has ended; it goes
    when a later session makes a directory and nothing was written here for MIN_AGE_S.
    """

    def __init__(self) -> None:
        prefix = f"{_PREFIX}{os.getuid()}-"
        base = os.environ.get("TMPDIR") or "/tmp"  # gettempdir would come to the working directory
        _remove_abandoned(base, prefix)
        try:
            base.encode()
        except UnicodeEncodeError as error:  # the go command could not be told of a file in it
            raise OSError(errno.EINVAL, "TMPDIR is not valid UTF-8") from error
        self.path = tempfile.mkdtemp(prefix=prefix, dir=base)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.chmod(self.path, 0o755)


def _remove_abandoned(base: str, prefix: str) -> None:
    for entry in _scan(base):
        if not entry.name.startswith(prefix):
            continue
        try:
            fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if (
                os.fstat(fd).st_uid == os.getuid()
                and os.fstat(fd).st_mtime < time.time() - MIN_AGE_S
            ):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(fd)


def _scan(path: str):
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError:
        return []
