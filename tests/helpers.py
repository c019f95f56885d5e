"""Helpers of the functional and integration tests: the program, its processes, entries, waiting."""

import base64
import hashlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from datetime import datetime, timezone
from pathlib import Path

PROGRAM = os.path.join(os.path.dirname(sys.executable), "go-cache-plugin")
KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "tester-secret"}
DEADLINE_S = 30
GO_TIMEOUT_S = 200  # a cold build of std, with a slow machine in mind
NOBODY = 65534
_MARK = "CACHE_TEST_MARK"
# Set by scripts/test --coverage, for the processes that are started.
_COVERAGE = {"COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"}


def wait_until(condition, what: str, timeout_s: float = DEADLINE_S):
    """Poll until ``condition()`` is true and return its value; fail after ``timeout_s``."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)
    return value


class Processes:
    """All processes that a test started, directly or not: their environment has a mark."""

    def __init__(self, home: Path) -> None:
        self._mark = f"{_MARK}={uuid.uuid4().hex}"
        self._home = home

    def environ(self, **more) -> dict:
        """A small environment, so that no configuration of this machine has an effect."""
        name, _, value = self._mark.partition("=")
        for directory in ("home", "tmp"):
            (self._home / directory).mkdir(parents=True, exist_ok=True)
        return {
            name: value,
            "PATH": os.environ["PATH"],
            "HOME": str(self._home / "home"),
            "TMPDIR": str(self._home / "tmp"),
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            **KEYS,
            **{name: os.environ[name] for name in _COVERAGE & os.environ.keys()},
            **more,
        }

    def running(self, word: str = "") -> list:
        """Ids of the running processes with ``word`` in their command line."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            is_marked = self._mark.encode() in proc(name, "environ").split(b"\0")
            if is_marked and word.encode() in proc(name, "cmdline"):
                found.append(int(name))
        return found

    def pool(self) -> list:
        """Ids of pool processes. Each leads a session of its own; its workers do not."""
        return [pid for pid in self.running("cacheplugin.pool.supervisor") if os.getsid(pid) == pid]

    def workers(self) -> list:
        return [pid for pid in self.running("cacheplugin.pool.supervisor") if os.getsid(pid) != pid]

    def expect_none(self) -> None:
        """Wait until all processes have ended. Kill the ones that are left, and fail."""
        try:
            wait_until(lambda: not self.running(), "the end of every process")
        except AssertionError:
            left = {pid: proc(pid, "cmdline").replace(b"\0", b" ") for pid in self.running()}
            for pid in left:
                kill(pid)
            raise AssertionError(f"left running: {left}") from None


