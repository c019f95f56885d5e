"""Runs programs and measures wall time, and the CPU and memory of all their processes (Linux)."""

import ctypes
import multiprocessing
import os
import re
import resource
import subprocess
import time
from typing import NamedTuple

SAMPLE_S = 0.02
_PR_SET_CHILD_SUBREAPER = 36


class Ended(NamedTuple):
    """A program that has ended, and all processes that it started."""

    status: int  # exit status of the program
    wall_s: float  # until the program's exit
    cpu_s: float  # of all its processes, until the last of them ended
    peak_bytes: int  # memory of the largest of its processes
    stderr: str  # stdout included


def run(command, env, directory: str, stderr_path: str, watch=None) -> Ended:
    """Run ``command`` and wait for it and for all processes that it leaves running.

    ``directory`` is its working directory, ``stderr_path`` the file for its output. ``watch(process
    id)`` is called every SAMPLE_S with the id of the process that is the ancestor of all.
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
    """Run ``command`` as a child, adopt the processes that it leaves, and send the measurements."""
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
    """{process id: CPU seconds so far} of a process and all its descendants."""
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
    """The peak of the memory of a plugin and its descendants together, in bytes (``pss``).

    ``word`` identifies the plugin: it is the first or second word of its command line.
    """

    def __init__(self, word: str) -> None:
        self.pss = 0  # a page that n processes share counts 1/n in each
        self._word = word.encode()
        self._front = None

    def sample(self, ancestor: int) -> None:
        """Measure the plugin below the process ``ancestor`` now; pass it to run() as ``watch``."""
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
        return 0  # the process has ended


def status_bytes(pid: int, field: str = "VmRSS") -> int:
    """Memory of a process in bytes: VmRSS (now) or VmHWM (peak)."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{field}:"))
