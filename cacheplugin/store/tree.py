"""The local store: a directory tree of action records and of bodies named by their content.

::

    action/<xx>/<action id>    the record, replaced whole by every put (see record.py)
    output/<xx>/<output id>    the body, published once by hard link, never rewritten
    tmp/                       what is being written; a name gets out of here only when it is whole

Ids are lower-case hex and <xx> their first two digits. Any number of processes may use one store.
A name that exists under output/ is the same body by construction, so publishing it twice is
harmless. The clock of use is the mtime of the body and of the record.
"""

import os
from errno import EEXIST, EMLINK, ENOENT, ENOTSUP, EPERM, EXDEV

from ..errors import UsageError
from . import record

_open, _read, _close, _stat = os.open, os.read, os.close, os.stat
_READ = os.O_RDONLY | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

EMPTY_OUTPUT = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

# What was used within this time is never removed: tools open files after close, live builds hold paths.
MIN_AGE_S = 3600

_NO_LINKS = (EMLINK, EXDEV, EPERM, ENOTSUP)


def prepare(cache_dir: str, read_only: bool) -> bool:
    """Make the cache directory usable; returns whether it can be written to.

    Raises UsageError where it has to be, and cannot.
    """
    if os.access(cache_dir, os.R_OK | os.W_OK | os.X_OK) and os.path.isdir(cache_dir):
        return True
    try:
        os.makedirs(cache_dir, 0o755, exist_ok=True)
        if os.access(cache_dir, os.R_OK | os.W_OK | os.X_OK):
            return True
        reason = "permission denied"
    except OSError as error:
        reason = error.strerror.lower()
    if read_only:
        return False
    raise UsageError(f"the cache directory {cache_dir} cannot be used: {reason}")


class Store:
    """One directory tree. ``root`` is absolute; it and its parts are created when first written."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._actions = f"{root}/action/"
        self._outputs = f"{root}/output/"
        self._tmp = f"{root}/tmp/"
        self._has_empty = False

    def action_path(self, action: str) -> str:
        return f"{self._actions}{action[:2]}/{action}"

    def output_path(self, output: str) -> str:
        return f"{self._outputs}{output[:2]}/{output}"

    def lookup(self, action: str):
        """(output, size, time, path, clock of use in seconds since the epoch), or None for a miss.

        ``time`` is that of the put, as record.timestamp gives it.

        A record that cannot be trusted, and a body that is gone or has another size than its
        record says, are misses and are cleaned away.
        """
        path = f"{self._actions}{action[:2]}/{action}"
        try:
            fd = _open(path, _READ)
        except OSError:
            return None
        try:
            data = _read(fd, record.MAX_BYTES)
        except OSError:
            data = b""
        finally:
            _close(fd)
        fields = record.decode(action, data)
        if fields is None:
            unlink_quietly(path)
            return None
        output, size, time, _ = fields
        body = f"{self._outputs}{output[:2]}/{output}"
        try:
            if size == 0 and output == EMPTY_OUTPUT:
                # The body of a quarter of all actions: its own clock would tell nothing of theirs.
                if not self._has_empty:
                    self.publish_empty()
                    self._has_empty = True
                return output, size, time, body, _stat(path).st_mtime
            status = _stat(body)
        except FileNotFoundError:
            unlink_quietly(path)
            return None
        except OSError:
            return None
        if status.st_size != size:
            unlink_quietly(path)
            unlink_quietly(body)
            return None
        return output, size, time, body, status.st_mtime

    def names(self):
        """(actions that have a record, outputs that have a body), two sets, whatever they are worth.

        Fast: nothing is opened.
        """
        found = set(), set()
        for names, top in zip(found, (self._actions, self._outputs)):
            try:
                for directory in os.listdir(top):
                    names.update(os.listdir(top + directory))
            except OSError:
                pass  # none yet, or what is not ours: then more is looked at than need be
        return found

    def hold(self, output: str) -> bool:
        """Set a body's clock of use to now, so that no prune takes it; False where one has."""
        return _touch(self.output_path(output))

    def touch(self, action: str) -> None:
        """Set a record's clock of use to now, after its body's."""
        _touch(self.action_path(action))

    def temporary(self) -> "TempFile":
        """A new file under tmp/, of this process alone."""
        path = f"{self._tmp}{os.getpid()}-{os.urandom(8).hex()}"
        return TempFile(path, _make_dirs(_open, path, _CREATE, 0o644))

    def publish_output(self, temp: "TempFile", output: str, size: int) -> str:
        """Give a whole body its name and return the path."""
        path = self.output_path(output)
        try:
            _make_dirs(os.link, temp.path, path)
        except OSError as error:
            if error.errno == EEXIST:
                # The same body, unless the disk lost some of it, or a prune takes it just now.
                if _touch(path) and _size(path) == size:
                    return path
            elif error.errno not in _NO_LINKS:
                raise
            temp.rename(path)
        return path

    def publish_empty(self) -> str:
        """Make sure that the empty body is there; it is made, not linked, as links can run out."""
        path = self.output_path(EMPTY_OUTPUT)
        try:
            _close(_make_dirs(_open, path, _CREATE, 0o644))
        except FileExistsError:
            if _size(path):
                with self.temporary() as temp:
                    temp.rename(path)
            else:
                _touch(path)
        return path

    def publish_record(self, action: str, output: str, size: int, time_ns: int, xxh3: int) -> None:
        """Write the action's record, in place of any older one."""
        with self.temporary() as temp:
            temp.write(record.encode(action, output, size, time_ns, xxh3))
            temp.rename(self.action_path(action))


class TempFile:
    """A file being written. As a context manager it leaves nothing behind."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append ``data``; after an OSError the same call may be made again."""
        done = 0
        while done < len(data):
            done += os.pwrite(self.fd, data[done:] if done else data, self.size + done)
        self.size += len(data)

    def rename(self, path: str) -> None:
        """Put the file in the place of whatever ``path`` names."""
        _make_dirs(os.replace, self.path, path)
        self.path = None

    def discard(self) -> None:
        if self.fd >= 0:
            _close(self.fd)
            self.fd = -1
        if self.path:
            unlink_quietly(self.path)
            self.path = None

    def __enter__(self) -> "TempFile":
        return self

    def __exit__(self, *_) -> None:
        self.discard()


def _make_dirs(call, *args):
    """``call(*args)``; where a directory is missing, make that of each path named and try again."""
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
    """Remove a file; nothing is raised where it is gone or cannot be removed."""
    try:
        os.unlink(path)
    except OSError:
        pass


def _touch(path: str) -> bool:
    """Whether the file is there; another user's keeps its clock."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except OSError:
        pass
    return True


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
