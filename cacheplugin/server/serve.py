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
from ..errors import UsageError
from ..store.tree import prepare
from ..web.modproxy import goproxy
from .listeners import Listeners, open_missing, passed
from .server import Server

if TYPE_CHECKING:
    from ..options import Options

logger = logging.getLogger(__name__)

_DEFAULT_PORTS = {"http": 80, "https": 443}


def run(options: Options) -> int:
    """Run the server; returns the exit status, raises UsageError."""
    os.umask(0o022)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it were ignored, waitpid would fail
    log.setup(options, logging.INFO)
    _raise_descriptor_limit()
    listeners = passed()
    _check(options, listeners)
    if options.modproxy:
        options = options.replaced(**goproxy.settle(options, os.environ))
    writable = prepare(options.cache_dir, options.read_only)
    open_missing(options, listeners)
    if options.modproxy and listeners.http is not None:
        _refuse_own_upstream(options, listeners.http)
        logger.info(
            "modules from %s; checked against %s, except those that match %s",
            ", ".join(map(goproxy.shown, goproxy.urls(options))) or "the cache alone",
            options.sumdb,
            options.nosumdb or "(none)",
        )
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


def _raise_descriptor_limit() -> None:
    """Raise the soft limit of open files, often 1024, to the hard one: a client needs several."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass
