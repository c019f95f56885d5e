"""The HTTP process. weblink.py starts it, with the server's socket at 0 and the listener at 3."""

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

_END_S = 1.0  # for requests under way
_SWITCH_S = 0.0005  # a thread that checks a zip lets requests be answered


def main(text: str) -> None:
    """Run until the server is gone; ``text``: the fields of Options as JSON."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))  # blocked by poollink meanwhile
    sys.setswitchinterval(_SWITCH_S)
    options = Options(**json.loads(text))
    log.setup(options)
    asyncio.run(_serve(options))
    os._exit(0)


def _is_ours(record) -> bool:
    """Whether a failure of aiohttp's server is worth a line, as a request that is garbage is not."""
    return not record.exc_info or not isinstance(record.exc_info[1], HttpProcessingError)


async def _serve(options) -> None:
    ended = asyncio.Event()
    link = ServerClient(os.dup(0), ended.set)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    requests = logging.getLogger(f"{__name__}.requests")
    requests.addFilter(_is_ours)
    app = App(options, link)
    server = web.Server(app.handle, access_log=None, logger=requests)
    runner = web.ServerRunner(server, shutdown_timeout=_END_S)
    await runner.setup()
    await web.SockSite(runner, socket.socket(fileno=LISTENER_FD)).start()
    await ended.wait()
    await runner.cleanup()
    await app.close()
