"""What prune costs, beside find over the same tree and xargs rm of the same files.

Usage: python -m benchmarks.prune [--actions N] [--runs N] [--work DIR]

Makes a tree of N actions and 0.74 N outputs, a tenth of them expired, in a temporary directory and
removes it afterwards. Each figure is taken beside its yardstick in the same run, in turn; medians
and the median of the runs' ratios are printed. A million actions need 7 GB of disk.
"""
import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from cacheplugin.prune import prune

EXPIRY_S = 30 * 86400
ONE_IN = 10  # expired
RECORD = b"v1 " + b"0" * 170 + b"\n"  # prune reads none


class Decided(Exception):
    """The search is over, nothing was removed yet."""


class Tree:
    def __init__(self, root: str, actions: int) -> None:
        self.root, self.now = root, time.time()
        self.counts = {"action": actions, "output": actions * 74 // 100}
        self.expired = f"{root}.expired"  # a list for xargs
        for tree in self.counts:
            for number in range(256):
                os.makedirs(f"{root}/{tree}/{number:02x}")

    def fill(self, everything: bool) -> None:
        """Write all files, or only those that are expired."""
        for tree, count in self.counts.items():
            for number in range(0, count, 1 if everything else ONE_IN):
                path = self.path(tree, number)
                with open(path, "wb", buffering=0) as file:
                    file.write(RECORD)
                age = 7200 + number % (EXPIRY_S // 2)
                if number % ONE_IN == 0:
                    age += EXPIRY_S
                os.utime(path, (self.now - age, self.now - age))
        os.sync()  # so that no run pays for the writing

    def path(self, tree: str, number: int) -> str:
        name = hashlib.sha256(f"{tree} {number}".encode()).hexdigest()
        return f"{self.root}/{tree}/{name[:2]}/{name}"

    def list_expired(self) -> int:
        """Write the list, in the order in which prune goes; returns its length."""
        paths = sorted(
            self.path(tree, number)
            for tree, count in self.counts.items()
            for number in range(0, count, ONE_IN)
        )
        by_directory = {}
        for path in paths:
            by_directory.setdefault(os.path.dirname(path), set()).add(os.path.basename(path))
        with open(self.expired, "w") as file:
            for directory, names in by_directory.items():
                for name in filter(names.__contains__, os.listdir(directory)):
                    file.write(f"{directory}/{name}\n")
        return len(paths)


def child(root: str, expiry_s: float, max_size_bytes: int, remove: bool) -> None:
    """Prune, and print the seconds of either half and the memory that it took at most."""
    begin, decided = time.perf_counter(), []

    def progress(text, done, total):
        if text == "removing" and not decided:
            decided.append(time.perf_counter())
            if not remove:
                raise Decided

    try:
        prune(root, expiry_s, max_size_bytes, progress=progress)
    except Decided:
        pass
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"decide": decided[0] - begin, "remove": end - decided[0], "peak": peak}))


def run_child(*arguments) -> dict:
    command = [sys.executable, "-m", "benchmarks.prune", "--child", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def timed(command: list) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def report(what: str, yardstick: str, pairs: list) -> None:
    ours, theirs = (statistics.median(column) for column in zip(*pairs))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{what}: {ours:.2f} s; {yardstick}: {theirs:.2f} s; ratio {ratio:.2f}", flush=True)


def measure(root: str, actions: int, runs: int) -> None:
    tree = Tree(root, actions)
    tree.fill(True)
    count = tree.list_expired()
    find = ["find", root, "-type", "f", "-printf", r"%s %T@\n"]
    remove = ["xargs", "-a", tree.expired, "rm"]
    by_size = sum(tree.counts.values()) * 4096 // 2
    timed(find)
    decide, decide_size, delete, peaks = [], [], [], []
    for number in range(runs):
        found = timed(find)
        sized = run_child(root, 0, by_size, 0)
        if number % 2:  # either is first in turn
            removed = timed(remove)
            tree.fill(False)
            timed(find)
            done = run_child(root, EXPIRY_S, 0, 1)
            tree.fill(False)
        else:
            done = run_child(root, EXPIRY_S, 0, 1)
            tree.fill(False)
            timed(find)
            removed = timed(remove)
            tree.fill(False)
        decide.append((done["decide"], found))
        decide_size.append((sized["decide"], found))
        delete.append((done["remove"], removed))
        peaks.append((done["peak"], sized["peak"]))
    print(f"{sum(tree.counts.values())} files, {count} of them expired")
    report("deciding by age", "find", decide)
    report("deciding by size", "find", decide_size)
    report("deleting", "xargs rm", delete)
    by_age, sized = map(max, zip(*peaks))
    print(f"resident at most: {by_age / 1e6:.0f} MB by age, {sized / 1e6:.0f} MB by size")


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        root, expiry_s, max_size_bytes, remove = sys.argv[2:]
        child(root, float(expiry_s), int(max_size_bytes), remove == "1")
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--actions", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--work", help="where to make the temporary directory")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.work) as work:
        measure(f"{work}/cache", chosen.actions, chosen.runs)


if __name__ == "__main__":
    main()
