"""A TCP proxy on loopback that adds delay, limits the rate, and counts HTTP requests.

Usage: python -m benchmarks.network --listen PORT --to HOST:PORT --round-trip MS [--rate MB_PER_S]

The proxy stands between the plugin and an S3 server. It passes data on half a round trip later, in
order, however much data is on its way. A connection takes one more round trip to begin. ``--rate``
limits the traffic of all connections together, in each direction, in 10^6 bytes a second. The proxy
prints the port that it listens on (``--listen 0`` takes a free one), and at its end its counts.

Other modules use the context manager ``network``.
"""

import argparse
import asyncio
import ipaddress
import json
import math
import os
import re
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
from collections import Counter, deque
from contextlib import contextmanager

LOOPBACK = "127.0.0.1"
PIECE_BYTES = 1 << 18  # the most that asyncio reads at once
# A connection with more than this on its way in one direction is not read.
WINDOW_BYTES = 64 * PIECE_BYTES
HEAD_BYTES = 1 << 14  # a longer head is not a request

_REQUEST = re.compile(rb"[A-Z]+ [^ ]+ HTTP/1\.[01]\r\n")


class Network:
    """A running proxy that listens on ``port`` of loopback."""

    def __init__(self, process) -> None:
        self._process = process
        self.port = int(process.stdout.readline())

    def counts(self) -> dict:
        """The counts since the start or the last reset.

        ``connections``; ``requests`` whose head is complete, and these ``by_method``; ``bytes_up``
        (to the server) and ``bytes_down``, counted when the proxy receives them.
        """
        return self._ask("counts")

    def reset(self) -> None:
        """Count from 0 again."""
        self._ask("reset")

    def _ask(self, word: str) -> dict:
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextmanager
def network(target_port: int, round_trip_ms: float, rate: float | None = None):
    """A Network before ``target_port``, in its own process; ``rate`` in MB/s, None: no limit."""
    command = [
        sys.executable,
        "-I",
        os.path.abspath(__file__),
        "--control",
        "--listen=0",
        f"--to={LOOPBACK}:{target_port}",
        f"--round-trip={round_trip_ms}",
    ]
    if rate is not None:
        command.append(f"--rate={rate}")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield Network(process)  # the process ends with its stdin


class Counts:
    """The counts behind Network.counts."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Count from 0 again."""
        self.connections = self.bytes_up = self.bytes_down = 0
        self.by_method = Counter()

    def as_json(self) -> str:
        """The counts as one line of JSON."""
        return json.dumps({"requests": sum(self.by_method.values()), **vars(self)})


class RequestParser:
    """Finds the requests in the stream of an HTTP/1.1 client, in pieces of any size.

    ``count(method)`` is called for each complete head. After data that is not HTTP, nothing is
    counted any more.
    """

    def __init__(self, count) -> None:
        self._count = count
        self._skip = 0  # bytes of the body that are still to come
        self._text = b""  # the beginning of an incomplete head or line
        self._await_head()
        # _expecting: a head with "Expect: 100-continue" is the last thing that came. _refused: the
        # server refused its body. Then the client may leave out the body and send another request.
        self._expecting = self._refused = False

    def feed(self, data: bytes) -> None:
        """Read data that the client sent."""
        if self._expecting and self._refused and _REQUEST.match(data):
            self._skip = 0
            self._await_head()
        at, size = 0, len(data)
        while at < size:
            if self._skip:
                step = min(self._skip, size - at)
                self._skip -= step
                self._expecting = False
                at += step
            else:
                at = self._take_block(data, at)

    def answered(self, data: bytes) -> None:
        """Read data that the server sent."""
        if self._expecting and data.startswith(b"HTTP/1."):
            self._refused = data[9:10] != b"1"

    def _take_block(self, data, at) -> int:
        """Handle the head or line at ``at`` if it is complete; returns the offset of its end."""
        text = self._text + data[at : at + HEAD_BYTES]
        length = text.find(self._mark)
        if length < 0:
            self._text = text
            if len(text) >= HEAD_BYTES:
                self._give_up()
            return len(data)
        at += length + len(self._mark) - len(self._text)
        self._text = b""
        try:
            self._handle(text[:length])
            if self._skip < 0:
                raise ValueError(text)
        except ValueError:
            self._give_up()
        return at

    def _give_up(self) -> None:
        self._skip, self._text = math.inf, b""

    def _await(self, handle, mark) -> None:
        self._handle, self._mark = handle, mark

    def _await_head(self) -> None:
        self._await(self._head, b"\r\n\r\n")

    def _head(self, text) -> None:
        first, *lines = text.lstrip(b"\r\n").split(b"\r\n")
        if not first:
            return
        method, _, version = first.split(b" ")
        if not version.startswith(b"HTTP/1."):
            raise ValueError(version)
        self._count(method.decode())
        fields = {}
        for line in lines:
            name, _, value = line.partition(b":")
            fields[name.lower()] = value.strip().lower()
        self._expecting, self._refused = fields.get(b"expect") == b"100-continue", False
        if fields.get(b"transfer-encoding", b"").endswith(b"chunked"):
            self._await(self._chunk_size, b"\r\n")
        else:
            self._skip = int(fields.get(b"content-length", 0))

    def _chunk_size(self, text) -> None:
        self._expecting = False
        size = int(text.partition(b";")[0], 16)
        if size:
            self._skip = size + len(b"\r\n")
        else:
            self._await(self._trailer, b"\r\n")

    def _trailer(self, text) -> None:
        if not text:
            self._await_head()


