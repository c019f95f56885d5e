"""benchmarks/network.py: the proxy adds the delay, changes no data, and counts requests."""

import os
import socket
import threading
import time
from collections import Counter

import pytest

from benchmarks.network import RequestParser, network

ROUND_TRIP_MS = 20
GET = b"GET /bench/action HTTP/1.1\r\nHost: localhost\r\n\r\n"
PUT = b"PUT /bench/output HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"
EXPECT = b"Expect: 100-continue\r\n\r\n"
CHUNKED = b"POST /bench?delete HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKS = b"5;name=value\r\nGET /\r\nA\r\n0123456789\r\n0\r\nTrailer: value\r\n\r\n"


@pytest.fixture(scope="module")
def echo():
    """The port of a server that sends back all data that it receives."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection):
        with connection:
            try:
                while data := connection.recv(1 << 18):
                    connection.sendall(data)
            except ConnectionError:
                pass

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def connect(port):
    connection = socket.create_connection(("127.0.0.1", port), 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def exchange(connection, data: bytes) -> float:
    """Milliseconds until the echo of ``data`` has come back."""
    begin = time.perf_counter()
    connection.sendall(data)
    assert receive(connection, len(data)) == data
    return (time.perf_counter() - begin) * 1e3


def receive(connection, size) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size)
        assert piece, "the connection ended"
        data += piece
    return data


def counted(*pieces) -> dict:
    counts = Counter()
    parser = RequestParser(lambda method: counts.update([method]))
    for piece in pieces:
        parser.feed(piece)
    return counts


def test_delay(echo):
    """A request takes one round trip; the first one on a connection takes two."""
    with network(echo, ROUND_TRIP_MS) as proxy, connect(proxy.port) as connection:
        first = exchange(connection, GET)
        others = [exchange(connection, GET) for _ in range(10)]
    assert first >= 2 * ROUND_TRIP_MS
    assert ROUND_TRIP_MS <= min(others) <= 1.2 * ROUND_TRIP_MS


@pytest.mark.alone
def test_delay_does_not_limit_throughput(echo):
    """Many pieces are on their way at the same time, and arrive in order."""
    data = os.urandom(8 << 20)
    with network(echo, ROUND_TRIP_MS) as proxy, connect(proxy.port) as connection:
        exchange(connection, b"x")
        sender = threading.Thread(target=connection.sendall, args=(data,))
        begin = time.perf_counter()
        sender.start()
        assert receive(connection, len(data)) == data
        took_ms = (time.perf_counter() - begin) * 1e3
        sender.join()
        counts = proxy.counts()
    assert took_ms < 16 * ROUND_TRIP_MS  # one after the other, 32 pieces would take twice that
    assert counts["bytes_up"] == counts["bytes_down"] == len(data) + 1


@pytest.mark.alone
def test_rate_is_shared_by_all_connections(echo):
    """Two connections together do not exceed the rate."""
    size = 1_000_000
    with network(echo, 0, rate=10) as proxy:
        connections = [connect(proxy.port) for _ in range(2)]
        begin = time.perf_counter()
        for connection in connections:
            threading.Thread(target=connection.sendall, args=(bytes(size),), daemon=True).start()
        for connection in connections:
            receive(connection, size)
        took_s = time.perf_counter() - begin
        for connection in connections:
            connection.close()
    assert 0.19 <= took_s <= 0.6


def test_counts_agree_with_the_traffic(echo):
    """Requests by method, bytes and connections are counted since the last reset."""
    body = bytes(300_000)
    put = PUT % len(body) + b"\r\n" + body
    with network(echo, 0) as proxy, connect(proxy.port) as first, connect(proxy.port) as second:
        exchange(first, GET + CHUNKED + CHUNKS + GET)
        exchange(second, put)
        exchange(second, GET)
        counts = proxy.counts()
        size = 3 * len(GET) + len(put) + len(CHUNKED + CHUNKS)
        assert counts == {
            "connections": 2,
            "requests": 5,
            "by_method": {"GET": 3, "POST": 1, "PUT": 1},
            "bytes_up": size,
            "bytes_down": size,
        }
        proxy.reset()
        exchange(first, GET)
        counts = proxy.counts()
    assert (counts["connections"], counts["requests"], counts["bytes_up"]) == (0, 1, len(GET))


@pytest.mark.parametrize(
    "stream, methods",
    [
        (GET + PUT % 5 + b"\r\nGET /" + GET, {"GET": 2, "PUT": 1}),
        (PUT % 5 + EXPECT + b"GET /" + GET, {"GET": 1, "PUT": 1}),
        (CHUNKED + CHUNKS + b"\r\n" + GET, {"GET": 1, "POST": 1}),
        (GET + b"\x16\x03\x01 no HTTP\r\n\r\n" + GET, {"GET": 1}),
        (PUT.replace(b"%d", b"many") + b"\r\n" + GET, {"PUT": 1}),
        (PUT % -5 + b"\r\n" + GET, {"PUT": 1}),
        (bytes(100_000) + GET, {}),
    ],
)
def test_requests_are_found_wherever_the_stream_is_split(stream, methods):
    """The counts are the same for the whole stream, for two pieces, and byte by byte."""
    assert counted(stream) == methods
    for at in range(1, min(len(stream), 400)):
        assert counted(stream[:at], stream[at:]) == methods
    assert counted(*(stream[at : at + 1] for at in range(len(stream)))) == methods


@pytest.mark.parametrize(
    "answer, then, methods",
    [
        (b"HTTP/1.1 100 Continue\r\n\r\n", GET + GET, {"PUT": 1, "GET": 1}),
        (b"HTTP/1.1 412 Precondition Failed\r\n\r\n", GET, {"PUT": 1, "GET": 1}),
        (b"HTTP/1.1 412 Precondition Failed\r\n\r\n", bytes(len(GET)) + GET, {"PUT": 1, "GET": 1}),
    ],
)
def test_a_body_that_the_server_refuses_may_be_left_out(answer, then, methods):
    """After status 100 the body follows, even if it looks like a request."""
    counts = Counter()
    parser = RequestParser(lambda method: counts.update([method]))
    parser.feed(PUT % len(GET) + EXPECT)
    parser.answered(answer)
    parser.answered(b"more of the answer")
    parser.feed(then)
    assert counts == methods


def test_ends_of_connections_are_passed_on(echo, capfd):
    """Half-closes and resets are passed on, and nothing is printed."""
    with network(echo, 5) as proxy:
        with connect(proxy.port) as connection:
            connection.sendall(GET)
            connection.shutdown(socket.SHUT_WR)
            assert receive(connection, len(GET)) == GET
            assert connection.recv(1) == b""
        with connect(proxy.port) as connection:
            connection.sendall(bytes(1 << 20))
            assert connection.recv(1) == b"\0"  # closing with unread data resets
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            network(server.getsockname()[1], 5) as other,
        ):
            with connect(other.port) as connection:
                accepted, _ = server.accept()
                connection.sendall(GET)
                receive(accepted, 1)
                accepted.close()
                with pytest.raises(ConnectionResetError):
                    connection.recv(1)
            server.close()
            with connect(other.port) as connection, pytest.raises(ConnectionResetError):
                connection.recv(1)
        assert proxy.counts()["connections"] == 2
    assert capfd.readouterr().err == ""
