"""Verify: checks every record and body of a store, and removes damaged ones if asked to.

A record must be valid and stored under its own action id. The body it names must exist with the
size and the xxh3 of the record. xxh3 is as fast as memory; ``sha256`` also compares each body with
its name. A body that no record names is always compared with its name, as is a body that only the
spool still holds.

Running builds may use the store meanwhile. Whatever looks wrong is examined a second time, and a
file that was replaced or removed since is no fault. Memory: about 90 bytes for each record, 32 for
each body, and one buffer.
"""

import hashlib
import os
import stat
import time

from . import record
from .contents import BUFFER_BYTES, digest, open_file, read_hashes, unlink_same
from .faults import Faults, Report, named_contents, read_record, remove_record, remover
from .ids import is_action, is_hex, is_output
from .record_links import RecordLinks
from .tree import EMPTY_OUTPUT, Store, make_executable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .contents import Contents
    from .faults import Fault
    from .record_links import Link

_XX = tuple(f"{number:02x}" for number in range(256))
# The share of the records in the progress: they take little time compared with the bodies.
_RECORDS_SHARE = 0.05


def check(
    store: Store,
    sha256: bool = False,
    since: "float | None" = None,
    on_fault: "Callable[[Fault], None] | None" = None,
    repair: bool = False,
    on_progress: "Callable[[Report, float], None] | None" = None,
) -> Report:
    """Check a store; ``on_fault(fault)`` is called for each file that is wrong.

    ``since`` (seconds since the epoch) skips files whose ctime is earlier. If only a record is
    newer, its body must exist with the right size, and is not read. If only a body is newer, it is
    checked by SHA-256. ``repair`` removes what is wrong: a damaged body together with the records
    that name it, a damaged record alone. It also makes bodies executable that are not.
    ``on_progress(report, done)`` is called after each file; ``done`` grows from 0 to 1. Raises
    OSError only if the whole file system fails.
    """
    return _Check(store, sha256, since, on_fault, repair, on_progress).run()


