"""Other proxies and checksum databases, over HTTP: one file at a time, tried again, one after another."""

import asyncio
import logging
import os
import re
from urllib.parse import quote

import aiohttp
from aiohttp import hdrs
from yarl import URL

from ... import __version__
from ...breaker import OPEN, Breaker
from ...errors import FileMismatch, NotThere, UpstreamError, UpstreamOff
from . import checks, goproxy, names
from .expiring import Recent

log = logging.getLogger(__name__)

TRIES = 3
_PAUSES_S = (0.1, 0.5)  # before the second and the third
_CONNECT_S = 10
_SILENCE_S = 30  # between two pieces of an answer
_SLOWEST = 128 << 10  # bytes a second
_TEXT_S = 60  # for the whole of what is no zip
_CONNECTIONS = 64  # to one upstream
_CHUNK_BYTES = 1 << 18
_PASSING = (429, 500, 502, 503, 504)  # what may be better a moment later
_TEXT_BYTES, _LINE = 4096, 500  # of what an upstream says about an error, and of a line of it
_FOUND_S = 600.0  # for which a checksum database is taken to be where it was found
_WARN_S = 60.0  # between two warnings about an upstream
_SAFE = "/!@$&+,=:~"  # in a path, as the go command has it
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
        self._found = Recent()  # name of a checksum database: its URL
        self._breakers = {}
        self._warned = Recent()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=_CONNECTIONS),
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
        known = self._found.get(name)
        if known is not None:
            return known[0]
        is_sure = True
        for proxy in self._proxies:
            if proxy.url == goproxy.OFF:
                raise UpstreamOff
            base = f"{proxy.url}/sumdb/{name}"
            supported = names.Name("", names.SUPPORTED, database=name)
            try:
                await self._fetch_from(base, "supported", supported, _Nothing(), headers)
            except UpstreamError as error:
                is_absent = isinstance(error, NotThere)
                if not is_absent and not proxy.falls_on_any:
                    raise
                is_sure &= is_absent
                continue
            self._found.add(name, base, _FOUND_S)
            return base
        base = f"https://{name}"
        if is_sure:
            self._found.add(name, base, _FOUND_S)
        return base

    async def _fetch_from(self, base, path, name, draft, headers) -> None:
        breaker = self._breakers.setdefault(base, _breaker())
        reason, status = "", 502
        for tried in range(TRIES):
            if tried:
                await asyncio.sleep(_PAUSES_S[tried - 1])
                if name.kind != names.ZIP:
                    draft.forget()  # what may have changed meanwhile is not put together
            if breaker.admit() == OPEN:
                reason = reason or "it could not be reached a moment ago"
                break
            self._counters["upstream_request"] += 1
            try:
                reason = await self._try(base, path, name, draft, headers, breaker)
                if reason is None:
                    return
                status = 502
            except _Refused as error:
                reason, status = str(error), 502
                break
            except asyncio.TimeoutError:
                reason, status = "it does not answer in time", 504
            except aiohttp.ClientError as error:
                reason, status = _one_line(str(error)) or type(error).__name__, 502
            log.info("upstream %s/%s: %s", goproxy.shown(base), path, reason)
        self._counters["upstream_error"] += 1
        self._warn(base, path, reason)
        raise UpstreamError(f"upstream {goproxy.shown(base)}/{path}: {reason}", status)

    def _warn(self, base, path, reason) -> None:
        """Once in a while, of each upstream."""
        if self._warned.get(base) is None:
            self._warned.add(base, True, _WARN_S)
            log.warning("upstream %s/%s: %s", goproxy.shown(base), path, reason)

    async def _open(self, url, headers, timeout, breaker):
        """An answer, its body unread. The breaker learns whether there is anybody to answer."""
        is_there = timed_out = False
        try:
            response = await self._session.get(url, headers=headers, timeout=timeout)
            is_there = True
            return response
        except aiohttp.ClientConnectorError as error:
            is_there = error.host != url.host  # but of one to which it sent us
            raise
        except aiohttp.ConnectionTimeoutError:
            timed_out = True
            raise
        except (aiohttp.ClientError, asyncio.TimeoutError):
            is_there = True  # it was reached, and what came of that is this file's own trouble
            raise
        except (OSError, ValueError) as error:  # of a redirect to what is no host's name
            raise aiohttp.ClientError(str(error)) from None
        finally:
            if is_there:
                breaker.succeeded()
            else:
                breaker.failed(timed_out)

    async def _try(self, base, path, name, draft, headers, breaker):
        """One request. Returns None when the file is whole, or what went wrong and may go better."""
        most = checks.max_bytes(name)
        total_s = _TEXT_S if name.kind != names.ZIP else _SILENCE_S + most / _SLOWEST
        timeout = aiohttp.ClientTimeout(
            total=total_s, sock_connect=_CONNECT_S, sock_read=_SILENCE_S
        )
        begin = draft.size
        if begin:
            headers = {**headers, hdrs.RANGE: f"bytes={begin}-"}
        # As the go command escapes it; a version may have what means something else in a URL.
        url = URL(f"{base}/{quote(path, safe=_SAFE)}", encoded=True)
        async with await self._open(url, headers, timeout, breaker) as response:
            if response.status in (404, 410) and not begin:
                raise NotThere(await _text(response), response.status)
            if response.status not in (200, 206):
                reason = _one_line(f"it answers {response.status}: {await _text(response)}")
                if response.status in _PASSING:
                    return reason
                raise _Refused(reason)
            skip = begin if response.status == 200 else 0
            if response.status == 206 and not _begins_at(response, begin):
                return "it answers with another part than was asked for"
            length = response.content_length
            if hdrs.CONTENT_ENCODING in response.headers:
                length = None  # aiohttp undoes it, whether it was asked for or not
            if length is not None:
                length += begin - skip
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


class _Refused(Exception):
    """An answer that would not be another one a moment later."""


def _breaker() -> Breaker:
    return Breaker(first_pause_s=_FIRST_PAUSE_S, longest_pause_s=_LONGEST_PAUSE_S)


def _begins_at(response, begin) -> bool:
    return begin > 0 and response.headers.get(hdrs.CONTENT_RANGE, "").startswith(f"bytes {begin}-")


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
    if response.content_type == "text/html" or not text:
        return response.reason or ""
    return "\n".join(filter(None, map(_one_line, text.splitlines())))


def _one_line(text: str) -> str:
    """A text from elsewhere as it may stand in a log: printable, without a password."""
    text = re.sub(r"://[^/\s]*@", "://", " ".join(text.split()))
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:_LINE]
