"""What the tests of server mode share: servers, their clients, and HTTP requests."""

import array
import http.client
import json
import os
import random
import select
import socket
import subprocess
import time
from types import SimpleNamespace

from helpers import DEADLINE_S, PROGRAM, Plugin, kill, proc, wait_until

FIRST_LINE = "go-cache-plugin connect 1"
BODY = b"what the build made" * 1000
# Below the ports that Linux assigns. Each pytest-xdist worker draws from a range of its own.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 20
_PORTS = range(10_000 + 1000 * _WORKER, 11_000 + 1000 * _WORKER)


def free_port() -> int:
    """A TCP port that is not in use."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as tcp:
            try:
                tcp.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def hold_unix_name(port: int):
    """A socket that has the server's Unix name and does not listen, so that connect uses TCP."""
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    holder.bind(unix_name(port))
    return holder


def unix_name(port: int) -> bytes:
    """The name of the Unix socket of the server on a port."""
    return b"\0go-cache-plugin-%d" % port


class Server:
    """A process of ``go-cache-plugin serve`` on ``port``; ``program`` is put before the command.

    It is started but perhaps not ready: see ``ready``.
    """

    def __init__(self, argv, environ, stderr_path, port, program=(), **popen) -> None:
        self.port = port
        self._stderr_path = stderr_path
        argv = [*program, PROGRAM, *argv, "serve"]
        with open(stderr_path, "wb") as stderr:
            self.process = subprocess.Popen(
                argv,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
                **popen,
            )
        self.pid = self.process.pid

    @property
    def stderr(self) -> str:
        return self._stderr_path.read_text()

    @property
    def lines(self) -> list:
        """The lines of its log, without time and program name."""
        return [line.partition("go-cache-plugin: ")[2] for line in self.stderr.splitlines()]

    def says(self, word: str) -> str:
        """Wait for a line of its log that contains ``word``, and return it."""

        def found():
            assert self.process.poll() is None or word in self.stderr, self.stderr
            return next((line for line in self.lines if word in line), None)

        return wait_until(found, f"{word!r} in the log")

    def ready(self) -> "Server":
        """Wait until it serves."""
        self.says("serving ")
        return self

    def signal(self, number: int) -> None:
        kill(self.pid, number)

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        return self.process.wait(timeout_s)

    def stop(self, number: int = 15) -> int:
        """Send a signal, wait for the end, return the exit status."""
        self.signal(number)
        return self.wait()

    def kill(self) -> None:
        """Kill it with SIGKILL and wait for the end."""
        if self.process.poll() is None:
            kill(self.pid)
            self.process.wait(DEADLINE_S)

    def descriptors(self) -> int:
        """The number of its open descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


class Connect(Plugin):
    """The program as a client of a server."""

    def request(self, **fields) -> int:
        """Send a request as the go command writes it; returns its ID."""
        self._number += 1
        text = json.dumps({"ID": self._number, **fields}, separators=(",", ":"))
        self.send(text.encode() + b"\n\n")
        return self._number


class TcpClient(Connect):
    """A client that speaks the protocol on the server's TCP port, without connect."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection((host, port), DEADLINE_S)
        self.process = SimpleNamespace(
            stdin=SimpleNamespace(write=self.socket.sendall, close=self._end_input),
            stdout=self.socket,
        )
        self.answers = {}
        self._number = 0
        self._buffer = b""

    stderr = "(no process)"

    def _end_input(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def finish(self) -> None:
        """Send close, and expect its answer and then the end of the connection."""
        number = self.close()
        assert self.answer(number) == {"ID": number}
        assert self.line() is None
        self.kill()

    def kill(self) -> None:
        self.socket.close()

    def is_given_up(self, timeout_s: float = DEADLINE_S) -> bool:
        """Whether the server ends the connection within that time."""
        return ends(self.socket, timeout_s)


class RawUnix:
    """A client of the Unix socket that can send offers which connect does not send."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(unix_name(port))

    def offer(self, fds, first: str = FIRST_LINE, scopes=("scope",)) -> None:
        """Send an offer; if ``first`` is bytes, it is the whole text."""
        data = first if isinstance(first, bytes) else "\n".join((first, "0", "0", *scopes)).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([data], rights)

    def message(self, timeout_s: float = DEADLINE_S) -> bytes:
        """The next message, b"" at the end of the connection."""
        assert select.select([self.socket], [], [], timeout_s)[0], "no message"
        try:
            return self.socket.recv(65536)
        except ConnectionResetError:
            return b""

    def is_silent(self, seconds: float) -> bool:
        """Whether the server sends nothing for so long."""
        return not select.select([self.socket], [], [], seconds)[0]

    def close(self) -> None:
        self.socket.close()


def ends(sock, timeout_s: float = DEADLINE_S) -> bool:
    """Whether the other side closes the connection in time; data that it sends is ignored."""
    end = time.monotonic() + timeout_s
    while select.select([sock], [], [], max(0, end - time.monotonic()))[0]:
        try:
            if not sock.recv(1 << 20):
                return True
        except ConnectionError:
            return True
    return False


def ask(port: int, path: str = "/metrics", method: str = "GET", host: str = "127.0.0.1"):
    """(status, headers, body as text) of the response to an HTTP request."""
    connection = http.client.HTTPConnection(host, port, timeout=DEADLINE_S)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()
    finally:
        connection.close()


def web_process(processes) -> int:
    """The id of the HTTP process, once it runs in a session of its own."""
    (pid,) = wait_until(lambda: processes.running("cacheplugin.web"), "the HTTP process")
    wait_until(lambda: os.getsid(pid) == pid or not proc(pid, "cmdline"), "a session of its own")
    return pid
