"""The HTTP application: which request goes where."""

import asyncio
import json

from aiohttp import hdrs, web

from ..store.spool import count_pending
from ..store.tree import Store, prepare
from . import exposition
from .modproxy import counters as modules
from .modproxy import names

_METHODS = (hdrs.METH_GET, hdrs.METH_HEAD)
_ANSWER_S = 2.0  # that a server in order takes for a snapshot, by far


class App:
    """Made in the running event loop, over ``link``, a ServerClient.

    It is a handler for aiohttp's low-level server: with these few paths, an Application's router and
    middlewares would be a seventh of a warm request for a module file.
    """

    def __init__(self, options, link) -> None:
        self._modproxy = None
        if options.modproxy:
            from .modproxy.routes import ModuleProxy

            self._modproxy = ModuleProxy(options, link, prepare(options.cache_dir, read_only=True))
        status = Status(options, link, self._modproxy)
        self._pages = {
            "/healthz": status.healthz,
            "/metrics": status.metrics,
            "/debug/vars": status.debug_vars,
        }

    async def handle(self, request) -> web.StreamResponse:
        """The answer to any request; raises web.HTTPException."""
        target = request.raw_path
        if request.method == hdrs.METH_CONNECT or target[:1] not in ("/", "*"):
            text = "this server is no proxy for that\n"
            raise web.HTTPBadGateway(text=text, headers={hdrs.CONNECTION: "close"})
        if self._modproxy is not None and target.startswith(names.PREFIX):
            page = self._modproxy.handle
        else:
            page = self._pages.get(request.path)
        if page is None:
            raise web.HTTPNotFound
        if request.method not in _METHODS:
            raise web.HTTPMethodNotAllowed(request.method, _METHODS)
        return await page(request)

    async def close(self) -> None:
        """No more requests come."""
        if self._modproxy is not None:
            await self._modproxy.close()


class Status:
    """What there is to say of the server."""

    def __init__(self, options, link, modproxy) -> None:
        self._link = link
        self._store = Store(options.cache_dir)
        self._modproxy = modproxy

    async def _snapshot(self) -> dict:
        try:
            snapshot = await self._link.snapshot(_ANSWER_S)
        except TimeoutError:
            raise web.HTTPServiceUnavailable(text="the server does not answer\n") from None
        if self._modproxy is not None:
            snapshot["counters"][modules.GROUP] = self._modproxy.counters
        return snapshot

    async def healthz(self, _) -> web.Response:
        """200 while go commands are served, 503 while the server stops, or does not answer."""
        if (await self._snapshot())["is_stopping"]:
            raise web.HTTPServiceUnavailable(text="stopping\n")
        return web.Response(text="ok\n")

    async def metrics(self, _) -> web.Response:
        snapshot = await self._snapshot()
        spooled = await asyncio.to_thread(count_pending, self._store)  # it reads files
        text = exposition.prometheus_text(snapshot, spooled)
        return web.Response(body=text, headers={hdrs.CONTENT_TYPE: exposition.CONTENT_TYPE})

    async def debug_vars(self, _) -> web.Response:
        found = exposition.variables(await self._snapshot())
        return web.json_response(found, dumps=lambda value: json.dumps(value, indent=1) + "\n")
