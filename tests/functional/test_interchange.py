"""The layout objects in a bucket that the test reads and writes as the Go program does."""

import re
import shutil

import pytest

from helpers import action_id, counters, output_id, time_ns

TIME_NS = 1_712_345_678_000_000_009  # a fraction with leading zeros
LARGE = bytes(range(256)) * (4096 * 17) + b"and a tail"  # over 16 MiB: transferred in parts


def keys(action, body, prefix=""):
    output = output_id(body)
    return f"{prefix}action/{action[:2]}/{action}", f"{prefix}output/{output[:2]}/{output}"


def write_by_hand(bucket, action, body, prefix=""):
    action_key, output_key = keys(action, body, prefix)
    bucket.write(action_key, f"{output_id(body)} {TIME_NS}".encode())
    bucket.write(output_key, body)


@pytest.mark.parametrize("body", [b"", b"x", b"some body" * 1000, LARGE], ids=len)
def test_entry_of_the_go_program_hits_with_its_time(start, bucket, cache_dir, body):
    write_by_hand(bucket, action_id("a"), body)
    plugin = start(*bucket.flags, "--metrics").hello()
    got = plugin.expect_hit(action_id("a"), body)
    assert time_ns(got["Time"]) == TIME_NS
    counts = plugin.finish()
    assert counts["get_fault_hit"] == 1 and counts.get("get_fault_bytes", 0) == len(body)
    plugin = start("--metrics").hello()  # from the local cache
    assert time_ns(plugin.expect_hit(action_id("a"), body)["Time"]) == TIME_NS
    plugin.finish()
    assert not list(cache_dir.glob("tmp/*"))


@pytest.mark.parametrize("body", [b"", b"x", b"some body" * 1000, LARGE], ids=len)
def test_upload_is_readable_by_the_go_program(start, bucket, body):
    plugin = start(*bucket.flags).hello()
    got = plugin.expect_stored(action_id("a"), body)
    plugin.finish()
    action_key, output_key = keys(action_id("a"), body)
    assert sorted(bucket.keys()) == sorted([action_key, output_key])
    assert bucket.read(output_key) == body
    assert bucket.read(action_key).decode() == f"{output_id(body)} {time_ns(got['Time'])}"


def test_deleted_directory_is_filled_from_the_bucket(start, bucket, cache_dir):
    bodies = [b"body %d" % n * n for n in range(40)]
    plugin = start(*bucket.flags).hello()
    times = [plugin.expect_stored(action_id(n), body)["Time"] for n, body in enumerate(bodies)]
    plugin.finish()
    shutil.rmtree(cache_dir)
    plugin = start(*bucket.flags, "--metrics").hello()
    numbers = [plugin.get(action_id(n)) for n in range(40)]
    assert [plugin.answer(number)["Time"] for number in numbers] == times
    for n, body in enumerate(bodies):
        plugin.expect_hit(action_id(n), body)
    counts = plugin.finish()
    assert counts["get_fault_hit"] == 40 and "get_misses" not in counts


def test_later_put_replaces_the_action(start, bucket):
    for body in (b"first", b"second"):
        plugin = start(*bucket.flags, "--metrics").hello()
        plugin.expect_stored(action_id("a"), body)
        plugin.finish()
    action_key, output_key = keys(action_id("a"), b"second")
    assert bucket.read(action_key).startswith(output_id(b"second").encode())
    assert bucket.read(output_key) == b"second"


def test_output_in_the_bucket_is_not_uploaded_again(start, bucket):
    body = b"shared by both"
    write_by_hand(bucket, action_id("remote"), body)
    plugin = start(*bucket.flags, "--metrics").hello()
    plugin.expect_stored(action_id("local"), body)
    counts = plugin.finish()
    assert counts["put_s3_found"] == 1 and counts["put_s3_action"] == 1
    assert "put_s3_object" not in counts and "put_s3_bytes" not in counts


@pytest.mark.parametrize("given, used", [("a//b/", "a/b/"), ("team", "team/"), ("", "")])
def test_prefix_is_cleaned_as_a_path(start, bucket, given, used):
    write_by_hand(bucket, action_id("remote"), b"remote", used)
    plugin = start(*bucket.flags, f"--prefix={given}").hello()
    plugin.expect_hit(action_id("remote"), b"remote")
    plugin.expect_stored(action_id("local"), b"local")
    plugin.finish()
    assert bucket.read(keys(action_id("local"), b"local", used)[1]) == b"local"


def test_min_upload_size(start, bucket):
    plugin = start(*bucket.flags, "--min-upload-size=100", "--metrics").hello()
    plugin.expect_stored(action_id("small"), b"s" * 99)
    plugin.expect_stored(action_id("large"), b"l" * 100)
    counts = plugin.finish()
    assert counts["put_skip_small"] == 1
    assert sorted(bucket.keys()) == sorted(keys(action_id("large"), b"l" * 100))


def test_read_only_fetches_and_stores_but_does_not_upload(start, bucket):
    write_by_hand(bucket, action_id("remote"), b"remote")
    plugin = start(*bucket.flags, "--metrics", environ={"GOCACHE_READ_ONLY": "1"}).hello()
    plugin.expect_hit(action_id("remote"), b"remote")
    plugin.expect_stored(action_id("local"), b"local")
    counts = plugin.finish()
    assert counts["put_skip_read_only"] == 1
    assert len(bucket.keys()) == 2
    plugin = start().hello()
    plugin.expect_hit(action_id("local"), b"local")
    plugin.finish()


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"nonsense",
        b"%(o)s",
        b"%(o)s 1 2",
        b"%(o)s -1",
        b"%(o)s 1e9",
        b"%(o)s 99999999999999999999",
        b"../../etc/passwd 1",
        b"../%(o)s 1",
        b"%(O)s 1",
        b"%(o)s\0 1",
        b"\xff\xfe 1",
    ],
)
def test_invalid_action_record_is_a_counted_miss(start, fake_s3, cache_dir, record):
    body = b"a body"
    action_key, output_key = keys(action_id("a"), body)
    output = output_id(body).encode()
    fake_s3.objects[action_key] = record.replace(b"%(o)s", output).replace(b"%(O)s", output.upper())
    fake_s3.objects[output_key] = body
    plugin = start(*fake_s3.flags(), "--metrics").hello()
    plugin.expect_miss(action_id("a"))
    assert plugin.finish()["get_fault_damaged"] == 1
    assert fake_s3.count("GET", "output") == 0 and not list(cache_dir.glob("*/*/*"))
    assert not re.search("traceback", plugin.stderr, re.I)


def test_action_without_output_is_a_counted_miss(start, fake_s3):
    fake_s3.objects[keys(action_id("a"), b"gone")[0]] = f"{output_id(b'gone')} 1".encode()
    plugin = start(*fake_s3.flags(), "--metrics").hello()
    plugin.expect_miss(action_id("a"))
    plugin.finish()
    assert counters(plugin.stderr)["get_fault_damaged"] == 1
