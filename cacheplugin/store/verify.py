"""Checks what the store holds: every record, every body, and what links them.

A record must be whole and under its own name, and the body it names must be there with the size and
the xxh3 that the record says. xxh3 runs at the speed of memory; --sha256 also checks each body
against its name. A body that no record names has nothing else to be checked by, so it always is,
and so is what the spool keeps of a body that is no longer in the store.

It runs beside live builds: whatever looks wrong is looked at once more, and what was replaced or
removed meanwhile is no fault. Memory: about 90 bytes for a record, 32 for a body, and one buffer.
"""

import errno
import hashlib
import os
import stat
import struct
import time
from collections import namedtuple

import xxhash

from . import record
from .tree import EMPTY_OUTPUT, Store

_open, _readv, _close = os.open, os.readv, os.close
_xxh3 = xxhash.xxh3_64_hexdigest
# A link is never followed, and a pipe in place of a file does not make us wait for a writer.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_BUFFER_BYTES = 1 << 18  # fits a core's own cache between copy and hash; 1 MiB is no faster
_HEX = frozenset("0123456789abcdef")
_XX = tuple(f"{number:02x}" for number in range(256))
_MAX_ID_DIGITS = 128
_OUTPUT_DIGITS = 64
_LINK = struct.Struct("<32sQ8sB")  # output, size, xxh3, length of the action id that follows

# Not the file's fault, so no reason to remove it.
_OURS = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# path: below the root; what: for a person; removed: whether it is gone now.
Fault = namedtuple("Fault", "path what removed")
# What a file really is; None in place of a digest that was not asked for.
_Contents = namedtuple("_Contents", "size xxh3 sha256 identity")


class Report:
    """What ``check`` saw: counts of things, bytes of bodies read, seconds it took."""

    __slots__ = ("bodies", "body_bytes", "faults", "records", "removed", "seconds", "unnamed")

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    def as_dict(self) -> dict:
        return {name: getattr(self, name) for name in self.__slots__}


def check(
    store: Store, sha256=False, since=None, on_fault=None, repair=False, on_progress=None
) -> Report:
    """Check a store; ``on_fault(Fault)`` is called for each thing wrong.

    ``since`` (seconds since the epoch) leaves out files whose ctime is earlier: a record that is
    later still has its body looked for, and a body that is later and that only earlier records name
    is checked by SHA-256. ``repair`` removes what is wrong: a bad body with the records that name
    it, a bad record alone. ``on_progress(report, done)`` is called after each file, ``done`` from 0
    to 1. Raises OSError only where the file system gives up on us, not for a file.
    """
    return _Check(store, sha256, since, on_fault, repair, on_progress).run()


def digest(path: str, sha256=False):
    """What the plain file at ``path`` holds; raises OSError, EINVAL where it is no plain file."""
    fd = _open(path, _FLAGS)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a plain file")
        buffer = memoryview(bytearray(min(_BUFFER_BYTES, status.st_size + 1)))
        xxh3, sha, size = xxhash.xxh3_64(), hashlib.sha256() if sha256 else None, 0
        while count := _readv(fd, (buffer,)):
            xxh3.update(buffer[:count])
            if sha:
                sha.update(buffer[:count])
            size += count
        identity = (status.st_dev, status.st_ino)
        return _Contents(size, xxh3.hexdigest(), sha and sha.hexdigest(), identity)
    finally:
        _close(fd)


def unlink_same(path: str, identity) -> bool:
    """Remove ``path`` unless another file took its place; whether it is gone. Raises OSError."""
    try:
        status = os.lstat(path)
        if (status.st_dev, status.st_ino) == identity:
            os.unlink(path)
            return True
    except FileNotFoundError:
        return True
    return False


