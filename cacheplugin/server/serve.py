"""``go-cache-plugin serve``: checks the options, opens the listeners, runs the server."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .. import log
from ..errors import UsageError, reason_of
from ..store.tree import prepare
from ..web.modproxy import goproxy
from . import fd_passing, systemd

if TYPE_CHECKING:
    from ..options import Options

logger = logging.getLogger(__name__)

_BACKLOG = 512
_MAX_TIMEOUT_MS = 2**31 - 1
_DEFAULT_PORTS = {"http": 80, "https": 443}


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


def run(options: Options) -> int:
    """Run the server; returns the exit status, raises UsageError."""
    os.umask(0o022)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it were ignored, waitpid would fail
    log.setup(options, logging.INFO)
    _raise_descriptor_limit()
    listeners = _passed_listeners()
    _check(options, listeners)
    if options.modproxy:
        options = options.replaced(**goproxy.settle(options, os.environ))
    writable = prepare(options.cache_dir, options.read_only)
    _open(options, listeners)
    if options.modproxy and listeners.http is not None:
        _refuse_own_upstream(options, listeners.http)
        logger.info(
            "modules from %s; checked against %s, except those that match %s",
            ", ".join(map(goproxy.shown, goproxy.urls(options))) or "the cache alone",
            options.sumdb,
            options.nosumdb or "(none)",
        )
    from .server import Server

    return Server(options, writable, listeners).run()


def _check(options: Options, listeners: Listeners) -> None:
    """Raise UsageError for options that do not go together; ``listeners``: those passed."""
    if options.modproxy and options.http is None and listeners.http is None:
        raise UsageError("--modproxy needs --http, the address on which go commands find it")
    has_clients = options.plugin_port or listeners.tcp is not None or listeners.unix is not None
    if not has_clients and not options.modproxy:
        raise UsageError("serve needs --plugin, the port on which connect finds it, or --modproxy")
    if os.environ.get("GOCACHE_REVPROXY"):
        raise UsageError("GOCACHE_REVPROXY: the reverse proxy is not supported yet; unset it")


def _open(options: Options, listeners: Listeners) -> None:
    """Open the listeners that the options ask for and the service manager did not pass."""
    if options.plugin_port and listeners.tcp is None:
        listeners.tcp = _listen("--plugin", "127.0.0.1", options.plugin_port)
    if listeners.port and listeners.unix is None and fd_passing.is_possible():
        listeners.unix = _listen_unix(listeners.port)
    if options.http is not None and listeners.http is None:
        listeners.http = _listen("--http", *options.http, options.client_timeout_s)


def _listen(flag: str, host: str, port: int, stall_s: float = 0.0) -> socket.socket:
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


def _refuse_own_upstream(options: Options, listener: socket.socket) -> None:
    """Raise UsageError for a module proxy that is its own upstream: it would wait for itself."""
    port = listener.getsockname()[1]
    for url in goproxy.urls(options):
        parts = urlsplit(url)
        if (parts.port or _DEFAULT_PORTS[parts.scheme]) == port and _is_local(parts.hostname):
            raise UsageError(
                f"{goproxy.shown(url)}, of GOPROXY or --modproxy-upstream, is this server itself;"
                " give another --modproxy-upstream"
            )


def _is_local(host: str | None) -> bool:
    """Whether a host is this machine: no socket can be bound to another machine's address."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return False
    for family, kind, _, _, address in found:
        with socket.socket(family, kind) as probe:
            try:
                probe.bind(address)
                return True
            except OSError:
                continue
    return False


def _listen_unix(port: int) -> socket.socket | None:
    """The listener for descriptors; None if it cannot be opened, as clients can use TCP."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(fd_passing.address(port))
        listener.listen(_BACKLOG)
        return listener
    except OSError as error:
        logger.warning(
            "no Unix socket for port %d: %s; connect copies through TCP, which is slower",
            port,
            reason_of(error),
        )
        listener.close()
        return None


def _passed_listeners() -> Listeners:
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


def _raise_descriptor_limit() -> None:
    """Raise the soft limit of open files, often 1024, to the hard one: a client needs several."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass
