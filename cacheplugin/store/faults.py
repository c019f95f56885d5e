"""What a check of the store reports, and the removal of what is wrong."""

import errno
import os
import stat

from ..tuples import NamedTuple
from . import record
from .contents import open_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .record_links import Link
    from .tree import Store

# Errors of this process or its user, not of the file: no reason to remove it.
_NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Fault(NamedTuple):
    """A file that is wrong: its path below the root, what is wrong, and whether it was removed."""

    path: str
    what: str
    removed: bool


class Report:
    """The totals of a check: numbers of things, bytes of bodies read, seconds it took.

    ``unnamed`` are the bodies that no record names, ``mended`` those that were made executable.
    """

    __slots__ = (
        *("bodies", "body_bytes", "faults", "mended", "records", "removed", "seconds", "unnamed"),
    )

    def __init__(self) -> None:
        self.records = self.bodies = self.body_bytes = self.unnamed = 0
        self.faults = self.removed = self.mended = 0
        self.seconds = 0.0

    def as_dict(self) -> "dict[str, float]":
        return {name: getattr(self, name) for name in self.__slots__}


class Faults:
    """Reports the faults of one check of ``store``, and with ``repair`` removes the files.

    ``totals`` is the Report to count in; ``on_fault(fault)`` is called for each fault.
    """

    def __init__(
        self,
        store: "Store",
        totals: Report,
        repair: bool,
        on_fault: "Callable[[Fault], None] | None",
    ) -> None:
        self.store = store
        self.totals = totals
        self.repair = repair
        self.on_fault = on_fault

    def unreadable(
        self, path: str, error: OSError, named_by: "Sequence[Link]" = (), output: str = ""
    ) -> None:
        """Report a file that ``error`` kept from being read, unless it is gone."""
        try:
            regular = stat.S_ISREG(os.lstat(path).st_mode)
        except FileNotFoundError:
            return
        except OSError:
            regular = True
        if not regular:
            self.report(path, "not a regular file", remover(path), named_by, output)
            return
        what = f"cannot be read: {error.strerror}"
        if error.errno in _NOT_DAMAGE:
            self.report(path, what, None)
        else:
            self.report(path, what, remover(path), named_by, output)

    def report(
        self,
        path: str,
        what: str,
        remove: "Callable[[], bool] | None",
        named_by: "Sequence[Link]" = (),
        output: str = "",
    ) -> None:
        """Report a wrong file. With ``repair`` remove the records that name it, then the file.

        ``remove`` returns whether the file is gone; None means that it must stay.
        """
        removed = False
        if self.repair and remove is not None:
            for link in named_by:
                try:
                    remove_record(self.store, link.action, output)
                except OSError:
                    pass  # a record without a body is a miss
            try:
                removed = remove()
                if not removed:
                    what += "; replaced since"
            except OSError as error:
                what += f"; not removed: {error.strerror}"
        self.totals.faults += 1
        self.totals.removed += removed
        if self.on_fault:
            self.on_fault(Fault(os.path.relpath(path, self.store.root), what, removed))


def read_record(store: "Store", action: str) -> "record.Fields | None":
    """Return the fields of a record, None if it is not valid. Raises OSError."""
    fd = open_file(store.action_path(action))
    try:
        return record.decode(action, os.read(fd, record.MAX_BYTES))
    finally:
        os.close(fd)


def named_contents(store: "Store", action: str, output: str) -> "tuple[int, str] | None":
    """Return (size, xxh3) of a record if it still names ``output``, else None."""
    try:
        fields = read_record(store, action)
    except OSError:
        return None
    if fields is None:
        return None
    named, size, _, xxh3 = fields
    return (size, xxh3) if named == output else None


def remove_record(store: "Store", action: str, output: str) -> bool:
    """Remove a record if it still names ``output``; return True. Raises OSError."""
    if named_contents(store, action, output) is not None:
        os.unlink(store.action_path(action))
    return True


def remover(path: str) -> "Callable[[], bool]":
    """Return a function that removes a file of any kind, or a directory if it is empty."""

    def remove() -> bool:
        try:
            is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
            (os.rmdir if is_directory else os.unlink)(path)
        except FileNotFoundError:
            pass
        return True

    return remove
