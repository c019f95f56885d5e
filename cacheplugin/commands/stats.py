"""``go-cache-plugin stats``: what the cache directory holds, its ages and sizes, and its use."""

import json
import os
import signal
import sys
import time

from ..console import say
from ..errors import RemoteError, UsageError
from ..metrics import byte_text
from ..store.session_log import read_sessions

# Upper bounds of the histograms; what lies above the last has a row of its own.
_AGES_S = (
    (3600, "1 hour"),
    (86400, "1 day"),
    (7 * 86400, "1 week"),
    (30 * 86400, "30 days"),
    (90 * 86400, "90 days"),
)
_SIZES = (
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
_BAR = 30
_LAST_SCOPES = 20


class Files:
    """A number of files: their apparent size, and what they take on disk."""

    __slots__ = ("bytes", "count", "disk_bytes")

    def __init__(self) -> None:
        self.count = self.bytes = self.disk_bytes = 0

    def add(self, status) -> None:
        self.count += 1
        self.bytes += status.st_size
        self.disk_bytes += status.st_blocks * 512

    def as_dict(self) -> dict:
        return {"count": self.count, "bytes": self.bytes, "bytes_on_disk": self.disk_bytes}


def collect(root: str, now: float) -> dict:
    """All that ``stats`` says, as --json prints it. Ages are of last use, by mtime; raises nothing.

    Files that come and go meanwhile count or not.
    """
    entries, outputs = Files(), Files()
    ages = [(0, 0, 0) for _ in range(len(_AGES_S) + 1)]
    sizes = [(0, 0) for _ in range(len(_SIZES) + 1)]
    for status in _walk(f"{root}/action"):
        entries.add(status)
        row = _row(_AGES_S, now - status.st_mtime)
        count, bodies, size = ages[row]
        ages[row] = (count + 1, bodies, size)
    for status in _walk(f"{root}/output"):
        outputs.add(status)
        row = _row(_AGES_S, now - status.st_mtime)
        count, bodies, size = ages[row]
        ages[row] = (count, bodies + 1, size + status.st_size)
        row = _row(_SIZES, status.st_size)
        count, size = sizes[row]
        sizes[row] = (count + 1, size + status.st_size)
    sessions = read_sessions(root)
    return {
        "entries": entries.count,
        "outputs": outputs.count,
        "bytes": entries.bytes + outputs.bytes,
        "bytes_on_disk": entries.disk_bytes + outputs.disk_bytes,
        "others": {name: _total(f"{root}/{name}").as_dict() for name in _OTHERS},
        "spool": _spool(root),
        "ages": [
            {"up_to_s": bound, "entries": count, "outputs": bodies, "bytes": size}
            for bound, (count, bodies, size) in zip(_bounds(_AGES_S), ages)
        ],
        "sizes": [
            {"up_to_bytes": bound, "outputs": count, "bytes": size}
            for bound, (count, size) in zip(_bounds(_SIZES), sizes)
        ],
        "sessions": sessions[-_LAST_SESSIONS:],
        "hit_rate": hit_rate(sessions[-_LAST_SESSIONS:]),
    }


def hit_rate(sessions):
    """The share of hits, local and from S3, in the gets of sessions, 0 to 1; None without gets."""
    gets = sum(session["gets"] for session in sessions)
    hits = sum(session["local_hits"] + session["s3_hits"] for session in sessions)
    return hits / gets if gets else None


def _spool(root) -> dict:
    """What waits for upload: bodies by their links, entries by the sessions' journals."""
    bodies = Files()
    for status in _walk(f"{root}/spool", _is_output):
        bodies.add(status)
    from ..store.spool import count_pending
    from ..store.tree import Store

    try:
        entries = count_pending(Store(root))
    except OSError:
        entries = bodies.count
    return {"entries": entries, "outputs": bodies.count, "bytes": bodies.bytes}


def _is_output(name) -> bool:
    return len(name) == 64


def _total(path) -> Files:
    files = Files()
    for status in _walk(path):
        files.add(status)
    return files


def _walk(path, wanted=None):
    """The status of each plain file below ``path`` whose name is ``wanted``."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        yield from _walk(entry.path, wanted)
                    elif entry.is_file(follow_symlinks=False):
                        if wanted is None or wanted(entry.name):
                            yield entry.stat(follow_symlinks=False)
                except OSError:
                    continue
    except OSError:
        return


def _row(rows, amount) -> int:
    for index, (bound, _) in enumerate(rows):
        if amount <= bound:
            return index
    return len(rows)


def _bounds(rows) -> list:
    return [bound for bound, _ in rows] + [None]


# -- the command -----------------------------------------------------------------------------------


def run(options) -> int:
    """``go-cache-plugin stats``: 0; raises UsageError."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if options.remote:
        return _run_remote(options)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if not os.path.isdir(options.cache_dir):
        raise UsageError(f"there is no cache directory {options.cache_dir}")
    found = collect(options.cache_dir, time.time())
    if options.json:
        print(json.dumps(found))
    else:
        sys.stdout.write(text(found))
    return 0


def text(found: dict) -> str:
    """``collect``'s answer for a person."""
    lines = [
        f"{found['entries']} entries, {found['outputs']} outputs",
        f"{byte_text(found['bytes'])}, {byte_text(found['bytes_on_disk'])} on disk",
    ]
    for name, files in found["others"].items():
        if files["count"]:
            lines.append(f"{name}: {files['count']} files, {byte_text(files['bytes'])}")
    spool = found["spool"]
    lines.append(f"{spool['entries']} entries to upload, {byte_text(spool['bytes'])}")
    lines += ["", "not used for       entries    outputs       bytes"]
    names = [f"up to {name}" for _, name in _AGES_S] + ["longer"]
    most = max(row["bytes"] for row in found["ages"]) or 1
    for name, row in zip(names, found["ages"]):
        lines.append(
            f"{name:<15}{row['entries']:>11}{row['outputs']:>11}{byte_text(row['bytes']):>12}"
            f"  {_bar(row['bytes'], most)}"
        )
    lines += ["", "size of output                outputs       bytes"]
    names = [name if not bound else f"up to {name}" for bound, name in _SIZES] + ["larger"]
    most = max(row["outputs"] for row in found["sizes"]) or 1
    for name, row in zip(names, found["sizes"]):
        lines.append(
            f"{name:<26}{row['outputs']:>11}{byte_text(row['bytes']):>12}"
            f"  {_bar(row['outputs'], most)}"
        )
    lines.append("")
    if found["sessions"]:
        lines.append("last sessions              gets   local      S3  misses    puts   hit")
        for session in found["sessions"]:
            end = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(session["end"]))
            counts = (session[key] for key in ("gets", "local_hits", "s3_hits", "misses", "puts"))
            rate = _percent(hit_rate([session]))
            lines.append(f"{end:<23}" + "".join(f"{count:>8}" for count in counts) + f"{rate:>8}")
        lines.append(f"hit rate of these: {_percent(found['hit_rate'])}")
    else:
        lines.append("no sessions yet")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _percent(rate) -> str:
    return "-" if rate is None else f"{100 * rate:.1f} %"


