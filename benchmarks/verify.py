"""What verify costs beside cat: both read the same files, in the page cache, on one core, in turn.

Usage: python -m benchmarks.verify [--runs N] [--size BYTES] [--work DIR]

The store has sizes as a build of std leaves them (a quarter up to 70 B, median 1.3 kB, 90 % under
403 kB, largest 12.6 MB) and four records for three bodies. cat and verify read all bodies and all
records, and both times are those of whole processes. Speed is cat's time over verify's.
"""
import argparse
import hashlib
import os
import platform
import random
import statistics
import subprocess
import sys
import time

from cacheplugin.local import LocalCache
from cacheplugin.store import Store

from .direct import PLUGIN, working_directory


def fill(root: str, size: int) -> None:
    """Make a store with ``size`` bytes of bodies, always the same."""
    source, cache, written, number = random.Random(1), LocalCache(Store(root)), 0, 0
    while written < size:
        body = source.randbytes(body_size(source))
        output = hashlib.sha256(body).hexdigest()
        for copy in range(2 if number % 3 == 0 else 1):
            action = hashlib.sha256(f"{number} {copy}".encode()).hexdigest()
            with cache.writer(action, output, len(body)) as writer:
                writer.write(body)
                writer.commit(time.time_ns())
        written += len(body)
        number += 1


def body_size(source) -> int:
    at = source.random()
    for share, least, most in (
        (0.25, 30, 70), (0.5, 71, 1300), (0.9, 1301, 403_000), (1, 403_001, 12_600_000),
    ):  # fmt: skip
        if at < share:
            return int(least * (most / least) ** source.random())
    return most


def files(root: str) -> list:
    return [
        os.path.join(directory, name)
        for part in ("action", "output")
        for directory, _, names in os.walk(os.path.join(root, part))
        for name in names
    ]


def spent(run) -> tuple:
    """(wall seconds, CPU seconds) of ``run()`` and the processes it waits for."""
    before, begin = os.times(), time.perf_counter()
    run()
    wall, after = time.perf_counter() - begin, os.times()
    return wall, sum(after[2:4]) - sum(before[2:4])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--size", type=int, default=2_000_000_000, help="bytes of bodies")
    parser.add_argument("--work", help="a directory to keep: its filled store is used again")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"{platform.node()}: Python {platform.python_version()}, on one core")
    with working_directory(arguments.work) as work:
        root = os.path.join(work, "verify")
        if not os.path.isdir(root):
            fill(root, arguments.size)
        paths = files(root)
        listed = "\0".join(paths).encode()
        print(f"{len(paths)} files, {sum(map(os.path.getsize, paths)) / 1e6:.0f} MB")

        def cat() -> None:
            command = ["xargs", "-0", "cat"]
            subprocess.run(command, input=listed, stdout=subprocess.DEVNULL, check=True)

        def verify(*flags) -> None:
            command = [PLUGIN, f"--cache-dir={root}", "verify", *flags]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)

        measures = (
            ("cat", cat), ("verify", verify), ("verify --sha256", lambda: verify("--sha256")),
        )  # fmt: skip
        times = {name: [] for name, _ in measures}
        for turn in range(arguments.runs + 1):
            for name, run in measures:
                pair = spent(run)
                if turn:  # the first brings everything into the page cache
                    times[name].append(pair)
    for name, pairs in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*pairs))
        ratios = [cat[0] / ours[0] for cat, ours in zip(times["cat"], pairs)]
        cpu_ratio = statistics.median(cat[1] / ours[1] for cat, ours in zip(times["cat"], pairs))
        print(
            f"{name}: {wall:.3f} s wall, {cpu:.3f} s CPU; "
            f"speed {statistics.median(ratios):.2f} of cat's "
            f"({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} pairs), by CPU {cpu_ratio:.2f}"
        )


if __name__ == "__main__":
    sys.exit(main())
