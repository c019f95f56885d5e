"""Fetches files from other module proxies and from checksum databases, over HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

import aiohttp
from aiohttp import hdrs
from yarl import URL

from ... import __version__
from ...breaker import OPEN, Breaker
from ...errors import FileMismatch, NotThere, UpstreamError, UpstreamOff
from ...tuples import NamedTuple
from . import checks, goproxy, names
from .expiring import ExpiringCache

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .contracts import Sink
    from .names import Name

log = logging.getLogger(__name__)

TRIES = 3
_PAUSES_S = (0.1, 0.5)  # before the second and the third try
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 30  # between two pieces of a response
_MIN_BYTES_PER_S = 128 << 10  # for the whole of a zip
_TEXT_TIMEOUT_S = 60  # for the whole of a file that is not a zip
_CONNECTIONS = 64  # to one upstream
_CHUNK_BYTES = 1 << 18
_RETRIED_STATUSES = (429, 500, 502, 503, 504)
# Limits for the text of an error response: bytes that are read, characters of a line in a log.
_ERROR_TEXT_BYTES, _ERROR_LINE_LENGTH = 4096, 500
_DATABASE_URL_S = 600.0  # for how long the URL that was found for a checksum database is kept
_WARN_INTERVAL_S = 60.0  # between two warnings about one upstream
_SAFE = "/!@$&+,=:~"  # not percent-encoded in a path, as in requests of the go command
# An upstream that could not be reached three times in a row is not asked for a while. Otherwise a
# go command that asks for a hundred files would wait minutes for all the time-outs.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 20.0


class _Request(NamedTuple):
    """One file of one upstream. ``path``: below the URL ``base``, not percent-encoded."""

    base: str
    path: str
    name: Name
    headers: Mapping[str, str]

    def shown(self) -> str:
        return f"{goproxy.shown(self.base)}/{self.path}"


class Upstream:
    """``proxies``: entries of GOPROXY. ``databases``: {name: URL, or "" if the proxies know it}."""

    def __init__(
        self,
        proxies: Sequence[goproxy.Proxy],
        databases: Mapping[str, str],
        counters: dict[str, int],
    ) -> None:
        self.id = os.urandom(8).hex()
        self._proxies = proxies
        self._databases = dict(databases)
        self._counters = counters
        self._database_urls: ExpiringCache[str] = ExpiringCache()  # by name of the database
        self._breakers: dict[str, Breaker] = {}  # by URL of the upstream
        self._warned: ExpiringCache[bool] = ExpiringCache()  # by URL of the upstream
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=_CONNECTIONS),
            headers={"User-Agent": f"go-cache-plugin/{__version__}", "Accept-Encoding": "identity"},
            trust_env=True,  # HTTPS_PROXY and .netrc count, as they do for the go command
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        await self._session.close()

    def via(self, received: str) -> str:
        """The Via header of a request that is made for a client's request with Via ``received``."""
        return ", ".join(filter(None, (received, f"1.1 {self.id} (go-cache-plugin)")))

    def is_own(self, via: str) -> bool:
        """Whether a request with this Via header was first made by this process."""
        return self.id in via

    async def fetch(self, name: Name, sink: Sink, via: str = "") -> None:
        """Write the file of a Name to ``sink``, from the first upstream that has it.

        Upstreams are asked in the order and by the rules of GOPROXY. ``via``: the Via header of the
        client's request. Raises NotThere, UpstreamError, FileMismatch, and what ``sink.write``
        raises.
        """
        headers = {"Via": self.via(via)}
        if name.database:
            base = await self._database_url(name.database, headers)
            await self._fetch_from(_Request(base, name.path_in_database, name, headers), sink)
            return
        worst: UpstreamError | None = None
        for proxy in self._proxies:
            try:
                if proxy.url == goproxy.OFF:
                    raise UpstreamOff
                await self._fetch_from(_Request(proxy.url, name.text, name, headers), sink)
                return
            except UpstreamError as error:
                is_absent = isinstance(error, NotThere)
                # Like the go command, report a failure rather than an absence.
                if worst is None or (isinstance(worst, NotThere) and not is_absent):
                    worst = error
                if not (is_absent or proxy.falls_on_any) or not sink.restart():
                    break
        raise worst or UpstreamError("no upstream is configured: set --modproxy-upstream")

    async def _database_url(self, database: str, headers: Mapping[str, str]) -> str:
        """The URL of a checksum database: as configured, else below the first proxy that relays it.

        Falls back to the host that the database is named after.
        """
        if self._databases[database]:
            return self._databases[database]
        known = self._database_urls.get(database)
        if known is not None:
            url, _ = known
            return url
        all_answered = True
        for proxy in self._proxies:
            if proxy.url == goproxy.OFF:
                raise UpstreamOff
            url = f"{proxy.url}/sumdb/{database}"
            supported = names.Name("", names.SUPPORTED, database=database)
            try:
                await self._fetch_from(_Request(url, "supported", supported, headers), _Discard())
            except UpstreamError as error:
                is_absent = isinstance(error, NotThere)
                if not is_absent and not proxy.falls_on_any:
                    raise
                all_answered &= is_absent
                continue
            self._database_urls.add(database, url, _DATABASE_URL_S)
            return url
        url = f"https://{database}"
        if all_answered:
            self._database_urls.add(database, url, _DATABASE_URL_S)
        return url

    async def _fetch_from(self, request: _Request, sink: Sink) -> None:
        """Fetch a file from one upstream, in up to TRIES tries. Raises as ``fetch`` does."""
        breaker = self._breakers.setdefault(request.base, _breaker())
        reason, status = "", 502
        for tried in range(TRIES):
            if tried:
                await asyncio.sleep(_PAUSES_S[tried - 1])
                if request.name.kind != names.ZIP:
                    sink.restart()  # the file may have changed: do not join two versions of it
            if breaker.admit() == OPEN:
                reason = reason or "not asked, because it could not be reached moments ago"
                break
            self._counters["upstream_request"] += 1
            try:
                await self._try(request, sink, breaker)
                return
            except _Failure as error:
                reason, status = str(error), 502
                if not error.is_temporary:
                    break
            except asyncio.TimeoutError:
                reason, status = "no answer within the time-out", 504
            except aiohttp.ClientError as error:
                reason, status = _one_line(str(error)) or type(error).__name__, 502
            log.info("upstream %s: %s", request.shown(), reason)
        self._counters["upstream_error"] += 1
        self._warn(request, reason)
        raise UpstreamError(f"upstream {request.shown()}: {reason}", status)

    def _warn(self, request: _Request, reason: str) -> None:
        """Log a failure, at most once in _WARN_INTERVAL_S for each upstream."""
        if self._warned.get(request.base) is None:
            self._warned.add(request.base, True, _WARN_INTERVAL_S)
            log.warning("upstream %s: %s", request.shown(), reason)

    async def _open(
        self,
        url: URL,
        headers: Mapping[str, str],
        timeout: aiohttp.ClientTimeout | None,
        breaker: Breaker,
    ) -> aiohttp.ClientResponse:
        """Send a request; returns the response with its body unread.

        Tells ``breaker`` whether the upstream could be reached. Only that counts: an error after
        the connection was made may concern this one file.
        """
        is_reachable = timed_out = False
        try:
            response = await self._session.get(url, headers=headers, timeout=timeout)
            is_reachable = True
            return response
        except aiohttp.ClientConnectorError as error:
            is_reachable = error.host != url.host  # it redirected to a host that is unreachable
            raise
        except aiohttp.ConnectionTimeoutError:
            timed_out = True
            raise
        except (aiohttp.ClientError, asyncio.TimeoutError):
            is_reachable = True
            raise
        except (OSError, ValueError) as error:  # a redirect to a host name that is not valid
            raise aiohttp.ClientError(str(error)) from None
        finally:
            if is_reachable:
                breaker.succeeded()
            else:
                breaker.failed(timed_out)

    async def _try(self, request: _Request, sink: Sink, breaker: Breaker) -> None:
        """Send one request and append its body to what ``sink`` already has.

        Raises _Failure, NotThere, FileMismatch, and errors of aiohttp and of the sink.
        """
        begin, headers = sink.size, request.headers
        if begin:
            headers = {**headers, hdrs.RANGE: f"bytes={begin}-"}
        # Percent-encode like the go command: a version may have characters such as # or %.
        url = URL(f"{request.base}/{quote(request.path, safe=_SAFE)}", encoded=True)
        async with await self._open(url, headers, _timeout(request.name), breaker) as response:
            await _check_status(response, begin)
            await self._copy_body(request.name, response, begin, sink)

    async def _copy_body(
        self, name: Name, response: aiohttp.ClientResponse, begin: int, sink: Sink
    ) -> None:
        """Write a body to ``sink``, which already has ``begin`` bytes of the file."""
        max_bytes = checks.max_bytes(name)
        skip = begin if response.status == 200 else 0  # the upstream ignored the Range header
        length = response.content_length
        if hdrs.CONTENT_ENCODING in response.headers:
            length = None  # aiohttp decodes the body, so this is not the length of the file
        if length is not None:
            length += begin - skip
            if length > max_bytes:
                raise FileMismatch(f"it has {length} bytes; the limit is {max_bytes}")
        sink.announce(length)
        async for data in response.content.iter_chunked(_CHUNK_BYTES):
            self._counters["upstream_bytes"] += len(data)
            new, skip = data[skip:], max(0, skip - len(data))
            if new:
                sink.write(new)
            if sink.size > max_bytes:
                raise FileMismatch(f"it has more than {max_bytes} bytes")


