"""Locks on files (flock), without waiting."""

import fcntl
from errno import EBADF


class NoLocks(OSError):
    """The file system has no locks: NFS without its lock service, or some FUSE file systems."""


def try_lock(fd: int, shared: bool = False) -> bool:
    """Lock an open file, exclusively unless ``shared``; False if another process holds the lock.

    The lock lasts until the descriptor is closed. Raises NoLocks if the file system has no locks.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == EBADF:
            raise
        raise NoLocks(*error.args) from None
    return True
