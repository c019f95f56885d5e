"""The listening sockets of a server: those passed by the service manager, and those opened here."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

from ..errors import UsageError, reason_of
from . import fd_passing, systemd

if TYPE_CHECKING:
    from ..options import Options

log = logging.getLogger(__name__)

_BACKLOG = 512
_MAX_TIMEOUT_MS = 2**31 - 1


class Listeners:
    """The listening sockets of a server: ``tcp`` and ``unix`` for go commands, and ``http``."""

    def __init__(self) -> None:
        self.tcp: socket.socket | None = None
        self.unix: socket.socket | None = None
        self.http: socket.socket | None = None

    @property
    def port(self) -> int:
        """The TCP port for go commands, 0 if there is none."""
        port: int = self.tcp.getsockname()[1] if self.tcp is not None else 0
        return port


def passed() -> Listeners:
    """The listeners that the service manager passed, by their names and kinds; raises UsageError.

    The TCP socket with the name "http" is for HTTP, another one for go commands.
    """
    listeners = Listeners()
    for listener, name in systemd.listeners():
        if listener.family == socket.AF_UNIX:
            if listener.type != socket.SOCK_SEQPACKET:
                raise UsageError(
                    "the Unix socket passed by the service manager is of the wrong type; its"
                    " socket unit needs ListenSequentialPacket="
                )
            kind = "unix"
        else:
            kind = "http" if name == "http" else "tcp"
        if getattr(listeners, kind) is not None:
            raise UsageError(
                f"the service manager has passed two {kind} sockets; serve takes one of each kind"
            )
        setattr(listeners, kind, listener)
    return listeners


def open_missing(options: Options, listeners: Listeners) -> None:
    """Open the listeners that the options ask for and the service manager did not pass."""
    if options.plugin_port and listeners.tcp is None:
        listeners.tcp = listen_tcp("--plugin", "127.0.0.1", options.plugin_port)
    if listeners.port and listeners.unix is None and fd_passing.is_possible():
        listeners.unix = _listen_unix(listeners.port)
    if options.http is not None and listeners.http is None:
        listeners.http = listen_tcp("--http", *options.http, options.client_timeout_s)


def listen_tcp(flag: str, host: str, port: int, stall_s: float = 0.0) -> socket.socket:
    """A TCP listener on an address that ``flag`` gives; raises UsageError.

    ``stall_s``: the kernel ends a connection whose client takes no data for so long; 0: never.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if stall_s and hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it
            timeout_ms = min(int(stall_s * 1000), _MAX_TIMEOUT_MS)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        listener.bind(address)
        listener.listen(_BACKLOG)
        return listener
    except (OSError, UnicodeError) as error:  # UnicodeError: the host cannot be a name
        reason = reason_of(error)
        raise UsageError(f"{flag}: cannot listen on {host} port {port}: {reason}") from None


def _listen_unix(port: int) -> socket.socket | None:
    """The listener for descriptors; None if it cannot be opened, as clients can use TCP."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(fd_passing.address(port))
        listener.listen(_BACKLOG)
        return listener
    except OSError as error:
        log.warning(
            "no Unix socket for port %d: %s; connect copies through TCP, which is slower",
            port,
            reason_of(error),
        )
        listener.close()
        return None
