"""Results as a table and as JSON, with the machine, versions and arguments of the run."""

import json
import os
import platform
import statistics
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version

from cacheplugin import __version__

from .rivals import PLUGIN

FORMAT = 1  # version of the JSON
_PLACES = ("work", "out")  # arguments that do not affect the figures
_HERE = os.path.dirname(os.path.abspath(__file__))
# (end of a metric's name, scale, unit, digits); the first row that fits counts.
_UNITS = (
    ("_mb_s", 1, "MB/s", 0),
    ("gets_s", 1, "/s", 0),
    ("requests_s", 1, "/s", 0),
    ("_s", 1, "s", 3),
    ("_bytes", 1e-6, "MB", 1),
    ("", 1, "", 0),
)
# Metrics shown beside the compared metric.
_MORE = (
    "cpu_s",
    "requests",
    "down_bytes",
    "up_bytes",
    "close_s",
    "pss_bytes",
    "resident_bytes",
    "front_peak_bytes",
    "rate_mb_s",
    "p99_latency_s",
    "slowest_to_fastest",
    "descriptors",
)


def about(arguments, lab) -> dict:
    """Machine, versions, commit, date and arguments of a run."""
    return {
        "format": FORMAT,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _said(["git", "-C", _HERE, "rev-parse", "HEAD"]),
        "is_changed": bool(
            _said(["git", "-C", _HERE, "status", "--porcelain", "--untracked-files=no"])
        ),
        "machine": {
            "system": f"{platform.system()} {platform.release()}",
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "load": os.getloadavg()[0],
        },
        "versions": {
            "go-cache-plugin": __version__,
            "go": _said(["go", "env", "GOVERSION"]),
            "python": platform.python_version(),
            **{name: version(name) for name in ("botocore", "aiohttp", "zstandard")},
        },
        "arguments": {
            name: str(value)
            for name, value in vars(arguments).items()
            if value and name not in _PLACES
        },
        "workload": lab.workload.name,
        "s3": lab.s3_name,
        "rivals": {
            rival.name: rival.command.replace(PLUGIN, os.path.basename(PLUGIN))
            for rival in lab.rivals
        },
    }


def table(facts: dict, results) -> str:
    """The report as text for people."""
    machine = facts["machine"]
    changes = " and changes" if facts["is_changed"] else ""
    lines = [
        f"{facts['date']}, commit {facts['commit'][:12]}{changes}",
        f"{machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}, "
        f"load {machine['load']:.1f}; go {facts['versions']['go']}, "
        f"Python {facts['versions']['python']}",
        f"workload {facts['workload']}; S3: {facts['s3']}",
    ]
    heading = ("", "median", "spread", "ratio", "of the same turns", "")
    for result in results:
        what = f"{result.scenario}, {result.variant}" if result.variant else result.scenario
        rows = [heading] + [_row(result, name) for name in result.samples]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines += ["", f"{what} ({result.metric})"]
        for row in rows:
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(w) for cell, w in zip(row[1:5], widths[1:5])),
            ]
            lines.append(f"  {'  '.join(cells)}  {row[5]}".rstrip())
    return "\n".join(lines) + "\n"


def _row(result, name) -> tuple:
    if name in result.failures:
        return name, "FAILED", "", "", "", result.failures[name]
    values, ratios = result.values(name), result.ratios(name)
    if not values:
        return name, "-", "", "", "", "no run"
    more = ", ".join(
        f"{metric} {shown(metric, result.median(name, metric))}"
        for metric in _MORE
        if metric != result.metric and result.median(name, metric) is not None
    )
    return (
        name,
        shown(result.metric, statistics.median(values)),
        f"{shown(result.metric, min(values))} to {shown(result.metric, max(values))}",
        f"{statistics.median(ratios):.3f}" if ratios else "",
        f"{min(ratios):.3f} to {max(ratios):.3f}" if ratios else "",
        more,
    )


def shown(metric: str, value: float) -> str:
    """The value of a metric as text with its unit."""
    scale, unit, digits = next(row[1:] for row in _UNITS if metric.endswith(row[0]))
    value *= scale
    if unit == "s" and value < 1:
        value, unit, digits = (value * 1e3, "ms", 1) if value >= 1e-3 else (value * 1e6, "us", 1)
    if unit == "" and value != int(value):
        digits = 2
    return f"{value:.{digits}f} {unit}".rstrip()


def to_json(facts: dict, results) -> str:
    """The report as JSON; ``facts`` come from ``about``."""
    return (
        json.dumps({**facts, "results": [result.as_dict() for result in results]}, indent=1) + "\n"
    )


def _said(command) -> str:
    """The output of a command; "" if it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.machine()
