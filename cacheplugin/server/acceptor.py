"""Where clients of a server come in: listeners, who may enter, and what connect offers."""

import errno
import logging
import os
import resource
import socket
import stat

from ..errors import reason_of
from ..loop import READABLE
from . import fd_passing, peer_uid

log = logging.getLogger(__name__)

_ACCEPTS_A_TURN = 16
_DESCRIPTORS_A_CLIENT = 5  # stdin, stdout, the socket to connect, the file of a put, the spool
_OWN_DESCRIPTORS = 64


class _Newcomer:
    """A connect that has not made its offer yet."""

    def __init__(self, sock) -> None:
        self.sock = sock
        self.checks = 0


class Acceptor:
    """Accepts for ``server`` on two sockets, either of which may be None; they are closed here."""

    def __init__(self, server, tcp, unix) -> None:
        self._server = server
        self._tcp, self._unix = tcp, unix
        self._accepting = []  # (listener, what takes its connections)
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_clients = max(1, (limit - _OWN_DESCRIPTORS) // _DESCRIPTORS_A_CLIENT)
        self._newcomers = {}  # descriptor: _Newcomer

    @property
    def is_busy(self) -> bool:
        """Whether somebody is about to become a client."""
        return bool(self._newcomers)

    @property
    def _has_room(self) -> bool:
        return self._server.client_count + len(self._newcomers) < self._most_clients

    def open(self) -> None:
        """Begin to accept."""
        if self._tcp is not None:
            log.info("serving go commands on %s", address_text(self._tcp))
            self._accepting.append((self._tcp, self._welcome_tcp))
        if self._unix is not None:
            log.info("serving connect on Unix socket %s", address_text(self._unix))
            self._accepting.append((self._unix, self._welcome_unix))
        for listener, _ in self._accepting:
            listener.setblocking(False)
        self.open_doors()

    def open_doors(self) -> None:
        """Accept connections while there is room for them."""
        is_room = self._has_room
        for listener, welcome in self._accepting:
            if not is_room:
                self._server.loop.unwatch(listener.fileno())
            elif not self._server.loop.watches(listener.fileno()):
                self._server.loop.watch(
                    listener.fileno(),
                    READABLE,
                    lambda _, listener=listener, welcome=welcome: self._accept(listener, welcome),
                )

    def _accept(self, listener, welcome) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    log.warning("a client has to wait: %s", reason_of(error))
                    self._server.loop.unwatch(
                        listener.fileno()
                    )  # until one has ended, or for a while
                    self._server.loop.after(1, self.open_doors)
                    return
                continue  # it is gone again
            sock.setblocking(False)
            self._server.watch_idleness()
            try:
                welcome(sock, address)
            except (OSError, ValueError) as error:
                self._turn_away(sock, error)
            self.open_doors()
            if not self._has_room:
                return

    def _turn_away(self, sock, error) -> None:
        """Let go of a client that has not become one, with a word to connect where it is that."""
        reason = reason_of(error)
        log.warning("a client was turned away: %s", reason)
        if sock.family == socket.AF_UNIX:
            fd_passing.tell(sock, f"go-cache-plugin: turned away: {reason}\n", 1)
        self._dismiss(sock)

    def _check_user(self, uid) -> None:
        """Raises ValueError where a user may not come in."""
        if not (self._server.options.allow_other_users or fd_passing.is_trusted(uid)):
            raise ValueError(
                f"user {uid} is neither the server's nor root; see --allow-other-users"
            )

    def _welcome_tcp(self, sock, address) -> None:
        if not self._server.options.allow_other_users:  # else nobody need look
            uid = peer_uid.uid(address, sock.getsockname())
            if uid is not None:
                self._check_user(uid)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fd = sock.detach()
        self._server.begin("tcp", (fd, fd), self._server.own_scopes)

    def _welcome_unix(self, sock, _) -> None:
        self._check_user(fd_passing.peer_uid(sock))
        self._newcomers[sock.fileno()] = _Newcomer(sock)
        self._take_offer(sock)

    def _take_offer(self, sock) -> None:
        """Take what connect has sent, or wait for it."""
        fds = []
        try:
            offer, fds = fd_passing.receive(sock)
            fds[0] = _independent(fds[0], os.O_RDONLY)
            fds[1] = _independent(fds[1], os.O_WRONLY)
        except BlockingIOError:
            self._server.loop.watch(sock.fileno(), READABLE, lambda _: self._take_offer(sock))
            return
        except (OSError, ValueError) as error:
            for fd in fds:
                os.close(fd)
            self._turn_away(sock, error)
            return
        del self._newcomers[sock.fileno()]
        uses_own = self._server.options.scope and not offer.is_explicit
        scopes = self._server.own_scopes if uses_own else lambda: offer.scopes
        self._server.begin("unix", fds, scopes, sock, offer.wants_summary)

    def _dismiss(self, sock) -> None:
        self._server.loop.unwatch(sock.fileno())
        self._newcomers.pop(sock.fileno(), None)
        sock.close()
        self.open_doors()
        self._server.watch_idleness()

    def check_stalls(self, most: int) -> None:
        """Dismiss those who have made no offer in so many checks."""
        for newcomer in [*self._newcomers.values()]:
            newcomer.checks += 1
            if newcomer.checks > most:
                self._dismiss(newcomer.sock)

    def close(self) -> None:
        """Let nobody in any more."""
        for listener, _ in self._accepting:
            self._server.loop.unwatch(listener.fileno())
            listener.close()
        self._accepting = []
        for newcomer in [*self._newcomers.values()]:
            self._dismiss(newcomer.sock)


def _independent(fd, flags) -> int:
    """A descriptor for what ``fd`` is open on that is non-blocking for us alone; ``fd`` is closed."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            ours = os.open(
                f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            )
            os.close(fd)
            return ours
        except OSError:
            pass  # it is another user's
    if not stat.S_ISREG(mode):
        os.set_blocking(fd, False)
    return fd


def address_text(listener) -> str:
    """An address as people write it."""
    name = listener.getsockname()
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
    name = name.decode() if isinstance(name, bytes) else name
    return f"@{name[1:]}" if name[:1] == "\0" else name
