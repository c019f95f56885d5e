"""The local cache a process writes to: the store, and a substitute for when its disk is full.

When a write finds the disk full, the least recently used bodies are removed and the write is tried
again. If that does not help, or the store takes no files for another reason, it goes to a session
store: a store in the temporary directory that only the processes of this session use.
"""

import errno
import hashlib
import os
import time

import xxhash

from ..errors import BodyMismatch
from .record import timestamp
from .tree import BODY_MODE, EMPTY_OUTPUT, FILE_MODE, MIN_AGE_S, Store, TempFile, unlink_quietly

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO, TypeVar

    from .full_disk import SessionDir
    from .tree import Hit

    _T = TypeVar("_T")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_COPY_BYTES = 1 << 18
_MIN_ROOM_BYTES = 64 << 20  # freed at once, so that not every put scans the store
_SEARCH_INTERVAL_S = 30
_LARGE_BYTES = 16 << 20  # a body of such a size is not begun if the disk has no room for it


class LocalCache:
    """The stores of one process: ``store``, and ``session_store`` (None until it is needed).

    ``writable`` False: every write goes to the session store. ``spill`` False: there never is a
    session store.
    """

    def __init__(
        self,
        store: Store,
        writable: bool = True,
        spill: bool = True,
    ) -> None:
        self.store = store
        self.session_store: Store | None = None
        self._session_dir: SessionDir | None = None  # keeps the SessionDir's lock
        self._writable = writable
        self._spill = spill
        self._next_search_s = 0.0

    def lookup(self, action: str) -> "Hit | None":
        """As Store.lookup, in both stores; the entry that was put last wins.

        The store may hold an older record that this process could not replace.
        """
        found = self.store.lookup(action)
        if self.session_store is None:
            return found
        spilled = self.session_store.lookup(action)
        if spilled is None or found is None:
            return spilled or found
        _, _, put_time, _, _ = found
        _, _, spilled_time, _, _ = spilled
        return spilled if spilled_time >= put_time else found

    def adopt(self, action: str, output: str, time_ns: int) -> "tuple[int, str] | None":
        """Write a record that maps ``action`` to a body already in the store.

        Returns the body's (size, path). The body is read and checked first: None if it is missing
        or wrong; a wrong one is removed. Also None if the record cannot be written and a session
        store could take the entry. Raises OSError.
        """
        from . import contents

        store = self.first_store()
        path = store.output_path(output)
        if output == EMPTY_OUTPUT:
            store.publish_empty()
        elif not store.hold(output):  # from here on no prune removes it
            return None
        elif not store.is_body(path):
            unlink_quietly(path)
            return None
        try:
            body = contents.digest(path, sha256=True)
        except FileNotFoundError:
            return None
        if body.sha256 != output:
            contents.unlink_same(path, body.identity)
            return None
        try:
            store.publish_record(action, output, body.size, time_ns, int(body.xxh3, 16))
        except OSError:
            if store is self.session_store or not self._spill:
                raise
            return None
        return (body.size, path) if store.is_there(path) else None

    def writer(self, action: str, output: str, size: int) -> "EntryWriter":
        """Return a writer for one entry; ids are hex, ``size`` is the expected size in bytes."""
        return EntryWriter(self, action, output, size)

    def first_store(self) -> Store:
        """Return the store to try first. Raises OSError if the session store cannot be made."""
        return self.store if self._writable else self._session()

    def next_store(self, store: Store, error: OSError, needed: int = 0) -> Store:
        """Return the store to retry in after ``error`` in ``store``; or raise ``error``.

        It is the same store again if its disk was full and some space could be freed; ``needed``
        are the bytes that are still to be written.
        """
        if store is self.session_store:
            raise error
        if error.errno in _FULL and self._make_room(needed):
            return store
        try:
            if not self._spill:
                raise error
            if self.session_store is None and needed >= _LARGE_BYTES:
                self._expect_room_for_session(needed)
            session = self._session()
        except OSError:
            raise error from None
        return session

    def drop_older(self, action: str, time_ns: int) -> None:
        """Remove the store's record of an earlier put, which a later one could not replace.

        The next session would serve it otherwise. Unlinking works on a full disk, too.
        """
        from .faults import read_record

        try:
            fields = read_record(self.store, action)
        except OSError:
            return
        if fields is None or fields[2] <= timestamp(time_ns):
            unlink_quietly(self.store.action_path(action))

    def _session(self) -> Store:
        if self.session_store is None:
            from .full_disk import SessionDir

            self._session_dir = directory = SessionDir()
            self.session_store = Store(directory.path)
        return self.session_store

    def expect_room(self, store: Store, size: int) -> None:
        """Raise ENOSPC if the disk of a store has no room for a body of ``size`` bytes."""
        _expect_room(store.root, size)

    def _expect_room_for_session(self, size: int) -> None:
        """Make no session store for a body that it could not take. Raises OSError."""
        from .full_disk import temporary_directory

        _expect_room(temporary_directory(), size)

    def _make_room(self, needed: int) -> bool:
        now = time.monotonic()
        if now < self._next_search_s:
            return False
        from .full_disk import free_bytes, free_space, removable_bytes

        root = self.store.root
        missing = needed - free_bytes(root)
        if missing > 0 and removable_bytes(root, MIN_AGE_S) < missing:
            return False  # evicting everything would not help
        freed = free_space(root, max(_MIN_ROOM_BYTES, missing), MIN_AGE_S)
        if not freed:
            self._next_search_s = now + _SEARCH_INTERVAL_S
        return freed > 0


