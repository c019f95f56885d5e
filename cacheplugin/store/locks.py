"""Locks on files (flock), without waiting."""

import fcntl


def try_lock(fd: int, shared: bool = False) -> bool:
    """Lock an open file, exclusively unless ``shared``; False if another process holds the lock.

    The lock lasts until the descriptor is closed. Raises OSError if the file system has no locks.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
