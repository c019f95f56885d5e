"""What direct mode costs, beside the least a plugin can cost and the go command's own cache.

Usage: python -m benchmarks.direct [--runs N] [--work DIR] [MEASURE ...]

Measures: startup, hits, warm, cold, memory, large-put, remote (default: all). Needs the go command
on PATH; ``remote`` takes versitygw where it is on PATH, else moto. Each figure is taken beside its
yardstick in the same run, in turn; medians and their ratio are printed.
"""
import argparse
import hashlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from contextlib import contextmanager

from . import answers
from .driver import Plugin
from .s3server import s3_server

HERE = os.path.dirname(os.path.abspath(__file__))
PLUGIN = os.path.join(os.path.dirname(sys.executable), "go-cache-plugin")
RESPONDER = [sys.executable, os.path.join(HERE, "responder.py")]
MEASURES = ("startup", "hits", "warm", "cold", "memory", "large-put", "remote")


class Bench:
    """Holds the working directory: a store filled by a build of std, and the answers from it."""

    def __init__(self, work: str, runs: int) -> None:
        self.work, self.runs = work, runs
        self.cache = os.path.join(work, "cache")
        self.answers = os.path.join(work, "answers")
        if not os.path.exists(self.answers):
            self.build(f"{PLUGIN} --cache-dir={self.cache}")
            answers.write(self.cache, self.answers)
        self.actions = answers.actions(self.cache)
        self.responder = [*RESPONDER, self.answers]
        self.plugin = [PLUGIN, f"--cache-dir={self.cache}"]

    def build(self, program: str = "", go_cache: str = "own") -> tuple:
        """(wall seconds, CPU seconds) of ``go build std``; ``program`` is GOCACHEPROG."""
        env = go_environment(os.path.join(self.work, go_cache), program)
        before, begin = os.times(), time.perf_counter()
        subprocess.run(["go", "build", "std"], check=True, env=env, cwd=self.work)
        wall, after = time.perf_counter() - begin, os.times()
        return wall, sum(after[2:4]) - sum(before[2:4])

    def measure(self, name) -> None:
        """Take one measure."""
        getattr(self, name.replace("-", "_"))()

    def startup(self):
        first_get, nothing = [], []
        for _ in range(self.runs * 5):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", "pass"], check=True)
            nothing.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            plugin = Plugin(self.plugin)
            plugin.gets(self.actions[:1], 1)
            first_get.append(time.perf_counter() - begin)
            plugin.close()
        report("exec to first get answered", first_get, "python -c pass", nothing, 1e3, "ms")

    def hits(self):
        costs = {"plugin": [], "responder": []}
        cpus = os.sched_getaffinity(0)
        for _ in range(self.runs):
            for name, command in (("responder", self.responder), ("plugin", self.plugin)):
                plugin = Plugin(command, cpus={min(cpus)})
                plugin.gets(self.actions, 8)
                spent = [plugin.gets(self.actions, 8) for _ in range(3)]
                costs[name].append(statistics.median(spent) / len(self.actions))
                plugin.close()
        os.sched_setaffinity(0, cpus)
        report("a hit, 8 in flight, one core", costs["plugin"], "responder", costs["responder"], 1e6, "µs")
        over = statistics.median(a - b for a, b in zip(costs["plugin"], costs["responder"]))
        print(f"  over the responder: {over * 1e6:.1f} µs a get")

    def warm(self):
        ours, least = [], []
        self.build(" ".join(self.plugin))
        for _ in range(self.runs * 3):
            least.append(self.build(" ".join(self.responder))[0])
            ours.append(self.build(" ".join(self.plugin))[0])
        report("warm go build std", ours, "responder", least, 1e3, "ms")

    def cold(self):
        ours, own = [], []
        for _ in range(self.runs):
            for walls, program in ((own, ""), (ours, f"{PLUGIN} --cache-dir={self.work}/cold")):
                walls.append(self.build(program, "cold-own")[0])
                for name in ("cold", "cold-own"):
                    shutil.rmtree(os.path.join(self.work, name), ignore_errors=True)
        report("cold go build std", ours, "go's own cache", own, 1, "s")

    def memory(self):
        plugin = Plugin(self.plugin)
        plugin.gets(self.actions, 8)
        print(f"front after {len(self.actions)} hits: {plugin.resident_bytes() / 1e6:.1f} MB resident")
        plugin.close()

    def large_put(self):
        size = 512 << 20
        piece = bytes(3 << 16)
        digest = hashlib.sha256()
        for at in range(0, size, len(piece)):
            digest.update(piece[: size - at])
        encoded = b64encode(piece)
        whole, rest = divmod(size, len(piece))
        plugin = Plugin([PLUGIN, f"--cache-dir={self.work}/large"])
        before = plugin.resident_bytes()
        begin = time.perf_counter()
        answer = plugin.put(
            "ab" * 32, digest.hexdigest(), size, [*[encoded] * whole, b64encode(bytes(rest))]
        )
        wall = time.perf_counter() - begin
        assert b"DiskPath" in answer, answer
        grown = plugin.resident_bytes(peak=True) - before
        print(f"a put of 512 MiB: front grows by {grown / 1e6:.1f} MB, {size / wall / 1e6:.0f} MB/s")
        plugin.close()
        shutil.rmtree(os.path.join(self.work, "large"))

    def remote(self):
        local = os.path.join(self.work, "remote")
        with s3_server(self.work) as (server, flags):
            command = [PLUGIN, f"--cache-dir={local}", *flags]
            self.build(" ".join(command))
            actions = answers.actions(local)
            shutil.rmtree(local)
            cpu, wall = [], []
            for _ in range(self.runs):
                plugin = Plugin(command)
                wall.append(plugin.gets(actions, 8) / len(actions))
                cpu.append(sum(family(plugin.process.pid).values()) / len(actions))
                plugin.close()
                shutil.rmtree(local)
        print(
            f"a remote hit ({server}, {len(actions)} entries): "
            f"{statistics.median(cpu) * 1e3:.2f} ms CPU of all our processes, "
            f"{statistics.median(wall) * 1e3:.2f} ms wall"
        )


