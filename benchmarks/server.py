"""What server mode costs: through ``connect`` beside direct mode, and many clients beside one.

Usage: python -m benchmarks.server [--runs N] [--work DIR] [MEASURE ...]

Measures: warm, startup, clients, sessions (default: all). Needs Linux, two cores, and the go
command on PATH. ``warm`` and ``startup`` go through connect. ``clients`` and ``sessions`` hand over
pipes of this process, as connect does: 33 processes would measure the machine's scheduler.
"""
import os
import select
import socket
import statistics
import subprocess
import time
from base64 import b64encode
from contextlib import closing, contextmanager

from cacheplugin import handover
from cacheplugin.protocol import HELLO

from .direct import PLUGIN, Bench, go_environment, report, run

MEASURES = ("warm", "startup", "clients", "sessions")
CLIENTS = 32
IN_FLIGHT = 8  # of each
SESSIONS = 10_000
SESSION_MARKS = (100, 1_000, 2_000, 4_000, 6_000, 8_000, SESSIONS)
_READY_S = 30


class ServerBench(Bench):
    """As Bench; ``plugin`` is connect to a server over the store, ``direct`` is direct mode."""

    def __init__(self, work: str, runs: int) -> None:
        super().__init__(work, runs)
        self.direct = self.plugin

    def measure(self, name) -> None:
        """Run one measure with a server of its own; ``startup`` is that of Bench."""
        with server(self.work, self.cache) as (self.process, self.port):
            self.plugin = [PLUGIN, "connect", str(self.port)]
            super().measure(name)

    def warm(self):
        ours, direct = [], []
        programs = [(ours, " ".join(self.plugin)), (direct, " ".join(self.direct))]
        for _, program in programs:
            self.build(program)
        for _ in range(self.runs * 5):
            programs.reverse()  # direct mode goes on for a moment when its build has ended
            for walls, program in programs:
                time.sleep(0.05)
                walls.append(self.build(program)[0])
        report("warm go build std through connect", ours, "direct mode", direct, 1e3, "ms")

    def clients(self):
        cpus = os.sched_getaffinity(0)
        if len(cpus) < 2:
            raise SystemExit("clients needs two cores, one for the server and one for the clients")
        os.sched_setaffinity(self.process.pid, {max(cpus)})
        os.sched_setaffinity(0, {min(cpus)})
        one_requests = Requests(self.actions * 16)
        requests = Requests(self.actions * 2)
        self.replay(1, one_requests)
        time.sleep(3)  # the server sets the clocks of what was used
        kinds = {
            "32": (CLIENTS, requests, IN_FLIGHT),
            "1": (1, one_requests, IN_FLIGHT),
            "1 deep": (1, one_requests, IN_FLIGHT * CLIENTS),
        }
        runs = {kind: [] for kind in kinds}
        for _ in range(self.runs):
            for kind, arguments in kinds.items():
                runs[kind].append(self.replay(*arguments))
        os.sched_setaffinity(0, cpus)
        rates = {kind: [run.rate for run in found] for kind, found in runs.items()}
        what, unit, deep = f"{CLIENTS} clients at once", "thousand gets/s", IN_FLIGHT * CLIENTS
        report(what, rates["32"], "one client", rates["1"], 1e-3, unit)
        report(what, rates["32"], f"one with {deep} in flight", rates["1 deep"], 1e-3, unit)
        for kind, found in runs.items():
            print(f"  {kind}: {median_text(found)}")

    def replay(self, count: int, requests: "Requests", in_flight: int = IN_FLIGHT) -> "Replay":
        """Have so many clients send all requests, at once."""
        clients = [Client(self.port) for _ in range(count)]
        replay = Replay(clients, requests, in_flight, self.process.pid)
        for client in clients:
            client.close(len(requests) + 1)
        return replay

    def sessions(self):
        requests = Requests(self.actions[:4])
        begin = time.perf_counter()
        print(f"sessions of {len(requests)} gets: how many, server's RSS, descriptors, one takes")
        done = 0
        for mark in SESSION_MARKS:
            before, number = time.perf_counter(), mark - done
            for _ in range(number):
                with closing(Client(self.port)) as client:
                    client.send(requests.text)
                    client.read_lines(len(requests))
            spent, done = time.perf_counter() - before, mark
            print(f"  {done:6,} {resident_kib(self.process.pid):8,} KiB "
                  f"{len(os.listdir(f'/proc/{self.process.pid}/fd')):4} "
                  f"{spent / number * 1e6:6.0f} µs")  # fmt: skip
        print(f"  {done / (time.perf_counter() - begin):.0f} sessions/s")


class Requests:
    """Gets of actions (hex) as one text; ``ends`` says where the first n of them end."""

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


