"""Where scenarios work: directories, the workload, the S3 server, the network, builds and verdicts."""

import os
import re
import sys
from contextlib import ExitStack, contextmanager
from functools import cached_property

from . import answers, processes, rivals, workloads
from .network import network
from .runner import Failed
from .s3server import s3_server

_ERROR_LINES = 3  # of what a build that failed wrote


class Lab:
    """``arguments`` are those of the command line, ``sizes`` a sizes.Sizes, ``work`` an empty directory.

    As a context manager it ends what it started.
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
        return workloads.make(
            self.arguments.workload or self.sizes.workload, self.work, self.arguments.seed
        )

    @cached_property
    def s3(self):
        """The s3server.Server, started at first need."""
        server = self._stack.enter_context(s3_server(self.work, self.arguments))
        self.s3_name = server.name
        return server

    def fresh(self, kind: str = "fresh") -> str:
        """The path of a directory that is not there yet.

        Nothing is deleted between runs: ext4 takes up to 50 times as long to make a file within
        minutes of a mass deletion, which no fresh machine has behind it.
        """
        self._made += 1
        return os.path.join(self.work, f"{kind}-{self._made}")

    @contextmanager
    def network(self, round_trip_ms: float):
        """(what rivals get as ``remote`` but for the prefix, network.Network or None) with a delay.

        Before an S3 server that is not on this machine there is no delay of ours, and None.
        """
        if self.s3.port is None:
            yield {"bucket": self.s3.bucket, "endpoint": self.s3.endpoint}, None
            return
        with network(self.s3.port, round_trip_ms, self.arguments.rate) as net:
            yield {"bucket": self.s3.bucket, "endpoint": f"http://127.0.0.1:{net.port}"}, net

    @property
    def round_trips_ms(self):
        """Those of the command line; the network's own is all there is before a remote server."""
        if self.s3.port is None:
            return (0.0,)
        return self.arguments.round_trips or self.sizes.round_trips_ms

    # -- builds ------------------------------------------------------------------------------------

    def build(self, program: str = "", net=None, watch=None, go_cache: str = None) -> dict:
        """The metrics of a build of the workload; ``program`` is GOCACHEPROG.

        GOCACHE is empty unless ``go_cache`` names one.

        wall_s, cpu_s, peak_bytes; with ``net`` also requests, connections, up_bytes, down_bytes; and
        under "counters" what --metrics of ours printed. Raises Failed where it does not build.
        """
        workload = self.workload
        os.sync()  # so that no run pays for the writing of another
        if net:
            net.reset()
        env = go_environment(go_cache or self.fresh("go"), program)
        env["GOCACHE_METRICS"] = "true"  # of ours, and of a peer that has them
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
        """The cache directory of a rival that has built the workload; with a bucket, at ``full_prefix``.

        Raises Failed.
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
        """How many gets ours misses when all is there: what the go command asks for and never puts."""
        again = self.build(self.ours.program(self.filled(self.ours)))
        return again["counters"].get("get_misses", 0)

    @staticmethod
    def full_prefix(rival) -> str:
        """Where in the bucket the cache lies that a rival has filled."""
        return "full-" + "".join(filter(str.isalnum, rival.name))

    @staticmethod
    def remote(address: dict, prefix: str) -> dict:
        """What Rival.program takes: ``address`` {bucket, endpoint} and a prefix in it."""
        return {**address, "prefix": prefix}

    @cached_property
    def actions(self) -> list:
        """The actions of the workload's build, hex."""
        return answers.actions(self.filled(self.ours))

    @cached_property
    def responder(self) -> rivals.Rival:
        """The bare responder with the answers of the workload."""
        path = os.path.join(self.work, "answers")
        answers.write(self.filled(self.ours), path)
        return rivals.Rival(rivals.BARE, f"{sys.executable} {rivals.RESPONDER} {path}", "")


def traffic(net) -> dict:
    """What passed over a network.Network since it was reset, as metrics; {} where there is none."""
    if net is None:
        return {}
    counts = net.counts()
    return {
        "requests": counts["requests"],
        "connections": counts["connections"],
        "up_bytes": counts["bytes_up"],
        "down_bytes": counts["bytes_down"],
    }


def expect_hits(built: dict, misses: int = None) -> dict:
    """The metrics of a build without its counters; raises Failed where ours missed more than that.

    None: any number.
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
    """The metrics without the counters; raises Failed where not all that ours put is in the bucket."""
    found = built.pop("counters")
    lost = sum(found.get(name, 0) for name in ("put_errors", "put_s3_error", "put_s3_skipped"))
    if lost:
        raise Failed(f"{lost} puts failed")
    if "drain_s" in found:
        built["close_s"] = found["drain_s"]
    return built


def counters(stderr: str) -> dict:
    """{name: count} of what --metrics prints, and drain_s; {} of a program that prints none."""
    groups = re.findall(r"^gocache_\w+: (.*)$", stderr, re.MULTILINE)
    found = {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", " ".join(groups))}
    waited = re.search(r", ([0-9.]+) s waited for uploads", stderr)
    if waited:
        found["drain_s"] = float(waited[1])
    return found


def go_environment(go_cache: str, program: str = "") -> dict:
    """For a go command with a cache directory of its own; ``program`` is GOCACHEPROG."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("GOCACHE", "GOFLAGS"))}
    env |= {"GOCACHE": go_cache, "GOFLAGS": "-buildvcs=false", "GOTOOLCHAIN": "local"}
    if program:
        env["GOCACHEPROG"] = program
    return env