class Line:
    """One direction of the network: delivers data in order, after the delay."""

    def __init__(self, loop, delay_s: float, bytes_per_s) -> None:
        self._loop = loop
        self._delay_s = delay_s
        self._bytes_per_s = bytes_per_s  # None: no limit
        self._free_at = 0.0  # when the sender is free again, by the rate
        self._queue = deque()  # (time due, callback, arguments)

    def send(self, size: int, arrive, *arguments) -> None:
        """Call ``arrive(*arguments)`` when ``size`` bytes that are sent now have arrived."""
        if not self._delay_s and not self._bytes_per_s:
            arrive(*arguments)
            return
        due = self._loop.time()
        if self._bytes_per_s:
            due = self._free_at = max(due, self._free_at) + size / self._bytes_per_s
        due += self._delay_s
        if not self._queue:
            self._loop.call_at(due, self._deliver)
        self._queue.append((due, arrive, arguments))

    def _deliver(self) -> None:
        now, queue = self._loop.time(), self._queue
        while queue and queue[0][0] <= now:
            _, arrive, arguments = queue[0]
            arrive(*arguments)
            queue.popleft()
        if queue:
            self._loop.call_at(queue[0][0], self._deliver)


class Side(asyncio.Protocol):
    """One end of a connection: it passes the data that it reads over ``line`` to its ``peer``.

    ``heard(data)`` is called with all data that it reads. It stops reading while more than
    ``window_bytes`` are on their way.
    """

    def __init__(self, line: Line, window_bytes: float, heard) -> None:
        self.peer = self._transport = None
        self._line = line
        self._window_bytes = window_bytes
        self._heard = heard
        self._under_way = 0  # bytes read and not yet written to the peer
        self._full = False  # its write buffer is full
        self._paused = False
        self._read_all = self._written_all = False

    def connection_made(self, transport) -> None:
        """Called by asyncio; see asyncio.Protocol."""
        self._transport = transport
        transport.set_write_buffer_limits(4 * PIECE_BYTES)

    def data_received(self, data) -> None:
        """Called by asyncio; see asyncio.Protocol."""
        self._heard(data)
        self._under_way += len(data)
        self._line.send(len(data), self.peer._write, data)
        self._pause_or_resume()

    def eof_received(self) -> bool:
        """Called by asyncio; see asyncio.Protocol."""
        self._read_all = True
        self._line.send(0, self.peer._write_eof)
        return True  # the other direction stays open

    def connection_lost(self, error) -> None:
        """Called by asyncio; see asyncio.Protocol."""
        if not (self._read_all and self._written_all):
            self._line.send(0, self.peer._reset)

    def pause_writing(self) -> None:
        """Called by asyncio; see asyncio.BaseProtocol."""
        self._full = True
        self.peer._pause_or_resume()

    def resume_writing(self) -> None:
        """Called by asyncio; see asyncio.BaseProtocol."""
        self._full = False
        self.peer._pause_or_resume()

    def _write(self, data) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)
        self.peer._under_way -= len(data)
        self.peer._pause_or_resume()

    def _write_eof(self) -> None:
        self._written_all = True
        try:
            self._transport.write_eof()
        except OSError:  # the connection was reset, and this call is the first to fail
            self._reset()
        for side in (self, self.peer):
            if side._read_all and side._written_all:
                side._transport.close()

    def _reset(self) -> None:
        if not self._transport.is_closing():
            reset_at_close(self._transport.get_extra_info("socket"))
            self._transport.abort()

    def _pause_or_resume(self) -> None:
        pause = self._under_way > self._window_bytes or self.peer._full
        if pause != self._paused and not self._read_all:
            self._paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()


