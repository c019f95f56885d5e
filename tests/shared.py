"""What is made once in a run of the tests and used by every worker of pytest-xdist."""

import fcntl
import os
import shutil
from pathlib import Path


def run_directory(tmp_path_factory) -> Path:
    """The temporary directory of the whole run; a worker's own one is a child of it."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(tmp_path_factory, name: str, make) -> Path:
    """The directory ``name`` of the run, filled by ``make(path)`` in the first worker that asks.

    The other workers wait for it. They must not change what is in it. If ``make`` raises, the next
    worker that asks tries again.
    """
    root = run_directory(tmp_path_factory) / "shared"
    root.mkdir(exist_ok=True)
    path, done = root / name, root / f"{name}.done"
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
            make(path)
            done.touch()
    return path
