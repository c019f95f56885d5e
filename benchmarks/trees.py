"""Stores of many small entries, and programs that read through all of a store."""

import hashlib
import os
import subprocess
import time

from cacheplugin.store import record

from . import rivals
from .runner import Case, Comparison, Failed

EXPIRY_S = 30 * 86400
_ONE_IN = 10  # every tenth entry is expired
_BODY = b"x" * 100
_GETS = 500


class Tree:
    """A store of ``actions`` actions and 0.74 times as many outputs; a tenth of each is expired."""

    def __init__(self, root: str, actions: int, syncs: bool) -> None:
        self.root, self._now, self._syncs = root, time.time(), syncs
        self.actions = [_hash(f"action {number}") for number in range(actions)]
        self._outputs = [_hash(f"output {number}") for number in range(actions * 74 // 100 or 1)]
        for tree in ("action", "output"):
            for number in range(256):
                os.makedirs(f"{root}/{tree}/{number:02x}")
        self.fill(True)

    def fill(self, everything: bool) -> None:
        """Write all files, or only the expired ones."""
        step = 1 if everything else _ONE_IN
        for number in range(0, len(self._outputs), step):
            self._write("output", self._outputs[number], number, _BODY)
        for number in range(0, len(self.actions), step):
            action, output = self.actions[number], self._outputs[number % len(self._outputs)]
            self._write("action", action, number, record.encode(action, output, len(_BODY), 1, 0))
        if self._syncs:
            os.sync()  # no run pays for these writes

    def _write(self, tree, name, number, data) -> None:
        path = f"{self.root}/{tree}/{name[:2]}/{name}"
        with open(path, "wb", buffering=0) as file:
            file.write(data)
        age = 7200 + number % (EXPIRY_S // 2) + (EXPIRY_S if number % _ONE_IN == 0 else 0)
        os.utime(path, (self._now - age, self._now - age))

    def fresh(self) -> list:
        """Some actions that are not expired, spread over the whole store."""
        kept = [action for number, action in enumerate(self.actions) if number % _ONE_IN]
        return kept[:: max(1, len(kept) // _GETS)][:_GETS]

    def expired(self) -> list:
        """The paths of all expired files."""
        limit = self._now - EXPIRY_S
        return sorted(
            entry.path
            for tree in ("action", "output")
            for directory in os.scandir(f"{self.root}/{tree}")
            for entry in os.scandir(directory.path)
            if entry.stat().st_mtime < limit
        )


def deciding(scenario, variant, tree) -> Comparison:
    """The cost of prune without its removals, beside find over the same tree."""
    find = ["find", tree.root, "-type", "f", "-printf", r"%s %T@\n"]
    look = [
        rivals.PLUGIN,
        f"--cache-dir={tree.root}",
        "prune",
        f"--expiry={EXPIRY_S}s",
        "--dry-run",
    ]
    cases = [Case("find", lambda: timed(find)), Case(rivals.OURS, lambda: timed(look))]
    return Comparison(scenario, variant, "wall_s", "find", cases)


def timed(command) -> dict:
    """The metrics of a run of a program; raises Failed if its exit status is not 0."""
    begin = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wall_s = time.perf_counter() - begin
    if done.returncode:
        raise Failed(f"{command[0]} exits with {done.returncode}: {done.stderr[-300:]!r}")
    return {"wall_s": wall_s}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
