"""Messages between processes: tuples of plain values over a pipe, each behind its length.

marshal is what the interpreter itself brings, so it costs the front no import; both ends run the
same interpreter, so its format is the same. Neither end ever blocks on the other.
"""

import marshal
import os

_LENGTH_BYTES = 4
_READ_BYTES = 65536


class Sender:
    """The writing end. What the pipe does not take at once waits here for ``flush``."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._buffer = bytearray()
        os.set_blocking(fd, False)

    def queue(self, message: tuple) -> None:
        """Have a message sent by the next ``flush``."""
        data = marshal.dumps(message)
        self._buffer += len(data).to_bytes(_LENGTH_BYTES, "big") + data

    def send(self, message: tuple) -> bool:
        """Queue a message and flush; raises OSError where the other end is gone."""
        self.queue(message)
        return self.flush()

    def flush(self) -> bool:
        """Write what the pipe takes now; returns whether everything is out."""
        while self._buffer:
            try:
                written = os.write(self.fd, self._buffer)
            except BlockingIOError:
                return False
            del self._buffer[:written]
        return True


class Receiver:
    """The reading end."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._buffer = bytearray()
        os.set_blocking(fd, False)

    def receive(self) -> list:
        """The messages that are whole by now; raises EOFError once the other end is gone."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            raise EOFError
        buffer = self._buffer
        buffer += data
        messages, position = [], 0
        while len(buffer) - position >= _LENGTH_BYTES:
            start = position + _LENGTH_BYTES
            end = start + int.from_bytes(buffer[position:start], "big")
            if len(buffer) < end:
                break
            messages.append(marshal.loads(buffer[start:end]))
            position = end
        del buffer[:position]
        return messages
