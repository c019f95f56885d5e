"""What scenarios share: directories, the workload, the S3 server, the network, builds, checks."""

import os
import re
import sys
from contextlib import ExitStack, contextmanager
from functools import cached_property

from . import answers, processes, rivals, workloads
from .network import network
from .runner import Failed
from .s3server import s3_server

_ERROR_LINES = 3  # the last lines of a failed build's output that are shown


class Lab:
    """``arguments`` are parsed by __main__, ``sizes`` is a Sizes, ``work`` an empty directory.

    A context manager: it ends the S3 server at its exit.
    """

    def __init__(self, work: str, arguments, sizes) -> None:
        self.work, self.sizes, self.arguments = work, sizes, arguments
        self.ours = rivals.ours(arguments.layout)
        self.rivals = [self.ours, *arguments.peer]
        self._stack = ExitStack()
        self._made = 0
        self.s3_name = "none was needed"
        self._filled = {}  # (rival, whether a bucket was filled): its cache directory

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    @cached_property
    def workload(self):
        """The workloads.Workload, made at first use. Raises ValueError for a wrong --workload."""
        return workloads.make(
            self.arguments.workload or self.sizes.workload, self.work, self.arguments.seed
        )

    @cached_property
    def s3(self):
        """The s3server.Server, started at first use."""
        server = self._stack.enter_context(s3_server(self.work, self.arguments))
        self.s3_name = server.name
        return server

    def fresh(self, kind: str = "fresh") -> str:
        """The path of a directory that does not exist yet.

        Old directories are not deleted between runs: within minutes of a mass deletion, ext4 takes
        up to 50 times as long to create a file. A fresh machine does not have that handicap.
        """
        self._made += 1
        return os.path.join(self.work, f"{kind}-{self._made}")

    @contextmanager
    def network(self, round_trip_ms: float):
        """({bucket, endpoint} for Lab.remote, a network.Network) with a delay before the S3 server.

        For an S3 server on another machine the Network is None: there is no added delay.
        """
        if self.s3.port is None:
            yield {"bucket": self.s3.bucket, "endpoint": self.s3.endpoint}, None
            return
        with network(self.s3.port, round_trip_ms, self.arguments.rate) as net:
            yield {"bucket": self.s3.bucket, "endpoint": f"http://127.0.0.1:{net.port}"}, net

    @property
    def round_trips_ms(self):
        """The round trips to measure; (0.0,), no added delay, for a server on another machine."""
        if self.s3.port is None:
            return (0.0,)
        return self.arguments.round_trips or self.sizes.round_trips_ms

    # -- builds ------------------------------------------------------------------------------------

    def build(self, program: str = "", net=None, watch=None, go_cache: str | None = None) -> dict:
        """The metrics of a build of the workload.

        ``program`` is GOCACHEPROG. ``go_cache`` is GOCACHE, by default an empty directory.
        ``watch`` is for processes.run. Returns wall_s, cpu_s and peak_bytes; with ``net`` also
        requests, connections, up_bytes and down_bytes; and under "counters" the counters that the
        program printed, if it has --metrics. Raises Failed if the build fails.
        """
        workload = self.workload
        if self.sizes.syncs:
            os.sync()  # no run pays for the writes of another run
        if net:
            net.reset()
        env = go_environment(go_cache or self.fresh("go"), program)
        env["GOCACHE_METRICS"] = "true"
        ended = processes.run(
            ["go", "build", workload.pattern],
            env,
            workload.directory,
            os.path.join(self.work, "stderr"),
            watch,
        )
        if ended.status:
            said = " / ".join(ended.stderr.strip().splitlines()[-_ERROR_LINES:])
            raise Failed(f"go build exits with {ended.status}: {said[:500]}")
        found = {"wall_s": ended.wall_s, "cpu_s": ended.cpu_s, "peak_bytes": ended.peak_bytes}
        found |= traffic(net)
        found["counters"] = counters(ended.stderr)
        return found

    def filled(self, rival, with_bucket: bool = False) -> str:
        """The cache directory of a rival that has built the workload, filled at first use.

        ``with_bucket``: the build has also filled the bucket, below ``full_prefix``. Raises Failed.
        """
        key = (rival.name, with_bucket)
        if key not in self._filled:
            cache = self.fresh("full")
            remote = self.remote(self.s3.address, self.full_prefix(rival)) if with_bucket else None
            built = self.build(rival.program(cache, remote))
            if with_bucket:
                expect_uploads(built)
            self._filled[key] = cache
        return self._filled[key]

    @cached_property
    def repeated_misses(self) -> int:
        """How many gets miss in a full cache: actions that the go command never puts."""
        again = self.build(self.ours.program(self.filled(self.ours)))
        return again["counters"].get("get_misses", 0)

    @staticmethod
    def full_prefix(rival) -> str:
        """The prefix below which a rival has filled the bucket."""
        return "full-" + "".join(filter(str.isalnum, rival.name))

    @staticmethod
    def remote(address: dict, prefix: str) -> dict:
        """{bucket, endpoint, prefix} for Rival.program; ``address`` is {bucket, endpoint}."""
        return {**address, "prefix": prefix}

    @cached_property
    def actions(self) -> list:
        """The action ids of the workload's build, as hex."""
        return answers.actions(self.filled(self.ours))

    @cached_property
    def responder(self) -> rivals.Rival:
        """The bare responder, with the answers for the workload."""
        path = os.path.join(self.work, "answers")
        answers.write(self.filled(self.ours), path)
        return rivals.Rival(rivals.BARE, f"{sys.executable} {rivals.RESPONDER} {path}", "")


def traffic(net) -> dict:
    """The traffic of a network.Network since its reset, as metrics; {} for None."""
    if net is None:
        return {}
    counts = net.counts()
    return {
        "requests": counts["requests"],
        "connections": counts["connections"],
        "up_bytes": counts["bytes_up"],
        "down_bytes": counts["bytes_down"],
    }


def expect_hits(built: dict, misses: int | None = None) -> dict:
    """The metrics of Lab.build without the counters.

    Raises Failed if the counters show more than ``misses`` misses; None allows any number.
    """
    found = built.pop("counters")
    if (
        found
        and misses is not None
        and (found.get("get_misses", 0) > misses or not found.get("get_requests"))
    ):
        raise Failed(f"{found.get('get_misses', 0)} of {found.get('get_requests', 0)} gets missed")
    return built


def expect_uploads(built: dict) -> dict:
    """The metrics of Lab.build without the counters; raises Failed if an upload failed."""
    found = built.pop("counters")
    lost = sum(found.get(name, 0) for name in ("put_errors", "put_s3_error", "put_s3_skipped"))
    if lost:
        raise Failed(f"{lost} puts failed")
    if "drain_s" in found:
        built["close_s"] = found["drain_s"]
    return built


def counters(stderr: str) -> dict:
    """{name: count} of the output of --metrics, and drain_s; {} if there is none."""
    groups = re.findall(r"^gocache_\w+: (.*)$", stderr, re.MULTILINE)
    found = {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", " ".join(groups))}
    waited = re.search(r", ([0-9.]+) s waited for uploads", stderr)
    if waited:
        found["drain_s"] = float(waited[1])
    return found


def go_environment(go_cache: str, program: str = "") -> dict:
    """The environment of a go command with a GOCACHE of its own; ``program`` is GOCACHEPROG."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("GOCACHE", "GOFLAGS"))}
    env |= {"GOCACHE": go_cache, "GOFLAGS": "-buildvcs=false", "GOTOOLCHAIN": "local"}
    if program:
        env["GOCACHEPROG"] = program
    return env
