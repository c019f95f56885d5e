"""Other proxies and checksum databases, over HTTP: one file at a time, tried again, one after another."""
import asyncio
import logging
import os

import aiohttp
from aiohttp import hdrs

from ... import __version__
from ...breaker import OPEN, Breaker
from ...errors import FileMismatch, NotThere, UpstreamError, UpstreamOff
from . import checks, goproxy, names

log = logging.getLogger(__name__)

TRIES = 3
_PAUSES_S = (0.1, 0.5)  # before the second and the third
_CONNECT_S = 10
_SILENCE_S = 30  # between two pieces of an answer
_SLOWEST = 128 << 10  # bytes a second
_CONNECTIONS = 64
_CHUNK_BYTES = 1 << 18
_PASSING = (429, 500, 502, 503, 504)  # what may be better a moment later
_TEXT_BYTES = 4096  # of what an upstream says about an error
# After three failures to connect an upstream is not asked for a while: a go command that waits in
# vain for each of a hundred files would wait for minutes.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 20.0


class Upstream:
    """``proxies`` is a list of goproxy.Proxy, ``databases`` {name: URL or ""}, ``counters`` a dict-like."""

    def __init__(self, proxies, databases, counters) -> None:
        self.id = os.urandom(8).hex()
        self._proxies = proxies
        self._databases = dict(databases)
        self._counters = counters
        self._breakers = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
            headers={"User-Agent": f"go-cache-plugin/{__version__}", "Accept-Encoding": "identity"},
            trust_env=True,  # HTTPS_PROXY and its kind, and netrc, as the go command has it
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        await self._session.close()

    def via(self, before: str) -> str:
        """The Via header of a request made for one that had ``before``."""
        return ", ".join(filter(None, (before, f"1.1 {self.id} (go-cache-plugin)")))

    def is_own(self, via: str) -> bool:
        """Whether a request with this Via header is one that this process made."""
        return self.id in via

    async def fetch(self, name, draft, via: str = "") -> None:
        """Write the file of a Name into ``draft``, from the first upstream that has it.

        ``draft`` has ``size`` (written so far), ``write(bytes)``, ``announce(whole size or None)``, and
        ``forget()``, which begins anew unless it returns False.
        Raises NotThere, UpstreamError, FileMismatch, and what ``draft.write`` does.
        """
        headers = {"Via": self.via(via)}
        if name.database:
            base = await self._database(name.database, headers)
            await self._fetch_from(base, name.path_in_database, name, draft, headers)
            return
        worst = None
        for proxy in self._proxies:
            try:
                if proxy.url == goproxy.OFF:
                    raise UpstreamOff
                await self._fetch_from(proxy.url, name.text, name, draft, headers)
                return
            except UpstreamError as error:
                is_absent = isinstance(error, NotThere)
                if worst is None or (isinstance(worst, NotThere) and not is_absent):
                    worst = error  # as the go command: a failure tells more than an absence
                if not (is_absent or proxy.falls_on_any) or not draft.forget():
                    break
        raise worst

    async def _database(self, name: str, headers) -> str:
        """The URL of a checksum database: its own, or below the first proxy that serves it."""
        if self._databases[name]:
            return self._databases[name]
        for proxy in self._proxies:
            if proxy.url == goproxy.OFF:
                raise UpstreamOff
            base = f"{proxy.url}/sumdb/{name}"
            supported = names.Name("", names.SUPPORTED, database=name)
            try:
                await self._fetch_from(base, "supported", supported, _Nothing(), headers)
            except UpstreamError as error:
                if not isinstance(error, NotThere) and not proxy.falls_on_any:
                    raise
                continue
            self._databases[name] = base
            return base
        self._databases[name] = f"https://{name}"
        return self._databases[name]

    async def _fetch_from(self, base, path, name, draft, headers) -> None:
        breaker = self._breakers.setdefault(base, _breaker())
        reason, status = "", 502
        for tried in range(TRIES):
            if tried:
                await asyncio.sleep(_PAUSES_S[tried - 1])
            if breaker.admit() == OPEN:
                reason = reason or "it did not answer a moment ago"
                break
            self._counters["upstream_request"] += 1
            try:
                reason = await self._try(base, path, name, draft, headers, breaker)
                if reason is None:
                    return
                status = 502
            except asyncio.TimeoutError:
                reason, status = "it does not answer in time", 504
            except aiohttp.ClientError as error:
                reason, status = " ".join(str(error).split())[:300] or type(error).__name__, 502
            log.info("upstream %s/%s: %s", goproxy.shown(base), path, reason)
        self._counters["upstream_error"] += 1
        raise UpstreamError(f"upstream {goproxy.shown(base)}: {reason}", status)

    async def _try(self, base, path, name, draft, headers, breaker):
        """One request. Returns None when the file is whole, or what went wrong and may go better."""
        most = checks.max_bytes(name)
        timeout = aiohttp.ClientTimeout(
            total=_SILENCE_S + most / _SLOWEST, sock_connect=_CONNECT_S, sock_read=_SILENCE_S
        )
        if draft.size:
            headers = {**headers, "Range": f"bytes={draft.size}-"}
        try:
            response = await self._session.get(f"{base}/{path}", headers=headers, timeout=timeout)
        except asyncio.TimeoutError:
            breaker.failed(timed_out=True)
            raise
        except aiohttp.ClientConnectorError:
            breaker.failed()
            raise
        except aiohttp.ClientError:
            breaker.succeeded()  # somebody is there
            raise
        breaker.succeeded()
        async with response:
            if response.status in (404, 410) and not draft.size:
                raise NotThere(await _text(response), response.status)
            if response.status not in (200, 206):
                reason = f"it answers {response.status} {response.reason}: {await _text(response)}"
                if response.status in _PASSING:
                    return reason
                raise UpstreamError(f"upstream {goproxy.shown(base)}/{path}: {reason}")
            skip = draft.size if response.status == 200 else 0
            length = response.content_length
            if hdrs.CONTENT_ENCODING in response.headers:
                length = None  # aiohttp undoes it, whether it was asked for or not
            if length is not None:
                length += draft.size - skip
                if length > most:
                    raise FileMismatch(f"it has {length} bytes")
            draft.announce(length)
            async for data in response.content.iter_chunked(_CHUNK_BYTES):
                self._counters["upstream_bytes"] += len(data)
                if skip:  # it was written by the request before
                    data, skip = data[skip:], max(0, skip - len(data))
                if data:
                    draft.write(data)
                if draft.size > most:
                    raise FileMismatch(f"it has more than {most} bytes")
        return None


def _breaker() -> Breaker:
    return Breaker(first_pause_s=_FIRST_PAUSE_S, longest_pause_s=_LONGEST_PAUSE_S)


class _Nothing:
    """A draft of a file that nobody reads."""

    size = 0

    def forget(self) -> bool:
        return True

    def announce(self, length) -> None:
        pass

    def write(self, data) -> None:
        pass


async def _text(response) -> str:
    """What an answer that is an error says."""
    text = (await response.content.read(_TEXT_BYTES)).decode(errors="replace").strip()
    if response.content_type == "text/html":
        return response.reason or ""
    return text
