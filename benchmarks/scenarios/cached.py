"""``hit`` and ``startup``: the cost of a local hit, and the time to the first one."""

import os
import statistics
import subprocess
import sys
import time

from ..driver import Plugin
from ..lab import go_environment
from ..runner import Case, Comparison, Failed

_IN_FLIGHT = 8
_STARTS = 5  # in each run, because a start is short


def hit(lab):
    """A get that the local cache answers: one at a time, and eight in flight, on one core."""
    for in_flight, what in ((1, "alone"), (_IN_FLIGHT, f"{_IN_FLIGHT} in flight")):
        cases = [_replay(lab, lab.responder, in_flight)]
        cases += [_replay(lab, rival, in_flight) for rival in lab.rivals]
        yield Comparison("hit", what, "hit_s", lab.responder.name, cases)


def _replay(lab, rival, in_flight) -> Case:
    def run():
        actions = lab.actions
        plugin = start(lab, rival, cpus=True)
        try:
            plugin.gets(actions, in_flight)
            spent = statistics.median(plugin.gets(actions, in_flight) for _ in range(3))
            resident = plugin.resident_bytes()
        except (ValueError, OSError, EOFError) as error:
            raise Failed(str(error)[:300]) from error
        finally:
            plugin.close()
        return {"hit_s": spent / len(actions), "resident_bytes": resident}

    return Case(rival.name, run)


def startup(lab):
    """From exec to the first get answered, beside an interpreter that does nothing."""

    def nothing():
        begin = time.perf_counter()
        for _ in range(_STARTS):
            subprocess.run([sys.executable, "-c", "pass"], check=True)
        return {"start_s": (time.perf_counter() - begin) / _STARTS}

    yardstick = Case("python -c pass", nothing)
    cases = [yardstick, *(_first_get(lab, rival) for rival in (lab.responder, *lab.rivals))]
    yield Comparison("startup", "", "start_s", yardstick.name, cases)


def _first_get(lab, rival) -> Case:
    def run():
        spent = []
        for _ in range(_STARTS):
            begin = time.perf_counter()
            plugin = start(lab, rival)
            try:
                plugin.gets(lab.actions[:1], 1)
                spent.append(time.perf_counter() - begin)
            except (ValueError, OSError, EOFError) as error:
                raise Failed(str(error)[:300]) from error
            finally:
                plugin.close()
        return {"start_s": statistics.mean(spent)}

    return Case(rival.name, run)


def start(lab, rival, cpus: bool = False) -> Plugin:
    """A driver.Plugin of a rival with its filled cache; ``cpus``: on this process's core."""
    cache = "" if rival is lab.responder else lab.filled(rival)
    core = {min(os.sched_getaffinity(0))} if cpus else None
    try:
        return Plugin(rival.argv(cache), go_environment(cache), core)
    except (OSError, EOFError) as error:
        raise Failed(f"the program does not start: {error}") from error