class _Failure(Exception):
    """An upstream's response that has no file. ``is_temporary``: another try may succeed."""

    def __init__(self, reason: str, is_temporary: bool) -> None:
        super().__init__(reason)
        self.is_temporary = is_temporary


class _Discard:
    """A Sink that drops what is written to it."""

    size = 0

    def announce(self, length: int | None) -> None:
        pass

    def write(self, data: bytes) -> None:
        pass

    def restart(self) -> bool:
        return True


def _breaker() -> Breaker:
    return Breaker(first_pause_s=_FIRST_PAUSE_S, longest_pause_s=_LONGEST_PAUSE_S)


def _timeout(name: Name) -> aiohttp.ClientTimeout:
    total_s: float = _TEXT_TIMEOUT_S
    if name.kind == names.ZIP:
        total_s = _READ_TIMEOUT_S + checks.max_bytes(name) / _MIN_BYTES_PER_S
    return aiohttp.ClientTimeout(
        total=total_s, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_READ_TIMEOUT_S
    )


async def _check_status(response: aiohttp.ClientResponse, begin: int) -> None:
    """Raise NotThere or _Failure unless the body is the file from byte 0 or from ``begin`` on."""
    if response.status in (404, 410) and not begin:
        raise NotThere(await _error_text(response), response.status)
    if response.status not in (200, 206):
        reason = _one_line(f"HTTP status {response.status}: {await _error_text(response)}")
        raise _Failure(reason, response.status in _RETRIED_STATUSES)
    if response.status == 206:
        content_range = response.headers.get(hdrs.CONTENT_RANGE, "")
        if not begin or not content_range.startswith(f"bytes {begin}-"):
            raise _Failure("it answered with another byte range than requested", True)


async def _error_text(response: aiohttp.ClientResponse) -> str:
    """The text of an error response, or the reason in its status line if the body is HTML."""
    text = (await response.content.read(_ERROR_TEXT_BYTES)).decode(errors="replace").strip()
    if response.content_type == "text/html" or not text:
        return response.reason or ""
    return "\n".join(filter(None, map(_one_line, text.splitlines())))


def _one_line(text: str) -> str:
    """Text from another server, made fit for a log: one printable line, without passwords."""
    text = re.sub(r"://[^/\s]*@", "://", " ".join(text.split()))
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:_ERROR_LINE_LENGTH]
