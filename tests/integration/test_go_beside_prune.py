"""Prune in a loop beside real builds; every entry of the store is old enough to be pruned."""

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from helpers import DEADLINE_S, PROGRAM, counters

LONG_AGO_S = 3 * 3600


def age(cache_dir: Path) -> None:
    """Make every entry look unused for hours, except those that prune removes meanwhile."""
    then = time.time() - LONG_AGO_S
    for tree in ("action", "output"):
        for path in (cache_dir / tree).glob("*/*"):
            try:
                os.utime(path, (then, then))
            except FileNotFoundError:
                pass


@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.long)])
def test_builds_pass_while_prune_removes_entries(go, std_cache, seconds):
    """Every path that a build prints exists, although prune removes entries before and after."""
    shutil.copytree(std_cache, go.cache_dir)
    listing = ["list", "-export", "-deps", "-f", "{{if .Export}}{{.Export}}{{end}}", "./..."]
    go.run(*listing)
    kept = go.cache_dir.with_name("kept")
    shutil.copytree(go.cache_dir, kept)
    stop, statuses = threading.Event(), []

    def prune():
        command = [PROGRAM, "prune", f"--cache-dir={go.cache_dir}", "--expiry=1h"]
        while not stop.is_set():
            done = subprocess.run(command, env=go.environ(), capture_output=True, text=True)
            statuses.append((done.returncode, done.stderr))

    pruner = threading.Thread(target=prune)
    pruner.start()
    removed = hits = 0
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end or not (hits and removed):
            assert time.monotonic() < end + DEADLINE_S, f"{hits} hits, {removed} removed"
            shutil.copytree(kept, go.cache_dir, dirs_exist_ok=True)
            age(go.cache_dir)
            done = go.run(*listing)
            paths = done.stdout.split()
            assert len(paths) > 20 and all(Path(path).stat().st_size for path in paths)
            counts = counters(done.stderr)
            hits += counts.get("get_local_hit", 0)
            removed += counts.get("get_misses", 0)
    finally:
        stop.set()
        pruner.join()
    assert statuses and set(statuses) == {(0, "")}
