"""What a remote layout costs: builds that restore from a bucket, or fill one, over a delay.

Usage: python -m benchmarks.bundles [--runs N] [--round-trips MS,...] [--work DIR]
           [--layout NAME] [--package PATTERN] [MEASURE ...]

Measures (default: all), each beside its yardstick in the same run, in turn:

restore  local cache empty, bucket full; beside a warm local build; for each of the round trips
cold     bucket and local cache empty, to the go command's exit; beside the go command's own cache
leaf     a module that imports the packages, one package of its own changed, local cache empty, the
         rest in the bucket; beside the same with nothing changed, and beside all of it local but the
         change
memory   most memory at one moment of all the plugin's processes together, while they restore
warm     local cache full, with the bucket configured; beside the same without it

All but restore are at 20 ms. The delay is that of benchmarks/network.py, before versitygw where it
is on PATH, else moto. CPU is that of the go command, the plugin, and all that they start. A run
that fails, or misses what the bucket has, is reported as failed and not counted. Linux only.
"""
import argparse
import ctypes
import multiprocessing
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from contextlib import ExitStack

from .direct import PLUGIN, family, go_environment, machine, report, working_directory
from .network import network
from .s3server import plugin_flags, s3_server_on_port

MEASURES = ("restore", "cold", "leaf", "memory", "warm")
ROUND_TRIP_MS = 20
SAMPLE_S = 0.02
PR_SET_CHILD_SUBREAPER = 36

# status and wall_s of the go command, cpu_s of all its processes; counters of the plugin, counts of
# the network it went over.
Build = namedtuple("Build", "status wall_s cpu_s counters counts stderr")


