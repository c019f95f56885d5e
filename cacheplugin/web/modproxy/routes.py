"""Requests below /mod/: what is asked for, and the answer as the go command understands it.

A file that is not there is 404 or 410, which sends the go command on to what stands next in its
GOPROXY; any failure is 502 or 504, so that it does not. Texts go to the go command's user.
"""

import logging
import os
from urllib.parse import unquote

from aiohttp import hdrs, web

from ...errors import InvalidName, NotThere, UpstreamError, reason_of
from ...metrics import group_text
from ...options import DEBUG_MODULE_PROXY
from ...store.cache import LocalCache
from ...store.tree import Store
from ..server_client import Activity
from . import counters, goproxy, names
from .cache import ABSENT_S, ModuleCache
from .disk import SMALL_BYTES
from .download import Download
from .upstream import Upstream

log = logging.getLogger(__name__)

_FOR_EVER = "public, max-age=31536000, immutable"
_UNPROVEN = "public, max-age=60"
_NOT_KEPT = "no-store"
_VIA_LENGTH = 1000
_TEXT = "text/plain; charset=utf-8"
_CONTENT_TYPES = {
    **dict.fromkeys((names.INFO, names.QUERY, names.LATEST), "application/json"),
    names.ZIP: "application/zip",
    names.TILE: "application/octet-stream",
}


class _FileResponse(web.FileResponse):
    """One whose sending, which comes after the handler, counts as activity; whose failure is one."""

    def __init__(self, path, headers, activity) -> None:
        super().__init__(path, headers=headers)
        self._activity = activity

    def set_status(self, status: int, reason: str = None) -> None:
        """As aiohttp's, which says 404 or 403 of any file that it cannot open, though it was there."""
        if status in (403, 404):
            status = 500
            self.headers[hdrs.CACHE_CONTROL] = _NOT_KEPT
        super().set_status(status, reason)

    async def prepare(self, request):
        with self._activity:
            return await super().prepare(request)


