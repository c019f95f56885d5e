"""``serve``: listeners, then the server."""

import logging
import os
import resource
import signal
import socket
from urllib.parse import urlsplit

from .. import log
from ..errors import UsageError, reason_of
from ..store.tree import prepare
from ..web.modproxy import goproxy
from . import fd_passing, systemd

_BACKLOG = 512
logger = logging.getLogger(__name__)


class Listeners:
    """What a server listens on: ``tcp`` and ``unix`` for go commands, ``http``; each may be None."""

    def __init__(self) -> None:
        self.tcp = self.unix = self.http = None

    @property
    def port(self) -> int:
        """The TCP port for go commands, 0 where there is none."""
        return self.tcp.getsockname()[1] if self.tcp is not None else 0


def run(options) -> int:
    """``go-cache-plugin serve``; returns the exit status, raises UsageError."""
    os.umask(0o022)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who ignores it hears of no child's end
    log.setup(options, logging.INFO)
    _raise_descriptor_limit()
    listeners = _passed()
    if options.modproxy and options.http is None and listeners.http is None:
        raise UsageError("--modproxy needs --http")
    has_clients = options.plugin_port or listeners.tcp is not None or listeners.unix is not None
    if not has_clients and not options.modproxy:
        raise UsageError("serve needs --plugin, the port on which connect finds it, or --modproxy")
    if os.environ.get("GOCACHE_REVPROXY"):
        raise UsageError("GOCACHE_REVPROXY: the reverse proxy is not supported yet")
    if options.modproxy:
        options = options.replaced(**goproxy.settle(options, os.environ))
    writable = prepare(options.cache_dir, options.read_only)
    if options.plugin_port and listeners.tcp is None:
        listeners.tcp = _listen("--plugin", "127.0.0.1", options.plugin_port)
    if listeners.port and listeners.unix is None and fd_passing.is_possible():
        listeners.unix = _listen_unix(listeners.port)
    if options.http is not None and listeners.http is None:
        listeners.http = _listen("--http", *options.http, options.client_timeout_s)
    if options.modproxy:
        _refuse_own_upstream(options, listeners.http)
        logger.info(
            "modules from %s; compared with %s, but for %s",
            ", ".join(map(goproxy.shown, goproxy.urls(options))) or "nowhere else",
            options.sumdb,
            options.nosumdb or "none",
        )
    from .server import Server

    return Server(options, writable, listeners).run()


def _listen(flag, host, port, stall_s=0.0):
    """A TCP listener, whose clients are given up when they take nothing for ``stall_s``; 0: never."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if stall_s and hasattr(socket, "TCP_USER_TIMEOUT"):  # which connections inherit
            most_ms = 2**31 - 1
            listener.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(int(stall_s * 1000), most_ms)
            )
        listener.bind(address)
        listener.listen(_BACKLOG)
        return listener
    except (OSError, UnicodeError) as error:  # the latter of a host that can be no name
        reason = reason_of(error)
        raise UsageError(f"{flag}: cannot listen on {host} port {port}: {reason}") from None


def _refuse_own_upstream(options, listener) -> None:
    """A proxy that asks itself would wait for itself; raises UsageError."""
    port = listener.getsockname()[1]
    for url in goproxy.urls(options):
        parts = urlsplit(url)
        if (parts.port or {"http": 80, "https": 443}[parts.scheme]) == port:
            if _is_local(parts.hostname):
                raise UsageError(
                    f"{goproxy.shown(url)}, of GOPROXY or --modproxy-upstream, is this server itself;"
                    " give another --modproxy-upstream"
                )


def _is_local(host) -> bool:
    """Whether a host is this machine: what is not cannot be bound to."""
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


def _listen_unix(port):
    """The listener that takes descriptors; without it clients copy through TCP."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(fd_passing.address(port))
        listener.listen(_BACKLOG)
        return listener
    except OSError as error:
        logger.warning("no Unix socket for port %d, clients use TCP: %s", port, reason_of(error))
        listener.close()
        return None


def _passed() -> Listeners:
    """The listeners that the service manager passed: by their names, or by what they are."""
    listeners = Listeners()
    for listener, name in systemd.listeners():
        if listener.family == socket.AF_UNIX:
            if listener.type != socket.SOCK_SEQPACKET:
                raise UsageError("the Unix socket passed is not ListenSequentialPacket")
            kind = "unix"
        else:
            kind = "http" if name == "http" else "tcp"
        if getattr(listeners, kind) is not None:
            raise UsageError(f"two {kind} sockets passed by the service manager")
        setattr(listeners, kind, listener)
    return listeners


def _raise_descriptor_limit() -> None:
    """Each client has several descriptors, and the usual limit is low for old programs' sake."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass
