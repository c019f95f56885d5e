"""What a client feels of a prune: latency of puts and gets, idle and while a prune removes files.

Usage: python -m benchmarks.prune_latency [--actions N] [--work DIR]

Makes the tree of benchmarks.prune (N actions, a tenth expired) and, in the same store, fresh
entries by way of a plugin, which are then got, and put anew, one at a time. Latency is that of the
client: request to answer.
"""
import argparse
import hashlib
import os
import platform
import statistics
import subprocess
import time
from base64 import b64encode

from .direct import PLUGIN, working_directory
from .driver import Plugin
from .prune import EXPIRY_S, Tree

ENTRIES = 500
BODY_BYTES = 1300  # the median of a build of std


class Client:
    def __init__(self, root: str) -> None:
        self.plugin = Plugin([PLUGIN, f"--cache-dir={root}"])
        self.puts = []
        for number in range(ENTRIES):
            body = hashlib.sha256(b"%d" % number).digest() * (BODY_BYTES // 32)
            action = hashlib.sha256(b"action %d" % number).hexdigest()
            self.puts.append((action, hashlib.sha256(body).hexdigest(), len(body), b64encode(body)))

    def turn(self, seen: dict) -> None:
        """One put and one get; their seconds are added to ``seen``."""
        action, output, size, encoded = self.puts[len(seen["put"]) % ENTRIES]
        begin = time.perf_counter()
        self.plugin.put(action, output, size, [encoded])
        seen["put"].append(time.perf_counter() - begin)
        seen["get"].append(self.plugin.gets([action], 1))


def measure(root: str, actions: int) -> None:
    tree = Tree(root, actions)
    tree.fill(True)
    client = Client(root)
    idle, busy, warming = ({"put": [], "get": []} for _ in range(3))
    for _ in range(ENTRIES):  # directories made, modules loaded
        client.turn(warming)
    for _ in range(4 * ENTRIES):
        client.turn(idle)
    prune = subprocess.Popen(
        [PLUGIN, "prune", f"--cache-dir={root}", f"--expiry={EXPIRY_S}s"], stdout=subprocess.DEVNULL
    )
    while prune.poll() is None:
        client.turn(busy)
    client.plugin.close()
    for what in ("put", "get"):
        still, pruning = statistics.median(idle[what]), statistics.median(busy[what])
        print(
            f"{what}: {still * 1e6:.0f} µs idle, {pruning * 1e6:.0f} µs while pruning "
            f"(medians of {len(idle[what])} and {len(busy[what])}), ratio {pruning / still:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--actions", type=int, default=50_000)
    parser.add_argument("--work", help="a directory to work in, on the disk of interest")
    arguments = parser.parse_args()
    print(f"{platform.node()}: {os.cpu_count()} cores, Python {platform.python_version()}")
    with working_directory(arguments.work) as work:
        measure(os.path.join(work, "latency"), arguments.actions)


if __name__ == "__main__":
    main()
