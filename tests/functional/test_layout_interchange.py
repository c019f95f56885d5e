"""Both layouts in one bucket: ``auto`` and ``both`` use them together."""

import pytest

from bundle_sessions import expect_all, fill, get_all, keys, put_all, some
from helpers import action_id, output_id, time_ns


def objects_keys(fake_s3, requests=False) -> list:
    """The keys of the layout objects in the bucket, or of the requests for it."""
    found = [key for _, key in fake_s3.requests] if requests else list(fake_s3.objects)
    return [key for key in found if key.startswith(("action/", "output/"))]


def write_objects(fake_s3, puts) -> None:
    for action, body in puts.items():
        output = output_id(body)
        fake_s3.objects[f"action/{action[:2]}/{action}"] = f"{output} 1700000000000000001".encode()
        fake_s3.objects[f"output/{output[:2]}/{output}"] = body


@pytest.mark.parametrize("layout", ["auto", "both"])
def test_hits_in_objects_are_bundled(machine, fake_s3, layout):
    """A bucket of the Go program: all gets hit with their times, and later hit in bundles."""
    puts = some(12)
    plugin = machine("a", layout="objects")
    put_all(plugin, puts)
    times = expect_all(plugin, puts)
    plugin.finish()
    plugin = machine("b", layout=layout)
    assert expect_all(plugin, puts) == times
    counts = plugin.finish()
    assert counts["get_fault_hit"] == 12 and "get_misses" not in counts
    assert "put_s3_action" not in counts  # there was no put
    assert len(keys(fake_s3, "bundle")) == len(keys(fake_s3, "manifest")) == 1
    for key in objects_keys(fake_s3):
        del fake_s3.objects[key]
    plugin = machine("c")
    assert expect_all(plugin, puts) == times
    assert plugin.finish()["get_fault_hit"] == 12


def test_bundles_are_asked_first(machine, fake_s3):
    """Objects are requested only for actions that no manifest names."""
    bundled, single = some(4, "bundled"), some(4, "single")
    write_objects(fake_s3, single)
    fill(machine("a"), bundled)
    plugin = machine("b", layout="auto")
    expect_all(plugin, bundled)
    assert not objects_keys(fake_s3, requests=True)
    expect_all(plugin, single)
    plugin.expect_miss(action_id("unknown"))
    counts = plugin.finish()
    assert counts["get_fault_hit"] + counts.get("get_local_hit", 0) == 8
    assert counts["get_misses"] == counts["get_fault_miss"] == 1


def test_upload_off_does_not_bundle_hits(machine, fake_s3):
    """Not even if the hits in objects are enough for a bundle."""
    puts = {action_id(n): bytes([n]) * (7 << 20) for n in range(10)}
    write_objects(fake_s3, puts)
    plugin = machine("a", "--upload=off", layout="auto")
    assert not [got for got in get_all(plugin, puts) if got.get("Miss")]
    assert plugin.silent(0.5)
    counts = plugin.finish()
    assert counts["get_fault_hit"] == 10 and not fake_s3.count("PUT")


def test_read_only_does_not_bundle_hits(machine, fake_s3):
    write_objects(fake_s3, some(3))
    plugin = machine("a", "--read-only", layout="auto")
    expect_all(plugin, some(3))
    plugin.finish()
    assert not fake_s3.count("PUT")


@pytest.mark.parametrize("filled", [False, True])
def test_auto_requests_no_objects_without_any(machine, fake_s3, filled):
    """In an empty bucket, or one with bundles only, a miss needs no request."""
    if filled:
        fill(machine("a"), some(3))
    plugin = machine("b", layout="auto")
    for n in range(5):
        plugin.expect_miss(action_id(f"unknown {n}"))
    fill(plugin, some(3, "new"))
    assert not objects_keys(fake_s3, requests=True) and not objects_keys(fake_s3)


def test_auto_puts_into_bundles_only(machine, fake_s3):
    """Also if the bucket has objects."""
    write_objects(fake_s3, some(3))
    before = objects_keys(fake_s3)
    counts = fill(machine("a", layout="auto"), some(3, "new"))
    assert counts["put_s3_action"] == 3 and objects_keys(fake_s3) == before
    plugin = machine("b")
    expect_all(plugin, some(3, "new"))
    plugin.finish()


@pytest.mark.parametrize("upload", ["background", "off"])
def test_both_writes_both_layouts(machine, fake_s3, flush_of, processes, upload):
    """The puts of a session with ``both`` are in either layout."""
    puts = some(8)
    plugin = machine("a", f"--upload={upload}", layout="both")
    put_all(plugin, puts)
    times = expect_all(plugin, puts)
    number = plugin.close()
    plugin.answer(number)
    plugin.end_input()
    plugin.wait()
    processes.expect_none()
    assert flush_of("a") == (0, 8 if upload == "off" else 0, 0)
    for layout in ("auto", "bundles", "objects"):
        plugin = machine(f"fresh {layout}", layout=layout)
        assert expect_all(plugin, puts) == times
        counts = plugin.finish()
        assert counts["get_fault_hit"] == 8 and "get_misses" not in counts
    (record,) = [fake_s3.objects[f"action/{a[:2]}/{a}"] for a in puts if a == action_id("x 4")]
    assert record == f"{output_id(puts[action_id('x 4')])} {time_ns(times[4])}".encode()


def test_both_reads_both_layouts(machine, fake_s3):
    bundled, single = some(4, "bundled"), some(4, "single")
    fill(machine("a"), bundled)
    write_objects(fake_s3, single)
    plugin = machine("b", layout="both")
    assert not [got for got in get_all(plugin, bundled | single) if got.get("Miss")]
    plugin.expect_miss(action_id("unknown"))
    put_all(plugin, some(5, "new"))
    counts = plugin.finish()
    assert counts["get_misses"] == 1 and counts["put_s3_action"] == 5  # each counts once


def test_failed_half_is_left_for_flush(machine, fake_s3, flush_of):
    """With ``both`` an entry is uploaded once it is in both layouts."""
    puts = some(3)
    fake_s3.faulty = lambda method, key: method == "PUT" and key.startswith("output/")
    fake_s3.fail("403")
    counts = fill(machine("a", layout="both"), puts)
    assert counts["put_s3_error"] + counts.get("put_s3_skipped", 0) == 3
    assert "put_s3_action" not in counts
    fake_s3.fail(None)
    assert flush_of("a") == (0, 3, 0)
    for layout in ("bundles", "objects"):
        plugin = machine(f"fresh {layout}", layout=layout)
        expect_all(plugin, puts)
        assert plugin.finish()["get_fault_hit"] == 3


def test_layout_objects_ignores_bundles(machine, fake_s3):
    """It requests no bundles and works as without them."""
    fill(machine("a"), some(3))
    del fake_s3.requests[:]
    plugin = machine("b", layout="objects")
    plugin.expect_miss(action_id("x 1"))
    put_all(plugin, some(3, "new"))
    counts = plugin.finish()
    assert counts["put_s3_action"] == 3 and counts["get_fault_miss"] == 1
    assert len(objects_keys(fake_s3, requests=True)) == len(fake_s3.requests)
    plugin = machine("c", layout="objects")
    expect_all(plugin, some(3, "new"))
    plugin.finish()
    assert len(objects_keys(fake_s3, requests=True)) == len(fake_s3.requests)