class Bench:
    """Builds in a working directory, against the S3 server at ``port``."""

    def __init__(self, work: str, port: int, arguments) -> None:
        self.failures = self._made = 0
        self._work = work
        self._port = port
        self._runs = arguments.runs
        self._round_trips_ms = arguments.round_trips
        self._package = arguments.package
        self._layout = [f"--layout={arguments.layout}"] if arguments.layout else []
        self._full = False

    # -- measures ----------------------------------------------------------------------------------

    def restore(self) -> None:
        self._fill()
        for round_trip_ms in self._round_trips_ms:
            pairs = Pairs()
            with network(self._port, round_trip_ms) as net:
                for _ in range(self._runs):
                    warm = self._build(self._plugin("full"))
                    ours = self._build(self._plugin(self._fresh(), net.port, "full"), net)
                    if self._hits_all(warm) and self._hits_all(ours):
                        pairs.add(ours, warm)
            pairs.show(f"restore, {round_trip_ms:g} ms", "warm local build")

    def cold(self) -> None:
        pairs = Pairs()
        with network(self._port, ROUND_TRIP_MS) as net:
            for turn in range(self._runs):
                own = self._build()
                ours = self._build(self._plugin(self._fresh(), net.port, f"cold-{turn}"), net)
                if self._works(own) and self._uploads_all(ours):
                    pairs.add(ours, own)
        pairs.show(f"cold, {ROUND_TRIP_MS} ms", "go's own cache")

    def leaf(self) -> None:
        module = Module(os.path.join(self._work, "module"), self._package)
        target = (module.directory, "./...")
        first = self._build(self._plugin("leaf", self._port, "leaf"), None, target)
        if not self._uploads_all(first):
            return
        unchanged, local = Pairs(), Pairs()
        with network(self._port, ROUND_TRIP_MS) as net:
            for turn in range(self._runs):
                same = self._build(self._plugin(self._fresh(), net.port, "leaf"), net, target)
                module.change(f"turn {turn}")
                all_but = self._build(self._plugin("leaf"), None, target)
                ours = self._build(self._plugin(self._fresh(), net.port, "leaf"), net, target)
                misses = all_but.counters.get("get_misses", 0)
                if self._hits_all(same) and self._works(all_but) and self._hits_all(ours, misses):
                    if self._uploads_all(ours):
                        unchanged.add(ours, same)
                        local.add(ours, all_but)
        what = f"leaf changed, {ROUND_TRIP_MS} ms"
        local.show_ratio(what, "all local but the change")
        unchanged.show(what, "nothing changed")

    def memory(self) -> None:
        self._fill()
        peaks = []
        with network(self._port, ROUND_TRIP_MS) as net:
            for _ in range(self._runs):
                memory = Memory()
                program = self._plugin(self._fresh(), net.port, "full")
                if self._hits_all(self._build(program, net, watch=memory.sample)):
                    peaks.append(memory)
        if peaks:
            print(
                f"memory, {ROUND_TRIP_MS} ms: {max(peak.processes for peak in peaks)} processes, "
                f"RSS {max(peak.rss for peak in peaks) / 1e6:.0f} MB, "
                f"PSS {max(peak.pss for peak in peaks) / 1e6:.0f} MB at most, of {len(peaks)} runs",
                flush=True,
            )

    def warm(self) -> None:
        self._fill()
        pairs = Pairs()
        with network(self._port, ROUND_TRIP_MS) as net:
            for _ in range(self._runs):
                without = self._build(self._plugin("full"))
                ours = self._build(self._plugin("full", net.port, "full"), net)
                if self._hits_all(without) and self._hits_all(ours):
                    pairs.add(ours, without)
        pairs.show(f"warm with a bucket, {ROUND_TRIP_MS} ms", "without")

    # -- builds ------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Fill the local cache "full", and the bucket at the prefix of that name, once."""
        if not self._full:
            build = self._build(self._plugin("full", self._port, "full"))
            if not self._uploads_all(build):
                raise SystemExit("the bucket could not be filled")
            self._full = True

    def _fresh(self) -> str:
        """The name of a cache directory that is not there yet.

        Nothing is deleted between runs: ext4 takes up to 50 times as long to make a file within
        minutes of a mass deletion, which no fresh machine has behind it.
        """
        self._made += 1
        return f"fresh-{self._made}"

    def _plugin(self, cache: str, port: int = None, prefix: str = "") -> str:
        """GOCACHEPROG with a cache directory of that name; with a bucket if ``port`` is given."""
        words = [PLUGIN, f"--cache-dir={os.path.join(self._work, cache)}", "--metrics"]
        if port:
            words += [*plugin_flags(port), f"--prefix={prefix}", *self._layout]
        return " ".join(words)

    def _build(self, program: str = "", net=None, target=None, watch=None) -> Build:
        """Build ``target`` (directory, pattern) with an empty GOCACHE.

        ``watch(process id)`` is called every SAMPLE_S meanwhile, with a process that starts all.
        """
        directory, pattern = target or (self._work, self._package)
        go_cache = os.path.join(self._work, self._fresh())
        env = go_environment(go_cache, program)
        path = os.path.join(self._work, "stderr")
        os.sync()  # so that no run pays for the writing of another
        if net:
            net.reset()
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(
            target=run_to_the_last, args=(["go", "build", pattern], env, directory, path, theirs)
        )
        process.start()
        theirs.close()
        while not ours.poll(SAMPLE_S if watch else None):
            watch(process.pid)
        status, wall_s, cpu_s = ours.recv()
        process.join()
        with open(path, errors="replace") as file:
            stderr = file.read()
        return Build(status, wall_s, cpu_s, counters(stderr), net and net.counts(), stderr)

    # -- verdicts ----------------------------------------------------------------------------------

    def _works(self, build: Build) -> bool:
        return self._judge(build, f"go build exits with {build.status}" if build.status else "")

    def _hits_all(self, build: Build, but: int = 0) -> bool:
        """Whether it works, and misses no more than ``but``."""
        gets, misses = (build.counters.get(name, 0) for name in ("get_requests", "get_misses"))
        text = f"{misses} of {gets} gets missed"
        return self._works(build) and self._judge(build, text if misses > but or not gets else "")

    def _uploads_all(self, build: Build) -> bool:
        """Whether it works, and the bucket has all that it put."""
        names = ("put_errors", "put_s3_error", "put_s3_skipped")
        lost = sum(build.counters.get(name, 0) for name in names)
        return self._works(build) and self._judge(build, f"{lost} puts failed" if lost else "")

    def _judge(self, build: Build, fault: str) -> bool:
        if fault:
            self.failures += 1
            print(f"FAILED: {fault}; {build.stderr[-2000:].strip()}", flush=True)
        return not fault


class Pairs:
    """Builds of ours, each with that of the yardstick in the same turn."""

    def __init__(self) -> None:
        self._ours, self._theirs = [], []

    def add(self, ours: Build, theirs: Build) -> None:
        self._ours.append(ours)
        self._theirs.append(theirs)

    def show(self, what: str, yardstick: str) -> None:
        """Print medians of time, traffic and CPU."""
        self.show_ratio(what, yardstick)
        if self._ours:
            self._show_traffic(yardstick)

    def show_ratio(self, what: str, yardstick: str) -> None:
        if not self._ours:
            print(f"{what}: no run to count", flush=True)
            return
        walls = [[build.wall_s for build in builds] for builds in (self._ours, self._theirs)]
        report(what, walls[0], yardstick, walls[1], 1e3, "ms")
        sys.stdout.flush()

    def _show_traffic(self, yardstick) -> None:
        counts = [build.counts for build in self._ours]
        methods = sorted({method for count in counts for method in count["by_method"]})
        by_method = ", ".join(
            f"{statistics.median(count['by_method'].get(method, 0) for count in counts):g} {method}"
            for method in methods
        )
        requests, connections, down, up = (
            statistics.median(count[name] for count in counts)
            for name in ("requests", "connections", "bytes_down", "bytes_up")
        )
        ours, theirs = (
            statistics.median(build.cpu_s for build in builds)
            for builds in (self._ours, self._theirs)
        )
        print(
            f"  {requests:g} requests ({by_method or 'none'}) on {connections:g} connections, "
            f"{down / 1e6:.1f} MB down, {up / 1e6:.1f} MB up; "
            f"CPU {ours:.2f} s, {yardstick} {theirs:.2f} s",
            flush=True,
        )


