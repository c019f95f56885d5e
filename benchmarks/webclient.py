"""A cheap HTTP client that discards bodies; wrk sends many requests if it is on PATH."""

import re
import select
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack

from .runner import Failed

_RECEIVE_BYTES = 1 << 20
_TIMEOUT_S = 60
_WRK = """\
local paths, at = {{{paths}}}, 0
function init() for i, path in ipairs(paths) do paths[i] = wrk.format("GET", path) end end
function request() at = at % #paths + 1; return paths[at] end
"""


class Client:
    """One persistent connection to a port of loopback."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), _TIMEOUT_S)
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))

    def get(self, path: str) -> int:
        """Request a path and read the body; returns its size. Raises Failed unless it is a 200."""
        self._socket.sendall(_request(path))
        head = b""
        while b"\r\n\r\n" not in head:
            head += bytes(self._buffer[: self._receive()])
        size, there = _body_in(head)
        while there < size:
            there += self._receive()
        return size

    def _receive(self) -> int:
        count = self._socket.recv_into(self._buffer)
        if not count:
            raise Failed("the server has ended the connection")
        return count

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def send_many(port: int, paths, connections: int, seconds: float, script_path: str) -> dict:
    """The metrics of repeated GETs of ``paths`` on many connections at once.

    Sent by wrk, whose script is written to ``script_path``; without wrk by this process.
    """
    if not shutil.which("wrk") or seconds < 1:
        return {"requests_s": _send(port, paths, connections, seconds)}
    with open(script_path, "w") as file:
        file.write(_WRK.format(paths=",".join(f'"{path}"' for path in paths)))
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds:.0f}s",
        "--latency",
        "-s",
        script_path,
    ]
    command.append(f"http://127.0.0.1:{port}")
    said = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S
    ).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise Failed(f"wrk says {said[-300:]}")
    found = re.search(r"99%\s+([\d.]+)(us|ms|s)", said)
    scale = {"us": 1e-6, "ms": 1e-3, "s": 1.0}[found[2]]
    return {
        "requests_s": float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1]),
        "p99_latency_s": float(found[1]) * scale,
    }


def _send(port, paths, connections, seconds) -> float:
    requests = [_request(path) for path in paths]
    poll, begin, done = select.poll(), time.perf_counter(), 0
    with ExitStack() as stack:
        sockets, data = {}, {}
        for at in range(connections):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), _TIMEOUT_S))
            sockets[sock.fileno()], data[sock.fileno()] = sock, b""
            poll.register(sock, select.POLLIN)
            sock.send(requests[at % len(requests)])
        while time.perf_counter() - begin < seconds:
            for fd, _ in poll.poll(1000):
                piece = sockets[fd].recv(1 << 16)
                if not piece:
                    raise Failed("the server has ended the connection")
                data[fd] += piece
                if b"\r\n\r\n" in data[fd]:
                    size, there = _body_in(data[fd])
                    if there == size:
                        done, data[fd] = done + 1, b""
                        sockets[fd].send(requests[(connections + done) % len(requests)])
    return done / (time.perf_counter() - begin)


def _request(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def _body_in(data: bytes):
    """(size of the body, bytes of it in ``data``) of a response whose head is complete."""
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise Failed(f"the response is {data[:300]!r}")
    return int(re.search(rb"(?i)content-length: *(\d+)", head)[1]), len(body)
