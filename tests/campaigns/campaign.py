"""A session of gets and puts that is struck at one point, and what must hold afterwards.

A *case* is a text that says how to repeat it: ``<layout> <upload mode> <point>``. The point is one
of injection.py, or ``s3 <fault> <only|from> <number of the request>``.
"""

import random
import shutil
import subprocess
import time
from collections import Counter, namedtuple
from pathlib import Path

import injection
from fakes3 import FakeS3
from forked import ForkedPlugin, ForkServer
from helpers import NoAnswer, Processes, StdoutEnded, action_id, b64, output_id

LAYOUTS = ("objects", "bundles")
UPLOAD_MODES = ("wait", "background")
ANSWER_S = 60  # an answer that takes longer counts as a hang
ENDING_S = 90  # so does a process that lives for longer after the session
S3_FAULTS = ("500", "503", "403", "refuse", "die", "truncate", "flip", "hang")
MOST_EXTRA_S = 10  # how much longer a session may take because one request to S3 fails
MOST_SAID = 600  # characters of stderr in a report
_ALARMS = ("Traceback", "internal error", "unexpected error", "Exception ignored")


def _body(name: str, size: int) -> bytes:
    """Bytes of which one half can be compressed."""
    half = random.Random(name).randbytes(size - size // 2)
    return half + bytes(size // 2)


# Entries by the name of their action, which the bucket and the cache directory hold beforehand.
IN_BUCKET = {f"seed {size}": _body(f"seed {size}", size) for size in (0, 1, 700, 40_000, 300_000)}
IN_CACHE = {f"local {size}": _body(f"local {size}", size) for size in (0, 10, 70_000)}
# The puts of the session, in order. Some replace what was put before.
PUTS = [
    ("put empty", b""),
    ("put small", b"s"),
    ("put medium", _body("medium", 3000)),
    ("put large", _body("large", 400_000)),
    ("local 10", _body("replaced", 50)),
    ("put small", _body("replaced again", 80)),
    ("seed 700", _body("replaced in the bucket", 900)),
]
KNOWN = {}  # {action name: every body that was ever put for it}
for _name, _data in [*IN_BUCKET.items(), *IN_CACHE.items(), *PUTS]:
    KNOWN.setdefault(_name, []).append(_data)


class S3Point(namedtuple("S3Point", "fault which number")):
    """The ``number``-th request fails: "only" that one, or all "from" that one."""

    def __str__(self) -> str:
        return f"s3 {self.fault} {self.which} {self.number}"

    @classmethod
    def parse(cls, text: str) -> "S3Point":
        _, fault, which, number = text.split()
        return cls(fault, which, int(number))


def parse_case(text: str) -> tuple:
    """(layout, upload mode, point) of a case."""
    layout, mode, point = text.split(" ", 2)
    return layout, mode, (S3Point if point.startswith("s3 ") else injection.Point).parse(point)


class Log:
    """What a session did. ``ended``: "closed", "died" or "hung"."""

    def __init__(self) -> None:
        self.faults = []
        self.ended = ""
        self.answered = {}  # {action name: the body of the last put that was answered}
        self.unsure = {}  # {action name: bodies of later puts without an answer, or a failed one}
        self.counts = Counter()  # of answers
        self.took_s = 0.0
        self.said = ""  # on stderr

    def put(self, name: str, body: bytes) -> None:
        self.unsure.setdefault(name, []).append(body)

    def put_answered(self, name: str, body: bytes) -> None:
        self.answered[name] = body
        self.unsure[name] = []

    def allowed(self, name: str) -> list:
        """The bodies that a later get may give."""
        if name not in self.answered:
            return KNOWN[name]
        return [self.answered[name], *self.unsure[name]]


def judge(answer: dict, allowed: list, log: Log, when: str) -> str:
    """Note what is wrong with the answer to a get; returns "hit", "miss" or "error"."""
    if "DiskPath" not in answer:
        return "miss" if answer.get("Miss") else "error"
    try:
        body = Path(answer["DiskPath"]).read_bytes()
    except OSError as error:
        log.faults.append(f"{when}: a hit whose file cannot be read: {error}")
        return "hit"
    if b64(output_id(body)) != answer["OutputID"] or len(body) != answer["Size"]:
        log.faults.append(f"{when}: a wrong body of {len(body)} bytes for {answer}")
    elif body not in allowed:
        log.faults.append(f"{when}: a stale body of {len(body)} bytes")
    return "hit"


def converse(plugin, log: Log) -> None:
    """The session: gets of what is there, puts, a get after each put, close."""
    plugin.hello()
    numbers = {name: plugin.get(action_id(name)) for name in [*IN_CACHE, *IN_BUCKET]}
    for name, number in numbers.items():
        got = judge(plugin.answer(number, ANSWER_S), KNOWN[name], log, f"get of {name}")
        log.counts[f"get {got}"] += 1
    for name, body in PUTS:
        log.put(name, body)
        answer = plugin.answer(plugin.put(action_id(name), body), ANSWER_S)
        if answer.get("Err"):
            log.counts["put error"] += 1
            continue
        log.put_answered(name, body)
        if Path(answer["DiskPath"]).read_bytes() != body:
            log.faults.append(f"put of {name}: the file named is another body")
        answer = plugin.answer(plugin.get(action_id(name)), ANSWER_S)
        got = judge(answer, [body], log, f"get of {name} after its put")
        log.counts[f"get after put {got}"] += 1
    plugin.answer(plugin.close(), ANSWER_S)
    log.ended = "closed"


class Rig:
    """A bucket and a cache directory that are prepared once, and copied for each run."""

    def __init__(self, directory: Path, layout: str, mode: str) -> None:
        self.layout, self.mode = layout, mode
        self.struck = Counter()  # runs by effect, of those whose point was reached
        self.healthy_s = 0.0  # how long a session takes that nothing strikes
        self._directory = directory
        self._runs = 0
        self._prepared = directory / "prepared"
        self._processes = Processes(directory)
        self._server = ForkServer(self._processes.environ())
        self._s3 = FakeS3()
        self._fill(directory / "seed", IN_BUCKET, self._flags())
        self._objects = dict(self._s3.objects)
        self._s3.stop()
        self._fill(self._prepared, IN_CACHE, [])

    def stop(self) -> None:
        self._server.stop()

    def _flags(self) -> list:
        flags = self._s3.flags(layout=self.layout)
        return [*flags, "--scope=ours", f"--upload={self.mode}"]

    def _plugin(self, name: str, argv, home=None, **more) -> ForkedPlugin:
        home = home or self._directory
        more = {"server": self._server, "home": home, **more}
        return ForkedPlugin(argv, self._environ(home), home / f"stderr-{name}", **more)

    def _environ(self, home: Path) -> dict:
        for name in ("home", "tmp"):
            (home / name).mkdir(exist_ok=True)
        environ = self._processes.environ()
        return {**environ, "HOME": str(home / "home"), "TMPDIR": str(home / "tmp")}

    def _fill(self, cache_dir, entries, flags) -> None:
        plugin = self._plugin("fill", [f"--cache-dir={cache_dir}", *flags]).hello()
        for name, body in entries.items():
            plugin.expect_stored(action_id(name), body)
        plugin.finish()
        assert not plugin.wait_for_all(ENDING_S)
        plugin.kill()

    # -- points ------------------------------------------------------------------------------------

    def points(self, effects) -> list:
        """The points of a session that nothing strikes. Also checks that nothing is wrong then."""
        self._check_healthy()
        return injection.points(self._home() / "trace", effects)

    def s3_points(self, faults, which: str = "only") -> list:
        numbers = range(1, self._check_healthy() + 1)
        return [S3Point(fault, which, number) for fault in faults for number in numbers]

    def _check_healthy(self) -> int:
        """Run a session that nothing strikes; returns the number of its requests to S3."""
        self._s3 = FakeS3()
        log = self._struck_session(None)
        served = self._s3.served
        self._check_afterwards(log, None)
        assert not log.faults, log.faults
        self.healthy_s = log.took_s
        return served

    def _home(self) -> Path:
        return self._directory / f"run-{self._runs}"

    # -- one run -----------------------------------------------------------------------------------

    def faults(self, point) -> list:
        """Run a session that is struck at ``point``; returns what is wrong, in words."""
        shutil.rmtree(self._home(), ignore_errors=True)
        self._s3 = FakeS3()
        log = self._struck_session(point)
        if isinstance(point, S3Point) and log.took_s > self.healthy_s + MOST_EXTRA_S:
            log.faults.append(f"took {log.took_s:.0f} s in place of {self.healthy_s:.0f} s")
        self._check_afterwards(log, point)
        if log.faults:
            log.faults.append(f"stderr was {log.said[-MOST_SAID:]!r}, answers {dict(log.counts)}")
        return [f"{self.case(point)}: {fault}" for fault in log.faults]

    def case(self, point) -> str:
        return f"{self.layout} {self.mode} {point}"

    def _struck_session(self, point) -> Log:
        self._runs += 1
        home = self._home()
        (home / "trace").mkdir(parents=True)
        shutil.copytree(self._prepared, home / "cache")
        self._s3.objects.update(self._objects)
        if isinstance(point, S3Point):
            self._fail_s3(point)
        log = Log()
        begun = time.monotonic()
        plugin = self._plugin(
            "struck",
            [f"--cache-dir={home / 'cache'}", *self._flags()],
            home,
            trace=home / "trace",
            point=None if isinstance(point, S3Point) else point,
        )
        try:
            converse(plugin, log)
        except NoAnswer as error:
            log.ended = "hung"
            log.faults.append(f"a hang: {error}")
        except (StdoutEnded, BrokenPipeError):
            log.ended = "died"
        except (AssertionError, OSError, ValueError) as error:
            log.ended = "broken"
            log.faults.append(f"a broken conversation: {error!r}")
        self._end(plugin, log, point)
        log.took_s = time.monotonic() - begun
        if (home / "trace-struck").exists() or isinstance(point, S3Point):
            self.struck[getattr(point, "effect", None) or point.fault] += 1
        return log

    def _fail_s3(self, point: S3Point) -> None:
        s3 = self._s3
        if point.which == "only":
            s3.fail_nth(point.number, point.fault)
        else:
            s3.faulty = lambda method, key: s3.served >= point.number
            s3.fault = point.fault

    def _end(self, plugin, log: Log, point) -> None:
        """Let the session end as the go command does, and judge how it did."""
        plugin.end_input()
        try:
            status = plugin.wait(ENDING_S) if log.ended != "hung" else None
        except subprocess.TimeoutExpired:
            status = None
        left = plugin.wait_for_all(ENDING_S if log.ended != "hung" else 0)
        plugin.kill()
        if left and log.ended != "hung":
            log.faults.append(f"processes do not end: {left}")
        killed = getattr(point, "effect", "") in injection.KILLS
        log.said = plugin.stderr
        if not killed and (log.ended != "closed" or status != 0):
            log.faults.append(f"the session {log.ended}, exit status {status}")
        if any(alarm in log.said for alarm in _ALARMS):
            log.faults.append("an alarming message")

    # -- afterwards --------------------------------------------------------------------------------

    def _check_afterwards(self, log: Log, point) -> None:
        """The store is sound; every answered put is there, also in the bucket after a flush."""
        home = self._home()
        self._s3.release()
        self._s3.fault, self._s3.faulty = None, lambda method, key: True
        self._s3._nth.clear()
        self._command(home, log, "verify", "--sha256")
        kept = getattr(point, "effect", None) not in injection.ERRNOS  # else: perhaps not
        argv = [f"--cache-dir={home / 'cache'}"]
        self._check_session(home, log, "the next session", argv, log.answered if kept else ())
        self._command(home, log, "flush", "--timeout=60s")
        argv = [f"--cache-dir={home / 'fresh'}", *self._flags(), "--read-only"]
        wanted = {name for name in KNOWN if name in log.answered or name in IN_BUCKET}
        if isinstance(point, S3Point) and point.which == "from" and point.fault == "403":
            wanted = IN_BUCKET  # puts are not kept for a bucket that refuses everything
        self._check_session(home, log, "a fresh machine after flush", argv, wanted)
        self._s3.stop()

    def _command(self, home, log: Log, name: str, *flags) -> None:
        plugin = self._plugin(name, [name, f"--cache-dir={home / 'cache'}", *flags], home)
        plugin.end_input()
        try:
            status = plugin.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            status = "none: a hang"
        out = plugin.process.stdout.read(1 << 16).decode()
        if status != 0:
            log.faults.append(f"{name}: exit status {status}: {out} {plugin.stderr}"[:600])
        plugin.wait_for_all(0 if status else ENDING_S)
        plugin.kill()

    def _check_session(self, home, log: Log, when: str, argv, wanted) -> None:
        """Get every entry in a healthy session; those in ``wanted`` must be hits."""
        plugin = self._plugin("after", argv, home)
        try:
            plugin.hello()
            numbers = {name: plugin.get(action_id(name)) for name in KNOWN}
            for name, number in numbers.items():
                answer = plugin.answer(number, ANSWER_S)
                got = judge(answer, log.allowed(name), log, f"{when}, get of {name}")
                if got != "hit" and name in wanted:
                    log.faults.append(f"{when}: {name} is lost ({got})")
            plugin.answer(plugin.close(), ANSWER_S)
            plugin.end_input()
            status = plugin.wait(ENDING_S)
            if status != 0 or any(alarm in plugin.stderr for alarm in _ALARMS):
                log.faults.append(f"{when}: exit status {status}: {plugin.stderr}")
            left = plugin.wait_for_all(ENDING_S)
            if left:
                log.faults.append(f"{when}: processes do not end: {left}")
        except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
            log.faults.append(f"{when}: {error!r}")
        finally:
            plugin.kill()


def spread(points: list, count: int, seed: int = 1) -> list:
    """A sample of ``count`` points in which each kind of call has its turn before any has two."""
    source = random.Random(seed)
    groups = {}
    for point in source.sample(points, len(points)):
        groups.setdefault(point[1:-1], []).append(point)
    order = source.sample(sorted(groups), len(groups))
    chosen = []
    while len(chosen) < min(count, len(points)):
        chosen += [groups[key].pop() for key in order if groups[key]]
    return chosen[:count]
