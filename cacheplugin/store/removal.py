"""Removes bodies that were not used lately, also while builds begin to use them.

Between a look at the time of last use and the removal, a build may use the body and answer its
path. So a second link, the pin, holds the body: once its name is gone nobody can begin to use it,
and the time of last use that the pin then shows is final. A body used meanwhile gets its name back.
"""

import os


class Remover:
    """Removes bodies of the store at ``root``."""

    def __init__(self, root: str) -> None:
        self._pin = f"{root}/tmp/pruned-{os.getpid()}-{os.urandom(8).hex()}"  # noqa: S108 - of the store

    def remove(self, path: str, cutoff_ns: int, dir_fd: "int | None" = None) -> bool:
        """Remove a body, relative to ``dir_fd`` if that is given. Raises OSError.

        Returns False, and leaves it, if it was used at ``cutoff_ns`` or later.
        """
        try:
            os.link(path, self._pin, src_dir_fd=dir_fd, follow_symlinks=False)
        except OSError:
            _unlink(path, dir_fd)  # without links the microseconds since the caller's look remain
            return True
        try:
            _unlink(path, dir_fd)
            if os.lstat(self._pin).st_mtime_ns < cutoff_ns:
                return True
            try:
                os.link(self._pin, path, dst_dir_fd=dir_fd, follow_symlinks=False)
            except OSError:
                pass  # it exists because it was put again; otherwise the next get is a miss
            return False
        finally:
            os.remove(self._pin)


def _unlink(path: str, dir_fd: "int | None") -> None:
    if dir_fd is None:
        os.unlink(path)
    else:
        os.unlink(path, dir_fd=dir_fd)