class Memory:
    """The most memory that the plugin and its descendants had at one moment, in bytes."""

    def __init__(self) -> None:
        self.processes = self.rss = self.pss = 0
        self._front = None

    def sample(self, ancestor: int) -> None:
        members = family(self._front or ancestor)
        if self._front is None:
            self._front = next(filter(is_plugin, sorted(members)), None)
            members = family(self._front) if self._front else ()
        found = [sizes for sizes in map(resident_bytes, members) if sizes]
        self.processes = max(self.processes, len(found))
        self.rss = max(self.rss, sum(rss for rss, _ in found))
        self.pss = max(self.pss, sum(pss for _, pss in found))


class Module:
    """A module that imports all of a pattern's packages that it may, and one package of its own."""

    def __init__(self, directory: str, pattern: str) -> None:
        self.directory = directory
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(os.path.join(directory, "leaf"))
        listed = subprocess.run(
            ["go", "list", pattern], env=go_environment(os.path.join(directory, "go-cache")),
            cwd=directory, check=True, capture_output=True, text=True,
        ).stdout.split()  # fmt: skip
        shutil.rmtree(os.path.join(directory, "go-cache"))
        hidden = {"internal", "vendor"}
        imports = [f'\t_ "{path}"\n' for path in listed if hidden.isdisjoint(path.split("/"))]
        self._write("go.mod", "module bench.example/module\n\ngo 1.24\n")
        self._write(
            "module.go",
            'package module\n\nimport (\n\t"bench.example/module/leaf"\n\n'
            f'{"".join(imports)})\n\nvar Text = leaf.Text()\n',
        )
        self.change("first")

    def change(self, text: str) -> None:
        """Give the package another source."""
        self._write("leaf/leaf.go", f'package leaf\n\nfunc Text() string {{ return "{text}" }}\n')

    def _write(self, name: str, text: str) -> None:
        path = os.path.join(self.directory, name)
        with open(path, "w") as file:
            file.write(text)
        hour_ago = time.time() - 3600
        os.utime(path, (hour_ago, hour_ago))  # the go command caches no index of newer files


def run_to_the_last(command, env, directory, stderr_path, connection) -> None:
    """Run ``command`` and send (exit status, wall seconds to its exit, CPU seconds of everything).

    Waits for all that it leaves running, as the plugin does its pool. For a process of its own.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with open(stderr_path, "wb") as stderr:
        begin = time.perf_counter()
        status = subprocess.run(
            command, env=env, cwd=directory, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr
        ).returncode
        wall_s = time.perf_counter() - begin
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    connection.send((status, wall_s, used.ru_utime + used.ru_stime))


def counters(stderr: str) -> dict:
    """{name: count} of what --metrics prints."""
    groups = re.findall(r"^gocache_\w+: (.*)$", stderr, re.MULTILINE)
    return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", " ".join(groups))}


def is_plugin(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return PLUGIN.encode() in file.read().split(b"\0")[:2]
    except OSError:
        return False


def resident_bytes(pid: int):
    """(RSS, PSS) of a process; None where it has ended."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            text = file.read()
    except OSError:
        return None
    sizes = (re.search(rb"^%b: +(\d+) kB$" % key, text, re.MULTILINE) for key in (b"Rss", b"Pss"))
    return tuple(int(size[1]) * 1024 for size in sizes)


def main() -> None:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--round-trips", default="0,5,20,50", help="of restore, in ms",
        type=lambda text: [float(part) for part in text.split(",")],
    )  # fmt: skip
    parser.add_argument("--work", help="a directory to work below, on the disk of interest")
    parser.add_argument("--layout", default="bundles", help="'' gives the plugin none")
    parser.add_argument("--package", default="std", metavar="PATTERN", help="what is built")
    parser.add_argument("measures", nargs="*", metavar="MEASURE")
    arguments = parser.parse_args()
    for name in arguments.measures:
        if name not in MEASURES:
            parser.error(f"no measure {name!r}; there are {', '.join(MEASURES)}")
    with ExitStack() as stack:
        base = stack.enter_context(working_directory(arguments.work))
        work = stack.enter_context(tempfile.TemporaryDirectory(prefix="bundles-", dir=base))
        server, port = stack.enter_context(s3_server_on_port(work))
        layout = arguments.layout or "not set"
        print(f"{machine()}, {server}; layout {layout}; go build {arguments.package}", flush=True)
        bench = Bench(work, port, arguments)
        for name in arguments.measures or MEASURES:
            getattr(bench, name)()
    sys.exit(bench.failures > 0)


if __name__ == "__main__":
    main()
