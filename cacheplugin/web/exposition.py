"""Formats a server's snapshot: for Prometheus, and as JSON in the manner of Go's expvar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from .. import __version__, breaker
from ..ipc import jobs
from ..metrics import HOST, SERVER, Histogram
from ..tuples import NamedTuple
from .modproxy import counters as modproxy_counters

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prometheus_client import Metric

    from ..ipc.web_messages import Snapshot


class _Counter(NamedTuple):
    """A metric of type counter.

    name: without "gocache_". help: what operators read about it. sources: {value of the label:
    (group, counter) of the snapshot}. label: its name; None for a metric without a label, whose one
    source then has the key "".
    """

    name: str
    help: str
    sources: Mapping[str, tuple[str, str]]
    label: str | None = None


def _of_modproxy(
    name: str, help: str, sources: Mapping[str, str], label: str | None = None
) -> _Counter:
    """A metric of the module proxy. ``sources``: {value of the label: counter}."""
    group = modproxy_counters.GROUP
    found = {value: (group, counter) for value, counter in sources.items()}
    return _Counter(f"modproxy_{name}", help, found, label)


_COUNTERS = (
    _Counter("get_requests", "Get requests of go commands.", {"": (SERVER, "get_requests")}),
    _Counter(
        "get_hits",
        "Gets answered with a body, by where the body was: in the cache directory or in S3.",
        {"local": (HOST, "get_local_hit"), "s3": (HOST, "get_fault_hit")},
        "source",
    ),
    _Counter("get_misses", "Gets answered without a body.", {"": (SERVER, "get_misses")}),
    _Counter(
        "get_hit_bytes",
        "Bytes of the bodies with which gets were answered.",
        {"": (SERVER, "get_hit_bytes")},
    ),
    _Counter(
        "fetch_failures",
        "Fetches from S3 without a usable body, by reason: absent: not in the bucket; damaged: "
        "wrong content; error: S3 failed; skipped: S3 was not asked because it had failed before.",
        {
            "absent": (HOST, "get_fault_miss"),
            "damaged": (HOST, "get_fault_damaged"),
            "error": (HOST, "get_fault_error"),
            "skipped": (HOST, "get_fault_skipped"),
        },
        "reason",
    ),
    _Counter("put_requests", "Put requests of go commands.", {"": (SERVER, "put_requests")}),
    _Counter(
        "put_bytes",
        "Bytes of the bodies that puts stored in the cache directory.",
        {"": (SERVER, "put_bytes")},
    ),
    _Counter(
        "put_errors",
        "Puts that were answered with an error, so that the go command reports it.",
        {"": (SERVER, "put_errors")},
    ),
    _Counter(
        "uploads",
        "Entries to be uploaded, by result: sent: uploaded; found: the bucket had them already; "
        "error: S3 failed; skipped: S3 was not asked because it had failed before; small: below "
        "--min-upload-size; read_only: --read-only is set.",
        {
            "sent": (HOST, "put_s3_object"),
            "found": (HOST, "put_s3_found"),
            "error": (HOST, "put_s3_error"),
            "skipped": (HOST, "put_s3_skipped"),
            "small": (HOST, "put_skip_small"),
            "read_only": (HOST, "put_skip_read_only"),
        },
        "result",
    ),
    _Counter("s3_received_bytes", "Bytes received from S3.", {"": (HOST, "get_fault_bytes")}),
    _Counter("s3_sent_bytes", "Bytes sent to S3.", {"": (HOST, "put_s3_bytes")}),
)
_MODPROXY_COUNTERS = (
    _of_modproxy("requests", "Requests for module files.", {"": "get_request"}),
    _of_modproxy(
        "answers",
        "Answers to requests for module files, by source: local: the cache directory; s3: the "
        "bucket; stale: a last good copy, because upstream failed; absent: 404 or 410; error: a "
        "failure; invalid: a path that is not valid. All other answers came from upstream.",
        {
            "local": "get_local_hit",
            "s3": "get_fault_hit",
            "stale": "get_stale",
            "absent": "get_absent",
            "error": "get_error",
            "invalid": "path_error",
        },
        "source",
    ),
    _of_modproxy(
        "s3_failures",
        "Fetches of module files from S3 without a usable file, by reason: absent: not in the "
        "bucket; error: S3 failed, or the file in the bucket is wrong.",
        {"absent": "get_fault_miss", "error": "get_fault_error"},
        "reason",
    ),
    _of_modproxy(
        "received_bytes",
        "Bytes of module files, by where they were read or fetched from.",
        {"local": "get_local_bytes", "s3": "get_s3_bytes", "upstream": "upstream_bytes"},
        "source",
    ),
    _of_modproxy(
        "stored_bytes",
        "Bytes of module files that were stored, by place: the cache directory or S3.",
        {"local": "put_local_bytes", "s3": "put_s3_bytes"},
        "place",
    ),
    _of_modproxy(
        "store_failures",
        "Module files that could not be stored, by place: the cache directory or S3.",
        {"local": "put_local_error", "s3": "put_s3_error"},
        "place",
    ),
    _of_modproxy(
        "mismatches",
        "Module files from upstream that were refused: wrong format or wrong checksum.",
        {"": "mismatch"},
    ),
    _of_modproxy(
        "unverified",
        "Module files served but not stored, because no checksum database could be asked.",
        {"": "unverified"},
    ),
    _of_modproxy(
        "upstream_requests",
        "Requests sent to upstream proxies and checksum databases.",
        {"": "upstream_request"},
    ),
    _of_modproxy(
        "upstream_failures",
        "Files that an upstream failed to give after all tries; absent files do not count.",
        {"": "upstream_error"},
    ),
)
CONTENT_TYPE = CONTENT_TYPE_LATEST
S3_GOOD, S3_OFF, S3_UNUSED = "good", "off", "unused"
_DIRECTIONS = {jobs.FETCHING: "fetch", jobs.UPLOADING: "upload"}
_BREAKER_STATES = {breaker.CLOSED: 0, breaker.HALF_OPEN: 1, breaker.OPEN: 2}


def s3_state(snapshot: Snapshot) -> tuple[str, float]:
    """(state of S3, seconds since when it is off or 0).

    S3_GOOD: it answers. S3_OFF: it is not used, or in one direction only, because it failed.
    S3_UNUSED: there is no bucket, or S3 has not answered yet and has not failed often either.
    """
    if snapshot["bucket_usable"] is None:
        return S3_UNUSED, 0.0
    pool = snapshot["pool"]
    times = (snapshot["bucket_off_s"], None if pool is None else jobs.PoolStatus(*pool).off_s)
    known = [off_s for off_s in times if off_s is not None]
    if known:
        return S3_OFF, max(known)
    return (S3_GOOD if snapshot["bucket_answered"] else S3_UNUSED), 0.0


def variables(snapshot: Snapshot) -> dict[str, dict[str, int]]:
    """{group: {counter: count}}. The Go program has the same groups, except gocache_serve."""
    found = {group: dict(counts) for group, counts in snapshot["counters"].items()}
    found["gocache_serve"] = {
        "sessions": snapshot["sessions"],
        **{f"sessions_{way}": count for way, count in snapshot["sessions_begun"].items()},
        "uploads_pending": snapshot["uploads_pending"],
    }
    return found


def prometheus_text(snapshot: Snapshot, spooled: int) -> bytes:
    """All metrics in Prometheus's text format. ``spooled``: the number of entries in the spool."""
    registry = CollectorRegistry()
    registry.register(_SnapshotCollector(snapshot, spooled))
    return generate_latest(registry)


