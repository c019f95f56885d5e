"""The typed contracts between the modules of the module proxy; imported only for type checking."""

from __future__ import annotations

from typing import Protocol

from .names import Name


class Sink(Protocol):
    """Receives the content of one file. Download implements it, Upstream.fetch writes to it."""

    @property
    def size(self) -> int:
        """Bytes written so far."""

    def announce(self, length: int | None) -> None:
        """The length of the whole file, None if unknown; FileMismatch when it changed."""

    def write(self, data: bytes) -> None:
        """Append ``data``; raises OSError when it cannot be stored."""

    def restart(self) -> bool:
        """Drop what was written. False, without doing so, when clients may have read some of it."""


class ReadRecord(Protocol):
    """Reads a small file. ModuleCache.read implements it, ChecksumVerifier calls it."""

    async def __call__(self, name: Name, refresh: bool = False) -> bytes:
        """The content of a file. ``refresh``: fetch it from upstream, whatever is stored.

        Raises UpstreamError and OSError.
        """