class _Check:
    """One run of ``check``. Links of records wait by their output's first byte: the bodies of one
    directory are read, each once, beside the links of that directory alone."""

    def __init__(self, store, sha256, since, on_fault, repair, on_progress) -> None:
        self.store = store
        self.sha256 = sha256
        self.since = since
        self.on_fault = on_fault
        self.repair = repair
        self.on_progress = on_progress
        self.report = Report()
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._links = {xx: bytearray() for xx in _XX}
        self._seen = {}  # xx: the ids of the bodies that were there at first, packed

    def run(self) -> Report:
        begin = time.monotonic()
        # To tell a body that is removed while we run from one that was not there.
        for xx in _XX:
            names = _names(f"{self.store.root}/output/{xx}")
            self._seen[xx] = b"".join(bytes.fromhex(name) for name in names if _is_output(name))
        # Records before bodies: a put publishes the body first, and a body whose record was not
        # there yet is checked by its name.
        names = self._directories("action")
        for done, xx in enumerate(_XX):
            if xx in names:
                self._check_records(xx, 0.05 * done / 256)
        names = self._directories("output")
        for done, xx in enumerate(_XX):
            self._check_bodies(xx, xx in names, 0.05 + 0.95 * done / 256)
        self._check_spool()
        self.report.seconds = time.monotonic() - begin
        return self.report

    # -- records -----------------------------------------------------------------------------------

    def _check_records(self, xx, done) -> None:
        report, readv, decode = self.report, _readv, record.decode
        buffers = (self._buffer[: record.MAX_BYTES],)
        data = buffers[0]
        directory = f"{self.store.root}/action/{xx}/"
        for name in self._list(directory):
            path = directory + name
            if not _is_action(name) or name[:2] != xx:
                self._misnamed(path)
                continue
            if self.since is not None and self._is_earlier(path):
                continue
            report.records += 1
            try:
                fd = _open(path, _FLAGS)
                try:
                    fields = decode(name, bytes(data[: readv(fd, buffers)]))
                finally:
                    _close(fd)
            except OSError:
                fields = None
            if fields is None or not self._add_link(name, *fields):
                self._bad_record(path, name)
            if self.on_progress:
                self.on_progress(report, done)

    def _add_link(self, action, output, size, _, xxh3) -> bool:
        """Note a record's link for when its body is read; False where it is none."""
        if not _is_output(output) or not 0 <= size < 2**63 or not _is_hex(xxh3, 16):
            return False
        links = self._links[output[:2]]
        links += _LINK.pack(
            bytes.fromhex(output), size, bytes.fromhex(xxh3), len(action) // 2
        ) + bytes.fromhex(action)
        return True

    def _take_links(self, xx) -> dict:
        """{output: [(size, xxh3, action)]} of the records that name a body in output/<xx>."""
        packed, self._links[xx] = self._links[xx], None
        links, position = {}, 0
        while position < len(packed):
            output, size, xxh3, length = _LINK.unpack_from(packed, position)
            position += _LINK.size
            action = packed[position : position + length].hex()
            position += length
            links.setdefault(output.hex(), []).append((size, xxh3.hex(), action))
        return links

    def _bad_record(self, path, action) -> None:
        try:
            status = os.lstat(path)
            fields = self._read_record(action)
        except FileNotFoundError:
            return
        except OSError as error:
            self._unreadable(path, error)
            return
        if not stat.S_ISREG(status.st_mode):
            self._fault(path, "not a plain file", self._remover(path))
        elif fields is None or not self._add_link(action, *fields):
            identity = (status.st_dev, status.st_ino)
            self._fault(path, "not a good record", lambda: unlink_same(path, identity))

    def _read_record(self, action):
        """The fields of a record as it stands, None where it is not good; raises OSError."""
        fd = _open(self.store.action_path(action), _FLAGS)
        try:
            return record.decode(action, os.read(fd, record.MAX_BYTES))
        finally:
            _close(fd)

    def _still_names(self, action, output):
        """The fields of a record that still names ``output``, else None."""
        try:
            fields = self._read_record(action)
        except OSError:
            return None
        return fields if fields is not None and fields[0] == output else None

    # -- bodies ------------------------------------------------------------------------------------

    def _check_bodies(self, xx, exists, done) -> None:
        links = self._take_links(xx)
        directory = f"{self.store.root}/output/{xx}/"
        for name in self._list(directory) if exists else ():
            path = directory + name
            if not _is_output(name) or name[:2] != xx:
                self._misnamed(path)
                continue
            named_by = links.pop(name, ())
            if self.since is not None and self._is_earlier(path):
                self._check_size(path, name, named_by)
                continue
            if not self._is_right(path, name, named_by):
                self._bad_body(path, name, named_by)
            if self.on_progress:
                self.on_progress(self.report, done)
        if links:
            packed = self._seen[xx]
            seen = {packed[at : at + 32].hex() for at in range(0, len(packed), 32)}
            for output, named_by in links.items():
                if output not in seen and output != EMPTY_OUTPUT:  # a get makes that one
                    self._bodiless(output, named_by)
        del self._seen[xx]

    def _is_right(self, path, name, named_by) -> bool:
        """Read a body, once; whether it is as each record, and its name where asked, say."""
        report, buffer, readv = self.report, self._buffer, _readv
        sha = hashlib.sha256() if self.sha256 or not named_by else None
        buffers = (buffer,)
        try:
            fd = _open(path, _FLAGS)
            try:
                size = count = readv(fd, buffers)
                data = buffer[:count]
                if sha:
                    sha.update(data)
                if count < _BUFFER_BYTES:
                    xxh3 = _xxh3(data)
                elif not stat.S_ISREG(os.fstat(fd).st_mode):
                    return False  # a device may have no end
                else:
                    hasher = xxhash.xxh3_64(data)
                    while count := readv(fd, buffers):
                        data = buffer[:count]
                        hasher.update(data)
                        if sha:
                            sha.update(data)
                        size += count
                    xxh3 = hasher.hexdigest()
                if not size and not stat.S_ISREG(os.fstat(fd).st_mode):
                    return False  # a pipe reads as an empty file
            finally:
                _close(fd)
        except OSError:
            return False
        report.bodies += 1
        report.body_bytes += size
        if not named_by:
            report.unnamed += 1
        for expected_size, expected_xxh3, _ in named_by:
            if expected_size != size or expected_xxh3 != xxh3:
                return False
        return sha is None or sha.hexdigest() == name

    def _check_size(self, path, name, named_by) -> None:
        """All there is to say of a body that is not to be read."""
        if named_by:
            size = _size(path)
            if size >= 0 and any(expected != size for expected, _, _ in named_by):
                self._bad_body(path, name, named_by)

    def _bad_body(self, path, output, named_by) -> None:
        """Look again at a body that does not fit; SHA-256 says whether body or record is wrong."""
        try:
            contents = digest(path, sha256=True)
        except FileNotFoundError:
            return
        except OSError as error:
            self._unreadable(path, error, named_by, output)
            return
        if contents.sha256 != output:
            sizes = {size for size, _, _ in named_by} - {contents.size}
            what = "the body is not what its name says"
            if sizes:
                what = f"the body has {contents.size} bytes, not {min(sizes)}"
            self._fault(path, what, lambda: unlink_same(path, contents.identity), named_by, output)
            return
        for size, xxh3, action in named_by:
            if (size, xxh3) != (contents.size, contents.xxh3):
                self._wrong_link(action, output, "not the size and xxh3 of its body", contents)

    def _wrong_link(self, action, output, what, contents=None) -> None:
        fields = self._still_names(action, output)
        if fields is not None and (
            contents is None or (fields[1], fields[3]) != (contents.size, contents.xxh3)
        ):
            self._fault(
                self.store.action_path(action), what, lambda: self._remove_record(action, output)
            )

    def _bodiless(self, output, named_by) -> None:
        if not os.path.lexists(self.store.output_path(output)):
            for _, _, action in named_by:
                self._wrong_link(action, output, f"its body {output} is not there")

    # -- the spool ---------------------------------------------------------------------------------

    def _check_spool(self) -> None:
        """Bodies kept for upload: other names of those in output/, or all that is left of them."""
        spool = f"{self.store.root}/spool"
        for target in _names(spool):
            for session in _names(f"{spool}/{target}"):
                for name in _names(f"{spool}/{target}/{session}"):
                    path = f"{spool}/{target}/{session}/{name}"
                    if not _is_output(name) or _same_file(path, self.store.output_path(name)):
                        continue
                    if self.since is not None and self._is_earlier(path):
                        continue
                    if not self._is_right(path, name, ()):
                        self._bad_body(path, name, ())

    # -- what is found -----------------------------------------------------------------------------

    def _directories(self, part) -> set:
        """Which of the 256 directories of a part are there; whatever else is there is wrong."""
        found = set()
        for name in self._list(f"{self.store.root}/{part}/"):
            path = f"{self.store.root}/{part}/{name}"
            try:
                status = os.lstat(path)
            except OSError:
                continue
            if not _is_hex(name, 2):
                self._misnamed(path)
            elif not stat.S_ISDIR(status.st_mode):
                self._fault(path, "not a directory", self._remover(path))
            else:
                found.add(name)
        return found

    def _list(self, path) -> list:
        try:
            return os.listdir(path)
        except FileNotFoundError:
            return []
        except OSError as error:
            self._unreadable(path.rstrip("/"), error)
            return []

    def _is_earlier(self, path) -> bool:
        try:
            return os.lstat(path).st_ctime < self.since
        except OSError:
            return False  # whoever opens it says why

    def _misnamed(self, path) -> None:
        if os.path.lexists(path) and not (self.since is not None and self._is_earlier(path)):
            self._fault(path, "not a name of the store", self._remover(path))

    def _unreadable(self, path, error, named_by=(), output=None) -> None:
        try:
            plain = stat.S_ISREG(os.lstat(path).st_mode)
        except FileNotFoundError:
            return
        except OSError:
            plain = True
        if not plain:
            self._fault(path, "not a plain file", self._remover(path), named_by, output)
        elif error.errno in _OURS:
            self._fault(path, f"cannot be read: {error.strerror}", None)
        else:
            what = f"cannot be read: {error.strerror}"
            self._fault(path, what, self._remover(path), named_by, output)

    def _fault(self, path, what, remove, named_by=(), output=None) -> None:
        """Report a thing wrong; in repair call ``remove``, after the records that name the body."""
        removed = False
        if self.repair and remove is not None:
            for _, _, action in named_by:
                try:
                    self._remove_record(action, output)
                except OSError:
                    pass  # a record without a body is a miss
            try:
                removed = remove()
                if not removed:
                    what += "; replaced meanwhile"
            except OSError as error:
                what += f"; not removed: {error.strerror}"
        self.report.faults += 1
        self.report.removed += removed
        if self.on_fault:
            self.on_fault(Fault(os.path.relpath(path, self.store.root), what, removed))

    def _remove_record(self, action, output) -> bool:
        if self._still_names(action, output) is not None:
            os.unlink(self.store.action_path(action))
        return True

    def _remover(self, path):
        """What removes ``path``, of whatever kind; a directory only where it is empty."""

        def remove() -> bool:
            try:
                is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
                (os.rmdir if is_directory else os.unlink)(path)
            except FileNotFoundError:
                pass
            return True

        return remove


def _is_hex(text, digits) -> bool:
    return len(text) == digits and _HEX.issuperset(text)


def _is_action(name) -> bool:
    return 2 <= len(name) <= _MAX_ID_DIGITS and not len(name) % 2 and _HEX.issuperset(name)


def _is_output(name) -> bool:
    return len(name) == _OUTPUT_DIGITS and _HEX.issuperset(name)


def _names(path) -> list:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _size(path) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return -1


def _same_file(path, other) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.lstat(other))
    except OSError:
        return False
