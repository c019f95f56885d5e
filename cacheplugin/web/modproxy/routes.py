"""Answers HTTP requests below /mod/.

A file that does not exist is answered with 404 or 410, after which the go command asks the next
entry of its GOPROXY. A failure is answered with 500, 502 or 504, after which it stops. The go
command shows the text of these responses to its user.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING
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

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp.abc import AbstractStreamWriter

    from ...options import Options
    from ..server_client import ServerClient
    from .disk import Stored
    from .names import Name

log = logging.getLogger(__name__)

# Values of Cache-Control.
_IMMUTABLE = "public, max-age=31536000, immutable"
_UNVERIFIED_ZIP = "public, max-age=60"
_NO_STORE = "no-store"
_STALE = "no-cache"
_MAX_VIA_LENGTH = 1000
_TEXT = "text/plain; charset=utf-8"
_CONTENT_TYPES = {
    **dict.fromkeys((names.INFO, names.QUERY, names.LATEST), "application/json"),
    names.ZIP: "application/zip",
    names.TILE: "application/octet-stream",
}


class _FileResponse(web.FileResponse):
    """Sends a file, which aiohttp does after the handler returned. Sending counts as activity.

    A file that cannot be opened is answered with 500, because aiohttp's own 403 or 404 would make
    the go command ask the next entry of its GOPROXY.
    """

    def __init__(self, path: str, headers: Mapping[str, str], activity: Activity) -> None:
        super().__init__(path, headers=headers)
        self._activity = activity

    def set_status(self, status: int, reason: str | None = None) -> None:
        if status in (403, 404):
            status = 500
            self.headers[hdrs.CACHE_CONTROL] = _NO_STORE
        super().set_status(status, reason)

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        with self._activity:
            return await super().prepare(request)


class ModuleProxy:
    """Create it in the running event loop. ``writable``: whether the cache directory is."""

    def __init__(self, options: Options, server: ServerClient, writable: bool) -> None:
        self.counters = counters.make()
        self._databases = goproxy.parse_databases(options.sumdb, "--sumdb")
        proxies = goproxy.parse_list(options.modproxy_upstream, "--modproxy-upstream")
        self._upstream = Upstream(proxies, self._databases, self.counters)
        local = LocalCache(Store(options.cache_dir), writable)
        bucket = server if options.bucket else None
        databases = tuple(self._databases)
        self._cache = ModuleCache(options, databases, local, bucket, self._upstream, self.counters)
        self._max_age_s = options.modproxy_max_age_s
        self._nosumdb = options.nosumdb
        self._log_requests = bool(options.debug & DEBUG_MODULE_PROXY)
        self._print_counters = options.metrics
        self._activity = Activity(server)

    async def close(self) -> None:
        """Cancel what is being fetched, and print the counters if --metrics is set."""
        self._cache.close()
        await self._upstream.close()
        if self._print_counters:
            try:
                os.write(2, f"{group_text(counters.GROUP, self.counters)}\n".encode())
            except OSError:
                pass

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a GET or HEAD request below /mod/."""
        with self._activity:
            response = await self._answer(request)
        if self._log_requests:
            length = response.content_length
            log.debug(
                "%s %s for %s: %d, %s",
                request.method,
                request.raw_path,
                request.remote,
                response.status,
                "length unknown" if length is None else f"{length} bytes",
            )
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.counters["get_request"] += 1
        via = ", ".join(request.headers.getall(hdrs.VIA, ()))[:_MAX_VIA_LENGTH]
        if self._upstream.is_own(via):
            return _failure(
                508,
                "this module proxy is its own upstream:"
                " one of its --modproxy-upstream or GOPROXY entries leads back to it",
            )
        try:
            name = names.parse(_path_of(request), self._databases)
        except InvalidName as error:
            self.counters["path_error"] += 1
            return _failure(error.status, str(error))
        if name.kind == names.SUPPORTED:
            return web.Response(headers={hdrs.CACHE_CONTROL: self._cache_control(name)})
        if name.kind == names.LOOKUP and goproxy.is_private(name.module, self._nosumdb):
            return _failure(
                404, f"{name.module} matches --nosumdb: no checksum database is asked for it"
            )
        try:
            return await self._answer_name(request, name, via)
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

    async def _answer_name(
        self, request: web.BaseRequest, name: Name, via: str
    ) -> web.StreamResponse:
        # Files of checksum databases cannot be verified here, for want of the database's key. A
        # client that finds one wrong sends no-cache.
        refresh = bool(name.database) and "no-cache" in request.headers.get(hdrs.CACHE_CONTROL, "")
        found = await self._cache.get(name, via, refresh)
        if isinstance(found, Download):
            self.counters["get_local_miss"] += 1
            with found:
                return await self._answer_download(request, found)
        self.counters["get_local_hit"] += 1
        self.counters["get_local_bytes"] += found.size
        return self._answer_stored(request, name, found)

    def _cache_control(self, name: Name, max_age_s: float | None = None) -> str:
        if name.is_immutable:
            return _IMMUTABLE
        return f"public, max-age={self._max_age_s if max_age_s is None else max_age_s:.0f}"

    def _headers(self, name: Name, max_age_s: float | None = None) -> dict[str, str]:
        return {
            hdrs.CONTENT_TYPE: _CONTENT_TYPES.get(name.kind, _TEXT),
            hdrs.CACHE_CONTROL: self._cache_control(name, max_age_s),
        }

    def _answer_stored(
        self, request: web.BaseRequest, name: Name, stored: Stored
    ) -> web.StreamResponse:
        headers = self._headers(name, stored.max_age_s)
        if stored.data is None or hdrs.RANGE in request.headers:
            return _FileResponse(stored.path, headers, self._activity)
        return web.Response(body=stored.data, headers=headers)

    async def _answer_download(
        self, request: web.BaseRequest, download: Download
    ) -> web.StreamResponse:
        name, is_zip = download.name, download.name.kind == names.ZIP
        if not is_zip or hdrs.RANGE in request.headers:
            await download.wait_complete()
            stored = self._cache.lookup(name) if download.path else None
            if stored is not None:
                return self._answer_stored(request, name, stored)
        headers = self._headers(name)
        if download.is_stale:
            headers[hdrs.CACHE_CONTROL] = _STALE
        elif not download.path:  # not complete yet, or not verified
            headers[hdrs.CACHE_CONTROL] = _UNVERIFIED_ZIP if is_zip else _NO_STORE
        if not is_zip and download.size <= SMALL_BYTES:
            return web.Response(body=download.read_all(), headers=headers)
        response = web.StreamResponse(headers=headers)
        if request.method == hdrs.METH_HEAD:
            await download.wait_length()
            response.content_length = download.length
            return response
        return await self._stream(request, response, download)

    async def _stream(
        self, request: web.BaseRequest, response: web.StreamResponse, download: Download
    ) -> web.StreamResponse:
        """Send a file while it is fetched. If it turns out wrong, abort the client's connection."""
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
            pass  # the client closed the connection; the download goes on for other clients
        return response


def _path_of(request: web.BaseRequest) -> str:
    """The path of a request below /mod/, percent-decoded; raises InvalidName."""
    path = request.raw_path.partition("?")[0].partition("#")[0].removeprefix(names.PREFIX)
    try:
        return unquote(path, errors="strict")
    except UnicodeDecodeError:
        raise InvalidName("the percent-decoded path is not valid UTF-8") from None


def _failure(status: int, text: str, cache_control: str = _NO_STORE) -> web.Response:
    return web.Response(
        status=status, text=f"{text.strip()}\n", headers={hdrs.CACHE_CONTROL: cache_control}
    )