class _SnapshotCollector(Collector):
    def __init__(self, snapshot: Snapshot, spooled: int) -> None:
        self._snapshot = snapshot
        self._spooled = spooled

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; the registry calls this."""
        snapshot = self._snapshot
        yield InfoMetricFamily("gocache", "The version of the program.", {"version": __version__})
        yield from self._counters()
        yield _gauge("sessions", "Go commands that are connected now.", snapshot["sessions"])
        yield _gauge(
            "uploads_pending",
            "Uploads of this server that are queued or running.",
            snapshot["uploads_pending"],
        )
        yield _gauge(
            "spool_entries",
            "Entries in the cache directory that wait to be uploaded.",
            self._spooled,
        )
        if snapshot["bucket_usable"] is not None:
            yield _gauge(
                "bucket_usable",
                "1 while the bucket is used; 0 after an error that needs another configuration.",
                int(snapshot["bucket_usable"]),
            )
        yield from self._s3_metrics()
        yield CounterMetricFamily(
            "gocache_http_restarts",
            "How often the HTTP process died and was started again.",
            snapshot["http_restarts"],
        )
        yield CounterMetricFamily(
            "gocache_turned_away",
            "Connections that were refused, because of their user or of what they offered.",
            snapshot["turned_away"],
        )
        yield from self._latencies()
        if snapshot["pool"] is not None:
            yield from _pool_metrics(jobs.PoolStatus(*snapshot["pool"]))

    def _s3_metrics(self) -> Iterator[Metric]:
        state, off_s = s3_state(self._snapshot)
        family = GaugeMetricFamily(
            "gocache_s3_state",
            "1 for the state of S3 now: good: it answers; off: it is not used for a while because "
            "it failed; unused: there is no bucket, or it was not asked yet.",
            labels=["state"],
        )
        for name in (S3_GOOD, S3_OFF, S3_UNUSED):
            family.add_metric([name], int(name == state))
        yield family
        yield _gauge("s3_off_seconds", "For how long S3 has been off; 0 if it is not.", off_s)

    def _counters(self) -> Iterator[Metric]:
        snapshot = self._snapshot
        has_modproxy = modproxy_counters.GROUP in snapshot["counters"]
        for counter in _COUNTERS + (_MODPROXY_COUNTERS if has_modproxy else ()):
            has_label = counter.label is not None
            family = CounterMetricFamily(
                f"gocache_{counter.name}",
                counter.help,
                labels=[counter.label] if counter.label is not None else None,
            )
            for value, (group, name) in counter.sources.items():
                family.add_metric([value] if has_label else [], snapshot["counters"][group][name])
            yield family
        family = CounterMetricFamily(
            "gocache_sessions_begun",
            "Go commands that connected, by the kind of socket: unix or tcp.",
            labels=["way"],
        )
        for way, count in snapshot["sessions_begun"].items():
            family.add_metric([way], count)
        yield family

    def _latencies(self) -> Iterator[Metric]:
        gets = HistogramMetricFamily(
            "gocache_get_seconds",
            "Time from a get to its answer, by source: local: hits in the cache directory; s3: all "
            "gets for which S3 was asked.",
            labels=["source"],
        )
        uploads = HistogramMetricFamily(
            "gocache_upload_seconds", "Time from a put to the end of its upload.", labels=[]
        )
        for name, (counts, sum_s) in self._snapshot["histograms"].items():
            if name == "upload":
                uploads.add_metric([], _cumulative(counts), sum_s)
            else:
                gets.add_metric([name], _cumulative(counts), sum_s)
        yield gets
        yield uploads


def _pool_metrics(status: jobs.PoolStatus) -> Iterator[Metric]:
    yield _gauge("pool_workers", "Worker processes that talk to S3.", status.workers)
    states = {direction: _BREAKER_STATES[state] for direction, state in status.breakers.items()}
    for name, text, values in (
        ("pool_queued", "Tasks that wait for a worker.", status.queued),
        ("pool_running", "Tasks that workers are running.", status.running),
        (
            "breaker_state",
            "Circuit breaker of S3: 0 closed: S3 is used; 1 half-open: one task tries S3; "
            "2 open: S3 is not used for a while.",
            states,
        ),
    ):
        family = GaugeMetricFamily(f"gocache_{name}", text, labels=["direction"])
        for direction, value in values.items():
            family.add_metric([_DIRECTIONS[direction]], value)
        yield family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"gocache_{name}", text, value)


def _cumulative(counts: Sequence[int]) -> list[tuple[str, float]]:
    """[(upper bound, observations up to it)] of the counts of a metrics.Histogram."""
    bounds = (*map(str, Histogram.BOUNDS_S), "+Inf")
    total, found = 0, []
    for bound, count in zip(bounds, counts, strict=True):
        total += count
        found.append((bound, float(total)))
    return found