def reset_at_close(connection) -> None:
    """Make the close of a socket send RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Proxy:
    """Connects each client of ``listener`` with ``target``, a result of loopback_address."""

    def __init__(self, loop, listener, target, round_trip_s: float, bytes_per_s) -> None:
        self.counts = Counts()
        self._loop = loop
        self._listener = listener
        self._target = target
        self._round_trip_s = round_trip_s
        self._up, self._down = (Line(loop, round_trip_s / 2, bytes_per_s) for _ in range(2))
        self._window_bytes = WINDOW_BYTES
        if bytes_per_s:
            self._window_bytes = PIECE_BYTES + bytes_per_s * round_trip_s / 2
        self._joining = set()

    async def run(self) -> None:
        """Accept clients until the task is cancelled."""
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            self.counts.connections += 1
            task = self._loop.create_task(self._join(client))
            self._joining.add(task)
            task.add_done_callback(self._joining.discard)

    async def _join(self, client) -> None:
        """Connect to the target after one round trip, the time of a handshake."""
        if self._round_trip_s:
            await asyncio.sleep(self._round_trip_s)
        server = socket.socket(self._target[0], socket.SOCK_STREAM)
        server.setblocking(False)
        try:
            await self._loop.sock_connect(server, self._target[1])
        except OSError:
            server.close()
            reset_at_close(client)
            client.close()
            return
        parser = RequestParser(self._count_request)

        def heard_client(data) -> None:
            self.counts.bytes_up += len(data)
            parser.feed(data)

        def heard_server(data) -> None:
            self.counts.bytes_down += len(data)
            parser.answered(data)

        sides = (
            Side(self._up, self._window_bytes, heard_client),
            Side(self._down, self._window_bytes, heard_server),
        )
        sides[0].peer, sides[1].peer = sides[1], sides[0]
        # Both in one turn of the loop: no side reads before the other one can write.
        await asyncio.gather(
            self._loop.create_connection(lambda: sides[0], sock=client),
            self._loop.create_connection(lambda: sides[1], sock=server),
        )

    def _count_request(self, method) -> None:
        self.counts.by_method[method] += 1


class PreciseSelector(selectors.DefaultSelector):
    """Waits with a precision of microseconds; epoll of Linux rounds up to milliseconds."""

    def select(self, timeout=None):
        """See selectors.BaseSelector."""
        if timeout is not None and timeout > 0:
            select.select([self], [], [], timeout)
            timeout = 0
        return super().select(timeout)


def loopback_address(text: str) -> tuple:
    """(address family, socket address) of HOST:PORT; refuses hosts that are not on loopback."""
    host, _, port = text.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from None
    family, _, _, _, address = found[0]
    if not ipaddress.ip_address(address[0]).is_loopback:
        raise argparse.ArgumentTypeError(f"{host} is not on loopback")
    return family, address


def control(proxy, ended) -> None:
    """Read commands of Network from stdin and answer them on stdout; set ``ended`` at its end."""
    data = os.read(0, 4096)
    if not data:
        ended.set()
    for word in data.decode().split():
        print(proxy.counts.as_json(), flush=True)
        if word == "reset":
            proxy.counts.reset()


async def serve(loop, listener, arguments) -> None:
    """Run until stdin ends (with --control) or until a signal comes (without)."""
    rate = arguments.rate and arguments.rate * 1e6
    proxy = Proxy(loop, listener, arguments.to, arguments.round_trip / 1e3, rate)
    ended = asyncio.Event()
    if arguments.control:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        loop.add_reader(0, control, proxy, ended)
    else:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ended.set)
    running = loop.create_task(proxy.run())
    await asyncio.wait(
        (running, loop.create_task(ended.wait())), return_when=asyncio.FIRST_COMPLETED
    )
    if not arguments.control:
        print(proxy.counts.as_json())
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    if not running.cancelled():
        running.result()  # raises the exception that ended it


def main() -> None:
    """Run the proxy from the command line."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--listen", type=int, required=True, metavar="PORT")
    parser.add_argument("--to", type=loopback_address, required=True, metavar="HOST:PORT")
    parser.add_argument("--round-trip", type=float, required=True, metavar="MS")
    parser.add_argument("--rate", type=float, metavar="MB_PER_S")
    parser.add_argument("--control", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    listener = socket.create_server((LOOPBACK, arguments.listen), backlog=1024)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    loop = asyncio.SelectorEventLoop(PreciseSelector())
    loop.run_until_complete(serve(loop, listener, arguments))


if __name__ == "__main__":
    main()
