"""What the functional and integration tests share: the program, processes, deadlines, entries."""

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
GO_TIMEOUT_S = 90
NOBODY = 65534
_MARK = "CACHE_TEST_MARK"
# Set by scripts/test --coverage, for the processes that are started.
_COVERAGE = {"COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"}


def wait_until(condition, what: str, timeout_s: float = DEADLINE_S):
    """Poll until ``condition()`` is true and return what it gave; fail after the deadline."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)
    return value


class Processes:
    """The processes a test started, and theirs: found in /proc by a mark in their environment."""

    def __init__(self, home: Path) -> None:
        self._mark = f"{_MARK}={uuid.uuid4().hex}"
        self._home = home

    def environ(self, **more) -> dict:
        """A small environment that reads nothing of this machine's configuration."""
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
        """Ids of those that run, with ``word`` in their command line."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            if self._mark.encode() in proc(name, "environ").split(b"\0"):
                if word.encode() in proc(name, "cmdline"):
                    found.append(int(name))
        return found

    def pool(self) -> list:
        """The pool process; it leads a session of its own."""
        return [pid for pid in self.running("cacheplugin.pool.supervisor") if os.getsid(pid) == pid]

    def workers(self) -> list:
        return [pid for pid in self.running("cacheplugin.pool.supervisor") if os.getsid(pid) != pid]

    def expect_none(self) -> None:
        """All have ended, or fail, after ending what is left."""
        try:
            wait_until(lambda: not self.running(), "the end of every process")
        except AssertionError:
            left = {pid: proc(pid, "cmdline").replace(b"\0", b" ") for pid in self.running()}
            for pid in left:
                kill(pid)
            raise AssertionError(f"left running: {left}") from None


def proc(pid, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""  # it has ended


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def memory_kb(pid: int, field: str) -> int:
    return int(re.search(rf"{field}:\s+(\d+) kB".encode(), proc(pid, "status"))[1])


def action_id(name) -> str:
    """An action id that stands for ``name``."""
    return hashlib.sha256(f"action {name}".encode()).hexdigest()


def output_id(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def b64(hex_id: str) -> str:
    return base64.b64encode(bytes.fromhex(hex_id)).decode()


def counters(stderr: str) -> dict:
    """{name: count} of the summary; what is not there did not count."""
    return {
        name: int(count)
        for line in re.findall(r"^gocache_(?:server|host): (.*)$", stderr, re.MULTILINE)
        for name, count in re.findall(r"(\w+)=(\d+)", line)
    }


def time_ns(text: str) -> int:
    """Nanoseconds since the epoch of an answer's Time."""
    seconds, nanoseconds = re.fullmatch(r"(\S{19})\.(\d{9})Z", text).groups()
    moment = datetime.fromisoformat(seconds).replace(tzinfo=timezone.utc)
    return int(moment.timestamp()) * 10**9 + int(nanoseconds)


def stored_bodies(cache_dir: Path) -> dict:
    """{output id: body} of a cache directory."""
    return {path.name: path.read_bytes() for path in Path(cache_dir).glob("output/*/*")}


def temporaries(cache_dir: Path) -> list:
    return list(Path(cache_dir).glob("tmp/*"))


def write_module(path: Path, sources: dict) -> Path:
    """Write a Go module, {name of a file: its text}; returns its path."""
    for name, text in sources.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
        os.utime(path / name, (1e9, 1e9))  # the go command caches no index of what is brand-new
    return path


class Plugin:
    """The real program, and the go command's part of the conversation with it."""

    def __init__(self, argv, environ, stderr_path: Path, **popen) -> None:
        self._stderr_path = stderr_path
        with open(stderr_path, "wb") as stderr:
            self.process = subprocess.Popen(
                [PROGRAM, *argv],
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
                start_new_session=True,
                **popen,
            )
        self.pid = self.process.pid
        self.answers = {}
        self._number = 0
        self._buffer = b""

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

    # -- answers -----------------------------------------------------------------------------------

    def line(self, timeout_s: float = DEADLINE_S):
        """The next line of stdout, parsed; None at its end."""
        end = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, left))
            assert ready, f"no answer within {timeout_s} s; stderr: {self.stderr}"
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                assert not self._buffer, f"half a line: {self._buffer!r}"
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def hello(self) -> "Plugin":
        assert self.line() == {"ID": 0, "KnownCommands": ["get", "put", "close"]}
        return self

    def answer(self, number: int, timeout_s: float = DEADLINE_S) -> dict:
        """The answer to a request; those to others are kept for later."""
        while number not in self.answers:
            got = self.line(timeout_s)
            assert got is not None, f"stdout ended; stderr: {self.stderr}"
            assert got["ID"] not in self.answers, "a second answer to one ID"
            self.answers[got["ID"]] = got
        return self.answers[number]

    def silent(self, seconds: float) -> bool:
        """Whether nothing comes on stdout for so long."""
        return not self._buffer and not select.select([self.process.stdout], [], [], seconds)[0]

    def expect_stored(self, action: str, body: bytes) -> dict:
        """Put and get an entry, and see that the file named is its body."""
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
        """Close as the go command does; returns the counters, where they were asked for."""
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
