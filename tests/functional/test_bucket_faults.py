"""A bucket that fails: misses that are counted, at most one warning, and no damaged entries."""

import time

import pytest

from fakes3 import DAMAGE, FAILURES
from helpers import KEYS, action_id, output_id, stored_bodies, wait_until

BODY = b"what the build made" * 100
NO_KEYS = dict.fromkeys(KEYS, "")


def warnings(plugin) -> list:
    """The lines of stderr, which without -v are warnings."""
    return plugin.stderr.splitlines()


def fill(fake_s3, *names) -> None:
    for name in names:
        action, output = action_id(name), output_id(BODY)
        fake_s3.objects[f"action/{action[:2]}/{action}"] = f"{output} 1700000000000000001".encode()
        fake_s3.objects[f"output/{output[:2]}/{output}"] = BODY


@pytest.mark.parametrize("fault", FAILURES)
def test_a_failing_bucket_opens_the_breaker_with_one_warning(start, fake_s3, fault):
    fill(fake_s3, *range(8))
    fake_s3.fail(fault)
    plugin = start(*fake_s3.flags(), "-c=4").hello()
    began = time.monotonic()
    for number in [plugin.get(action_id(n)) for n in range(4)]:
        assert plugin.answer(number)["Miss"]
    assert time.monotonic() - began < 20  # a bucket that hangs is given up after its time-outs
    later = action_id("later")
    plugin.expect_miss(later)  # at once; only requests that had begun may still be repeated
    plugin.finish()
    assert not any(later in key for _, key in fake_s3.requests)
    (warning,) = warnings(plugin)
    assert "fetching from bucket bucket failed repeatedly" in warning


@pytest.mark.parametrize("fault", FAILURES[2:])
def test_failing_uploads_open_the_breaker_with_one_warning(start, fake_s3, fault):
    fake_s3.fail(fault)
    plugin = start(*fake_s3.flags(), "-u=2").hello()
    for n in range(12):
        plugin.expect_stored(action_id(n), b"body %d" % n)
    plugin.finish()
    assert fake_s3.count("PUT") < 24 and not fake_s3.objects
    (warning,) = warnings(plugin)
    assert "uploading to bucket bucket failed repeatedly" in warning


def test_failures_are_counted(start, fake_s3):
    fake_s3.fail("500")
    plugin = start(*fake_s3.flags(), "--metrics").hello()
    plugin.expect_miss(action_id("a"))
    plugin.expect_stored(action_id("a"), BODY)
    counts = plugin.finish()
    assert counts["get_fault_error"] == 1 and counts["put_s3_error"] == 1
    assert counts["get_misses"] == 1 and "get_fault_miss" not in counts


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_body_is_a_counted_miss_and_not_stored(start, fake_s3, cache_dir, fault):
    fill(fake_s3, "a")
    fake_s3.faulty = lambda method, key: key.startswith("output/")
    fake_s3.fail(fault)
    plugin = start(*fake_s3.flags(), "--metrics").hello()
    plugin.expect_miss(action_id("a"))
    assert stored_bodies(cache_dir) == {} and not list(cache_dir.glob("action/*/*"))
    fake_s3.fail(None)
    plugin.expect_hit(action_id("a"), BODY)  # one failure does not open the breaker
    counts = plugin.finish()
    assert counts.get("get_fault_damaged", 0) + counts.get("get_fault_error", 0) == 1
    assert counts["get_fault_hit"] == 1
    assert not list(cache_dir.glob("tmp/*"))


def test_a_wrong_body_counts_as_damaged(start, fake_s3):
    fill(fake_s3, "a")
    fake_s3.faulty = lambda method, key: key.startswith("output/")
    fake_s3.fail("flip")
    plugin = start(*fake_s3.flags(), "--metrics").hello()
    plugin.expect_miss(action_id("a"))
    assert plugin.finish()["get_fault_damaged"] == 1


