"""Statistics of a cache directory: what it holds, by age and size, and its last sessions."""

import os

from .ids import is_output
from .session_log import read_sessions
from .spool import count_pending
from .tree import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

# Upper bounds of the rows of a table, and their names. A last row has everything above them.
AGES_S = (
    (3600, "1 hour"),
    (86400, "1 day"),
    (7 * 86400, "1 week"),
    (30 * 86400, "30 days"),
    (90 * 86400, "90 days"),
)
SIZES = (
    (0, "empty"),
    (100, "100 B"),
    (1_000, "1 kB"),
    (10_000, "10 kB"),
    (100_000, "100 kB"),
    (1_000_000, "1 MB"),
    (10_000_000, "10 MB"),
    (100_000_000, "100 MB"),
)
_OTHERS = ("module", "revproxy")
_LAST_SESSIONS = 10


class Files:
    """A number of files, their size in bytes, and the bytes they occupy on disk."""

    __slots__ = ("bytes", "count", "disk_bytes")

    def __init__(self) -> None:
        self.count = self.bytes = self.disk_bytes = 0

    def add(self, status: os.stat_result) -> None:
        self.count += 1
        self.bytes += status.st_size
        self.disk_bytes += status.st_blocks * 512

    def as_dict(self) -> dict[str, int]:
        return {"count": self.count, "bytes": self.bytes, "bytes_on_disk": self.disk_bytes}


def collect(root: str, now: float) -> "dict[str, Any]":
    """Return the statistics of the cache directory ``root`` in the form that ``--json`` prints.

    Ages are of the last use, by mtime; ``now`` is in seconds since the epoch. Never raises OSError.
    Files that are created or removed meanwhile may or may not be counted.
    """
    entries, outputs = Files(), Files()
    ages: list[dict[str, Any]] = [
        {"up_to_s": bound, "entries": 0, "outputs": 0, "bytes": 0} for bound in _bounds(AGES_S)
    ]
    sizes: list[dict[str, Any]] = [
        {"up_to_bytes": bound, "outputs": 0, "bytes": 0} for bound in _bounds(SIZES)
    ]
    for status in _walk(f"{root}/action"):
        entries.add(status)
        ages[_row(AGES_S, now - status.st_mtime)]["entries"] += 1
    for status in _walk(f"{root}/output"):
        outputs.add(status)
        for row in (
            ages[_row(AGES_S, now - status.st_mtime)],
            sizes[_row(SIZES, status.st_size)],
        ):
            row["outputs"] += 1
            row["bytes"] += status.st_size
    sessions = read_sessions(root)
    return {
        "entries": entries.count,
        "outputs": outputs.count,
        "bytes": entries.bytes + outputs.bytes,
        "bytes_on_disk": entries.disk_bytes + outputs.disk_bytes,
        "others": {name: _total(f"{root}/{name}").as_dict() for name in _OTHERS},
        "spool": _spool(root),
        "ages": ages,
        "sizes": sizes,
        "sessions": sessions[-_LAST_SESSIONS:],
        "hit_rate": hit_rate(sessions[-_LAST_SESSIONS:]),
    }


def hit_rate(sessions: "list[dict[str, float]]") -> "float | None":
    """Return the share of hits, local and from S3, in the gets of sessions; None without gets."""
    gets = sum(session["gets"] for session in sessions)
    hits = sum(session["local_hits"] + session["s3_hits"] for session in sessions)
    return hits / gets if gets else None


def _spool(root: str) -> dict[str, int]:
    """Return the entries that wait for upload, by the journals, and the bodies linked for them."""
    bodies = _total(f"{root}/spool", is_output)
    try:
        entries = count_pending(Store(root))
    except OSError:
        entries = bodies.count
    return {"entries": entries, "outputs": bodies.count, "bytes": bodies.bytes}


def _total(path: str, wanted: "Callable[[str], bool] | None" = None) -> Files:
    files = Files()
    for status in _walk(path, wanted):
        files.add(status)
    return files


def _walk(path: str, wanted: "Callable[[str], bool] | None" = None) -> "Iterator[os.stat_result]":
    """Yield the status of each regular file below ``path`` for whose name ``wanted`` is true."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        yield from _walk(entry.path, wanted)
                    elif entry.is_file(follow_symlinks=False) and (
                        wanted is None or wanted(entry.name)
                    ):
                        yield entry.stat(follow_symlinks=False)
                except OSError:
                    continue
    except OSError:
        return


def _row(rows: tuple[tuple[int, str], ...], amount: float) -> int:
    """Return the index of the first row whose bound is at least ``amount``."""
    for index, (bound, _) in enumerate(rows):
        if amount <= bound:
            return index
    return len(rows)


def _bounds(rows: tuple[tuple[int, str], ...]) -> "list[int | None]":
    return [*(bound for bound, _ in rows), None]
