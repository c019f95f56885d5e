"""Unit tests of web/exposition.py: one snapshot in both formats."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cacheplugin import breaker
from cacheplugin.ipc import jobs
from cacheplugin.metrics import Counters, Histogram
from cacheplugin.web import exposition


def snapshot(**fields) -> dict:
    counters, histogram = Counters(), Histogram()
    counters.get_requests, counters.get_hits, counters.get_local_hit = 7, 5, 5
    counters.put_s3_object = 3
    for seconds, count in ((0.00004, 2), (0.002, 1), (99.0, 1)):
        histogram.add(seconds, count)
    return {
        "counters": counters.as_dict(),
        "histograms": {"local": (histogram.counts, histogram.sum_s)},
        "sessions": 2,
        "sessions_begun": {"unix": 4, "tcp": 1},
        "uploads_pending": 6,
        "is_stopping": False,
        "turned_away": 0,
        "bucket_usable": True,
        "bucket_answered": True,
        "bucket_off_s": None,
        "http_restarts": 0,
        "pool": None,
        **fields,
    }


def samples(found, spooled=0) -> dict:
    """{(name, labels as a sorted tuple): value} of the text, parsed as Prometheus parses it."""
    text = exposition.prometheus_text(found, spooled).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters_and_gauges():
    """Counters and gauges have the snapshot's numbers, under their labels."""
    found = samples(snapshot(), spooled=9)
    assert found["gocache_get_requests_total", ()] == 7
    assert found["gocache_get_hits_total", (("source", "local"),)] == 5
    assert found["gocache_uploads_total", (("result", "sent"),)] == 3
    assert found["gocache_sessions_begun_total", (("way", "unix"),)] == 4
    assert found["gocache_sessions", ()] == 2
    assert found["gocache_spool_entries", ()] == 9 and found["gocache_uploads_pending", ()] == 6


def test_histograms_are_cumulative():
    """Each bucket counts the observations up to its bound; +Inf counts all."""
    found = samples(snapshot())

    def bucket(bound):
        return found["gocache_get_seconds_bucket", (("le", bound), ("source", "local"))]

    assert bucket("5e-05") == 2 and bucket("0.001") == 2 and bucket("0.0025") == 3
    assert bucket("30.0") == 3 and bucket("+Inf") == 4
    labels = (("source", "local"),)
    assert found["gocache_get_seconds_count", labels] == 4
    assert abs(found["gocache_get_seconds_sum", labels] - 99.00208) < 1e-6


def test_pool_metrics():
    """Queues, running tasks and breakers are shown by direction; without a pool nothing is."""
    status = jobs.PoolStatus(
        {jobs.FETCHING: 1, jobs.UPLOADING: 2},
        {jobs.FETCHING: 3, jobs.UPLOADING: 4},
        5,
        {jobs.FETCHING: breaker.CLOSED, jobs.UPLOADING: breaker.OPEN},
    )
    found = samples(snapshot(pool=tuple(status)))
    upload = (("direction", "upload"),)
    assert found["gocache_pool_queued", upload] == 2 and found["gocache_pool_running", upload] == 4
    assert found["gocache_pool_workers", ()] == 5 and found["gocache_breaker_state", upload] == 2
    assert ("gocache_pool_workers", ()) not in samples(snapshot())


CLOSED = dict.fromkeys((jobs.FETCHING, jobs.UPLOADING), breaker.CLOSED)


@pytest.mark.parametrize(
    "fields, state",
    [
        ({}, ("good", 0)),
        ({"pool": ({}, {}, 1, CLOSED, None)}, ("good", 0)),
        ({"bucket_answered": False}, ("unused", 0)),
        ({"bucket_usable": None, "bucket_answered": False}, ("unused", 0)),
        ({"bucket_off_s": 0.0}, ("off", 0)),
        ({"bucket_usable": False, "bucket_off_s": 7.0}, ("off", 7)),
        ({"pool": ({}, {}, 1, CLOSED, 8.0)}, ("off", 8)),
        ({"pool": ({}, {}, 1, CLOSED, 8.0), "bucket_off_s": 9.0}, ("off", 9)),
        ({"pool": ({}, {}, 1, CLOSED, 8.0), "bucket_answered": False}, ("off", 8)),
    ],
)
def test_the_state_of_s3(fields, state):
    """Of three gauges one is 1. What the server and what the pool know of S3 both count."""
    given = snapshot(**fields)
    assert exposition.s3_state(given) == state
    found = samples(given)
    for name in ("good", "off", "unused"):
        assert found["gocache_s3_state", (("state", name),)] == (name == state[0])
    assert found["gocache_s3_off_seconds", ()] == state[1]


def test_variables_have_the_go_programs_names():
    """The two groups of the Go program are there, and gocache_serve."""
    found = exposition.variables(snapshot())
    assert found["gocache_server"]["get_requests"] == 7
    assert {"get_local_hit", "get_fault_hit", "put_s3_object"} <= found["gocache_host"].keys()
    assert found["gocache_serve"]["sessions"] == 2
