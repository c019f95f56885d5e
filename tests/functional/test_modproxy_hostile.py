"""Requests that no go command sends, over plain sockets, so that no library corrects them."""

import socket

import pytest

from helpers import DEADLINE_S, temporaries
from module_proxy import LEAF, ModProxy, path_of
from modules import go_module
from server_sessions import ask, ends, free_port

pytest_plugins = ["modproxy_fixtures"]

ZIP, MOD = path_of(LEAF, "zip"), path_of(LEAF, "mod")
SECRET = b"what lies beside the cache"


class RawAnswer:
    """The answer to a request whose bytes are sent unchanged."""

    def __init__(self, proxy, data: bytes) -> None:
        with socket.create_connection(("127.0.0.1", proxy.port), DEADLINE_S) as client:
            client.sendall(data)
            answer = b""
            while piece := client.recv(1 << 16):
                answer += piece
        head, _, self.body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = dict(line.lower().split(": ", 1) for line in lines)


def raw(proxy, target, method="GET", *headers) -> RawAnswer:
    """The answer to a request for ``target``, text or bytes, which is sent unchanged."""
    if isinstance(target, str):
        target = target.encode()
    lines = "".join(f"{line}\r\n" for line in ("Host: proxy", "Connection: close", *headers))
    return RawAnswer(
        proxy, b"%s %s HTTP/1.1\r\n%s\r\n" % (method.encode(), target, lines.encode("latin-1"))
    )


@pytest.fixture
def proxy(modproxy, upstream, tmp_path):
    """A ModProxy; after the test it must still work, with a clean log and no temporary files."""
    (tmp_path / "secret").write_bytes(SECRET)
    proxy = modproxy()
    yield proxy
    assert proxy.get(MOD).body == LEAF.mod
    assert "cacheplugin/" not in proxy.server.stderr  # in a line of a traceback
    assert not temporaries(tmp_path / "modules")


@pytest.fixture
def check_untouched(upstream, tmp_path):
    """check_untouched(): checks that upstream got no request and nothing was stored."""

    def check():
        assert not upstream.requests
        assert not list((tmp_path / "modules").glob("module/*/*"))

    return check