def _bar(amount, most) -> str:
    return "#" * (-(-amount * _BAR // most))


# -- the bucket ------------------------------------------------------------------------------------


def _run_remote(options) -> int:
    """``stats --remote``; returns the exit status, raises UsageError."""
    if not options.bucket:
        raise UsageError("stats --remote needs --bucket")
    from ..remote import stats
    from ..remote.s3 import Bucket

    try:
        found = stats.collect(Bucket(options), options.prefix)
    except RemoteError as error:
        say(f"bucket {options.bucket}: {error}")
        return 1
    sys.stdout.write(f"{json.dumps(found)}\n" if options.json else remote_text(found))
    return 0


def remote_text(found: dict) -> str:
    """``collect``'s answer for a person."""
    lines = [
        f"{found['bundles']} bundles, {byte_text(found['bundle_bytes'])}; needed are"
        f" {found['live_bundles']}, {byte_text(found['live_bytes'])} of them",
        f"{found['manifests']} manifests, {byte_text(found['manifest_bytes'])}",
    ]
    if found["unreadable_manifests"]:
        lines.append(f"{found['unreadable_manifests']} manifests cannot be read")
    if found["missing_bundles"]:
        lines.append(f"{found['missing_bundles']} bundles that manifests name are not there")
    if not found["bundles"] and not found["manifests"]:
        lines.append("nothing here is in bundles: see --prefix and --layout")
        return "\n".join(lines) + "\n"
    lines += ["", "   entries       bytes   bundles   age  scope"]
    for scope in found["scopes"][:_LAST_SCOPES]:
        lines.append(
            f"{scope['entries']:>10}{byte_text(scope['bytes']):>12}{scope['bundles']:>10}"
            f"{_age_text(scope['age_s']):>6}  {scope['scope']}"
        )
    if len(found["scopes"]) > _LAST_SCOPES:
        lines.append(f"and {len(found['scopes']) - _LAST_SCOPES} older scopes")
    return "\n".join(lines) + "\n"


def _age_text(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name}"
    return f"{max(0, seconds):.0f} s"
