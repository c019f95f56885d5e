"""``go-cache-plugin connect PORT``: connects one go command to a server.

It hands its stdin and stdout to the server and waits for the end of the session. If that is not
possible, it copies bytes between them and the server's TCP port. The go command waits for this, and
the server writes the hello line, so it imports as little as it can.

A server decides which files the go command reads. So on both ways the user of the server's process
is checked before it gets anything, and a server that does not answer is none.
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

ANSWER_S = 10  # a server answers within this time
_CLOSE = b'"close"'  # occurs in a close request alone: bodies are base64 and have no inner quotes
_COPY_BYTES = 1 << 16
_HEADER_BYTES = 256  # more than a close request has
_SIOCOUTQ = 0x5411  # of Linux: the number of bytes that the other end has not received


class _NoServer(Exception):
    """Nothing on the port may or can serve the go command; the text says why."""


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
    try:
        sock = _connect_unix(port, chosen)
        if sock is not None:
            return _pass_descriptors(sock, port, chosen)
        sock, answer = _connect_tcp(port, chosen)
    except _NoServer as error:
        text = f"no server on port {port}: {error}"
        if options.is_given("cache-dir", sys.argv[1:], os.environ):
            _say(f"{text}; serving from {chosen.cache_dir}")
            return None
        _say(f"{text}; start one, or give --cache-dir to do without")
        return 1
    return 0 if _Copy(sock).run(answer) else _lost(port)


def _connect_unix(port: int, chosen: options.Options) -> "_socket.socket | None":
    """A socket to the server's Unix socket, None if there is none; raises _NoServer."""
    if not fd_passing.is_possible():
        return None
    sock = fd_passing.make_socket()
    # For connections that wait because too many others do, which only a server that hangs lets do.
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, _timeval(ANSWER_S))
    try:
        sock.connect(fd_passing.address(port))
        uid = fd_passing.peer_uid(sock)
    except BlockingIOError:
        raise _NoServer(f"it has taken no client for {ANSWER_S} s; see its log") from None
    except OSError:
        sock.close()
        return None
    _check_user(uid, chosen)
    return sock


def _timeval(seconds: int) -> bytes:
    """The C structure timeval."""
    return seconds.to_bytes(8, sys.byteorder) + bytes(8)


def _connect_tcp(port: int, chosen: options.Options) -> "tuple[_socket.socket, bytes]":
    """A connection to the TCP port, and what the server has said on it; raises _NoServer.

    A server speaks first, which other programs do not. It does so once it has accepted the
    connection, and only then Linux knows whose process has it.
    """
    import time

    end = time.monotonic() + ANSWER_S
    try:
        sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        sock.settimeout(ANSWER_S)
        sock.connect(("127.0.0.1", port))
        sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        sock.settimeout(max(end - time.monotonic(), 0.001))
        answer = sock.recv(_COPY_BYTES)
        if not answer:
            raise _NoServer("it has closed the connection; see its log")
        uid = _peer_uid(sock)
    except TimeoutError:
        raise _NoServer(f"what listens there has not answered within {ANSWER_S} s") from None
    except (OSError, ValueError) as error:
        raise _NoServer(reason_of(error)) from None
    _check_user(uid, chosen)
    if answer[:1] != b"{":
        raise _NoServer("what listens there speaks another protocol")
    return sock, answer


def _peer_uid(sock: _socket.socket) -> "int | None":
    """The user of the server's process; None on systems that do not tell."""
    if sys.platform != "linux":
        return None
    from . import peer_uid

    return peer_uid.find(sock.getpeername(), sock.getsockname())


def _check_user(uid: "int | None", chosen: options.Options) -> None:
    """Raise _NoServer for the server of another user."""
    if not (uid is None or chosen.allow_other_users or fd_passing.is_trusted(uid)):
        raise _NoServer(
            f"user {uid} listens there, who is neither root nor the user of this build;"
            " see --allow-other-users"
        )


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
        if not _is_taken(sock):
            _say(
                f"the server on port {port} has not taken this client within {ANSWER_S} s: it is"
                " stopped, or has as many clients as it can have; see its log"
            )
            return 1
        while data := _receive(sock):
            if data[0] == 0:
                return data[1]
            os.write(2, data)
    except OSError:
        pass
    return _lost(port)


def _is_taken(sock: _socket.socket) -> bool:
    """Wait for the server to receive the offer; returns whether it has done so in time.

    A session that goes on for longer than that has been taken.
    """
    answers = select.poll()
    answers.register(sock.fileno(), select.POLLIN)
    if answers.poll(ANSWER_S * 1000):
        return True
    import fcntl  # most sessions are over by now

    left = fcntl.ioctl(sock.fileno(), _SIOCOUTQ, bytes(4))
    return not int.from_bytes(left, sys.byteorder)


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

    def run(self, answer: bytes) -> bool:
        """Copy until one side closes; returns whether the session was over by then.

        ``answer``: what the server has said already.
        """
        if not _write_all(answer):
            return True
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
