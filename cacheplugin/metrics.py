"""Counters by REFERENCE names, histograms, and the summary at exit."""

from _bisect import bisect_left

HOST = "gocache_host"
SERVER = "gocache_server"

_NAMES = {
    SERVER: (
        "get_requests",
        "get_hits",
        "get_hit_bytes",
        "get_misses",
        "get_errors",
        "put_requests",
        "put_bytes",
        "put_errors",
    ),
    HOST: (
        "get_local_hit",
        "get_fault_hit",
        "get_fault_miss",
        "get_fault_damaged",
        "get_fault_error",
        "get_fault_skipped",
        "get_fault_bytes",
        "put_skip_small",
        "put_skip_read_only",
        "put_s3_found",
        "put_s3_action",
        "put_s3_object",
        "put_s3_bytes",
        "put_s3_error",
        "put_s3_skipped",
    ),
}


class Counters:
    """One attribute for each counter; all counts of things or bytes, from 0 upwards."""

    __slots__ = (*_NAMES[SERVER], *_NAMES[HOST], "drain_s")

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    def add(self, other: "Counters") -> None:
        """Count what another has counted as well."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_dict(self) -> dict:
        """{group: {name: count}}"""
        return {
            group: {name: getattr(self, name) for name in names} for group, names in _NAMES.items()
        }

    def summary(self) -> str:
        """The counters that counted, then one line for a person."""
        lines = [group_text(group, counts) for group, counts in self.as_dict().items()]
        rate = 100 * self.get_hits / self.get_requests if self.get_requests else 0
        lines.append(
            f"go-cache-plugin: {self.get_requests} gets, {self.get_local_hit} local hits, "
            f"{self.get_fault_hit} S3 hits ({rate:.1f} % hit), {self.put_requests} puts; "
            f"{byte_text(self.get_fault_bytes)} down, {byte_text(self.put_s3_bytes)} up, "
            f"{self.drain_s:.1f} s waited for uploads"
        )
        return "\n".join(lines) + "\n"


def group_text(group: str, counts: dict) -> str:
    """A line with those of a group's counters that counted."""
    shown = " ".join(f"{name}={count}" for name, count in counts.items() if count)
    return f"{group}: {shown or '(nothing)'}"


class Histogram:
    """How many observations lie at or below each of BOUNDS_S, in seconds, and their sum."""

    BOUNDS_S = (
        0.00005,
        0.0001,
        0.00025,
        0.0005,
        0.001,
        0.0025,
        0.005,
        0.01,
        0.025,
        0.05,
        0.1,
        0.25,
        0.5,
        1.0,
        2.5,
        5.0,
        10.0,
        30.0,
    )

    def __init__(self) -> None:
        self.counts = [0] * (len(self.BOUNDS_S) + 1)  # not cumulative; the last: above all bounds
        self.sum_s = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        """Note ``count`` observations that took so long each."""
        self.counts[bisect_left(self.BOUNDS_S, seconds)] += count
        self.sum_s += seconds * count


def byte_text(count: int) -> str:
    """A number of bytes for a person, in the decimal units that --max-size takes."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
