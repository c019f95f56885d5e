"""The command ``stats``: prints statistics of the cache directory, or with --remote the bucket."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from ..console import say
from ..errors import RemoteError, UsageError
from ..metrics import byte_text
from ..store.stats import AGES_S, SIZES, collect, hit_rate

if TYPE_CHECKING:
    from typing import Any

    from ..options import Options

_BAR = 30
_LAST_SCOPES = 20


def run(options: Options) -> int:
    """Print statistics; return the exit status. Raises UsageError."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if options.remote:
        return _run_remote(options)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if not os.path.isdir(options.cache_dir):
        raise UsageError(f"there is no cache directory {options.cache_dir}: see --cache-dir")
    found = collect(options.cache_dir, time.time())
    if options.json:
        print(json.dumps(found))
    else:
        sys.stdout.write(text(found))
    return 0


def text(found: dict[str, Any]) -> str:
    """Format the answer of store.stats.collect as text."""
    lines = [
        f"{found['entries']} entries, {found['outputs']} outputs",
        f"{byte_text(found['bytes'])}, {byte_text(found['bytes_on_disk'])} on disk",
    ]
    for name, files in found["others"].items():
        if files["count"]:
            lines.append(f"{name}: {files['count']} files, {byte_text(files['bytes'])}")
    spool = found["spool"]
    lines.append(f"{spool['entries']} entries to upload, {byte_text(spool['bytes'])}")
    lines += ["", *_age_lines(found["ages"]), "", *_size_lines(found["sizes"]), ""]
    if found["sessions"]:
        lines += _session_lines(found["sessions"])
        lines.append(f"hit rate of these: {_percent(found['hit_rate'])}")
    else:
        lines.append("no sessions yet")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _age_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["not used for       entries    outputs       bytes"]
    names = [f"up to {name}" for _, name in AGES_S] + ["longer"]
    most = max(row["bytes"] for row in rows)
    for name, row in zip(names, rows, strict=True):
        lines.append(
            f"{name:<15}{row['entries']:>11}{row['outputs']:>11}{byte_text(row['bytes']):>12}"
            f"  {_bar(row['bytes'], most)}"
        )
    return lines


def _size_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["size of output                outputs       bytes"]
    names = [name if not bound else f"up to {name}" for bound, name in SIZES] + ["larger"]
    most = max(row["outputs"] for row in rows)
    for name, row in zip(names, rows, strict=True):
        lines.append(
            f"{name:<26}{row['outputs']:>11}{byte_text(row['bytes']):>12}"
            f"  {_bar(row['outputs'], most)}"
        )
    return lines


def _session_lines(sessions: list[dict[str, Any]]) -> list[str]:
    lines = ["last sessions              gets   local      S3  misses    puts   hit"]
    for session in sessions:
        end = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(session["end"]))
        counts = (session[key] for key in ("gets", "local_hits", "s3_hits", "misses", "puts"))
        rate = _percent(hit_rate([session]))
        lines.append(f"{end:<23}" + "".join(f"{count:>8}" for count in counts) + f"{rate:>8}")
    return lines


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.1f} %"


def _bar(amount: int, most: int) -> str:
    """Return a bar in proportion to ``amount``; it is _BAR characters long for ``most``."""
    return "#" * (-(-amount * _BAR // (most or 1)))


# -- the bucket ------------------------------------------------------------------------------------


def _run_remote(options: Options) -> int:
    """``stats --remote``: return the exit status. Raises UsageError."""
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


def remote_text(found: dict[str, Any]) -> str:
    """Format the answer of remote.stats.collect as text."""
    lines = [
        f"{found['bundles']} bundles, {byte_text(found['bundle_bytes'])};"
        f" {found['live_bundles']} of them hold {byte_text(found['live_bytes'])} of live entries",
        f"{found['manifests']} manifests, {byte_text(found['manifest_bytes'])}",
    ]
    if found["unreadable_manifests"]:
        lines.append(f"{found['unreadable_manifests']} manifests cannot be read")
    if found["missing_bundles"]:
        lines.append(f"{found['missing_bundles']} bundles that manifests name are missing")
    if not found["bundles"] and not found["manifests"]:
        lines.append("no bundles here: check --bucket, --prefix and --layout")
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
