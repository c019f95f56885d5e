"""The command ``verify``: checks the cache directory; with ``--repair`` removes what is wrong."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..store.tree import Store
from ..store.verify import check
from .progress import Progress

if TYPE_CHECKING:
    from typing import Any

    from ..options import Options
    from ..store.faults import Fault, Report


def run(options: Options) -> int:
    """Check and print the faults; return 0, or 1 if there were any. Raises UsageError."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it may be stopped at any point
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if not os.path.isdir(options.cache_dir):
        raise UsageError(f"there is no cache directory {options.cache_dir}: see --cache-dir")
    faults: list[dict[str, Any]] = []
    progress = Progress()

    def on_fault(fault: Fault) -> None:
        if options.json:
            faults.append(fault._asdict() | {"path": _printable(fault.path)})
            return
        progress.clear()
        removed = "; removed" if fault.removed else ""
        sys.stdout.write(f"{_printable(fault.path)}: {fault.what}{removed}\n")
        sys.stdout.flush()

    def on_progress(report: Report, done: float) -> None:
        progress.show(f"{report.bodies} bodies, {report.body_bytes / 1e6:.0f} MB", done, 1)

    report = check(
        Store(options.cache_dir),
        sha256=options.sha256,
        on_fault=on_fault,
        repair=options.repair,
        on_progress=on_progress,
    )
    progress.clear()
    if options.json:
        print(json.dumps({**report.as_dict(), "wrong": faults}))
    else:
        speed = report.body_bytes / report.seconds / 1e6 if report.seconds else 0
        print(
            f"{report.records} records, {report.bodies} bodies of {report.body_bytes / 1e6:.1f} MB"
            f" ({report.unnamed} named by no record) in {report.seconds:.1f} s, {speed:.0f} MB/s: "
            + (f"{report.faults} wrong, {report.removed} removed" if report.faults else "all right")
            + (f"; {report.mended} bodies made executable" if report.mended else "")
        )
    return 1 if report.faults else 0


def _printable(path: str) -> str:
    """Return a path that is safe to print on a terminal."""
    return path if path.isprintable() and path.isascii() else ascii(path)
