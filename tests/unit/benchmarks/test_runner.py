"""benchmarks/runner.py, report.py, rivals.py, lab.py: turns, ratios, failures, the report."""

import argparse
import json

import pytest

from benchmarks import report, rivals, runner
from benchmarks.lab import counters, expect_hits, expect_uploads
from benchmarks.runner import Case, Comparison, Failed

SUMMARY = """gocache_server: get_requests=10 get_hits=7 get_misses=3
gocache_host: get_local_hit=7 put_s3_error=2
go-cache-plugin: 10 gets, 7 local hits; 0 B down, 0 B up, 1.5 s waited for uploads
"""
FACTS = {
    "date": "2026-01-02T03:04:05+00:00",
    "commit": "0123456789abcdef",
    "is_changed": True,
    "machine": {"processor": "P", "cores": 2, "memory_bytes": 2**34, "system": "S", "load": 0.5},
    "versions": {"go": "go1.26", "python": "3.12"},
    "workload": "std",
    "s3": "moto",
}


def case(name, order, values):
    """A Case whose runs return ``values`` one after another, or raise those that are exceptions."""
    values = iter(values)

    def run():
        order.append(name)
        value = next(values)
        if isinstance(value, Exception):
            raise value
        return {"wall_s": value}

    return Case(name, run)


def compare(ours, theirs, runs, warmups=0):
    order = []
    cases = [case("ours", order, ours), case("theirs", order, theirs)]
    result = runner.compare(Comparison("s", "v", "wall_s", "theirs", cases), runs, warmups)
    return result, order


def test_cases_are_run_in_turn_and_the_order_alternates():
    result, order = compare([1, 2, 3], [4, 5, 6], 3)
    assert "".join(name[0] for name in order) in ("ottoot", "tootto")
    assert result.values("ours") == [1, 2, 3] and result.values("theirs") == [4, 5, 6]


def test_warm_ups_do_not_count():
    result, order = compare([100, 1], [100, 2], 1, warmups=1)
    assert len(order) == 4 and result.values("ours") == [1] and result.median("theirs") == 2


def test_ratios_are_those_of_the_same_turns():
    result, _ = compare([2, 30, 8], [1, 10, 2], 3)
    assert sorted(result.ratios("ours")) == [2, 3, 4] and result.ratios("theirs") == []
    assert next(one for one in result.as_dict()["cases"] if one["name"] == "ours")["ratio"] == 3


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_case_that_fails_has_no_samples(at):
    values = [0.001, 0.001, 0.001]
    values[at] = Failed("it  does\nnot work")
    result, order = compare(values, [1, 1, 1], 3)
    assert result.failures == {"ours": "it does not work"} and result.values("ours") == []
    assert order.count("ours") == at + 1 and result.values("theirs") == [1, 1, 1]
    text = report.table(FACTS, [result])
    assert "FAILED" in text and "it does not work" in text and "0.001" not in text


def test_a_failed_yardstick_leaves_no_ratios():
    result, _ = compare([1, 1], [1, Failed("no")], 2)
    assert result.ratios("ours") == [] and result.values("ours") == [1, 1]


def test_the_report_as_json_and_as_a_table():
    result, _ = compare([2, 4], [1, 1], 2)
    found = json.loads(report.to_json(FACTS, [result]))
    assert found["commit"] == FACTS["commit"]
    (only,) = found["results"]
    assert [run["wall_s"] for run in only["cases"][0]["runs"]] == [2, 4]
    text = report.table(FACTS, [result])
    assert "3.000 s" in text and "2.000 to 4.000" in text and "0123456789ab and changes" in text


@pytest.mark.parametrize(
    "metric, value, text",
    [
        ("wall_s", 1.5, "1.500 s"),
        ("wall_s", 0.0123, "12.3 ms"),
        ("hit_s", 1.23e-5, "12.3 us"),
        ("peak_bytes", 2_500_000, "2.5 MB"),
        ("requests", 12, "12"),
        ("gets_s", 50_000.4, "50000 /s"),
        ("rate_mb_s", 120.2, "120 MB/s"),
    ],
)
def test_units(metric, value, text):
    assert report.shown(metric, value) == text


def test_a_build_with_misses_or_failed_uploads_is_a_failure():
    found = counters(SUMMARY)
    assert found["get_misses"] == 3 and found["drain_s"] == 1.5
    assert expect_hits({"wall_s": 1, "counters": dict(found)}, 3) == {"wall_s": 1}
    with pytest.raises(Failed, match="3 of 10 gets missed"):
        expect_hits({"counters": dict(found)}, 2)
    with pytest.raises(Failed, match="2 puts failed"):
        expect_uploads({"counters": dict(found)})
    without_counters = {"wall_s": 1, "counters": {}}
    assert expect_hits(without_counters, 0) == {"wall_s": 1}


def test_the_placeholders_of_a_peer_are_filled_in():
    peer = rivals.parse_peer("x=/bin/x --dir={cache} --b={bucket} --e={endpoint} --p={prefix}/q")
    assert peer.has_remote
    remote = {"bucket": "b", "endpoint": "http://e", "prefix": "p"}
    assert peer.argv("/c d", remote)[1:] == ["--dir=/c", "d", "--b=b", "--e=http://e", "--p=p/q"]
    assert not rivals.parse_peer("x=/bin/x {cache}").has_remote


@pytest.mark.parametrize(
    "text", ["x", "=y {cache}", "x=", "x=y", "x=y {cache} {other}", f"{rivals.OURS}=y {{cache}}"]
)
def test_wrong_peers_are_refused(text):
    with pytest.raises(ValueError):
        rivals.parse_peer(text)


def test_the_command_line(capsys):
    from benchmarks.__main__ import parse

    assert parse(["quick"]).size == "quick" and parse(["hit", "--runs=3"]).runs == 3
    assert isinstance(parse(["--peer=x=y {cache}"]), argparse.Namespace)
    for wrong in (
        ["nothing"],
        ["--runs=0"],
        ["--peer=x"],
        ["--bucket=b"],
        ["--peer=x=y {cache}"] * 2,
    ):
        with pytest.raises(SystemExit):
            parse(wrong)
    assert "Traceback" not in capsys.readouterr().err