def _expect_room(path: str, size: int) -> None:
    """Raise ENOSPC if the disk that holds ``path`` has less than ``size`` bytes free."""
    from .full_disk import free_bytes

    if free_bytes(path) < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Draft:
    """A file being written under tmp/ of one of a cache's stores; it moves on when a disk is full.

    ``temp`` is its TempFile, None before the first write. ``size`` is the size that the file is
    said to get, 0 if unknown; ``mode`` are its permissions. Leaving the context manager removes the
    file, unless it was renamed.
    """

    def __init__(self, cache: LocalCache, size: int = 0, mode: int = FILE_MODE) -> None:
        self.store = cache.first_store()
        self.temp: TempFile | None = None
        self._cache = cache
        self._size = size
        self._mode = mode
        self._has_room: Store | None = None  # the store that was asked for room

    def open(self) -> TempFile:
        """Return the TempFile; the first call creates it. Raises OSError."""
        if self.temp is None:
            if self._size >= _LARGE_BYTES and self._has_room is not self.store:
                self._cache.expect_room(self.store, self._size)
                self._has_room = self.store
            self.temp = self.store.temporary(self._mode)
        return self.temp

    def write(self, data: "bytes | memoryview") -> None:
        """Append ``data``. Raises OSError if no store can take it."""
        self.attempt(lambda: self.open().write(data))

    def attempt(self, step: "Callable[[], _T]") -> "_T":
        """Return ``step()``; after each OSError repeat it in the cache's next store."""
        while True:
            try:
                return step()
            except OSError as error:
                done = self.temp.size if self.temp is not None else 0
                store = self._cache.next_store(self.store, error, self._size - done)
            if store is not self.store:
                self._move(store)

    def _move(self, store: Store) -> None:
        """Copy what has been written so far to a new file in ``store``, and continue there."""
        old, self.store, self.temp = self.temp, store, None
        if old is not None:
            with old:
                self.temp = store.temporary(self._mode)
                # Stop at old.size: bytes after it belong to the failed write, which is repeated.
                while left := old.size - self.temp.size:
                    self.temp.write(os.pread(old.fd, min(left, _COPY_BYTES), self.temp.size))

    def discard(self) -> None:
        """Close and remove the file, if there is one."""
        if self.temp is not None:
            self.temp.discard()
            self.temp = None

    def __enter__(self) -> "Draft":
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


class EntryWriter:
    """Takes one body in chunks, checks its size and SHA-256, and publishes it with its record.

    Leaving the context manager without ``commit`` removes the partial body.
    """

    def __init__(self, cache: LocalCache, action: str, output: str, size: int) -> None:
        self.action = action
        self.output = output
        self.size = size
        self._received = 0
        self._sha256 = hashlib.sha256()
        self._xxh3 = xxhash.xxh3_64()
        self._cache = cache
        self._draft = Draft(cache, size, BODY_MODE)
        self._published_in: Store | None = None
        self._path = ""

    def write(self, data: "bytes | memoryview") -> None:
        """Append the next bytes of the body.

        Raises OSError if no store can take them, BodyMismatch if the body exceeds its size.
        """
        self._received += len(data)
        if self._received > self.size:
            raise BodyMismatch(f"the body is longer than its {self.size} bytes")
        self._sha256.update(data)
        self._xxh3.update(data)
        self._draft.write(data)

    def fill(self, write_to: "Callable[[BinaryIO], object]") -> None:
        """Let ``write_to(file)`` write the whole body to a seekable file, in any order of parts."""
        temp = self._draft.attempt(self._draft.open)
        with open(temp.fd, "wb", closefd=False) as file:
            write_to(file)
        while data := os.pread(temp.fd, _COPY_BYTES, self._received):
            self._received += len(data)
            self._sha256.update(data)
            self._xxh3.update(data)
        temp.size = self._received

    def commit(self, time_ns: int) -> str:
        """Publish body and record; return the path of the body. Raises as ``write`` does.

        ``time_ns``: the time of the put in nanoseconds since the epoch.
        """
        if self._received != self.size:
            raise BodyMismatch(f"the body has {self._received} bytes in place of {self.size}")
        if self._sha256.hexdigest() != self.output:
            raise BodyMismatch("the body's SHA-256 is not its output id")
        return self._draft.attempt(lambda: self._publish(time_ns))

    def _publish(self, time_ns: int) -> str:
        store = self._draft.store
        if self._published_in is not store:
            self._publish_body(store)
        store.publish_record(self.action, self.output, self.size, time_ns, self._xxh3.intdigest())
        # An older version's prune may have looked at a body of the same content before it was
        # marked as used, and removed it since.
        if not store.is_there(self._path):
            self._publish_body(store)
        if store is not self._cache.store:
            self._cache.drop_older(self.action, time_ns)
        return self._path

    def _publish_body(self, store: Store) -> None:
        if self.size == 0:
            self._path = store.publish_empty()
        else:
            self._path = store.publish_output(self._draft.open(), self.output, self.size)
        self._published_in = store

    def discard(self) -> None:
        """Remove what was written and not published."""
        self._draft.discard()

    def __enter__(self) -> "EntryWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()