class ModuleProxy:
    """Made in the running event loop. ``link``: the ServerClient; ``writable``: the cache directory is."""

    def __init__(self, options, link, writable: bool) -> None:
        self.counters = counters.make()
        self._databases = goproxy.parse_databases(options.sumdb, "--sumdb")
        proxies = goproxy.parse_list(options.modproxy_upstream, "--modproxy-upstream")
        self._upstream = Upstream(proxies, self._databases, self.counters)
        local = LocalCache(Store(options.cache_dir), writable)
        bucket = link if options.bucket else None
        databases = tuple(self._databases)
        self._cache = ModuleCache(options, databases, local, bucket, self._upstream, self.counters)
        self._max_age_s = options.modproxy_max_age_s
        self._nosumdb = options.nosumdb
        self._debug = options.debug & DEBUG_MODULE_PROXY
        self._prints = options.metrics
        self._activity = Activity(link)

    async def close(self) -> None:
        """Let go of what is on its way, and print the counters where that is asked for."""
        self._cache.close()
        await self._upstream.close()
        if self._prints:
            try:
                os.write(2, f"{group_text(counters.GROUP, self.counters)}\n".encode())
            except OSError:
                pass

    async def handle(self, request) -> web.StreamResponse:
        """Answer GET and HEAD below /mod/."""
        with self._activity:
            response = await self._answer(request)
        if self._debug:
            log.debug(
                "%s %s for %s: %d, %s",
                request.method,
                request.raw_path,
                request.remote,
                response.status,
                "as it comes"
                if response.content_length is None
                else f"{response.content_length} bytes",
            )
        return response

    async def _answer(self, request) -> web.StreamResponse:
        self.counters["get_request"] += 1
        via = ", ".join(request.headers.getall(hdrs.VIA, ()))[:_VIA_LENGTH]
        if self._upstream.is_own(via):
            return _failure(508, "this module proxy is its own upstream")
        try:
            name = names.parse(_path_of(request), self._databases)
        except InvalidName as error:
            self.counters["path_error"] += 1
            return _failure(error.status, str(error))
        if name.kind == names.SUPPORTED:
            return web.Response(headers={hdrs.CACHE_CONTROL: self._cache_control(name)})
        if name.kind == names.LOOKUP and goproxy.is_private(name.module, self._nosumdb):
            return _failure(404, f"{name.module} is in no checksum database, as --nosumdb says")
        # What a database has cannot be checked here, so whoever finds it wrong can have it renewed.
        renews = bool(name.database) and "no-cache" in request.headers.get(hdrs.CACHE_CONTROL, "")
        try:
            found = await self._cache.get(name, via, renews)
            if isinstance(found, Download):
                self.counters["get_local_miss"] += 1
                with found:
                    return await self._answer_download(request, found)
            self.counters["get_local_hit"] += 1
            self.counters["get_local_bytes"] += found.size
            return self._answer_stored(request, name, found)
        except NotThere as error:
            self.counters["get_absent"] += 1
            left_s = ABSENT_S if error.left_s is None else error.left_s
            return _failure(error.status, str(error), f"public, max-age={left_s:.0f}")
        except UpstreamError as error:
            self.counters["get_error"] += 1
            return _failure(error.status, str(error))
        except OSError as error:
            self.counters["get_error"] += 1
            log.warning("module file %s cannot be served: %s", name.text, reason_of(error))
            return _failure(500, f"{name.text} cannot be served: {reason_of(error)}")

    def _cache_control(self, name, max_age_s=None) -> str:
        if name.is_immutable:
            return _FOR_EVER
        return f"public, max-age={self._max_age_s if max_age_s is None else max_age_s:.0f}"

    def _headers(self, name, max_age_s=None) -> dict:
        return {
            hdrs.CONTENT_TYPE: _CONTENT_TYPES.get(name.kind, _TEXT),
            hdrs.CACHE_CONTROL: self._cache_control(name, max_age_s),
        }

    def _answer_stored(self, request, name, stored) -> web.StreamResponse:
        headers = self._headers(name, stored.max_age_s)
        if stored.data is None or hdrs.RANGE in request.headers:
            return _FileResponse(stored.path, headers, self._activity)
        return web.Response(body=stored.data, headers=headers)

    async def _answer_download(self, request, download) -> web.StreamResponse:
        name = download.name
        if name.kind != names.ZIP or hdrs.RANGE in request.headers:
            await download.whole()
            stored = self._cache.lookup(name) if download.path else None
            if stored is not None:
                return self._answer_stored(request, name, stored)
        headers = self._headers(name)
        if not download.path:  # not whole yet, or not to be trusted for long
            headers[hdrs.CACHE_CONTROL] = _UNPROVEN if name.kind == names.ZIP else _NOT_KEPT
        if download.is_stale:
            headers[hdrs.CACHE_CONTROL] = "no-cache"
        if name.kind != names.ZIP and download.length <= SMALL_BYTES:
            return web.Response(body=download.read(), headers=headers)
        response = web.StreamResponse(headers=headers)
        if request.method == hdrs.METH_HEAD:
            await download.begun()
            response.content_length = download.length
            return response
        return await self._stream(request, response, download)

    async def _stream(self, request, response, download) -> web.StreamResponse:
        """Send a file while it comes. Where it turns out wrong, the client's connection is cut."""
        try:
            async for data in download.chunks():
                if not response.prepared:
                    response.content_length = download.length
                    await response.prepare(request)
                await response.write(data)
            await response.write_eof()
        except UpstreamError:
            if not response.prepared:
                raise
            self.counters["get_error"] += 1
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # the client went away; the download goes on for others
        return response


def _path_of(request) -> str:
    """What stands behind /mod/, without percent signs; raises InvalidName."""
    path = request.raw_path.partition("?")[0].partition("#")[0].removeprefix(names.PREFIX)
    try:
        path = unquote(path, errors="strict")
    except UnicodeDecodeError:
        raise InvalidName("the path is not UTF-8") from None
    return path


def _failure(status: int, text: str, cache_control: str = _NOT_KEPT) -> web.Response:
    return web.Response(
        status=status, text=f"{text.strip()}\n", headers={hdrs.CACHE_CONTROL: cache_control}
    )
