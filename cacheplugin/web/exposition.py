"""A server's snapshot as text: for Prometheus, and as expvar-style JSON."""

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from .. import __version__, breaker
from ..ipc import jobs
from ..metrics import HOST, SERVER, Histogram
from .modproxy import counters as modules

# (metric, its help, {value of its label: (group, counter)}, the label's name or None)
_COUNTERS = (
    ("get_requests", "Gets; each is a hit or a miss.", {"": (SERVER, "get_requests")}, None),
    (
        "get_hits",
        "Gets answered with a body, by where it was.",
        {"local": (HOST, "get_local_hit"), "s3": (HOST, "get_fault_hit")},
        "source",
    ),
    ("get_misses", "Gets answered without a body.", {"": (SERVER, "get_misses")}, None),
    ("get_hit_bytes", "Sizes of the bodies of hits.", {"": (SERVER, "get_hit_bytes")}, None),
    (
        "fetch_failures",
        "Fetches from S3 that brought nothing, by reason.",
        {
            "absent": (HOST, "get_fault_miss"),
            "damaged": (HOST, "get_fault_damaged"),
            "error": (HOST, "get_fault_error"),
            "skipped": (HOST, "get_fault_skipped"),
        },
        "reason",
    ),
    ("put_requests", "Puts.", {"": (SERVER, "put_requests")}, None),
    (
        "put_bytes",
        "Sizes of the bodies that were put and stored.",
        {"": (SERVER, "put_bytes")},
        None,
    ),
    ("put_errors", "Puts answered with an error.", {"": (SERVER, "put_errors")}, None),
    (
        "uploads",
        "Entries that were to be uploaded, by how that went.",
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
    ("s3_received_bytes", "Bytes that came from S3.", {"": (HOST, "get_fault_bytes")}, None),
    ("s3_sent_bytes", "Bytes that went to S3.", {"": (HOST, "put_s3_bytes")}, None),
)
_MODULE_COUNTERS = tuple(
    (
        f"modproxy_{name}",
        text,
        {value: (modules.GROUP, counter) for value, counter in sources.items()},
        label,
    )
    for name, text, sources, label in (
        ("requests", "Requests for module files.", {"": "get_request"}, None),
        (
            "answers",
            "Those answered, by how; what is left came from upstream.",
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
        (
            "s3_failures",
            "Files that S3 did not have, or not right.",
            {"absent": "get_fault_miss", "error": "get_fault_error"},
            "reason",
        ),
        (
            "received_bytes",
            "Bytes of module files, by where they came from.",
            {"local": "get_local_bytes", "s3": "get_s3_bytes", "upstream": "upstream_bytes"},
            "source",
        ),
        (
            "stored_bytes",
            "Bytes of module files that were kept, by where.",
            {"local": "put_local_bytes", "s3": "put_s3_bytes"},
            "place",
        ),
        (
            "store_failures",
            "Module files that were not kept, by where.",
            {"local": "put_local_error", "s3": "put_s3_error"},
            "place",
        ),
        ("mismatches", "Module files that were refused.", {"": "mismatch"}, None),
        (
            "unverified",
            "Module files served without their checksum database.",
            {"": "unverified"},
            None,
        ),
        (
            "upstream_requests",
            "Requests to proxies and checksum databases.",
            {"": "upstream_request"},
            None,
        ),
        (
            "upstream_failures",
            "Files that these did not give, but for absent ones.",
            {"": "upstream_error"},
            None,
        ),
    )
)
CONTENT_TYPE = CONTENT_TYPE_LATEST
_DIRECTIONS = {jobs.FETCHING: "fetch", jobs.UPLOADING: "upload"}
_BREAKER_STATES = {breaker.CLOSED: 0, breaker.HALF_OPEN: 1, breaker.OPEN: 2}


def variables(snapshot) -> dict:
    """{group: {counter: count}}, by the names that the Go program has, and ours."""
    found = {group: dict(counts) for group, counts in snapshot["counters"].items()}
    found["gocache_serve"] = {
        "sessions": snapshot["sessions"],
        **{f"sessions_{way}": count for way, count in snapshot["sessions_begun"].items()},
        "uploads_pending": snapshot["uploads_pending"],
    }
    return found


def prometheus_text(snapshot, spooled: int) -> bytes:
    """The exposition format; ``spooled``: entries that wait in the spool."""
    registry = CollectorRegistry()
    registry.register(_Collector(snapshot, spooled))
    return generate_latest(registry)


class _Collector:
    def __init__(self, snapshot, spooled) -> None:
        self._snapshot = snapshot
        self._spooled = spooled

    def collect(self):
        """Every metric, as the registry wants them."""
        snapshot = self._snapshot
        yield InfoMetricFamily("gocache", "The program.", {"version": __version__})
        proxies = _MODULE_COUNTERS if modules.GROUP in snapshot["counters"] else ()
        for name, text, sources, label in (*_COUNTERS, *proxies):
            family = CounterMetricFamily(f"gocache_{name}", text, labels=[label] if label else None)
            for value, (group, counter) in sources.items():
                family.add_metric([value] if label else [], snapshot["counters"][group][counter])
            yield family
        family = CounterMetricFamily(
            "gocache_sessions_begun", "Clients that came, by their way.", labels=["way"]
        )
        for way, count in snapshot["sessions_begun"].items():
            family.add_metric([way], count)
        yield family
        yield _gauge("sessions", "Clients that are served now.", snapshot["sessions"])
        yield _gauge(
            "uploads_pending",
            "Uploads of this server that are not done.",
            snapshot["uploads_pending"],
        )
        yield _gauge("spool_entries", "Entries in the spool of the cache directory.", self._spooled)
        if snapshot["bucket_usable"] is not None:
            yield _gauge(
                "bucket_usable", "0 while the bucket is given up.", int(snapshot["bucket_usable"])
            )
        yield CounterMetricFamily(
            "gocache_http_restarts", "HTTP processes that died.", snapshot["http_restarts"]
        )
        yield from self._latencies()
        if snapshot["pool"] is not None:
            yield from self._pool(jobs.PoolStatus(*snapshot["pool"]))

    def _latencies(self):
        gets = HistogramMetricFamily(
            "gocache_get_seconds",
            "Time from a get to its answer: of hits in the cache directory, and of all that S3 was asked.",
            labels=["source"],
        )
        uploads = HistogramMetricFamily(
            "gocache_upload_seconds", "Time from a put to the end of its upload.", labels=[]
        )
        for name, (counts, sum_s) in self._snapshot["histograms"].items():
            family, labels = (uploads, []) if name == "upload" else (gets, [name])
            family.add_metric(labels, _cumulative(counts), sum_s)
        yield gets
        yield uploads

    def _pool(self, status):
        yield _gauge("pool_workers", "Worker processes.", status.workers)
        for name, text, values in (
            ("pool_queued", "Tasks that wait for a worker.", status.queued),
            ("pool_running", "Tasks that workers have.", status.running),
            (
                "breaker_state",
                "Circuit breaker: 0 closed, 1 half-open, 2 open.",
                {key: _BREAKER_STATES[state] for key, state in status.breakers.items()},
            ),
        ):
            family = GaugeMetricFamily(f"gocache_{name}", text, labels=["direction"])
            for direction, value in values.items():
                family.add_metric([_DIRECTIONS[direction]], value)
            yield family


def _gauge(name, text, value) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"gocache_{name}", text, value)


def _cumulative(counts) -> list:
    total, found = 0, []
    for bound, count in zip((*map(str, Histogram.BOUNDS_S), "+Inf"), counts):
        total += count
        found.append((bound, total))
    return found