def go_environment(go_cache: str, program: str = "") -> dict:
    """For a go command with a cache directory of its own; ``program`` is GOCACHEPROG."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GOCACHE")}
    env |= {"GOCACHE": go_cache, "GOFLAGS": "-buildvcs=false", "GOTOOLCHAIN": "local"}
    if program:
        env["GOCACHEPROG"] = program
    return env


def family(pid: int) -> dict:
    """{process id: CPU seconds so far} of a process and its descendants (Linux)."""
    parents, spent = {}, {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(name)] = int(fields[1])
            spent[int(name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    members, found = set(), {pid} & parents.keys()
    while found:
        members |= found
        found = {child for child, parent in parents.items() if parent in members} - members
    return {member: spent[member] for member in members}


def report(what, ours, yardstick, theirs, scale, unit) -> None:
    a, b = statistics.median(ours), statistics.median(theirs)
    pairs = [x / y for x, y in zip(ours, theirs)]
    print(
        f"{what}: {a * scale:.1f} {unit}, {yardstick} {b * scale:.1f} {unit}, "
        f"ratio {statistics.median(pairs):.3f} ({min(pairs):.3f} to {max(pairs):.3f}, {len(pairs)} pairs)"
    )


def machine() -> str:
    """Where this runs, and with what."""
    go = subprocess.run(["go", "version"], check=True, capture_output=True, text=True).stdout.split()[2]
    return f"{platform.node()}: {os.cpu_count()} cores, Python {platform.python_version()}, {go}"


@contextmanager
def working_directory(path):
    if path:
        os.makedirs(path, exist_ok=True)
        yield os.path.abspath(path)
    else:
        with tempfile.TemporaryDirectory(prefix="go-cache-plugin-bench-") as made:
            yield made


def run(make_bench, measures, description) -> None:
    """Take the measures that the command line names, by default all, of ``make_bench(work, runs)``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--work", help="a directory to keep: its filled store is used again")
    parser.add_argument("measures", nargs="*", metavar="MEASURE")
    arguments = parser.parse_args()
    for name in arguments.measures:
        if name not in measures:
            parser.error(f"no measure {name!r}; there are {', '.join(measures)}")
    print(machine())
    with working_directory(arguments.work) as work:
        bench = make_bench(work, arguments.runs)
        for name in arguments.measures or measures:
            bench.measure(name)


if __name__ == "__main__":
    run(Bench, MEASURES, __doc__)
