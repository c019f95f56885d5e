"""Bodies from S3, read to their end, but not on a trickle: no get waits for ever."""

import time

from ..errors import Unavailable

PATIENCE_S = 30
SLOWEST_BYTES_PER_S = 1 << 18
_PIECE_BYTES = 1 << 18


class PatientBody:
    """``body`` has ``read(n)``. What comes slower than the module's bounds raises Unavailable."""

    def __init__(self, body) -> None:
        self._body = body
        self._deadline = time.monotonic() + PATIENCE_S

    def read(self, amount: int) -> bytes:
        """The next ``amount`` bytes, no fewer; raises Unavailable where the body ends before."""
        pieces = []
        while amount:
            piece = self._body.read(min(amount, _PIECE_BYTES))
            if not piece:
                raise Unavailable("a body ends early")
            amount -= len(piece)
            self._deadline += len(piece) / SLOWEST_BYTES_PER_S
            if time.monotonic() > self._deadline:
                raise Unavailable("a body comes too slowly")
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
