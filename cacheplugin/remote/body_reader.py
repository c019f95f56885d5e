"""Reads response bodies of S3 in full, and gives up on a body that comes too slowly.

botocore's read time-out bounds the wait for each read only: a server that sends a byte every few
seconds would hold a get for ever.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..errors import Unavailable

if TYPE_CHECKING:
    from typing import Protocol

    class Body(Protocol):
        """A response body. Those of botocore and urllib3 implement it."""

        def read(self, amount: int, /) -> bytes:
            """Up to ``amount`` bytes; b"" at the end."""


GRACE_S = 30
MIN_BYTES_PER_S = 1 << 18
_READ_BYTES = 1 << 18


class BodyReader:
    """Reads ``body`` within GRACE_S plus the time that it takes at MIN_BYTES_PER_S."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._deadline = time.monotonic() + GRACE_S

    def read(self, amount: int) -> bytes:
        """The next ``amount`` bytes, no fewer; raises Unavailable if they end early or are late."""
        pieces = []
        while amount:
            piece = self._body.read(min(amount, _READ_BYTES))
            if not piece:
                raise Unavailable("a response body ended early")
            amount -= len(piece)
            self._deadline += len(piece) / MIN_BYTES_PER_S
            if time.monotonic() > self._deadline:
                raise Unavailable("a response body came too slowly")
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
