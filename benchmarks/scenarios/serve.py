"""``serve``: many clients of one server beside one client, and builds through connect."""

import os
import select
import socket
import subprocess
import time
from base64 import b64encode
from contextlib import contextmanager

from cacheplugin.front.protocol import HELLO
from cacheplugin.server import fd_passing

from .. import rivals
from ..lab import expect_hits, go_environment
from ..processes import status_bytes
from ..runner import Case, Comparison, Failed

_IN_FLIGHT = 8  # of each client
_READY_S = 30
_HIT = b'"DiskPath"'


def clients(lab):
    """Gets per second of N clients at once, each with its own pipes, as through connect."""
    with server(lab) as (process, port):
        many = lab.sizes.clients
        gets = max(1, lab.sizes.serve_gets // len(lab.actions) + 1)
        cases = [
            Case(
                "one client",
                lambda: _replay(process, port, 1, lab.actions * gets * many, _IN_FLIGHT),
            ),
            Case(
                f"one, {many * _IN_FLIGHT} in flight",
                lambda: _replay(process, port, 1, lab.actions * gets * many, _IN_FLIGHT * many),
            ),
            Case(
                f"{many} clients",
                lambda: _replay(process, port, many, lab.actions * gets, _IN_FLIGHT),
            ),
        ]
        yield Comparison("serve", "gets", "gets_s", "one client", cases)
        lab.filled(lab.ours)
        direct = lab.ours.program(lab.filled(lab.ours))
        through = f"{rivals.PLUGIN} connect {port}"
        yield Comparison(
            "serve",
            "warm build through connect",
            "wall_s",
            "direct mode",
            [
                Case("direct mode", lambda: expect_hits(lab.build(direct), lab.repeated_misses)),
                Case("connect", lambda: expect_hits(lab.build(through))),
            ],
        )
        count = lab.sizes.sessions
        yield Comparison(
            "serve",
            f"{count} sessions of four gets",
            "session_s",
            None,
            [Case("go-cache-plugin", lambda: _sessions(process, port, lab.actions[:4], count))],
        )


def _sessions(process, port, actions, count) -> dict:
    """Sessions one after another; a leak of the server shows in its memory and descriptors."""
    requests = _Requests(actions)
    begin = time.perf_counter()
    for _ in range(count):
        client = _Client(port)
        os.write(client.out, requests.text)
        client.read_lines(len(requests))
        client.close(len(requests) + 1)
    return {
        "session_s": (time.perf_counter() - begin) / count,
        "resident_bytes": status_bytes(process.pid),
        "descriptors": len(os.listdir(f"/proc/{process.pid}/fd")),
    }


@contextmanager
def server(lab):
    """(process, port) of a ready server with a filled cache; it is ended with SIGTERM."""
    cache = lab.filled(lab.ours)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [rivals.PLUGIN, "serve", f"--plugin={port}", f"--cache-dir={cache}"]
    with open(os.path.join(lab.work, "server.log"), "wb") as log:
        process = subprocess.Popen(command, env=go_environment(cache), stderr=log)
    try:
        _wait_until_ready(process, port)
        yield process, port
    finally:
        process.terminate()
        process.wait(90)


def _wait_until_ready(process, port) -> None:
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), _READY_S) as sock:
                if sock.recv(len(HELLO)):
                    return
        except ConnectionError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failed("the server does not start")
        time.sleep(0.01)


class _Requests:
    """Gets of actions (hex) as one text; ``ends[n]`` is the offset at which the first n end."""

    def __init__(self, actions) -> None:
        lines = [
            b'{"ID":%d,"Command":"get","ActionID":"%b"}\n\n'
            % (at, b64encode(bytes.fromhex(action)))
            for at, action in enumerate(actions, 1)
        ]
        self.text = b"".join(lines)
        self.ends = [0]
        for line in lines:
            self.ends.append(self.ends[-1] + len(line))

    def __len__(self) -> int:
        return len(self.ends) - 1


