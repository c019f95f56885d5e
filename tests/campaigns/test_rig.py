"""The campaigns notice what they look for: calls are struck as told, and faults are seen."""

import pytest

from campaign import IN_BUCKET, Log, S3Point, judge, parse_case, spread
from helpers import b64, output_id
from injection import ERRNOS, Point, points


def answer(tmp_path, body: bytes, **changed) -> dict:
    path = tmp_path / "body"
    path.write_bytes(body)
    fields = {"ID": 1, "OutputID": b64(output_id(body)), "Size": len(body), "DiskPath": str(path)}
    return {**fields, **changed}


@pytest.mark.parametrize(
    "changed, word",
    [
        ({"Size": 3}, "wrong body"),
        ({"OutputID": b64(output_id(b"other"))}, "wrong body"),
        ({"DiskPath": "/nowhere/at/all"}, "cannot be read"),
    ],
)
def test_a_wrong_answer_is_a_fault(tmp_path, changed, word):
    log = Log()
    assert judge(answer(tmp_path, b"body", **changed), [b"body"], log, "here") == "hit"
    assert len(log.faults) == 1 and word in log.faults[0]


def test_a_body_that_was_replaced_is_a_fault(tmp_path):
    log = Log()
    log.put("name", b"old")
    log.put_answered("name", b"old")
    log.put("name", b"new")
    judge(answer(tmp_path, b"old"), log.allowed("name"), log, "before the answer")
    assert not log.faults
    log.put_answered("name", b"new")
    judge(answer(tmp_path, b"old"), log.allowed("name"), log, "after it")
    assert len(log.faults) == 1 and "stale" in log.faults[0]


def test_misses_and_errors_are_no_faults_by_themselves(tmp_path):
    log = Log()
    assert judge({"ID": 1, "Miss": True}, [], log, "here") == "miss"
    assert judge({"ID": 1, "Err": "no"}, [], log, "here") == "error"
    assert not log.faults


@pytest.mark.parametrize(
    "case",
    ["objects wait ENOSPC worker pwrite tmp 3", "bundles background s3 hang from 7"],
)
def test_a_case_is_its_text(case):
    layout, mode, point = parse_case(case)
    assert f"{layout} {mode} {point}" == case
    assert isinstance(point, S3Point) == (" s3 " in case)


def test_the_points_of_a_trace(tmp_path):
    (tmp_path / "front link output").write_bytes(b"..")
    (tmp_path / "pool write pipe").write_bytes(b".")
    assert points(tmp_path, ["kill-after", "EIO"]) == [
        Point("kill-after", "front", "link", "output", 1),
        Point("EIO", "front", "link", "output", 1),
        Point("kill-after", "front", "link", "output", 2),
        Point("EIO", "front", "link", "output", 2),
        Point("kill-after", "pool", "write", "pipe", 1),
    ]


def test_a_sample_has_all_kinds_before_it_has_one_twice():
    many = [Point("EIO", "front", "stat", "output", number) for number in range(50)]
    rare = [Point("EIO", "front", "link", "output", 1), Point("EIO", "pool", "fork", "process", 1)]
    chosen = spread(many + rare, 4)
    assert len(chosen) == 4 and set(rare) < set(chosen)
    assert chosen == spread(many + rare, 4)


def test_a_call_is_struck_once_in_the_process_that_is_meant(rig_of):
    rig = rig_of("objects", "wait")
    before = rig.struck["kill-before"]
    assert rig.faults(Point("kill-before", "worker", "link", "output", 1)) == []
    assert rig.struck["kill-before"] == before + 1
    assert rig.faults(Point("kill-before", "worker", "link", "output", 10_000)) == []
    assert rig.struck["kill-before"] == before + 1


def test_what_is_lost_in_the_bucket_is_found(rig_of, monkeypatch):
    """Every entry that was in the bucket is missed, and reported, once the bucket is empty."""
    rig = rig_of("objects", "wait")
    monkeypatch.setattr(rig, "_objects", {})
    faults = rig.faults(Point(ERRNOS[0], "front", "no-such-call", "nowhere", 1))
    assert all(
        any(f"{name} is lost" in fault for fault in faults)
        for name in IN_BUCKET
        if name != "seed 700"
    )
