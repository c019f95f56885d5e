"""``verify``: check every record and body of the cache directory, and remove what is wrong."""

import json
import os
import signal
import sys

from ..errors import UsageError
from ..store.tree import Store
from ..store.verify import check
from .progress import Progress


def run(options) -> int:
    """``go-cache-plugin verify``: 0, or 1 where anything was wrong; raises UsageError."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it can be stopped anywhere
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if not os.path.isdir(options.cache_dir):
        raise UsageError(f"there is no cache directory {options.cache_dir}")
    faults = []
    progress = Progress()

    def on_fault(fault) -> None:
        if options.json:
            faults.append(fault._asdict() | {"path": _printable(fault.path)})
            return
        progress.clear()
        removed = "; removed" if fault.removed else ""
        sys.stdout.write(f"{_printable(fault.path)}: {fault.what}{removed}\n")
        sys.stdout.flush()

    def on_progress(report, done) -> None:
        text = f"{report.bodies} bodies, {report.body_bytes / 1e6:.0f} MB"
        progress.show(text, done, 1)

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
        )
    return 1 if report.faults else 0


def _printable(path: str) -> str:
    return path if path.isprintable() and path.isascii() else ascii(path)
