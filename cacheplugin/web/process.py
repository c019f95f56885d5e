"""The HTTP process. ``server.http_process`` starts it.

Descriptor 0 is the socket to the server, LISTENER_FD the listening socket.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from .. import log
from ..ipc.spawn import LISTENER_FD
from ..options import Options
from .app import App
from .server_client import ServerClient

_SHUTDOWN_TIMEOUT_S = 1.0  # for requests that are still being served
# How long a thread runs before others get the interpreter, so that a thread that checks a zip does
# not hold up requests. Python's default is 5 ms.
_SWITCH_INTERVAL_S = 0.0005


def main(text: str) -> None:
    """Serve HTTP until the server ends. ``text``: the fields of Options as JSON."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))  # ipc.spawn starts with it blocked
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    options = Options(**json.loads(text))
    log.setup(options)
    asyncio.run(_serve(options))
    os._exit(0)


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """False for malformed requests: clients could fill the log with them."""
    return not record.exc_info or not isinstance(record.exc_info[1], HttpProcessingError)


async def _serve(options: Options) -> None:
    ended = asyncio.Event()
    client = ServerClient(os.dup(0), ended.set)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    requests = logging.getLogger(f"{__name__}.requests")
    requests.addFilter(_is_worth_logging)
    app = App(options, client)
    server = web.Server(app.handle, access_log=None, logger=requests)
    runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    await web.SockSite(runner, socket.socket(fileno=LISTENER_FD)).start()
    await ended.wait()
    await runner.cleanup()
    await app.close()