class Client:
    """A session on a server: two pipes like the go command's, handed over as connect does."""

    def __init__(self, port: int) -> None:
        its_in, self.out = os.pipe()
        self.fd, its_out = os.pipe()
        self.control = handover.make_socket()
        self.control.connect(handover.address(port))
        handover.offer(self.control, handover.Offer(False, True, ("benchmark",)), (its_in, its_out))
        os.close(its_in)
        os.close(its_out)
        hello = self.read_lines(1)
        assert hello == HELLO, hello
        self.sent = self.received = 0
        self.sends, self.answers = [], []  # (time, how many in all)
        self.data = []

    def send(self, data: bytes) -> None:
        os.write(self.out, data)

    def read_lines(self, count: int) -> bytes:
        data = b""
        while data.count(b"\n") < count:
            more = os.read(self.fd, 1 << 16)
            if not more:
                raise EOFError("the server has ended the session")
            data += more
        return data

    def latencies(self) -> list:
        """Seconds from each request's write to the read of its answer; hits come in their order."""
        found, answers = [], iter(self.answers)
        when, answered = 0, 0
        for begin, sent in self.sends:
            while len(found) < sent:
                if len(found) == answered:
                    when, answered = next(answers)
                number = min(sent, answered) - len(found)
                found += [when - begin] * number
        return found

    def close(self, number: int = 1_000_000) -> None:
        """End the session with request ``number``, and wait until the server has let go of it."""
        self.send(b'{"ID":%d,"Command":"close"}\n\n' % number)
        self.read_lines(1)
        end = self.control.recv(handover.MAX_BYTES)
        assert end == b"\0\0", end  # exit status 0
        for fd in (self.out, self.fd):
            os.close(fd)
        self.control.close()


class Replay:
    """What came of clients that send all requests, ``in_flight`` at once each; all must be hits."""

    def __init__(self, clients, requests: Requests, in_flight: int, server_pid: int) -> None:
        before = on_cpu_s(server_pid), time.process_time()
        begin = time.perf_counter()
        _replay(clients, requests, in_flight)
        self.wall = time.perf_counter() - begin
        self.gets = len(requests) * len(clients)
        self.rate = self.gets / self.wall
        self.server_s = on_cpu_s(server_pid) - before[0]
        self.own_s = time.process_time() - before[1]
        self.batch = self.gets / sum(len(client.answers) for client in clients)
        latencies = sorted(one for client in clients for one in client.latencies())
        self.median = latencies[len(latencies) // 2]
        self.p99 = latencies[len(latencies) * 99 // 100]
        self.worst = latencies[-1]
        finishes = [client.answers[-1][0] - begin for client in clients]
        self.spread = max(finishes) / min(finishes)
        hits = sum(b"".join(client.data).count(b'"DiskPath"') for client in clients)
        if hits != self.gets:
            raise ValueError(f"{hits} hits of {self.gets} gets")


def _replay(clients, requests, in_flight) -> None:
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
            count = data.count(b"\n")
            client.data.append(data)
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


def median_text(replays) -> str:
    """The medians of runs of one kind."""

    def middle(name, scale=1.0):
        return statistics.median(getattr(replay, name) for replay in replays) * scale

    gets = replays[0].gets
    p99_ms = max(replay.p99 for replay in replays) * 1e3
    spread = max(replay.spread for replay in replays)
    return (
        f"latency {middle('median', 1e3):.2f} ms, p99 {middle('p99', 1e3):.2f} (to {p99_ms:.2f}), "
        f"worst {middle('worst', 1e3):.2f}; "
        f"slowest finish / fastest {middle('spread'):.3f} (to {spread:.3f}); "
        f"{middle('batch'):.1f} answers a read; "
        f"CPU a get: server {middle('server_s', 1e6) / gets:.1f} µs "
        f"of {middle('wall', 1e6) / gets:.1f}, clients {middle('own_s', 1e6) / gets:.1f}"
    )


def on_cpu_s(pid: int) -> float:
    """Seconds that a process of one thread has been on a CPU."""
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[0]) / 1e9


def resident_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))


@contextmanager
def server(work: str, cache: str):
    """(process, port) of a server over the store ``cache``, ready; it is ended with SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [PLUGIN, "serve", f"--plugin={port}", f"--cache-dir={cache}"]
    with open(os.path.join(work, "server.log"), "wb") as log:
        process = subprocess.Popen(command, env=go_environment(cache), stderr=log)
    try:
        _wait_until_ready(process, port)
        yield process, port
    finally:
        process.terminate()
        status = process.wait(90)
    if status:
        raise SystemExit(f"the server exited with status {status}, see {work}/server.log")


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
            raise SystemExit("the server does not start")
        time.sleep(0.01)


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what is started is to find its bytecode
    run(ServerBench, MEASURES, __doc__)
