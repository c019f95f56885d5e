"""Whole programs as processes: wall time, and the CPU and memory of all that they start (Linux)."""

import ctypes
import multiprocessing
import os
import re
import resource
import subprocess
import time
from collections import namedtuple

SAMPLE_S = 0.02
_PR_SET_CHILD_SUBREAPER = 36

# status: of the program; wall_s: to its exit; cpu_s: of all that it started, to the end of the last of
# them; peak_bytes: of the largest of these processes; stderr: also what it wrote to stdout.
Ended = namedtuple("Ended", "status wall_s cpu_s peak_bytes stderr")


def run(command, env, directory: str, stderr_path: str, watch=None) -> Ended:
    """Run ``command`` and wait for it and for all that it leaves running, as a plugin does its pool.

    ``watch(process id)`` is called every SAMPLE_S meanwhile, with a process that starts all.
    """
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_run_to_the_last, args=(command, env, directory, stderr_path, theirs)
    )
    process.start()
    theirs.close()
    while not ours.poll(SAMPLE_S if watch else None):
        watch(process.pid)
    measured = ours.recv()
    process.join()
    with open(stderr_path, errors="replace") as file:
        return Ended(*measured, file.read())


def _run_to_the_last(command, env, directory, stderr_path, connection) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with open(stderr_path, "wb") as stderr:
        begin = time.perf_counter()
        try:
            status = subprocess.run(
                command,
                env=env,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            ).returncode
        except OSError as error:
            os.write(stderr.fileno(), str(error).encode())
            status = 127
        wall_s = time.perf_counter() - begin
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    connection.send((status, wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024))


def family(pid: int) -> dict:
    """{process id: CPU seconds so far} of a process and its descendants."""
    parents, spent = {}, {}
    for name in filter(str.isdigit, os.listdir("/proc")):
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


class PeakMemory:
    """The most memory that a plugin and its descendants had at one moment, in bytes, by ``sample``.

    ``word``: what its command line has among its first two words.
    """

    def __init__(self, word: str) -> None:
        self.pss = 0  # pages that several share count once
        self._word = word.encode()
        self._front = None

    def sample(self, ancestor: int) -> None:
        """Look at the descendants of ``ancestor`` now; for processes.run's ``watch``."""
        members = family(self._front or ancestor)
        if self._front is None:
            self._front = next(filter(self._is_plugin, sorted(members)), None)
            members = family(self._front) if self._front else ()
        self.pss = max(self.pss, sum(map(_pss_bytes, members)))

    def _is_plugin(self, pid: int) -> bool:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                return self._word in file.read().split(b"\0")[:2]
        except OSError:
            return False


def _pss_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return int(re.search(rb"^Pss: +(\d+) kB$", file.read(), re.MULTILINE)[1]) * 1024
    except (OSError, TypeError):
        return 0  # it has ended


def status_bytes(pid: int, field: str = "VmRSS") -> int:
    """A process's VmRSS or VmHWM, in bytes."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{field}:"))
