"""The program in processes that a fork server starts: sessions, and commands."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.processes import family
from helpers import DEADLINE_S, Plugin, kill, proc

_SERVER = Path(__file__).with_name("fork_server.py")


class ForkServer:
    """A process that has loaded the program and forks it; see fork_server.py."""

    def __init__(self, environ: dict) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(_SERVER), str(theirs.fileno())],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def order(self, order: dict, fds) -> int:
        """Start a run; returns its process id."""
        socket.send_fds(self._connection, [json.dumps(order).encode()], fds)
        return self.next_answer(DEADLINE_S)["pid"]

    def next_answer(self, timeout_s: float):
        """The next message about the run that was started last; None if none comes in time."""
        if not select.select([self._connection], [], [], max(0, timeout_s))[0]:
            return None
        data = self._connection.recv(1 << 16)
        assert data, "the fork server has ended"
        return json.loads(data)

    def kill_runs(self) -> list:
        """Kill what is left of the run; returns the process ids, and what they were waiting for."""
        left = family(self._process.pid).keys() - {self._process.pid}
        waits_for = [f"{pid} {proc(pid, 'wchan').decode()}" for pid in left]
        for pid in left:
            kill(pid)
        return waits_for

    def stop(self) -> None:
        self.kill_runs()
        self._connection.close()
        self._process.kill()
        self._process.wait(DEADLINE_S)


class Forked:
    """A run of the program; the part of Popen that Plugin uses, and ``wait_for_all``."""

    def __init__(self, server: ForkServer, order: dict, stderr) -> None:
        self._server, self._status, self._gone = server, None, False
        child_in, parent_in = os.pipe()
        parent_out, child_out = os.pipe()
        try:
            self.pid = server.order(order, [child_in, child_out, stderr.fileno()])
        finally:
            os.close(child_in)
            os.close(child_out)
        self.stdin, self.stdout = os.fdopen(parent_in, "wb", 0), os.fdopen(parent_out, "rb", 0)

    def poll(self):
        self._receive(lambda: self._status is not None, 0)
        return self._status

    def wait(self, timeout_s: float) -> int:
        if not self._receive(lambda: self._status is not None, timeout_s):
            raise subprocess.TimeoutExpired("go-cache-plugin", timeout_s)
        return self._status

    def wait_for_all(self, timeout_s: float) -> list:
        """Wait for all processes of the run; returns those that had to be killed."""
        left = []
        while not self._receive(lambda: self._gone, timeout_s):
            left += self._server.kill_runs()
            timeout_s = DEADLINE_S
        return left

    def _receive(self, done, timeout_s) -> bool:
        end = time.monotonic() + timeout_s
        while not done():
            answer = self._server.next_answer(end - time.monotonic())
            if answer is None:
                return False
            if "status" in answer:
                self._status = os.waitstatus_to_exitcode(answer["status"])
            self._gone |= "gone" in answer
        return True


class ForkedPlugin(Plugin):
    """A session in a forked process. Keywords: ``server``, ``home``, ``trace`` and ``point``."""

    def _start(self, argv, environ, stderr, *, server, home, trace=None, point=None):
        order = {
            "argv": argv,
            "environ": environ,
            "home": str(home),
            "trace": trace and str(trace),
            "point": point and str(point),
        }
        return Forked(server, order, stderr)

    def wait_for_all(self, timeout_s: float) -> list:
        return self.process.wait_for_all(timeout_s)

    def kill(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            stream.close()
        if self.process.poll() is None:
            kill(self.pid, signal.SIGKILL)
        self.process.wait_for_all(0)
