"""Unit tests of web/modproxy/upstream.py: its circuit breakers; and of a file that vanishes."""

import asyncio

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request
from yarl import URL

from cacheplugin.breaker import CLOSED, OPEN
from cacheplugin.web.modproxy import counters, goproxy, routes, upstream
from cacheplugin.web.modproxy.upstream import Upstream

BASE = "http://a.example"


class Key:
    """Stands in for the connection key of aiohttp's connection errors."""

    ssl, is_ssl, port = False, False, 80

    def __init__(self, host) -> None:
        self.host = host

    def __repr__(self) -> str:
        return f"Key({self.host!r})"  # without a memory address, because test ids contain it


def connection_refused(host):
    return aiohttp.ClientConnectorError(Key(host), OSError(111, "refused"))


def state_after(error, times=upstream.TRIES) -> str:
    """The state of an upstream's breaker after ``times`` requests that ended with ``error``."""

    async def main():
        found = Upstream([goproxy.Proxy(BASE, False)], {}, counters.make())
        breaker = upstream._breaker()

        async def get(*_, **__):
            raise error

        found._session.get = get
        for _ in range(times):
            with pytest.raises((aiohttp.ClientError, asyncio.TimeoutError, asyncio.CancelledError)):
                await found._open(URL(f"{BASE}/x"), {}, None, breaker)
        await found.close()
        return breaker.state

    return asyncio.run(main())


@pytest.mark.parametrize(
    "error",
    [
        connection_refused("a.example"),
        aiohttp.ConnectionTimeoutError(),
        UnicodeError("label too long"),
        OSError("no such device"),
    ],
    ids=repr,
)
def test_unreachable_upstreams_open_the_breaker(error):
    """An upstream that cannot be reached is not asked for a while."""
    assert state_after(error) == OPEN


@pytest.mark.parametrize(
    "error",
    [
        connection_refused("b.example"),
        aiohttp.SocketTimeoutError(),
        asyncio.TimeoutError(),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError(),
    ],
    ids=repr,
)
def test_other_failures_leave_the_breaker_closed(error):
    """Time-outs, cut connections and redirects to an unreachable host may concern one file only."""
    assert state_after(error) == CLOSED


def test_a_cancelled_probe_ends(monkeypatch):
    """The probe of a half-open breaker may be cancelled; a later request is the next probe."""

    async def main():
        found = Upstream([goproxy.Proxy(BASE, False)], {}, counters.make())
        clock = [0.0]
        breaker = upstream.Breaker(
            lambda: clock[0], upstream._FIRST_PAUSE_S, upstream._LONGEST_PAUSE_S
        )
        for _ in range(3):
            breaker.failed()
        clock[0] = 100.0
        assert breaker.admit() != OPEN

        async def get(*_, **__):
            raise asyncio.CancelledError

        found._session.get = get
        with pytest.raises(asyncio.CancelledError):
            await found._open(URL(BASE), {}, None, breaker)
        clock[0] = 200.0
        assert breaker.admit() != OPEN
        await found.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "text, line",
    [
        ("a\n b", "a b"),
        ("a\x1b[31mb", "a?[31mb"),
        ("http://u:secret@h/x", "http://h/x"),
        ("x" * 999, "x" * 500),
    ],
)
def test_error_texts_are_one_printable_line(text, line):
    """Line breaks, control characters, passwords and excess length are removed."""
    assert upstream._one_line(text) == line


def test_a_file_that_vanishes_is_a_failure(tmp_path):
    """A stored file that is removed before it is sent gives 500, not 404."""

    async def main():
        class Server:
            def note_busy(self, _):
                pass

        activity = routes.Activity(Server())
        response = routes._FileResponse(tmp_path / "gone", {"Cache-Control": "immutable"}, activity)
        await response.prepare(make_mocked_request("GET", "/mod/x"))
        return response

    response = asyncio.run(main())
    assert response.status == 500 and response.headers["Cache-Control"] == "no-store"
