"""What the spool adds to a put: with it and without it, in one process, in turn.

Usage: python -m benchmarks.spool [--runs N] [--puts N] [--work DIR] [--go]

A put stores body and record (EntryWriter); with the spool it is also added to a SpoolSession, and
done, as after its upload. Sizes are like those of a cold build of std (a quarter up to 70 B, median
1.3 kB, 90 % under 403 kB, largest 12.6 MB, 200 kB on average); one action in four shares its body.

--go: also a cold ``go build std`` with S3 on (versitygw where it is on PATH, else moto), with the
spool and without it. Without it means a spool/ that takes no directory: a plain file of that name,
so that the front has to do without, as on a full disk (and finds that out at each put anew).
"""
import argparse
import hashlib
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time

from cacheplugin.local import LocalCache
from cacheplugin.options import Options
from cacheplugin.spool import SpoolSession
from cacheplugin.store import Store

from .direct import PLUGIN, go_environment, report, working_directory
from .s3server import s3_server


def entries(count: int) -> list:
    """(action, output, body) of ``count`` puts, always the same."""
    source, made = random.Random(1), []
    for number in range(count):
        body = made[-1][2] if number % 4 == 3 else source.randbytes(body_size(source))
        made.append((_digest(b"%d" % number), _digest(body), body))
    return made


def body_size(source) -> int:
    at, within = source.random(), source.random()
    for share, least, most in ((0.25, 1, 70), (0.5, 71, 1300), (0.9, 1301, 403_000)):
        if at < share:
            return int(least * (most / least) ** within)
    return int(403_000 * (12_600_000 / 403_000) ** within**4)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put_all(root: str, puts, spooled: bool) -> float:
    """Seconds to put all of ``puts`` into a new store at ``root``, up to the last's upload."""
    cache, session = LocalCache(Store(root)), None
    waiting = []
    begin = time.perf_counter()
    for action, output, body in puts:
        with cache.writer(action, output, len(body)) as writer:
            writer.write(body)
            time_ns = time.time_ns()
            path = writer.commit(time_ns)
        if spooled:
            if session is None:
                session = SpoolSession.create(cache.store, Options(bucket="bench"), "")
            waiting.append(session.add(action, output, len(body), time_ns, path))
    for number in waiting:
        session.done(number)
    if session is not None:
        session.release()
    return time.perf_counter() - begin


def puts(work: str, count: int, runs: int) -> None:
    everything = entries(count)
    walls = {True: [], False: []}
    root = os.path.join(work, "puts")
    for turn in range(runs + 1):
        for spooled in (True, False) if turn % 2 else (False, True):
            wall = put_all(root, everything, spooled)
            shutil.rmtree(root)
            if turn:  # the first warms up
                walls[spooled].append(wall)
    print(f"{count} puts, {sum(len(body) for *_, body in everything) / 1e6:.0f} MB")
    report("puts with the spool", walls[True], "without", walls[False], 1e3, "ms")
    added = statistics.median(a - b for a, b in zip(walls[True], walls[False])) / count
    print(f"  the spool: {added * 1e6:.1f} µs a put")


def go_builds(work: str, runs: int) -> None:
    walls = {True: [], False: []}
    cache = os.path.join(work, "go-cache")
    for turn in range(runs):
        for spooled in (True, False) if turn % 2 else (False, True):
            os.makedirs(cache)
            if not spooled:
                open(os.path.join(cache, "spool"), "w").close()
            with s3_server(work) as (server, flags):
                program = " ".join([PLUGIN, f"--cache-dir={cache}", *flags])
                walls[spooled].append(go_build(work, program))
            assert os.path.isdir(os.path.join(cache, "spool")) == spooled
            shutil.rmtree(cache)
    what = f"cold go build std ({server}) with the spool"
    report(what, walls[True], "without", walls[False], 1, "s")


def go_build(work: str, program: str) -> float:
    env = go_environment(os.path.join(work, "go-own"), program)
    begin = time.perf_counter()
    subprocess.run(["go", "build", "std"], check=True, env=env, cwd=work)
    return time.perf_counter() - begin


def main() -> None:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--puts", type=int, default=1500)
    parser.add_argument("--work", help="a directory to work in, on the file system to measure")
    parser.add_argument("--go", action="store_true", help="cold builds too")
    arguments = parser.parse_args()
    print(f"{platform.node()}: {os.cpu_count()} cores, Python {platform.python_version()}")
    with working_directory(arguments.work) as work:
        puts(work, arguments.puts, arguments.runs)
        if arguments.go:
            go_builds(work, arguments.runs)


if __name__ == "__main__":
    sys.exit(main())
