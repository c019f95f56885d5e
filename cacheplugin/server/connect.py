"""``connect PORT``: one go command's way to a server.

It hands its stdin and stdout to the server and waits; where that cannot be, it copies bytes between
them and the server's TCP port. The server writes the hello line, so this imports next to nothing.
"""

import _socket
import os
import select
import sys

from .. import options
from ..errors import UsageError, reason_of
from . import fd_passing

_CLOSE = b'"close"'  # no body has quotes in it: they are base64
_COPY_BYTES = 1 << 16
_HEADER_BYTES = 256  # more than a close has


def run(words, chosen):
    """Have the server on a port serve the go command; returns the exit status.

    None: there is no server, and this process is to serve by itself. Raises UsageError.
    """
    if len(words) != 1:
        raise UsageError("connect needs one argument, the port of the server")
    port = words[0]
    if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise UsageError(f"connect: {port!r} is not a port from 1 to 65535")
    port = int(port)
    sock = _reach(port)
    if sock is not None:
        return _hand_over(sock, port, chosen)
    try:
        sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        sock.connect(("127.0.0.1", port))
    except OSError as error:
        why = f"no server on port {port}: {reason_of(error)}"
        if options.is_given("cache-dir", sys.argv[1:], os.environ):
            _say(f"{why}; serving from {chosen.cache_dir}")
            return None
        _say(why)
        return 1
    sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    return _copy(sock, port)


def _reach(port):
    """A socket to a server that takes descriptors and is to be trusted with them, or None."""
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


def _hand_over(sock, port, chosen) -> int:
    from .. import scope

    scopes = scope.find(chosen, os.environ)
    try:
        fd_passing.offer(sock, fd_passing.Offer(chosen.metrics, bool(chosen.scope), scopes), (0, 1))
    except OSError:
        pass  # it has turned us away already, and said why
    try:
        # From now on they are the server's: the go command waits for the last holder of stdout.
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


def _receive(sock) -> bytes:
    """The next message, b"" at the end. What was said stays there behind a reset, which comes once."""
    try:
        return sock.recv(fd_passing.MAX_BYTES)
    except ConnectionResetError:
        return sock.recv(fd_passing.MAX_BYTES)


def _copy(sock, port) -> int:
    """Copy stdin to the server and what it says to stdout, until it closes the connection."""
    sock.setblocking(False)
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    poll.register(0, select.POLLIN)
    unsent, recent, ended = b"", b"", False
    try:
        while True:
            for fd, event in poll.poll():
                if fd == 0:
                    unsent = os.read(0, _COPY_BYTES)
                    recent = (recent + unsent)[-_HEADER_BYTES:]
                    poll.unregister(0)  # until this is sent
                    ended = not unsent
                    if ended:
                        sock.shutdown(_socket.SHUT_WR)
                elif event & ~select.POLLOUT:
                    try:
                        data = sock.recv(_COPY_BYTES)
                    except BlockingIOError:
                        continue
                    if not data:
                        return 0 if ended or _CLOSE in recent else _lost(port)
                    if not _write_all(data):
                        return 0  # the go command is gone
            if unsent:
                try:
                    unsent = unsent[sock.send(unsent) :]
                except BlockingIOError:
                    pass
                poll.modify(sock.fileno(), select.POLLIN | (select.POLLOUT if unsent else 0))
                if not unsent:
                    poll.register(0, select.POLLIN)
    except OSError:
        return 0 if ended or _CLOSE in recent else _lost(port)


def _write_all(data) -> bool:
    """Whether the go command took it."""
    while data:
        try:
            data = data[os.write(1, data) :]
        except BlockingIOError:  # whoever shares stdout has made it so
            writable = select.poll()
            writable.register(1, select.POLLOUT)
            writable.poll()
        except OSError:
            return False
    return True


def _lost(port) -> int:
    _say(f"the server on port {port} has closed the connection")
    return 1


def _say(text) -> None:
    try:
        os.write(2, f"go-cache-plugin: {text}\n".encode(errors="backslashreplace"))
    except OSError:
        pass
