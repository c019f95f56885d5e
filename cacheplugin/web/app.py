"""The HTTP application: which request goes where."""
import asyncio
import json

from aiohttp import hdrs, web

from ..main import prepare
from ..spool import count_pending
from ..store import Store
from . import exposition
from .modproxy import counters as modules

_ANSWER_S = 2.0  # that a server in order takes for a snapshot, by far


def make_app(options, link) -> web.Application:
    """The application over ``link``, a ServerLink; it is made in the running event loop."""
    app = web.Application(middlewares=[_proxy_requests])
    modproxy = None
    if options.modproxy:
        from .modproxy.routes import PREFIX, ModuleProxy

        modproxy = ModuleProxy(options, link, prepare(options.cache_dir, read_only=True))
        app.router.add_get(PREFIX + "{path:.*}", modproxy.handle)
        app.on_cleanup.append(modproxy.close)
    status = Status(options, link, modproxy)
    app.add_routes(
        [
            web.get("/healthz", status.healthz),
            web.get("/metrics", status.metrics),
            web.get("/debug/vars", status.debug_vars),
        ]
    )
    return app


@web.middleware
async def _proxy_requests(request, handler):
    """Answer what is asked of a proxy; the reverse proxy is not there."""
    if request.method == hdrs.METH_CONNECT or request.raw_path[:1] not in ("/", "*"):
        raise web.HTTPBadGateway(text="this server is no proxy for that\n", headers={"Connection": "close"})
    return await handler(request)


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
