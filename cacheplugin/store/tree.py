"""The local store: a directory tree of action records and of bodies named by their content.

::

    action/<xx>/<action id>    the record of an action; each put replaces the whole file (record.py)
    output/<xx>/<output id>    the body of an output; published once by hard link, never rewritten
    tmp/                       files being written; each moves to its final name once complete

Ids are lower-case hex; <xx> is the first two digits of the id. Any number of processes may use one
store at the same time. An output id is the SHA-256 of the body, so publishing the same output twice
is harmless. The mtime of a body or a record is the time of its last use. That of a body is set
before a record names it, so that no prune takes a body whose path is about to be answered.

Bodies are executable, because toolchains put programs into the cache and run them from there.
Older versions of this program published them without that: use sets it (``make_executable``).
"""

import os
from errno import EDQUOT, EFBIG, EIO, ENOENT, ENOSPC, EROFS

from ..errors import UsageError, reason_of
from . import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    _T = TypeVar("_T")
    # The answer of a lookup: output id, size in bytes, time of the put (as record.timestamp writes
    # it), path of the body, time of last use in seconds since the epoch. A plain tuple, because a
    # named one would make each hit slower.
    Hit = tuple[str, int, str, str, float]

_open, _read, _close, _lstat = os.open, os.read, os.close, os.lstat
_decode, _MAX_RECORD_BYTES = record.decode, record.MAX_BYTES
# Another user may have put a pipe or a link where a file should be: neither wait nor follow.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

EMPTY_OUTPUT = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

# Files used within this time are never removed: running builds hold their paths, and tools open
# them after the session has ended.
MIN_AGE_S = 3600

# Errors of a disk, with which a rename would fail as well. All others of a link may mean that the
# file system has no hard links: each kind has an errno of its own for that.
_OF_DISK = (ENOSPC, EDQUOT, EROFS, EIO, EFBIG)

FILE_MODE, BODY_MODE = 0o644, 0o755
# Of st_mode: the kind of the file and whether its owner may execute it; what a body has of these.
_BODY_BITS, _BODY = 0o170100, 0o100100


def prepare(cache_dir: str, read_only: bool) -> bool:
    """Create the cache directory if it is missing; return whether it is writable.

    Raises UsageError if it is not writable, unless ``read_only`` allows that.
    """
    if os.access(cache_dir, os.R_OK | os.W_OK | os.X_OK) and os.path.isdir(cache_dir):
        return True
    try:
        os.makedirs(cache_dir, 0o755, exist_ok=True)
        if os.access(cache_dir, os.R_OK | os.W_OK | os.X_OK):
            return True
        reason = "permission denied"
    except OSError as error:
        reason = reason_of(error)
    if read_only:
        return False
    raise UsageError(f"the cache directory {cache_dir} cannot be used: {reason}")


