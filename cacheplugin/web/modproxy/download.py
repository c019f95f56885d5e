"""One file on its way to the cache: written by one task, read by any number of clients meanwhile."""

import asyncio
import os

from ...errors import FileMismatch
from . import names

# The end of a zip that no client gets before all of it was found right: without its directory, which
# is there, it is no zip.
HELD_BACK_BYTES = 64 << 10
_CHUNK_BYTES = 1 << 18


class Download:
    """Its file is a local.Draft, which goes when it is done and nobody reads it any more.

    A zip can be read while it comes; any other file when it is whole.
    """

    def __init__(self, name, draft) -> None:
        self.name = name
        self.draft = draft
        self.length = None  # its size, once that is known
        self.path = None  # where it is kept, once it is
        self.is_stale = False  # whether it is only the last good copy
        self._size = 0
        self._is_done = False
        self._error = None
        self._readers = 0
        self._moved = asyncio.Event()

    # -- for the task that brings it ---------------------------------------------------------------

    @property
    def size(self) -> int:
        """How much of it is there."""
        return self._size

    def announce(self, length) -> None:
        """How long it will be, or None; raises FileMismatch where that changes."""
        if None not in (length, self.length) and length != self.length:
            raise FileMismatch(f"it has {length} bytes, and had {self.length} before")
        if length is not None:
            self.length = length
        self._move()

    def write(self, data: bytes) -> None:
        """Append to it; raises OSError where no disk takes it."""
        self.draft.write(data)
        self._size = self.draft.temp.size
        self._move()

    def take_over(self, draft) -> None:
        """Have the file that another Draft has, whole; that one has what was here before."""
        mine = self.draft
        mine.temp, mine.store, draft.temp, draft.store = (
            draft.temp,
            draft.store,
            mine.temp,
            mine.store,
        )
        mine.temp.size = self._size = os.fstat(mine.temp.fd).st_size

    def forget(self) -> bool:
        """Begin anew; False where clients may have read some of it."""
        if self._readable:
            return False
        if self.draft.temp is not None:
            os.ftruncate(self.draft.temp.fd, 0)
            self.draft.temp.size = 0
        self._size, self.length = 0, None
        return True

    def finish(self, error=None) -> None:
        """It is whole and right, or it ended with ``error``."""
        self._error, self._is_done = error, True
        if error is None:
            self.length = self._size
        self._move()
        self._let_go()

    def _move(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    # -- for those who read it ---------------------------------------------------------------------

    def __enter__(self) -> "Download":
        """Reading is for the context."""
        self._readers += 1
        return self

    def __exit__(self, *_) -> None:
        self._readers -= 1
        self._let_go()

    def _let_go(self) -> None:
        if self._is_done and not self._readers:
            self.draft.discard()

    @property
    def _readable(self) -> int:
        """How much of it clients may have by now."""
        if self._is_done:
            return self._size
        return max(0, self._size - HELD_BACK_BYTES) if self.name.kind == names.ZIP else 0

    async def whole(self) -> None:
        """Wait until it is whole; raises what it ended with."""
        while not self._is_done:
            await self._moved.wait()
        if self._error is not None:
            raise self._error

    async def begun(self) -> None:
        """Wait until its length is known, or it is whole; raises what it ended with."""
        while self.length is None and not self._is_done:
            await self._moved.wait()
        if self._error is not None:
            raise self._error

    def read(self) -> bytes:
        """All of one that is whole."""
        temp = self.draft.temp
        return os.pread(temp.fd, self._size, 0) if temp is not None else b""

    async def chunks(self):
        """All of it in pieces, as it comes; raises what it ended with."""
        at = 0
        while True:
            if self._error is not None:
                raise self._error
            end = self._readable
            if at < end:
                data = os.pread(self.draft.temp.fd, min(_CHUNK_BYTES, end - at), at)
                at += len(data)
                yield data
            elif self._is_done:
                return
            else:
                await self._moved.wait()
