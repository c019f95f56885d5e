"""One file that is being fetched: one task writes it while any number of clients read it."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from ...errors import FileMismatch, UpstreamError
from . import names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ...store.cache import Draft
    from .names import Name

# Clients get the last bytes of a zip only after the whole zip was checked. They hold the central
# directory, and without that no program opens the zip.
HELD_BACK_BYTES = 64 << 10
_CHUNK_BYTES = 1 << 18


class Download:
    """A file that is being fetched into ``draft``.

    Clients can read a zip while it is fetched, and any other file when it is complete. The
    temporary file is removed when the download has ended and the last client has read it.
    """

    def __init__(self, name: Name, draft: Draft) -> None:
        self.name = name
        self.draft = draft
        self.length: int | None = None  # of the whole file, once known
        self.path: str | None = None  # where it is stored, once it is
        self.is_stale = False  # it is the last good copy, because upstream failed
        self._size = 0
        self._is_done = False
        self._error: UpstreamError | None = None
        self._readers = 0
        self._changed = asyncio.Event()  # set, and replaced, at each change

    # -- for the task that fetches it --------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    def announce(self, length: int | None) -> None:
        """Set the length of the whole file, None if unknown; FileMismatch when it changed."""
        if length is not None:
            if self.length not in (None, length):
                raise FileMismatch(
                    f"its length changed from {self.length} to {length} bytes while it was fetched"
                )
            self.length = length
        self._notify()

    def write(self, data: bytes) -> None:
        """Append ``data``; raises OSError when no store can take it."""
        self.draft.write(data)
        self._size = self.draft.open().size
        self._notify()

    def take_over(self, draft: Draft) -> None:
        """Use the complete file of another Draft, which gets the one written so far in exchange."""
        mine = self.draft
        mine.temp, draft.temp = draft.temp, mine.temp
        mine.store, draft.store = draft.store, mine.store
        temp = mine.open()
        temp.size = self._size = os.fstat(temp.fd).st_size

    def restart(self) -> bool:
        """Drop what was written. False, without doing so, when clients may have read some of it."""
        if self._readable_bytes:
            return False
        temp = self.draft.temp
        if temp is not None:
            os.ftruncate(temp.fd, 0)
            temp.size = 0
        self._size, self.length = 0, None
        return True

    def finish(self, error: UpstreamError | None = None) -> None:
        """End the download: the file is complete and was checked, or it failed with ``error``."""
        self._error, self._is_done = error, True
        if error is None:
            self.length = self._size
        self._notify()
        self._release()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # -- for clients -------------------------------------------------------------------------------

    def __enter__(self) -> Download:
        """Keep the file readable for the length of the context."""
        self._readers += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._readers -= 1
        self._release()

    def _release(self) -> None:
        if self._is_done and not self._readers:
            self.draft.discard()

    @property
    def _readable_bytes(self) -> int:
        """How many bytes clients may have read by now."""
        if self._is_done:
            return self._size
        return max(0, self._size - HELD_BACK_BYTES) if self.name.kind == names.ZIP else 0

    async def wait_complete(self) -> None:
        """Wait until the file is complete; raises the error that ended the download."""
        while not self._is_done:
            await self._changed.wait()
        if self._error is not None:
            raise self._error

    async def wait_length(self) -> None:
        """Wait until ``length`` is known; raises the error that ended the download."""
        while self.length is None and not self._is_done:
            await self._changed.wait()
        if self._error is not None:
            raise self._error

    def read_all(self) -> bytes:
        """The content of a complete file."""
        temp = self.draft.temp
        return os.pread(temp.fd, self._size, 0) if temp is not None else b""

    async def chunks(self) -> AsyncIterator[bytes]:
        """The content in pieces, as it is fetched; raises the error that ended the download."""
        at = 0
        while True:
            if self._error is not None:
                raise self._error
            end = self._readable_bytes
            if at < end:
                temp = self.draft.temp
                if temp is None:
                    raise RuntimeError("a download is read after it was discarded")
                data = os.pread(temp.fd, min(_CHUNK_BYTES, end - at), at)
                at += len(data)
                yield data
            elif self._is_done:
                return
            else:
                await self._changed.wait()