def test_one_failure_is_retried(start, fake_s3):
    fill(fake_s3, "a")
    first = []
    fake_s3.faulty = lambda method, key: not first and (first.append(key) or True)
    fake_s3.fail("503")
    plugin = start(*fake_s3.flags()).hello()
    plugin.expect_hit(action_id("a"), BODY)
    plugin.finish()
    assert plugin.stderr == ""


def assert_local_cache(plugin) -> None:
    """Assert: the plugin works as a local cache, with one warning, and exits with 0."""
    plugin.hello()
    plugin.expect_miss(action_id("unknown"))
    for n in range(3):
        plugin.expect_stored(action_id(n), BODY)
        plugin.expect_miss(action_id(f"unknown {n}"))
    plugin.finish()
    (warning,) = warnings(plugin)
    assert warning.count("bucket") >= 1 and "is not used: " in warning
    assert "Traceback" not in warning


def test_missing_credentials_are_one_warning_and_a_local_cache(start, fake_s3):
    plugin = start(*fake_s3.flags(), environ=NO_KEYS)
    assert_local_cache(plugin)
    assert "credentials" in plugin.stderr and not fake_s3.requests


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"])
def test_refused_credentials_are_one_warning_and_a_local_cache(start, fake_s3, code):
    fake_s3.fail(code)
    plugin = start(*fake_s3.flags())
    assert_local_cache(plugin)
    assert code in plugin.stderr


def test_no_such_bucket_is_one_warning_and_a_local_cache(start, moto_server):
    plugin = start(*moto_server.flags("there-is-no-such-bucket"))
    assert_local_cache(plugin)
    assert "NoSuchBucket" in plugin.stderr


def test_an_invalid_endpoint_is_one_warning_and_a_local_cache(start):
    assert_local_cache(start("--bucket=b", "--s3-endpoint-url=http://bad host:x/"))


def test_failing_uploads_do_not_delay_close(start, fake_s3):
    fake_s3.hold = lambda method, key: method == "PUT"
    plugin = start(*fake_s3.flags(), "-u=1").hello()
    for n in range(30):
        plugin.expect_stored(action_id(n), b"body %d" % n)
    number = plugin.close()
    wait_until(lambda: fake_s3.held, "the first upload")
    fake_s3.fail("500")
    fake_s3.release()
    plugin.answer(number)
    assert fake_s3.count("PUT") <= 8  # at most four jobs, two requests each


@pytest.mark.parametrize("layout", ["objects", "bundles"])
def test_a_session_of_one_get_says_why_s3_failed(start, fake_s3, layout):
    """In one line, before the summary, whose last line names the state of S3."""
    fake_s3.fail("refuse")
    plugin = start(*fake_s3.flags(layout=layout), "--metrics").hello()
    plugin.expect_miss(action_id("a"))
    plugin.finish()
    said, *_, state = plugin.stderr.splitlines()
    assert "bucket bucket failed for 1 gets and 0 puts; the last failure: " in said
    assert "bucket bucket: no answer, " in state


def test_close_waits_for_the_first_answer(start, fake_s3):
    """A get and a close sent together: the reason is known when close is answered."""
    plugin = start(*fake_s3.flags(), "--metrics", environ=NO_KEYS)
    plugin.hello()
    get, close = plugin.get(action_id("a")), plugin.close()
    assert plugin.answer(get)["Miss"]
    assert plugin.answer(close) == {"ID": close}
    assert plugin.wait() == 0
    said, *_, state = plugin.stderr.splitlines()
    assert "bucket bucket is not used: no AWS credentials found" in said
    assert "bucket bucket: not used, no AWS credentials found" in state


def test_a_good_session_says_nothing_of_s3_without_metrics(start, fake_s3):
    plugin = start(*fake_s3.flags()).hello()
    plugin.expect_miss(action_id("a"))
    plugin.expect_stored(action_id("a"), BODY)
    plugin.finish()
    assert plugin.stderr == ""
