"""Counters, latency histograms, and the summary at exit.

The names of groups and counters are those that /metrics, /debug/vars and the summary show.
"""

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
    """One attribute for each counter; they count requests or bytes, from 0 upwards.

    ``drain_s`` is the time that close waited for uploads, in seconds.
    """

    __slots__ = (*_NAMES[SERVER], *_NAMES[HOST], "drain_s")

    get_requests: int
    get_hits: int
    get_hit_bytes: int
    get_misses: int
    get_errors: int
    put_requests: int
    put_bytes: int
    put_errors: int
    get_local_hit: int
    get_fault_hit: int
    get_fault_miss: int
    get_fault_damaged: int
    get_fault_error: int
    get_fault_skipped: int
    get_fault_bytes: int
    put_skip_small: int
    put_skip_read_only: int
    put_s3_found: int
    put_s3_action: int
    put_s3_object: int
    put_s3_bytes: int
    put_s3_error: int
    put_s3_skipped: int
    drain_s: float

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    def add(self, other: "Counters") -> None:
        """Add the counts of ``other`` to these."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_dict(self) -> "dict[str, dict[str, int]]":
        """{group: {name: count}}, without ``drain_s``."""
        return {
            group: {name: getattr(self, name) for name in names} for group, names in _NAMES.items()
        }

    def summary(self) -> str:
        """The text for stderr at exit: one line for each group, and one in plain words."""
        lines = [group_text(group, counts) for group, counts in self.as_dict().items()]
        rate = 100 * self.get_hits / self.get_requests if self.get_requests else 0
        lines.append(
            f"go-cache-plugin: {self.get_requests} gets, {self.get_local_hit} local hits, "
            f"{self.get_fault_hit} S3 hits ({rate:.1f} % hit), {self.put_requests} puts; "
            f"{byte_text(self.get_fault_bytes)} down, {byte_text(self.put_s3_bytes)} up, "
            f"{self.drain_s:.1f} s waited for uploads"
        )
        return "\n".join(lines) + "\n"


def group_text(group: str, counts: "dict[str, int]") -> str:
    """One line with the counters of a group that are not 0."""
    shown = " ".join(f"{name}={count}" for name, count in counts.items() if count)
    return f"{group}: {shown or '(nothing)'}"


class Histogram:
    """Counts observations by latency, and sums them up. BOUNDS_S are the buckets' upper bounds."""

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
        # For each bucket its own observations (not cumulative); the last bucket has no upper bound.
        self.counts = [0] * (len(self.BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        """Count ``count`` observations of ``seconds`` each."""
        self.counts[bisect_left(self.BOUNDS_S, seconds)] += count
        self.sum_s += seconds * count


def byte_text(count: int) -> str:
    """A number of bytes as text, in decimal units, such as 1.5 GB."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