class _Check:
    """One run of ``check``. Each body is read once; its directory's links are then in memory."""

    def __init__(
        self,
        store: Store,
        sha256: bool,
        since: "float | None",
        on_fault: "Callable[[Fault], None] | None",
        repair: bool,
        on_progress: "Callable[[Report, float], None] | None",
    ) -> None:
        self.store = store
        self.sha256 = sha256
        self.since = since
        self.on_progress = on_progress
        self.report = Report()
        self._faults = Faults(store, self.report, repair, on_fault)
        self._repair = repair
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._links = RecordLinks()
        self._seen: dict[str, bytes] = {}  # <xx>: ids of the bodies present at the start, packed

    def run(self) -> Report:
        begin = time.monotonic()
        # The names tell a body that is removed during the check from one that never was there.
        for xx in _XX:
            names = _names(f"{self.store.root}/output/{xx}")
            self._seen[xx] = b"".join(bytes.fromhex(name) for name in names if is_output(name))
        # Records before bodies: a put publishes the body first. A body whose record is added after
        # the records were read is compared with its name.
        names_of_actions = self._directories("action")
        for number, xx in enumerate(_XX):
            if xx in names_of_actions:
                self._check_records(xx, _RECORDS_SHARE * number / 256)
        names_of_outputs = self._directories("output")
        for number, xx in enumerate(_XX):
            done = _RECORDS_SHARE + (1 - _RECORDS_SHARE) * number / 256
            self._check_bodies(xx, xx in names_of_outputs, done)
        self._check_spool()
        self.report.seconds = time.monotonic() - begin
        return self.report

    # -- records -----------------------------------------------------------------------------------

    def _check_records(self, xx: str, done: float) -> None:
        buffers = (self._buffer[: record.MAX_BYTES],)
        data = buffers[0]
        directory = f"{self.store.root}/action/{xx}/"
        for name in self._list(directory):
            path = directory + name
            if not is_action(name) or name[:2] != xx:
                self._misnamed(path)
                continue
            if self._is_skipped(path):
                continue
            self.report.records += 1
            try:
                fd = open_file(path)
                try:
                    fields = record.decode(name, bytes(data[: os.readv(fd, buffers)]))
                finally:
                    os.close(fd)
            except OSError:
                fields = None
            if not self._add_link(name, fields):
                self._bad_record(path, name)
            if self.on_progress:
                self.on_progress(self.report, done)

    def _add_link(self, action: str, fields: "record.Fields | None") -> bool:
        """Remember what a record says of its body; False if the record is not valid."""
        if fields is None:
            return False
        output, size, _, xxh3 = fields
        return self._links.add(action, output, size, xxh3)

    def _bad_record(self, path: str, action: str) -> None:
        """Examine a record that could not be used a second time."""
        try:
            status = os.lstat(path)
            fields = read_record(self.store, action)
        except FileNotFoundError:
            return
        except OSError as error:
            self._faults.unreadable(path, error)
            return
        if not stat.S_ISREG(status.st_mode):
            self._faults.report(path, "not a regular file", remover(path))
        elif not self._add_link(action, fields):
            identity = (status.st_dev, status.st_ino)
            self._faults.report(path, "not a valid record", lambda: unlink_same(path, identity))

    # -- bodies ------------------------------------------------------------------------------------

    def _check_bodies(self, xx: str, exists: bool, done: float) -> None:
        links = self._links.take(xx)
        directory = f"{self.store.root}/output/{xx}/"
        for name in self._list(directory) if exists else ():
            path = directory + name
            if not is_output(name) or name[:2] != xx:
                self._misnamed(path)
                continue
            named_by = links.pop(name, [])
            if self._is_skipped(path):
                self._check_size(path, name, named_by)
                continue
            if not self._is_right(path, name, named_by):
                self._bad_body(path, name, named_by)
            if self.on_progress:
                self.on_progress(self.report, done)
        self._check_missing(links, self._seen.pop(xx))

    def _check_missing(self, links: "dict[str, list[Link]]", packed: bytes) -> None:
        """Report records whose body is missing now and, by the ids in ``packed``, was at first."""
        if not links:
            return
        seen = {packed[at : at + 32].hex() for at in range(0, len(packed), 32)}
        for output, named_by in links.items():
            # A get creates the empty body if it is missing.
            if output in seen or output == EMPTY_OUTPUT:
                continue
            if not os.path.lexists(self.store.output_path(output)):
                for link in named_by:
                    self._wrong_link(link.action, output, f"its body {output} is missing")

    def _is_right(self, path: str, name: str, named_by: "Sequence[Link]") -> bool:
        """Read a body once; return whether its records agree, and its name if that is checked."""
        sha256 = hashlib.sha256() if self.sha256 or not named_by else None
        try:
            fd = open_file(path)
            try:
                size, xxh3 = read_hashes(fd, self._buffer, sha256)
                if self._repair:
                    self._mend(fd)
            finally:
                os.close(fd)
        except OSError:
            return False
        report = self.report
        report.bodies += 1
        report.body_bytes += size
        if not named_by:
            report.unnamed += 1
        for link in named_by:
            if link.size != size or link.xxh3 != xxh3:
                return False
        return sha256 is None or sha256.hexdigest() == name

    def _mend(self, fd: int) -> None:
        """Make a body executable that an older version of the program has stored."""
        try:
            self.report.mended += make_executable(fd, os.fstat(fd).st_mode)
        except OSError:
            pass  # another user's file, or a file system that is read-only

    def _check_size(self, path: str, name: str, named_by: "Sequence[Link]") -> None:
        """Check a body that is not read: only its size."""
        if named_by:
            size = _size(path)
            if size >= 0 and any(link.size != size for link in named_by):
                self._bad_body(path, name, named_by)

    def _bad_body(self, path: str, output: str, named_by: "Sequence[Link]") -> None:
        """Read a body again that looks wrong; SHA-256 tells whether body or record is wrong."""
        try:
            contents = digest(path, sha256=True)
        except FileNotFoundError:
            return
        except OSError as error:
            self._faults.unreadable(path, error, named_by, output)
            return
        if contents.sha256 != output:
            sizes = {link.size for link in named_by} - {contents.size}
            what = "the body's SHA-256 is not its name"
            if sizes:
                what = f"the body has {contents.size} bytes, not {min(sizes)}"
            self._faults.report(
                path, what, lambda: unlink_same(path, contents.identity), named_by, output
            )
            return
        for link in named_by:
            if (link.size, link.xxh3) != (contents.size, contents.xxh3):
                what = "its size or xxh3 is not that of its body"
                self._wrong_link(link.action, output, what, contents)

    def _wrong_link(
        self, action: str, output: str, what: str, contents: "Contents | None" = None
    ) -> None:
        """Report a record if it still names ``output`` and does not agree with ``contents``."""
        named = named_contents(self.store, action, output)
        if named is not None and (contents is None or named != (contents.size, contents.xxh3)):
            path = self.store.action_path(action)
            self._faults.report(path, what, lambda: remove_record(self.store, action, output))

    # -- the spool ---------------------------------------------------------------------------------

    def _check_spool(self) -> None:
        """Check bodies in the spool that are not hard links to bodies in output/."""
        spool = f"{self.store.root}/spool"
        for target in _names(spool):
            for session in _names(f"{spool}/{target}"):
                for name in _names(f"{spool}/{target}/{session}"):
                    path = f"{spool}/{target}/{session}/{name}"
                    if not is_output(name) or _same_file(path, self.store.output_path(name)):
                        continue
                    if not self._is_skipped(path) and not self._is_right(path, name, ()):
                        self._bad_body(path, name, ())

    # -- directories and faults --------------------------------------------------------------------

    def _directories(self, part: str) -> set[str]:
        """Return which <xx> directories ``part`` has; report everything else that is in it."""
        found: set[str] = set()
        for name in self._list(f"{self.store.root}/{part}/"):
            path = f"{self.store.root}/{part}/{name}"
            try:
                status = os.lstat(path)
            except OSError:
                continue
            if not is_hex(name, 2):
                self._misnamed(path)
            elif not stat.S_ISDIR(status.st_mode):
                self._faults.report(path, "not a directory", remover(path))
            else:
                found.add(name)
        return found

    def _list(self, path: str) -> list[str]:
        try:
            return os.listdir(path)
        except FileNotFoundError:
            return []
        except OSError as error:
            self._faults.unreadable(path.rstrip("/"), error)
            return []

    def _is_skipped(self, path: str) -> bool:
        """Return whether a file is older than ``since``."""
        if self.since is None:
            return False
        try:
            return os.lstat(path).st_ctime < self.since
        except OSError:
            return False  # opening it reports the error

    def _misnamed(self, path: str) -> None:
        if os.path.lexists(path) and not self._is_skipped(path):
            self._faults.report(path, "not a name that the store uses", remover(path))


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return -1


def _same_file(path: str, other: str) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.lstat(other))
    except OSError:
        return False
