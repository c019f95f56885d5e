"""metrics.py: the names of the counters, and the summary."""

import pytest

from cacheplugin.metrics import Counters, byte_text

# The counters that the Go program publishes for a build.
REFERENCE = {
    "gocache_server": "get_requests get_hits get_hit_bytes get_misses get_errors put_requests "
    "put_bytes put_errors",
    "gocache_host": "get_local_hit get_fault_hit get_fault_miss put_skip_small put_s3_found "
    "put_s3_action put_s3_object put_s3_error",
}


def test_names_of_the_reference():
    """Every counter of the Go program exists in its group, and is 0 at first."""
    groups = Counters().as_dict()
    assert set(groups) == set(REFERENCE)
    for group, names in REFERENCE.items():
        assert set(names.split()) <= set(groups[group])
        assert set(groups[group].values()) == {0}


def test_annotations_of_counters_match_the_slots():
    """Counters is annotated with its counters, in the same order."""
    assert tuple(Counters.__annotations__) == Counters.__slots__


def test_unknown_counter():
    """A misspelt counter is an AttributeError, not a new counter."""
    with pytest.raises(AttributeError):
        Counters().get_hitz = 1


def test_summary_of_nothing():
    """A session without requests has a summary without counters."""
    lines = Counters().summary().splitlines()
    assert lines[:2] == ["gocache_server: (nothing)", "gocache_host: (nothing)"]
    assert "0 gets" in lines[2] and "(0.0 % hit)" in lines[2]


def test_summary():
    """A line of counters for each group, then a line in words."""
    counters = Counters()
    counters.get_requests, counters.get_hits, counters.get_misses = 8, 6, 2
    counters.get_local_hit, counters.get_fault_hit = 4, 2
    counters.put_requests = 3
    counters.get_fault_bytes, counters.put_s3_bytes = 1_500_000, 999
    counters.drain_s = 1.25
    server, host, person = counters.summary().splitlines()
    assert server == "gocache_server: get_requests=8 get_hits=6 get_misses=2 put_requests=3"
    assert (
        host
        == "gocache_host: get_local_hit=4 get_fault_hit=2 get_fault_bytes=1500000 put_s3_bytes=999"
    )
    assert person == (
        "go-cache-plugin: 8 gets, 4 local hits, 2 S3 hits (75.0 % hit), 3 puts; "
        "1.5 MB down, 999 B up, 1.2 s waited for uploads"
    )
    assert counters.summary().endswith("\n")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (12_600_000, "12.6 MB"),
        (3 * 10**9, "3.0 GB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_byte_text(count, text):
    """Numbers of bytes are shown in decimal units."""
    assert byte_text(count) == text