class _Client:
    """A session on a server: two pipes like the go command's, handed over as by connect."""

    def __init__(self, port: int) -> None:
        its_in, self.out = os.pipe()
        self.fd, its_out = os.pipe()
        self.control = fd_passing.make_socket()
        self.control.connect(fd_passing.address(port))
        fd_passing.send_offer(
            self.control, fd_passing.Offer(False, True, ("benchmark",)), (its_in, its_out)
        )
        os.close(its_in)
        os.close(its_out)
        if self.read_lines(1) != HELLO:
            raise Failed("the server sends no hello line")
        self.sent = self.received = self.hits = 0
        self._end = b""  # the end of the last read, which may have cut _HIT in two
        self.sends, self.answers = [], []  # (time, total number until then)

    def read_lines(self, count: int) -> bytes:
        """Read until ``count`` lines have come."""
        data = b""
        while data.count(b"\n") < count:
            more = os.read(self.fd, 1 << 16)
            if not more:
                raise Failed("the server has ended the session")
            data += more
        return data

    def take(self, data: bytes) -> int:
        """Count the hits in ``data``; returns the number of answers in it."""
        text = self._end + data
        self.hits += text.count(_HIT)
        self._end = text[1 - len(_HIT) :]
        return data.count(b"\n")

    def latencies(self) -> list:
        """Seconds from the write of each request to the read of its answer, in order."""
        found, answers = [], iter(self.answers)
        when, answered = 0, 0
        for begin, sent in self.sends:
            while len(found) < sent:
                if len(found) == answered:
                    when, answered = next(answers)
                number = min(sent, answered) - len(found)
                found += [when - begin] * number
        return found

    def close(self, number: int) -> None:
        """Send close as request ``number``, and wait until the server has ended the session."""
        os.write(self.out, b'{"ID":%d,"Command":"close"}\n\n' % number)
        self.read_lines(1)
        self.control.recv(fd_passing.MAX_BYTES)
        for fd in (self.out, self.fd):
            os.close(fd)
        self.control.close()


def _replay(process, port, count, actions, in_flight) -> dict:
    """Let ``count`` clients get all ``actions`` at once; one core for the server, one for them."""
    requests = _Requests(actions)
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(process.pid, {max(cpus)})
    os.sched_setaffinity(0, {min(cpus)})
    found = [_Client(port) for _ in range(count)]
    try:
        begin = time.perf_counter()
        _exchange(found, requests, in_flight)
        wall_s = time.perf_counter() - begin
    finally:
        os.sched_setaffinity(0, cpus)
        os.sched_setaffinity(process.pid, cpus)
    for client in found:
        client.close(len(requests) + 1)
    hits = sum(client.hits for client in found)
    if hits != len(requests) * count:
        raise Failed(f"{hits} hits of {len(requests) * count} gets")
    latencies = sorted(one for client in found for one in client.latencies())
    finishes = [client.answers[-1][0] - begin for client in found]
    return {
        "gets_s": hits / wall_s,
        "wall_s": wall_s,
        "median_latency_s": latencies[len(latencies) // 2],
        "p99_latency_s": latencies[len(latencies) * 99 // 100],
        "slowest_to_fastest": max(finishes) / min(finishes),
        "resident_bytes": status_bytes(process.pid),
    }


def _exchange(clients, requests, in_flight) -> None:
    """Send all requests of all clients and read the answers, ``in_flight`` for each client."""
    text, ends, total = requests.text, requests.ends, len(requests)
    read, write, clock = os.read, os.write, time.perf_counter
    poll = select.poll()
    by_fd = {client.fd: client for client in clients}
    for client in clients:
        poll.register(client.fd, select.POLLIN)
        client.sent = min(in_flight, total)
        client.sends.append((clock(), client.sent))
        write(client.out, text[: ends[client.sent]])
    going = len(clients)
    while going:
        for fd, _ in poll.poll():
            client = by_fd[fd]
            data = read(fd, 1 << 18)
            now = clock()
            count = client.take(data)
            client.received += count
            client.answers.append((now, client.received))
            first = client.sent
            if first < total:
                sent = client.sent = min(first + count, total)
                client.sends.append((now, sent))
                write(client.out, text[ends[first] : ends[sent]])
            elif client.received == total or not data:
                poll.unregister(fd)
                going -= 1
