"""Messages between processes, over a pipe: each is a marshalled tuple after its length.

marshal is built into the interpreter, so the front needs no import for it. Its format depends on
the interpreter, and both ends run the same interpreter. Neither end ever blocks on the other.
"""

import marshal
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Fields = tuple[Any, ...]  # whatever marshal takes

_LENGTH_BYTES = 4
_READ_BYTES = 65536


class Sender:
    """The writing end. Keeps what the pipe does not take at once, until the next ``flush``."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._buffer = bytearray()
        os.set_blocking(fd, False)

    def queue(self, message: "Fields") -> None:
        """Add a message, which the next ``flush`` sends."""
        data = marshal.dumps(message)
        self._buffer += len(data).to_bytes(_LENGTH_BYTES, "big") + data

    def send(self, message: "Fields") -> bool:
        """Queue a message and flush; raises OSError if the other end is closed."""
        self.queue(message)
        return self.flush()

    def flush(self) -> bool:
        """Write as much as the pipe takes now; returns whether everything is written."""
        while self._buffer:
            try:
                written = os.write(self.fd, self._buffer)
            except BlockingIOError:
                return False
            del self._buffer[:written]
        return True


class Receiver:
    """The reading end. Keeps a message that has come in part, until the rest comes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._buffer = bytearray()
        os.set_blocking(fd, False)

    def receive(self) -> "list[Fields]":
        """The messages that are complete now; raises EOFError if the other end is closed."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            raise EOFError
        buffer = self._buffer
        buffer += data
        messages: list[Fields] = []
        position = 0
        while len(buffer) - position >= _LENGTH_BYTES:
            start = position + _LENGTH_BYTES
            end = start + int.from_bytes(buffer[position:start], "big")
            if len(buffer) < end:
                break
            # The sender is another process of this program.
            messages.append(marshal.loads(buffer[start:end]))  # noqa: S302
            position = end
        del buffer[:position]
        return messages
