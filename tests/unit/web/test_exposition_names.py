"""Unit tests of web/exposition.py: every counter is published exactly once."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cacheplugin import breaker
from cacheplugin.ipc import jobs
from cacheplugin.metrics import HOST, SERVER, Counters, Histogram
from cacheplugin.web import exposition

# The counters that the Go program publishes for builds.
REFERENCE = {
    "gocache_server": "get_requests get_hits get_hit_bytes get_misses get_errors put_requests "
    "put_bytes put_errors",
    "gocache_host": "get_local_hit get_fault_hit get_fault_miss put_skip_small put_s3_found "
    "put_s3_action put_s3_object put_s3_error",
}
# Not in Prometheus's text: counters that are sums of others, or always 0.
SUMS = {"get_hits", "put_s3_action", "get_errors"}


def snapshot(**fields) -> dict:
    """A snapshot in which every number is different."""
    counters = Counters()
    for number, name in enumerate(Counters.__slots__):
        setattr(counters, name, 1000 + number)
    histograms = {}
    for number, name in enumerate(("local", "s3", "upload")):
        histograms[name] = Histogram()
        for place, seconds in enumerate((*Histogram.BOUNDS_S, 1000.0)):
            histograms[name].add(seconds, place + number + 1)
    return {
        "counters": counters.as_dict(),
        "histograms": {name: (one.counts, one.sum_s) for name, one in histograms.items()},
        "sessions": 2001,
        "sessions_begun": {"unix": 2002, "tcp": 2003},
        "uploads_pending": 2004,
        "is_stopping": False,
        "turned_away": 2012,
        "bucket_usable": True,
        "bucket_answered": True,
        "bucket_off_s": 2013,
        "http_restarts": 2005,
        "pool": (
            {jobs.FETCHING: 2006, jobs.UPLOADING: 2007},
            {jobs.FETCHING: 2008, jobs.UPLOADING: 2009},
            2010,
            {jobs.FETCHING: breaker.HALF_OPEN, jobs.UPLOADING: breaker.CLOSED},
            1.5,
        ),
        **fields,
    }


def families(found, spooled=2011) -> dict:
    """{name: parsed metric}; fails if a name occurs twice."""
    text = exposition.prometheus_text(found, spooled).decode()
    parsed = list(text_string_to_metric_families(text))
    assert len({family.name for family in parsed}) == len(parsed)
    return {family.name: family for family in parsed}


def test_variables_include_the_go_programs_counters():
    """Every counter of the Go program is there, in its group, with the snapshot's number."""
    found, given = exposition.variables(snapshot()), snapshot()["counters"]
    for group, names in REFERENCE.items():
        assert set(names.split()) <= set(found[group])
        assert found[group] == given[group]
    assert found["gocache_serve"] == {
        "sessions": 2001,
        "sessions_unix": 2002,
        "sessions_tcp": 2003,
        "uploads_pending": 2004,
    }


def test_changing_variables_does_not_change_the_snapshot():
    """The returned dict is a copy."""
    given = snapshot()
    exposition.variables(given)["gocache_server"]["get_requests"] = 0
    assert given["counters"][SERVER]["get_requests"] == 1000


def test_every_counter_has_one_sample():
    """Every counter of the snapshot but the sums has exactly one sample."""
    given = snapshot()["counters"]
    values = [
        sample.value
        for family in families(snapshot()).values()
        for sample in family.samples
        if family.type == "counter" and 1000 <= sample.value < 2000
    ]
    expected = [
        count
        for group in (SERVER, HOST)
        for name, count in given[group].items()
        if name not in SUMS
    ]
    assert sorted(values) == sorted(expected)


def test_every_other_number_has_one_sample():
    """So has every number of the snapshot that is not a counter or histogram."""
    values = [
        sample.value
        for family in families(snapshot()).values()
        if family.type != "histogram"
        for sample in family.samples
        if sample.value >= 2000
    ]
    assert sorted(values) == list(range(2001, 2014))


def test_names_and_help():
    """Names begin with gocache_, counters end in _total, and each metric has a help text."""
    for name, family in families(snapshot()).items():
        assert name == "gocache" or re.fullmatch(r"gocache_[a-z0-9_]+", name)
        assert family.documentation.endswith(".") or ":" in family.documentation
        if family.type == "counter":
            assert {sample.name for sample in family.samples} == {f"{name}_total"}


@pytest.mark.parametrize(
    ("family", "label", "name"),
    [
        ("get_seconds", "local", "local"),
        ("get_seconds", "s3", "s3"),
        ("upload_seconds", None, "upload"),
    ],
)
def test_histograms_agree_with_observations(family, label, name):
    """Buckets are cumulative over all bounds, and the last one is the count."""
    given = snapshot()
    counts, sum_s = given["histograms"][name]
    samples = [
        sample
        for sample in families(given)[f"gocache_{family}"].samples
        if sample.labels.get("source") == label
    ]
    buckets = {one.labels["le"]: one.value for one in samples if one.name.endswith("_bucket")}
    assert list(map(float, buckets)) == [*Histogram.BOUNDS_S, float("inf")]
    totals = [sum(counts[: place + 1]) for place in range(len(counts))]
    assert list(buckets.values()) == totals and totals == sorted(totals)
    (count,) = [one.value for one in samples if one.name.endswith("_count")]
    (total,) = [one.value for one in samples if one.name.endswith("_sum")]
    assert count == totals[-1] and total == pytest.approx(sum_s)


@pytest.mark.parametrize(("usable", "value"), [(True, 1), (False, 0), (None, None)])
def test_bucket_usable(usable, value):
    """bucket_usable is 1 or 0; without a bucket it is left out."""
    family = families(snapshot(bucket_usable=usable)).get("gocache_bucket_usable")
    assert (family and family.samples[0].value) == value


def test_a_server_without_a_bucket():
    """Without a bucket there are only local gets and no pool, and both pages work."""
    given = snapshot(bucket_usable=None, pool=None)
    given["histograms"] = {"local": given["histograms"]["local"]}
    found = families(given)
    sources = {sample.labels.get("source") for sample in found["gocache_get_seconds"].samples}
    assert sources == {"local"} and "gocache_pool_workers" not in found
    assert exposition.variables(given)["gocache_serve"]["sessions"] == 2001


def test_snapshot_with_lists_instead_of_tuples():
    """Lists in place of tuples give the same text."""
    given = snapshot()
    crossed = given | {
        "pool": list(given["pool"]),
        "histograms": {name: list(one) for name, one in given["histograms"].items()},
    }
    assert exposition.prometheus_text(crossed, 1) == exposition.prometheus_text(given, 1)
