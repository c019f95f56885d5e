"""Reads and hashes files of the store, without following links or waiting for pipes."""

import errno
import hashlib
import os
import stat

import xxhash

from ..tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import _Hash

_open, _readv = os.open, os.readv
_xxh3 = xxhash.xxh3_64_hexdigest
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
BUFFER_BYTES = 1 << 18  # fits in the cache of one core; 1 MiB is no faster


class Contents(NamedTuple):
    """What a file holds: size in bytes, digests in hex, (device, inode). ``sha256`` is optional."""

    size: int
    xxh3: str
    sha256: "str | None"
    identity: tuple[int, int]


def open_file(path: str) -> int:
    """Open a file for reading and return its descriptor. Raises OSError, also for a link."""
    return _open(path, _FLAGS)


def open_regular(path: str) -> int:
    """As open_file; raises OSError, with EINVAL, if it is not a regular file."""
    fd = open_file(path)
    try:
        _expect_regular(os.fstat(fd))
    except OSError:
        os.close(fd)
        raise
    return fd


def read_hashes(fd: int, buffer: memoryview, sha256: "_Hash | None") -> tuple[int, str]:
    """Read an open file to its end; return (size in bytes, xxh3 in hex) and update ``sha256``.

    Raises OSError, with EINVAL if it is not a regular file.
    """
    buffers = (buffer,)
    size = count = _readv(fd, buffers)
    data = buffer[:count]
    # A pipe reads like an empty file, and a device may have no end. The check costs a system call,
    # so it is skipped if one read returned a whole file.
    if not 0 < count < len(buffer):
        _expect_regular(os.fstat(fd))
    if sha256:
        sha256.update(data)
    if count < len(buffer):
        return size, _xxh3(data)
    hasher = xxhash.xxh3_64(data)
    while count := _readv(fd, buffers):
        data = buffer[:count]
        hasher.update(data)
        if sha256:
            sha256.update(data)
        size += count
    return size, hasher.hexdigest()


def digest(path: str, sha256: bool = False) -> Contents:
    """Read the regular file at ``path``. Raises OSError, with EINVAL if it is of another kind."""
    fd = open_file(path)
    try:
        status = os.fstat(fd)
        _expect_regular(status)
        buffer = memoryview(bytearray(min(BUFFER_BYTES, status.st_size + 1)))
        sha = hashlib.sha256() if sha256 else None
        size, xxh3 = read_hashes(fd, buffer, sha)
        identity = (status.st_dev, status.st_ino)
        return Contents(size, xxh3, sha.hexdigest() if sha else None, identity)
    finally:
        os.close(fd)


def unlink_same(path: str, identity: tuple[int, int]) -> bool:
    """Remove ``path`` unless another file has replaced it; return whether it is gone.

    Raises OSError.
    """
    try:
        status = os.lstat(path)
        if (status.st_dev, status.st_ino) == identity:
            os.unlink(path)
            return True
    except FileNotFoundError:
        return True
    return False


def _expect_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a directory")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