# Paths that are not of the protocol, with every kind of encoding.
INVALID = [
    "/mod/../secret",
    "/mod/../../../../../../etc/passwd",
    "/mod/%2e%2e/secret",
    "/mod/%2e%2e%2fsecret",
    "/mod/..%2fsecret",
    "/mod/..%5csecret",
    "/mod//etc/passwd",
    "/mod/%2fetc%2fpasswd",
    "/mod/example.test/../example.test/!leaf/@v/v1.0.0.mod",
    "/mod/example.test/%2e%2e/@v/v1.0.0.mod",
    "/mod/example.test/./!leaf/@v/v1.0.0.mod",
    "/mod/example.test//!leaf/@v/v1.0.0.mod",
    "/mod/example.test/!leaf//@v/v1.0.0.mod",
    "/mod/example.test/!leaf/@v/../@v/v1.0.0.mod",
    "/mod/example.test/!leaf/@v/..%2f..%2fsecret.mod",
    "/mod/example.test/!leaf/@v/%2e%2e.info",
    "/mod/example.test/!leaf/@v/.info",
    "/mod/example.test/!leaf/@v/v1.0.0%00.mod",
    "/mod/example.test/!leaf%00/@v/v1.0.0.mod",
    "/mod/example.test/!leaf%0d%0aX:%20y/@v/v1.0.0.mod",
    "/mod/example.test/!leaf/@v/v1.0.0%0a.mod",
    "/mod/example.test/!leaf/@v/v1.0.0.mod%00",
    "/mod/example.test/!leaf/@v/v1.0.0.mod%2f",
    "/mod/example.test/!leaf/@v/v1.0.0.mod/",
    "/mod/example.test/Leaf/@v/v1.0.0.mod",
    "/mod/example.test/%4ceaf/@v/v1.0.0.mod",
    "/mod/example.test/!!leaf/@v/v1.0.0.mod",
    "/mod/example.test/!Leaf/@v/v1.0.0.mod",
    "/mod/example.test/leaf!/@v/v1.0.0.mod",
    "/mod/example.test%252f!leaf/@v/v1.0.0.mod",
    "/mod/example.test/%252e%252e/@v/v1.0.0.mod",
    "/mod/example.test/%25252e%25252e/@v/list",
    "/mod/example.test/%zz/@v/list",
    "/mod/example.test/%/@v/list",
    "/mod/example.test/\u00fcber/@v/list",
    "/mod/example.test/%c3%bcber/@v/list",
    "/mod/example.test/%e2%80%a5/@v/list",
    "/mod/example.test/%ff%fe/@v/list",
    "/mod/example.test/%c0%ae%c0%ae/@v/list",
    "/mod/example.test/%ed%a0%80/@v/list",
    b"/mod/example.test/\xff\xfe/@v/list",
    b"/mod/example.test/\xc0\xae\xc0\xae/@v/list",
    "/mod/example.test/!leaf/@v/v1.0.0.exe",
    "/mod/example.test/!leaf/@v/v1.zip",
    "/mod/example.test/!leaf/@v/master.mod",
    "/mod/example.test/!leaf/@v/",
    "/mod/example.test/!leaf/@v",
    "/mod/example.test/!leaf/@latest/",
    "/mod/example.test/!leaf",
    "/mod/@v/list",
    "/mod/@latest",
    "/mod/localhost/@v/list",
    "/mod/-x.test/@v/list",
    "/mod/example.test/con/@v/list",
    "/mod/example.test/a./@v/list",
    "/mod/example.test/x~1/@v/list",
    "/mod/127.0.0.1:80/@v/list",
    "/mod/user@example.test/@v/list",
    "/mod/example.test/a b/@v/list".replace(" ", "%20"),
    "/mod/sumdb/",
    "/mod/sumdb/sum.example.test",
    "/mod/sumdb/sum.example.test/",
    "/mod/sumdb/sum.example.test/nothing",
    "/mod/sumdb/sum.example.test/tile/8/0/../000",
    "/mod/sumdb/sum.example.test/tile/8/0/0",
    "/mod/sumdb/sum.example.test/tile/99/0/000",
    "/mod/sumdb/sum.example.test/tile/8/0/000.p/0",
    "/mod/sumdb/sum.example.test/tile/8/0/000.p/256",
    "/mod/sumdb/sum.example.test/lookup/",
    "/mod/sumdb/sum.example.test/lookup/example.test/!leaf",
    "/mod/sumdb/sum.example.test/lookup/example.test/!leaf@master",
    "/mod/sumdb/sum.example.test/lookup/../../latest@v1.0.0",
    "/mod/sumdb/127.0.0.1:1/latest",
    "/mod/sumdb/..%2f..%2fexample.test/latest",
    "/mod/",
    "/mod/?",
    "/mod/%00",
]


def test_invalid_paths_are_refused(proxy, check_untouched):
    """They give 400 or 404 without a request upstream, and reveal no file of this machine."""
    for target in INVALID:
        answer = raw(proxy, target)
        assert answer.status in (400, 404), target
        assert SECRET not in answer.body and b"root:" not in answer.body
        check_untouched()
    assert proxy.counts()["path_error"] > len(INVALID) - 10  # aiohttp refuses the others


def test_a_long_path_is_refused(proxy, check_untouched):
    """Also paths that are too long for aiohttp, and paths of many elements."""
    for length, statuses in ((2100, (414,)), (7000, (414,)), (100_000, (400, 414))):
        for element in ("x", "x/"):
            path = f"/mod/example.test/{element * (length // len(element))}x/@v/list"
            try:
                assert raw(proxy, path).status in statuses
            except ConnectionResetError:  # the server closed before it had read all of the request
                assert length > 8000
    check_untouched()