class Store:
    """One directory tree at the absolute path ``root``; the first write creates directories."""

    is_checked = False  # whether entries are verified before use; see crash_safety.CheckedStore

    def __init__(self, root: str) -> None:
        self.root = root
        self._actions = f"{root}/action/"
        self._outputs = f"{root}/output/"
        self._tmp = f"{root}/tmp/"  # noqa: S108 - inside the store, not the shared /tmp
        self._has_empty = False
        self._is_frozen = False  # the file system is read-only

    def action_path(self, action: str) -> str:
        return f"{self._actions}{action[:2]}/{action}"

    def output_path(self, output: str) -> str:
        return f"{self._outputs}{output[:2]}/{output}"

    def lookup(self, action: str) -> "Hit | None":
        """Return (output, size, time of the put, path, time of last use); None is a miss.

        An invalid record is a miss and is removed. So is a record whose body is missing, is not a
        regular file or has another size than the record says; such a body is removed too.
        """
        path = f"{self._actions}{action[:2]}/{action}"
        try:
            fd = _open(path, _READ)
        except OSError:
            return None
        try:
            data = _read(fd, _MAX_RECORD_BYTES)
        except OSError:
            data = b""
        finally:
            _close(fd)
        fields = _decode(action, data)
        if fields is None:
            unlink_quietly(path)
            return None
        output, size, time, _ = fields
        body = f"{self._outputs}{output[:2]}/{output}"
        try:
            if size == 0 and output == EMPTY_OUTPUT:
                # A quarter of all actions share the empty body, so its mtime says nothing about the
                # use of one action: take the mtime of the record.
                if not self._has_empty:
                    self.publish_empty()
                    self._has_empty = True
                return output, size, time, body, _lstat(path).st_mtime
            status = _lstat(body)
        except FileNotFoundError:
            unlink_quietly(path)
            return None
        except OSError:
            return None
        if status.st_size != size or (
            status.st_mode & _BODY_BITS != _BODY and not self._is_body(body, status)
        ):
            unlink_quietly(path)
            unlink_quietly(body)
            return None
        return output, size, time, body, status.st_mtime

    def _is_body(self, path: str, status: os.stat_result) -> bool:
        """Return whether a file is regular; if so, make it executable where that is possible."""
        mode = status.st_mode
        if mode & _BODY_BITS | 0o100 != _BODY:
            return False
        if not mode & 0o100 and not self._is_frozen and os.getuid() in (status.st_uid, 0):
            try:
                fd = _open(path, _READ)
                try:
                    make_executable(fd, mode)
                finally:
                    _close(fd)
            except OSError as error:
                self._is_frozen = error.errno == EROFS
        return True

    def names(self) -> "tuple[set[str], set[str]]":
        """Return the names of all records and of all bodies; no file is opened or checked."""
        return _names_below(self._actions), _names_below(self._outputs)

    def hold(self, output: str) -> bool:
        """Mark a body as used now, so that no prune removes it; False if it is already gone."""
        return _touch(self.output_path(output))

    @staticmethod
    def is_there(path: str) -> bool:
        """Return whether a file exists; True if that cannot be found out."""
        try:
            _lstat(path)
        except FileNotFoundError:
            return False
        except OSError:
            pass
        return True

    def is_body(self, path: str) -> bool:
        """Return whether a file exists and is regular; if so, make it executable."""
        try:
            return self._is_body(path, _lstat(path))
        except OSError:
            return False

    def touch(self, action: str) -> None:
        """Mark a record as used now. Mark its body first, so that the record never outlives it."""
        _touch(self.action_path(action))

    def temporary(self, mode: int = FILE_MODE) -> "TempFile":
        """Create a file under tmp/ with a name of its own."""
        path = f"{self._tmp}{os.getpid()}-{os.urandom(8).hex()}"
        return TempFile(path, _make_dirs(_open, path, _CREATE, mode))

    def publish_output(self, temp: "TempFile", output: str, size: int) -> str:
        """Give a complete body its final name; return that path. Raises OSError."""
        path = self.output_path(output)
        try:
            _make_dirs(os.link, temp.path, path)
        except OSError as error:
            if error.errno in _OF_DISK:
                raise
            # Normally the same body exists. If it was truncated or has just been pruned, or there
            # are no hard links here, the file moves there; if that fails, its error tells why.
            if not self._keep(path, size):
                temp.rename(path)
        return path

    def _keep(self, path: str, size: int) -> bool:
        """Mark a body as used now; False if it is missing, of another size or no regular file.

        It is looked at after that: what a prune has removed meanwhile is not there any more.
        """
        if not _touch(path):
            return False
        try:
            status = _lstat(path)
        except OSError:
            return False
        return status.st_size == size and self._is_body(path, status)

    def publish_empty(self) -> str:
        """Create the empty body if it is missing; return its path. Raises OSError.

        It is created in place, because hard links to one file can run out.
        """
        path = self.output_path(EMPTY_OUTPUT)
        try:
            _close(_make_dirs(_open, path, _CREATE, BODY_MODE))
        except FileExistsError:
            if not self._keep(path, 0):
                with self.temporary(BODY_MODE) as temp:
                    temp.rename(path)
        return path

    def publish_record(self, action: str, output: str, size: int, time_ns: int, xxh3: int) -> None:
        """Write the action's record, replacing an older one. Raises OSError."""
        with self.temporary() as temp:
            temp.write(record.encode(action, output, size, time_ns, xxh3))
            temp.rename(self.action_path(action))


class TempFile:
    """A file being written. Leaving it as a context manager removes it, unless it was renamed."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path  # "" once the file was renamed or removed
        self.fd = fd
        self.size = 0

    def write(self, data: "bytes | memoryview") -> None:
        """Append ``data``. Raises OSError; the same call may then be repeated."""
        done = 0
        while done < len(data):
            done += os.pwrite(self.fd, data[done:] if done else data, self.size + done)
        self.size += len(data)

    def rename(self, path: str) -> None:
        """Move the file to ``path``, replacing an existing file. Raises OSError."""
        _make_dirs(os.replace, self.path, path)
        self.path = ""

    def discard(self) -> None:
        """Close the file, and remove it unless it was renamed."""
        if self.fd >= 0:
            _close(self.fd)
            self.fd = -1
        if self.path:
            unlink_quietly(self.path)
            self.path = ""

    def __enter__(self) -> "TempFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


def _names_below(top: str) -> "set[str]":
    names: set[str] = set()
    try:
        for directory in os.listdir(top):
            names.update(os.listdir(top + directory))
    except OSError:
        pass  # no directory yet, or a foreign file in it: the caller looks up more entries itself
    return names


def _make_dirs(call: "Callable[..., _T]", *args: "str | int") -> "_T":
    """Return ``call(*args)``; if a directory is missing, create that of each path and retry."""
    try:
        return call(*args)
    except OSError as error:
        if error.errno != ENOENT:
            raise
    for path in args:
        if isinstance(path, str):
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    return call(*args)


def unlink_quietly(path: str) -> None:
    """Remove a file if possible; an OSError is ignored."""
    try:
        os.unlink(path)
    except OSError:
        pass


def make_executable(fd: int, mode: int) -> bool:
    """Let all who may read an open file execute it; return whether that changed anything.

    ``mode`` is the file's st_mode. Raises OSError.
    """
    wanted = mode & 0o7777 | (mode & 0o444) >> 2
    if wanted == mode & 0o7777:
        return False
    os.fchmod(fd, wanted)
    return True


def _touch(path: str) -> bool:
    """Set a file's times to now; False if it does not exist. Another user's file stays as it is."""
    try:
        os.utime(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError:
        pass
    return True