def proc(pid, name: str) -> bytes:
    """The file ``name`` of a process in /proc; empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def memory_kb(pid: int, field: str) -> int:
    """A field of /proc/<pid>/status in kB, such as VmRSS."""
    return int(re.search(rf"{field}:\s+(\d+) kB".encode(), proc(pid, "status"))[1])


def action_id(name) -> str:
    """An action id (64 hex digits) made from ``name``."""
    return hashlib.sha256(f"action {name}".encode()).hexdigest()


def output_id(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def b64(hex_id: str) -> str:
    return base64.b64encode(bytes.fromhex(hex_id)).decode()


def counters(stderr: str) -> dict:
    """{name: count} of what --metrics printed; counters that are zero are missing."""
    return {
        name: int(count)
        for line in re.findall(r"^gocache_(?:server|host): (.*)$", stderr, re.MULTILINE)
        for name, count in re.findall(r"(\w+)=(\d+)", line)
    }


def time_ns(text: str) -> int:
    """The Time of a response, as nanoseconds since the epoch."""
    seconds, nanoseconds = re.fullmatch(r"(\S{19})\.(\d{9})Z", text).groups()
    moment = datetime.fromisoformat(seconds).replace(tzinfo=timezone.utc)
    return int(moment.timestamp()) * 10**9 + int(nanoseconds)


def stored_bodies(cache_dir: Path) -> dict:
    """{output id: body} of a cache directory."""
    return {path.name: path.read_bytes() for path in Path(cache_dir).glob("output/*/*")}


def temporaries(cache_dir: Path) -> list:
    return list(Path(cache_dir).glob("tmp/*"))


def write_module(path: Path, sources: dict) -> Path:
    """Write the files of a Go module, {file name: text}; returns ``path``."""
    for name, text in sources.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
        os.utime(path / name, (1e9, 1e9))  # the go command indexes no files of the last seconds
    return path


class NoAnswer(AssertionError):
    """The program is silent for too long."""


class StdoutEnded(AssertionError):
    """The program closed its stdout before it answered a request."""


class Plugin:
    """The real program as a child process, and the go command's side of the protocol."""

    program = (PROGRAM,)  # a subclass may run it in another way

    def __init__(self, argv, environ, stderr_path: Path, **popen) -> None:
        self._stderr_path = stderr_path
        with open(stderr_path, "wb") as stderr:
            self.process = self._start(argv, environ, stderr, **popen)
        self.pid = self.process.pid
        self.answers = {}
        self._number = 0
        self._buffer = b""

    def _start(self, argv, environ, stderr, **popen):
        return subprocess.Popen(
            [*self.program, *argv],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            bufsize=0,
            start_new_session=True,
            **popen,
        )

    @property
    def stderr(self) -> str:
        return self._stderr_path.read_text()

    # -- requests ----------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        self.process.stdin.write(data)

    def request(self, **fields) -> int:
        """Send one request and return its ID."""
        self._number += 1
        self.send(json.dumps({"ID": self._number, **fields}).encode() + b"\n\n")
        return self._number

    def get(self, action: str) -> int:
        return self.request(Command="get", ActionID=b64(action))

    def begin_put(self, action: str, output: str, size: int) -> int:
        size_field = {"BodySize": size} if size else {}
        return self.request(Command="put", ActionID=b64(action), OutputID=b64(output), **size_field)

    def put(self, action: str, body: bytes) -> int:
        number = self.begin_put(action, output_id(body), len(body))
        if body:
            self.send(b'"' + base64.b64encode(body) + b'"\n')
        return number

    def close(self) -> int:
        return self.request(Command="close")

    # -- responses ---------------------------------------------------------------------------------

    def line(self, timeout_s: float = DEADLINE_S):
        """The next line of stdout, parsed from JSON; None at the end of stdout."""
        end = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, left))
            assert ready, f"no response within {timeout_s} s; stderr: {self.stderr}"
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                assert not self._buffer, f"half a line: {self._buffer!r}"
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def hello(self) -> "Plugin":
        got = self.line()
        if got is None:
            raise StdoutEnded(f"stdout ended before the hello; stderr: {self.stderr}")
        assert got == {"ID": 0, "KnownCommands": ["get", "put", "close"]}
        return self

    def answer(self, number: int, timeout_s: float = DEADLINE_S) -> dict:
        """The response to a request. Responses to other requests are kept for later calls."""
        while number not in self.answers:
            got = self.line(timeout_s)
            if got is None:
                raise StdoutEnded(f"stdout ended; stderr: {self.stderr}")
            assert got["ID"] not in self.answers, "a second response to one ID"
            self.answers[got["ID"]] = got
        return self.answers[number]

    def silent(self, seconds: float) -> bool:
        """Whether stdout stays silent for that many seconds."""
        return not self._buffer and not select.select([self.process.stdout], [], [], seconds)[0]

    def expect_stored(self, action: str, body: bytes) -> dict:
        """Put and get an entry; both responses name a file with its body."""
        path = self.answer(self.put(action, body))["DiskPath"]
        assert Path(path).read_bytes() == body
        return self.expect_hit(action, body)

    def expect_hit(self, action: str, body: bytes) -> dict:
        got = self.answer(self.get(action))
        assert got["OutputID"] == b64(output_id(body)) and got["Size"] == len(body)
        assert Path(got["DiskPath"]).read_bytes() == body
        return got

    def expect_miss(self, action: str) -> None:
        number = self.get(action)
        assert self.answer(number) == {"ID": number, "Miss": True}

    # -- the end -----------------------------------------------------------------------------------

    def end_input(self) -> None:
        self.process.stdin.close()

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        return self.process.wait(timeout_s)

    def finish(self) -> dict:
        """Close as the go command does; returns the counters, which are empty without --metrics."""
        number = self.close()
        assert self.answer(number) == {"ID": number}
        assert self.line() is None
        self.end_input()
        assert self.wait() == 0
        return counters(self.stderr)

    def kill(self) -> None:
        if self.process.poll() is None:
            kill(self.pid)
            self.process.wait(DEADLINE_S)
        self.process.stdin.close()
        self.process.stdout.close()