def test_targets_that_are_not_below_mod(proxy, check_untouched):
    for target, statuses in (
        ("http://example.com/mod/example.test/!leaf/@v/v1.0.0.mod", (502,)),
        ("http://127.0.0.1/mod/example.test/!leaf/@v/v1.0.0.mod", (502,)),
        ("HTTPS://example.com/mod/x", (502,)),
        ("mod/example.test/!leaf/@v/v1.0.0.mod", (400, 502)),
        ("*", (400, 404)),
        ("//mod/example.test/!leaf/@v/v1.0.0.mod", (404,)),
        ("/mod", (404,)),
        ("/Mod/example.test/!leaf/@v/v1.0.0.mod", (404,)),
    ):
        assert raw(proxy, target).status in statuses, target
    check_untouched()


def test_other_methods(proxy, check_untouched):
    """They are refused, with and without a body, and nothing is written."""
    body = b"module evil\n"
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "get"):
        assert raw(proxy, f"/mod{MOD}", method).status in (400, 405)
        request = (
            f"{method} /mod{MOD} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        assert RawAnswer(proxy, request.encode() + body).status in (400, 405)
    check_untouched()


def test_percent_encoded_paths_are_the_same_file(proxy, upstream):
    """However it is written, it is one request upstream and one file on disk."""
    for path in (
        MOD,
        MOD.replace("!", "%21"),
        MOD.replace("/", "%2f", 1),
        MOD.replace("@", "%40"),
        f"{MOD}?go-get=1",
        f"{MOD}#x",
    ):
        answer = raw(proxy, f"/mod/{path.removeprefix('/')}")
        assert answer.status in (200, 400) and (answer.status == 400 or answer.body == LEAF.mod), (
            path
        )
    assert raw(proxy, f"/mod{MOD.replace('!', '%21')}").body == LEAF.mod
    assert upstream.count(".mod") == 1


RANGES = [
    "bytes=0-9",
    "bytes=-5",
    "bytes=5-",
    "bytes=0-0",
    "bytes=0-99999999999999999999",
    "bytes=-99999999999",
]
ODD_RANGES = [
    "bytes=999999-",
    "bytes=9-3",
    "bytes=",
    "bytes=x-y",
    "bytes=0-1,3-4",
    "lines=1-2",
    "",
    "bytes=-",
    "bytes=--5",
    "bytes=0x1-5",
    "bytes=\u00d9\u00a1-5",
    "bytes=0-9" * 100,
]


@pytest.mark.parametrize("is_warm", [False, True])
def test_ranges(proxy, upstream, is_warm):
    """A valid range gives 206; others give 416 or the whole file, as the standard allows."""
    for number, value in enumerate([*RANGES, *ODD_RANGES, "bytes=-0"]):
        module = go_module(f"example.test/m{number}", "v1.0.0")
        upstream.add(module)
        upstream.checksums.add(module)
        path = path_of(module, "zip")
        if is_warm:
            assert proxy.get(path).status == 200
        answer = raw(proxy, f"/mod{path}", "GET", f"Range: {value}")
        if value != "bytes=-0":  # servers disagree about this one
            assert answer.status in ((206,) if value in RANGES else (200, 416)), value
        if answer.status == 200:
            assert answer.body == module.zip
        elif answer.status == 206:
            span = answer.headers["content-range"].removeprefix("bytes ").partition("/")[0]
            first, last = map(int, span.split("-"))
            assert answer.body == module.zip[first : last + 1] and answer.body, value
        else:
            assert module.zip[:10] not in answer.body
        assert upstream.count(path) == 1
    # The proxy always requests the whole file.
    assert all("Range" not in headers for headers in upstream.headers)


def test_head_has_no_body(proxy, upstream):
    for path in (ZIP, MOD, "/example.test/!leaf/@v/list", "/example.test/none/@v/list", "/.."):
        answers = [raw(proxy, f"/mod{path}", method) for method in ("HEAD", "GET", "HEAD")]
        assert len({answer.status for answer in answers}) == 1
        assert answers[0].body == answers[2].body == b""
        assert int(answers[0].headers["content-length"]) == len(answers[1].body)


def test_other_request_headers(proxy):
    """Headers that a browser or a cache may send do not change the file."""
    proxy.get(ZIP)
    for header in (
        'If-None-Match: "x"',
        'If-Match: "x"',
        "If-Modified-Since: yesterday",
        'If-Range: "x"',
        "Accept-Encoding: gzip, br",
        "Accept: text/html",
        "Cache-Control: no-cache",
        "Expect: 100-continue",
    ):
        answer = raw(proxy, f"/mod{ZIP}", "GET", header)
        body = answer.body[answer.body.find(b"PK") :]  # after "100 Continue" if it was requested
        assert answer.status in (200, 100, 412) and (answer.status == 412 or body == LEAF.zip), (
            header
        )


# -- loops -----------------------------------------------------------------------------------------


def test_a_loop_gives_508(proxy, upstream):
    """The proxy finds its own id anywhere in the Via header."""
    assert proxy.get(ZIP).status == 200
    (own,) = {headers["Via"] for headers in upstream.headers}
    asked = len(upstream.requests)
    for via in (own, f"1.0 other, {own}", f"{own}, 1.1 other"):
        answer = proxy.get(path_of(LEAF, "info"), Via=via)
        assert answer.status == 508 and "its own upstream" in answer.text
    assert len(upstream.requests) == asked
    assert proxy.get(path_of(LEAF, "info"), Via="1.1 other").status == 200
    assert upstream.headers[-1]["Via"] == f"1.1 other, {own}"


def test_two_proxies_that_are_upstreams_of_each_other(modproxy):
    """The loop ends soon, with an error."""
    port = free_port()
    one = modproxy(f"--modproxy-upstream=http://127.0.0.1:{port}/mod", checked=False)
    two = modproxy(f"--modproxy-upstream={one.url}", f"--http=127.0.0.1:{port}", checked=False)
    two = ModProxy(two.server, port)
    answer = one.get("/example.test/!leaf/@v/list")
    assert answer.status == 502 and "its own upstream" in answer.text
    assert one.counts()["get_request"] <= 10 and two.counts()["get_request"] <= 3


# -- connections -----------------------------------------------------------------------------------


def test_malformed_requests(proxy, check_untouched):
    for data in (
        b"\0" * 1000 + b"\r\n\r\n",
        b"GET /mod/x HTTP/9.9\r\n\r\n",
        b"GET /mod/\0 HTTP/1.1\r\n\r\n",
        b"GET /mod/x HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET /mod/x HTTP/1.1\r\nA: " + b"b" * 100_000 + b"\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", proxy.port), DEADLINE_S) as client:
            try:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
            except ConnectionError:
                pass  # the server closed before all was sent
            assert ends(client)
    assert ask(proxy.port, "/healthz")[0] == 200
    check_untouched()
    assert "Traceback" not in proxy.server.stderr  # clients cannot fill the log


def test_request_smuggling(proxy, upstream):
    """With both Content-Length and Transfer-Encoding, what follows the request is not served."""
    smuggled = f"GET /mod{MOD} HTTP/1.1\r\nHost: x\r\n\r\n"
    request = (
        "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Length: {len(smuggled) + 5}\r\nTransfer-Encoding: chunked\r\n\r\n"
        f"0\r\n\r\n{smuggled}"
    )
    answer = RawAnswer(proxy, request.encode())
    assert LEAF.mod not in answer.body and not upstream.requests


def test_many_idle_connections(proxy):
    idle = [socket.create_connection(("127.0.0.1", proxy.port), DEADLINE_S) for _ in range(200)]
    try:
        for client in idle[::2]:
            client.sendall(b"GET /mod/exam")
        assert proxy.get(ZIP).body == LEAF.zip
    finally:
        for client in idle:
            client.close()
