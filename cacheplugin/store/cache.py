"""The local cache a process writes to: the store, and what stands in for it when it is full.

A body that the store cannot take goes, first, where room was made by removing what is oldest and
unused, and then to a store of the session's own in the temporary directory.
"""

import errno
import hashlib
import os
import time

import xxhash

from ..errors import BodyMismatch
from .tree import EMPTY_OUTPUT, MIN_AGE_S, Store

_FULL = (errno.ENOSPC, errno.EDQUOT)
_COPY_BYTES = 1 << 18
_MIN_ROOM_BYTES = 64 << 20  # made at once, so that a full disk is not searched at every put
_SEARCH_INTERVAL_S = 30


class LocalCache:
    """The stores of one process: ``store``, and ``session_store`` once that is needed.

    ``writable`` False sends every write to the session's store; ``spill`` False (a worker, whose
    bodies can be fetched again) never makes one.
    """

    def __init__(self, store: Store, writable: bool = True, spill: bool = True) -> None:
        self.store = store
        self.session_store = None
        self._session_dir = None
        self._writable = writable
        self._spill = spill
        self._next_search_s = 0.0

    def lookup(self, action: str):
        """As Store.lookup, in both stores; what was put last counts."""
        found = self.store.lookup(action)
        if self.session_store is not None:
            ours = self.session_store.lookup(action)
            if ours is not None and (found is None or ours[2] >= found[2]):
                return ours  # the store may hold an older record that we cannot replace
        return found

    def adopt(self, action: str, output: str, time_ns: int):
        """(size, path) of a body that is here under another action, now with a record for this one.

        The body is read and checked; None where it is not here or not right.
        """
        store = self.first_store()
        path = store.output_path(output)
        if output == EMPTY_OUTPUT:
            store.publish_empty()
        sha256, xxh3, size = hashlib.sha256(), xxhash.xxh3_64(), 0
        try:
            with open(path, "rb", buffering=0) as file:
                while data := file.read(_COPY_BYTES):
                    sha256.update(data)
                    xxh3.update(data)
                    size += len(data)
        except FileNotFoundError:
            return None
        if sha256.hexdigest() != output:
            os.unlink(path)
            return None
        store.publish_record(action, output, size, time_ns, xxh3.intdigest())
        return size, path

    def writer(self, action: str, output: str, size: int) -> "EntryWriter":
        """A writer for one entry; ids are hex, ``size`` is what the body must turn out to have."""
        return EntryWriter(self, action, output, size)

    def first_store(self) -> Store:
        """The store a write starts in; raises OSError where there is none to write to."""
        return self.store if self._writable else self._session()

    def next_store(self, store: Store, error: OSError) -> Store:
        """Where to go on after ``error`` in ``store``: maybe there again; else raises ``error``."""
        if store is self.store and error.errno in _FULL and self._make_room():
            return store
        if store is self.session_store or not self._spill:
            raise error
        try:
            return self._session()
        except OSError:
            raise error from None

    def _session(self) -> Store:
        if self.session_store is None:
            from .full_disk import SessionDir

            self._session_dir = SessionDir()
            self.session_store = Store(self._session_dir.path)
        return self.session_store

    def _make_room(self) -> bool:
        now = time.monotonic()
        if now < self._next_search_s:
            return False
        from .full_disk import free_space

        freed = free_space(self.store.root, _MIN_ROOM_BYTES, MIN_AGE_S)
        if not freed:
            self._next_search_s = now + _SEARCH_INTERVAL_S
        return freed > 0


class Draft:
    """A file being written under tmp/ of one of a cache's stores; where that is full, of the next.

    ``temp`` is the store.TempFile, None before the first write. As a context manager it leaves
    nothing behind.
    """

    def __init__(self, cache: LocalCache) -> None:
        self.store = cache.first_store()
        self.temp = None
        self._cache = cache

    def open(self):
        """The TempFile, made where there was none yet."""
        if self.temp is None:
            self.temp = self.store.temporary()
        return self.temp

    def write(self, data: bytes) -> None:
        """Append ``data``; raises OSError where no store can take it."""
        self.attempt(lambda: self.open().write(data))

    def attempt(self, step):
        """Do ``step``, where the cache says to go on each time it fails."""
        while True:
            try:
                return step()
            except OSError as error:
                store = self._cache.next_store(self.store, error)
            if store is not self.store:
                self._move(store)

    def _move(self, store: Store) -> None:
        """Go on in ``store`` with what has been written so far."""
        old, self.store, self.temp = self.temp, store, None
        if old is not None:
            with old:
                self.temp = store.temporary()
                # No further than old.size: behind it may be a part of what is to be written again.
                while left := old.size - self.temp.size:
                    self.temp.write(os.pread(old.fd, min(left, _COPY_BYTES), self.temp.size))

    def discard(self) -> None:
        if self.temp is not None:
            self.temp.discard()
            self.temp = None

    def __enter__(self) -> "Draft":
        return self

    def __exit__(self, *_) -> None:
        self.discard()


class EntryWriter:
    """Takes one body in chunks, checks it as it passes, and publishes it with its record.

    Use it as a context manager: leaving it without ``commit`` leaves nothing behind.
    """

    def __init__(self, cache: LocalCache, action: str, output: str, size: int) -> None:
        self.action = action
        self.output = output
        self.size = size
        self._received = 0
        self._sha256 = hashlib.sha256()
        self._xxh3 = xxhash.xxh3_64()
        self._draft = Draft(cache)
        self._published_in = self._path = None

    def write(self, data: bytes) -> None:
        """Take the next bytes of the body.

        Raises OSError where no store can take them, BodyMismatch once there are too many.
        """
        self._received += len(data)
        if self._received > self.size:
            raise BodyMismatch(f"the body is longer than its {self.size} bytes")
        self._sha256.update(data)
        self._xxh3.update(data)
        self._draft.write(data)

    def fill(self, write_to) -> None:
        """Let ``write_to(file)`` write the whole body into a seekable file, in any order."""
        temp = self._draft.open()
        with open(temp.fd, "wb", closefd=False) as file:
            write_to(file)
        while data := os.pread(temp.fd, _COPY_BYTES, self._received):
            self._received += len(data)
            self._sha256.update(data)
            self._xxh3.update(data)
        temp.size = self._received

    def commit(self, time_ns: int) -> str:
        """Publish body and record and return the body's path; raises as ``write`` does."""
        if self._received != self.size:
            raise BodyMismatch(f"the body has {self._received} bytes in place of {self.size}")
        if self._sha256.hexdigest() != self.output:
            raise BodyMismatch("the body's SHA-256 is not its output id")
        return self._draft.attempt(lambda: self._publish(time_ns))

    def _publish(self, time_ns):
        store = self._draft.store
        if self._published_in is not store:
            if self.size == 0:
                self._path = store.publish_empty()
            else:
                self._path = store.publish_output(self._draft.temp, self.output, self.size)
            self._published_in = store
        store.publish_record(self.action, self.output, self.size, time_ns, self._xxh3.intdigest())
        return self._path

    def discard(self) -> None:
        self._draft.discard()

    def __enter__(self) -> "EntryWriter":
        return self

    def __exit__(self, *_) -> None:
        self.discard()
