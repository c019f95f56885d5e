"""web/modproxy/upstream.py and routes.py: what a breaker learns, and what a file that is gone is."""

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
    """What aiohttp's errors of connections have of the place."""

    ssl, is_ssl, port = False, False, 80

    def __init__(self, host) -> None:
        self.host = host

    def __repr__(self) -> str:
        return f"Key({self.host!r})"  # without an address: it is part of the names of tests


def no_connection(host):
    return aiohttp.ClientConnectorError(Key(host), OSError(111, "refused"))


def state_after(error, times=upstream.TRIES) -> str:
    """The state of the breaker when requests ended so."""

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
        no_connection("a.example"),
        aiohttp.ConnectionTimeoutError(),
        UnicodeError("label too long"),
        OSError("no such device"),
    ],
    ids=repr,
)
def test_who_cannot_be_reached_is_not_asked_for_a_while(error):
    assert state_after(error) == OPEN


@pytest.mark.parametrize(
    "error",
    [
        no_connection("b.example"),
        aiohttp.SocketTimeoutError(),
        asyncio.TimeoutError(),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError(),
    ],
    ids=repr,
)
def test_the_trouble_of_one_file_is_not_that_of_all(error):
    """Whoever hangs, breaks off, or sends us to a host that is down, is there."""
    assert state_after(error) == CLOSED


def test_a_probe_that_ends_in_any_way_is_over(monkeypatch):
    """Else a breaker would be half-open for ever, and let nobody through."""

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
def test_texts_from_elsewhere(text, line):
    assert upstream._one_line(text) == line


def test_a_file_that_is_gone_between_is_a_failure(tmp_path):
    """404 would send the go command elsewhere."""

    async def main():
        class Nobody:
            def note_busy(self, _):
                pass

        activity = routes.Activity(Nobody())
        response = routes._FileResponse(tmp_path / "gone", {"Cache-Control": "immutable"}, activity)
        await response.prepare(make_mocked_request("GET", "/mod/x"))
        return response

    response = asyncio.run(main())
    assert response.status == 500 and response.headers["Cache-Control"] == "no-store"
