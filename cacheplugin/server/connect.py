"""``go-cache-plugin connect PORT``: connects one go command to a server.

It hands its stdin and stdout to the server and waits for the end of the session. If that is not
possible, it copies bytes between them and the server's TCP port. The go command waits for this, and
the server writes the hello line, so it imports as little as it can.
"""

import _socket
import os
import select
import sys

from .. import options
from ..errors import UsageError, reason_of
from . import fd_passing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_CLOSE = b'"close"'  # occurs in a close request alone: bodies are base64 and have no inner quotes
_COPY_BYTES = 1 << 16
_HEADER_BYTES = 256  # more than a close request has


def run(words: "Sequence[str]", chosen: options.Options) -> "int | None":
    """Have the server on the port ``words[0]`` serve the go command; returns the exit status.

    None: there is no server, and this process is to serve the cache directory itself. Raises
    UsageError.
    """
    if len(words) != 1:
        raise UsageError("connect needs one argument, the port of the server")
    word = words[0]
    if not (word.isascii() and word.isdigit() and len(word) < 6 and 0 < int(word) < 65536):
        raise UsageError(f"connect: {word!r} is not a port from 1 to 65535")
    port = int(word)
    sock = _connect_unix(port)
    if sock is not None:
        return _pass_descriptors(sock, port, chosen)
    try:
        sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        sock.connect(("127.0.0.1", port))
    except OSError as error:
        text = f"no server on port {port}: {reason_of(error)}"
        if options.is_given("cache-dir", sys.argv[1:], os.environ):
            _say(f"{text}; serving from {chosen.cache_dir}")
            return None
        _say(f"{text}; start one, or give --cache-dir to do without")
        return 1
    sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    return 0 if _Copy(sock).run() else _lost(port)


def _connect_unix(port: int) -> "_socket.socket | None":
    """A socket to the server's Unix socket; None if there is none, or its user is not trusted."""
    if not fd_passing.is_possible():
        return None
    sock = fd_passing.make_socket()
    try:
        sock.connect(fd_passing.address(port))
        if fd_passing.is_trusted(fd_passing.peer_uid(sock)):
            return sock
    except OSError:
        pass
    sock.close()
    return None


def _pass_descriptors(sock: _socket.socket, port: int, chosen: options.Options) -> int:
    """Hand stdin and stdout to the server, wait for the end, print what the server sends."""
    from .. import scope

    scopes = scope.find(chosen, os.environ)
    offer = fd_passing.Offer(chosen.metrics, bool(chosen.scope), scopes)
    try:
        fd_passing.send_offer(sock, offer, (0, 1))
    except OSError:
        pass  # the server has turned this client away; its message is read below
    try:
        # The go command waits until all processes have closed its pipe: leave it to the server.
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        while data := _receive(sock):
            if data[0] == 0:
                return data[1]
            os.write(2, data)
    except OSError:
        pass
    return _lost(port)


def _receive(sock: _socket.socket) -> bytes:
    """The next message, b"" at the end.

    A reset is reported before the messages that were received ahead of it, and once only.
    """
    try:
        return sock.recv(fd_passing.MAX_BYTES)
    except ConnectionResetError:
        return sock.recv(fd_passing.MAX_BYTES)


class _Copy:
    """Copies stdin to ``sock``, the server's TCP connection, and its answers to stdout."""

    def __init__(self, sock: _socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)
        self._poll.register(0, select.POLLIN)
        self._unsent = b""  # while there is some, stdin is not read
        self._recent = b""  # the last bytes of stdin
        self._is_over = False  # stdin has ended, or stdout is closed

    def run(self) -> bool:
        """Copy until one side closes; returns whether the session was over by then."""
        try:
            while self._turn():
                pass
        except OSError:
            pass
        return self._is_over or _CLOSE in self._recent

    def _turn(self) -> bool:
        """Wait, then copy once; returns whether to go on. Raises OSError."""
        for fd, event in self._poll.poll():
            if fd == 0:
                self._read_stdin()
            elif event & ~select.POLLOUT and not self._copy_answers():
                return False
        if self._unsent:
            self._send()
        return True

    def _read_stdin(self) -> None:
        self._unsent = os.read(0, _COPY_BYTES)
        self._recent = (self._recent + self._unsent)[-_HEADER_BYTES:]
        self._poll.unregister(0)
        if not self._unsent:
            self._is_over = True
            self._sock.shutdown(_socket.SHUT_WR)

    def _copy_answers(self) -> bool:
        """Copy answers that have arrived; returns False at the end of either side."""
        try:
            data = self._sock.recv(_COPY_BYTES)
        except BlockingIOError:
            return True
        if data and not _write_all(data):
            self._is_over = True
            return False
        return bool(data)

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except BlockingIOError:
            pass
        events = select.POLLIN | (select.POLLOUT if self._unsent else 0)
        self._poll.modify(self._sock.fileno(), events)
        if not self._unsent:
            self._poll.register(0, select.POLLIN)


def _write_all(data: bytes) -> bool:
    """Write to stdout; returns False if the go command has closed it."""
    while data:
        try:
            data = data[os.write(1, data) :]
        except BlockingIOError:  # another process that shares the pipe has made it non-blocking
            writable = select.poll()
            writable.register(1, select.POLLOUT)
            writable.poll()
        except OSError:
            return False
    return True


def _lost(port: int) -> int:
    _say(f"the server on port {port} has closed the connection; see its log")
    return 1


def _say(text: str) -> None:
    from ..console import say  # imported late: most sessions print nothing

    say(text)
