"""Accepts the clients of a server: watches its listeners, checks users, takes connect's offers."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import resource
import socket
import stat
import time
from typing import TYPE_CHECKING

from ..console import PROGRAM
from ..errors import reason_of
from ..loop import READABLE
from . import fd_passing, peer_uid
from .rare_log import RareLog

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .contracts import AcceptorServer

    Admit = Callable[[socket.socket, Any], None]  # the second argument: the client's address

log = logging.getLogger(__name__)

_ACCEPTS_PER_TURN = 16
_DESCRIPTORS_PER_CLIENT = 5  # stdin, stdout, the socket to connect, the file of a put, the spool
_OWN_DESCRIPTORS = 64
_RETRY_S = 1.0
# Where the kernel has to be searched for each client's user, that takes this part of the time.
_MAX_SEARCH_SHARE = 0.1
_SLOW_SEARCH_S = 0.001
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class _Newcomer:
    """The socket of a connect process of user ``uid`` that has not sent its offer yet."""

    def __init__(self, sock: socket.socket, uid: int) -> None:
        self.sock, self.uid = sock, uid
        self.checks = 0


class Acceptor:
    """Turns connections to two listening sockets into sessions of ``server``.

    ``tcp`` and ``unix`` may each be None; ``close`` closes them. While as many clients are there as
    the limit of open files allows, further ones wait in the listeners' backlogs.
    """

    def __init__(
        self, server: AcceptorServer, tcp: socket.socket | None, unix: socket.socket | None
    ) -> None:
        self._server = server
        self._tcp, self._unix = tcp, unix
        self._listeners: list[tuple[socket.socket, Admit]] = []
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._max_clients = max(1, (limit - _OWN_DESCRIPTORS) // _DESCRIPTORS_PER_CLIENT)
        self._newcomers: dict[int, _Newcomer] = {}  # by descriptor
        self._is_resting = False  # no client is accepted by TCP, see _find_user
        self._turned_away = RareLog(
            server.loop,
            "a client was turned away: %s",
            "%d more clients were turned away since then, the last one because: %s",
        )
        self._no_room = RareLog(
            server.loop,
            "clients have to wait, as none can be accepted: %s; it is tried again each second",
            "clients had to wait %d more times since then, the last time because: %s",
        )

    @property
    def is_busy(self) -> bool:
        """Whether a connect process is about to become a client."""
        return bool(self._newcomers)

    @property
    def turned_away(self) -> int:
        """How many clients were turned away."""
        return self._turned_away.count

    @property
    def _has_room(self) -> bool:
        return self._server.client_count + len(self._newcomers) < self._max_clients

    def open(self) -> None:
        """Begin to accept."""
        if self._tcp is not None:
            log.info("serving go commands on %s", address_text(self._tcp))
            self._listeners.append((self._tcp, self._admit_tcp))
        if self._unix is not None:
            log.info("serving connect on Unix socket %s", address_text(self._unix))
            self._listeners.append((self._unix, self._admit_unix))
        for listener, _ in self._listeners:
            listener.setblocking(False)
        self.watch_listeners()

    def watch_listeners(self) -> None:
        """Watch the listeners if there is room for another client, else do not."""
        loop, has_room = self._server.loop, self._has_room
        for listener, admit in self._listeners:
            if not has_room or (self._is_resting and listener is self._tcp):
                loop.unwatch(listener.fileno())
            elif not loop.watches(listener.fileno()):
                self._watch(listener, admit)

    def _watch(self, listener: socket.socket, admit: Admit) -> None:
        self._server.loop.watch(
            listener.fileno(), READABLE, lambda _: self._accept(listener, admit)
        )

    def _accept(self, listener: socket.socket, admit: Admit) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._no_room.note(reason_of(error))
                    self._server.loop.unwatch(listener.fileno())
                    self._server.loop.after(_RETRY_S, self.watch_listeners)
                    return
                continue  # the client has closed the connection before it was accepted
            sock.setblocking(False)
            self._server.restart_idle_timer()
            try:
                admit(sock, address)
            except (OSError, ValueError) as error:
                self._turn_away(sock, error)
            self.watch_listeners()
            if not self._server.loop.watches(listener.fileno()):
                return

    def _turn_away(self, sock: socket.socket, error: Exception) -> None:
        """Close a connection that did not become a session; tell a connect process why."""
        reason = reason_of(error)
        self._turned_away.note(reason)
        if sock.family == socket.AF_UNIX:
            fd_passing.send_end(sock, f"{PROGRAM}: turned away: {reason}\n", 1)
        self._drop(sock)

    def _check_user(self, uid: int) -> None:
        """Raise ValueError for a user that is not allowed."""
        if not (self._server.options.allow_other_users or fd_passing.is_trusted(uid)):
            raise ValueError(
                f"user {uid} is neither the server's nor root; see --allow-other-users"
            )

    def _admit_tcp(self, sock: socket.socket, address: tuple[str, int]) -> None:
        if not self._server.options.allow_other_users:
            uid = self._find_user(sock, address)
            if uid is not None:
                self._check_user(uid)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fd = sock.detach()
        self._server.begin_session("tcp", (fd, fd), self._server.own_scopes)

    def _find_user(self, sock: socket.socket, address: tuple[str, int]) -> int | None:
        """As peer_uid.find; if that was slow, no further client is accepted for some time.

        Otherwise users who are turned away could take up the time of those who are served.
        """
        begin = time.thread_time()
        try:
            return peer_uid.find(address, sock.getsockname())
        finally:
            spent_s = time.thread_time() - begin
            if spent_s > _SLOW_SEARCH_S:
                self._is_resting = True
                self._server.loop.after(spent_s / _MAX_SEARCH_SHARE, self._end_rest)

    def _end_rest(self) -> None:
        self._is_resting = False
        self.watch_listeners()

    def _admit_unix(self, sock: socket.socket, _: object) -> None:
        uid = fd_passing.peer_uid(sock)
        self._check_user(uid)
        newcomer = self._newcomers[sock.fileno()] = _Newcomer(sock, uid)
        self._receive_offer(newcomer)

    def _receive_offer(self, newcomer: _Newcomer) -> None:
        """Begin a session if the offer has arrived; else wait for it."""
        sock, fds = newcomer.sock, list[int]()
        try:
            offer, fds = fd_passing.receive_offer(sock)
            is_trusted = fd_passing.is_trusted(newcomer.uid)
            fds[0] = make_nonblocking(fds[0], os.O_RDONLY, is_trusted)
            fds[1] = make_nonblocking(fds[1], os.O_WRONLY, is_trusted)
        except BlockingIOError:
            self._server.loop.watch(
                sock.fileno(), READABLE, lambda _: self._receive_offer(newcomer)
            )
            return
        except (OSError, ValueError) as error:
            for fd in fds:
                os.close(fd)
            self._turn_away(sock, error)
            return
        del self._newcomers[sock.fileno()]
        uses_own = self._server.options.scope and not offer.is_explicit
        scopes = self._server.own_scopes if uses_own else lambda: offer.scopes
        self._server.begin_session("unix", (fds[0], fds[1]), scopes, sock, offer.wants_summary)

    def _drop(self, sock: socket.socket) -> None:
        self._server.loop.unwatch(sock.fileno())
        self._newcomers.pop(sock.fileno(), None)
        sock.close()
        self.watch_listeners()
        self._server.restart_idle_timer()

    def check_stalls(self, limit: int) -> None:
        """Drop connect processes that have sent no offer in more than ``limit`` checks."""
        for newcomer in [*self._newcomers.values()]:
            newcomer.checks += 1
            if newcomer.checks > limit:
                self._drop(newcomer.sock)

    def close(self) -> None:
        """Accept no more: close the listeners and the connections without an offer."""
        for listener, _ in self._listeners:
            self._server.loop.unwatch(listener.fileno())
            listener.close()
        self._listeners = []
        for newcomer in [*self._newcomers.values()]:
            self._drop(newcomer.sock)
        self._turned_away.close()
        self._no_room.close()


def make_nonblocking(fd: int, access: int, is_trusted: bool) -> int:
    """A non-blocking descriptor for the same file as ``fd``, which is closed if another is opened.

    ``access``: O_RDONLY or O_WRONLY; ValueError is raised if ``fd`` was not opened for that.
    ``is_trusted``: it came from the server's own user or root.

    O_NONBLOCK belongs to the open file, which the client's processes share. So a pipe or terminal
    is opened again, with ``access``; where that is not allowed, O_NONBLOCK is set on ``fd``. The
    server opens it with its own rights: those of ``fd`` must not grow by that, and another user's
    device is not opened, as /dev/tty would be the server's own terminal.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_PATH or flags & os.O_ACCMODE not in (access, os.O_RDWR):
        name, use = ("stdin", "reading") if access == os.O_RDONLY else ("stdout", "writing")
        raise ValueError(f"the {name} of connect is not open for {use}")
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and is_trusted):
        try:
            own_fd = os.open(
                f"/proc/self/fd/{fd}", access | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            )
            os.close(fd)
            return own_fd
        except OSError:
            pass  # the pipe belongs to another user
    if not stat.S_ISREG(mode):
        os.set_blocking(fd, False)
    return fd


def address_text(listener: socket.socket) -> str:
    """The address of a socket: HOST:PORT, [HOST]:PORT for IPv6, or a path (@NAME if abstract)."""
    name: tuple[str, int] | str | bytes = listener.getsockname()
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
    text = name.decode() if isinstance(name, bytes) else name
    return f"@{text[1:]}" if text[:1] == "\0" else text
