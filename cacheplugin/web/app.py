"""The HTTP application: routes each request to a page or to the module proxy."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from ..store.spool import count_pending
from ..store.tree import Store, prepare
from . import exposition
from .modproxy import counters as modproxy_counters
from .modproxy import names

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..ipc.web_messages import Snapshot
    from ..options import Options
    from .modproxy.routes import ModuleProxy
    from .server_client import ServerClient

    _Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_METHODS = (hdrs.METH_GET, hdrs.METH_HEAD)
_SNAPSHOT_TIMEOUT_S = 2.0  # a server that is not overloaded answers in milliseconds


class App:
    """The handler of aiohttp's low-level server. Create it in the running event loop.

    It does without aiohttp's Application, whose router and middlewares take 1/7 of the time of a
    request for a module file that is on disk.
    """

    def __init__(self, options: Options, server: ServerClient) -> None:
        self._modproxy: ModuleProxy | None = None
        if options.modproxy:
            from .modproxy.routes import ModuleProxy

            is_writable = prepare(options.cache_dir, read_only=True)
            self._modproxy = ModuleProxy(options, server, is_writable)
        status = StatusPages(options, server, self._modproxy)
        self._pages: dict[str, _Handler] = {
            "/healthz": status.healthz,
            "/metrics": status.metrics,
            "/debug/vars": status.debug_vars,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The response to any request; raises web.HTTPException."""
        target = request.raw_path
        if request.method == hdrs.METH_CONNECT or target[:1] not in ("/", "*"):
            text = "this server is not an HTTP proxy: unset HTTP_PROXY, or set GOPROXY instead\n"
            raise web.HTTPBadGateway(text=text, headers={hdrs.CONNECTION: "close"})
        handler: _Handler | None
        if self._modproxy is not None and target.startswith(names.PREFIX):
            handler = self._modproxy.handle
        else:
            handler = self._pages.get(request.path)
        if handler is None:
            raise web.HTTPNotFound(text=self._not_found_text())
        if request.method not in _METHODS:
            text = f"method {request.method} is not allowed: use GET or HEAD\n"
            raise web.HTTPMethodNotAllowed(request.method, _METHODS, text=text)
        return await handler(request)

    def _not_found_text(self) -> str:
        modules = names.PREFIX if self._modproxy is not None else f"{names.PREFIX} with --modproxy"
        return f"404: not found; this server has {', '.join(self._pages)}, and {modules}\n"

    async def close(self) -> None:
        """Call it after the last request."""
        if self._modproxy is not None:
            await self._modproxy.close()


class StatusPages:
    """The pages that describe the server."""

    def __init__(
        self, options: Options, server: ServerClient, modproxy: ModuleProxy | None
    ) -> None:
        self._server = server
        self._store = Store(options.cache_dir)
        self._modproxy = modproxy

    async def _snapshot(self) -> Snapshot:
        try:
            snapshot = await self._server.snapshot(_SNAPSHOT_TIMEOUT_S)
        except TimeoutError:
            text = (
                f"the server process did not answer within {_SNAPSHOT_TIMEOUT_S:g} s:"
                " it is overloaded or has died; see its log\n"
            )
            raise web.HTTPServiceUnavailable(text=text) from None
        if self._modproxy is not None:
            snapshot["counters"][modproxy_counters.GROUP] = self._modproxy.counters
        return snapshot

    async def healthz(self, _: web.BaseRequest) -> web.Response:
        """200 while go commands are served; 503 while the server stops or does not answer.

        S3 does not change that, as go commands are served without it; its state is in the text.
        """
        snapshot = await self._snapshot()
        if snapshot["is_stopping"]:
            raise web.HTTPServiceUnavailable(text="the server is stopping\n")
        state, off_s = exposition.s3_state(snapshot)
        for_how_long = f" for {off_s:.0f} s" if state == exposition.S3_OFF else ""
        return web.Response(text=f"ok\ns3: {state}{for_how_long}\n")

    async def metrics(self, _: web.BaseRequest) -> web.Response:
        """The metrics for Prometheus."""
        snapshot = await self._snapshot()
        spooled = await asyncio.to_thread(count_pending, self._store)  # reads files
        text = exposition.prometheus_text(snapshot, spooled)
        return web.Response(body=text, headers={hdrs.CONTENT_TYPE: exposition.CONTENT_TYPE})

    async def debug_vars(self, _: web.BaseRequest) -> web.Response:
        """The counters as JSON."""
        variables = exposition.variables(await self._snapshot())
        return web.json_response(variables, dumps=lambda value: json.dumps(value, indent=1) + "\n")
