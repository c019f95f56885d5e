"""Entries of the spool go where their session would have sent them, whoever uploads them later."""

import pytest

from fakes3 import FakeS3
from helpers import action_id, output_id

BODY = b"what a build made"


@pytest.fixture
def other_s3():
    server = FakeS3()
    yield server
    server.stop()


def leave(start, *flags, **environ) -> None:
    """Run a session that leaves an entry in the spool."""
    flags = ["--bucket=bucket", "--layout=objects", "--s3-path-style", "--upload=off", *flags]
    plugin = start(*flags, environ=environ).hello()
    plugin.expect_stored(action_id("a"), BODY)
    plugin.finish()


def expect_flushed(flush) -> None:
    out, err = flush.communicate(timeout=60)
    assert (flush.returncode, err) == (0, "") and out.startswith("1 entries uploaded")


def regions(server) -> set:
    """The regions for which requests were signed."""
    return {region for _, region in server.signers}


@pytest.mark.parametrize("is_set", [False, True], ids=["none at flush", "another at flush"])
def test_an_endpoint_from_a_variable(start, fake_s3, other_s3, begin_flush_of, is_set):
    """A flush with another endpoint, or with none, uploads to that of the session."""
    leave(start, AWS_ENDPOINT_URL=fake_s3.url)
    environ = {"AWS_ENDPOINT_URL_S3": other_s3.url} if is_set else {}
    expect_flushed(begin_flush_of("cache", **environ))
    assert len(fake_s3.objects) == 2 and not other_s3.requests


def test_no_endpoint_is_kept_too(start, fake_s3, other_s3, begin_flush_of, cache_dir):
    """Entries for AWS itself are not sent to the endpoint that a flush has in its environment."""
    leave(start, "--region=us-east-1", HTTPS_PROXY="http://127.0.0.1:1")
    flush = begin_flush_of("cache", AWS_ENDPOINT_URL=fake_s3.url, HTTPS_PROXY="http://127.0.0.1:1")
    out, _ = flush.communicate(timeout=60)
    assert flush.returncode == 1 and "1 remain" in out
    assert not fake_s3.requests


def test_endpoint_and_region_from_a_profile(start, fake_s3, other_s3, begin_flush_of, tmp_path):
    """What a profile of the session's said counts, also once the file says otherwise."""
    config = tmp_path / "config"
    text = "[profile ci]\nregion = eu-west-3\nendpoint_url = {}\n"
    config.write_text(text.format(fake_s3.url))
    profile = {"AWS_PROFILE": "ci", "AWS_CONFIG_FILE": str(config), "AWS_REGION": ""}
    leave(start, **profile)
    config.write_text(text.format(other_s3.url))
    expect_flushed(begin_flush_of("cache", **profile))
    leave(start, **profile)
    config.unlink()
    expect_flushed(begin_flush_of("cache", AWS_REGION="us-west-2"))
    output = output_id(BODY)
    assert f"output/{output[:2]}/{output}" in other_s3.objects
    assert f"output/{output[:2]}/{output}" in fake_s3.objects
    assert regions(fake_s3) == regions(other_s3) == {"eu-west-3"}


def test_a_region_from_a_variable(start, fake_s3, begin_flush_of):
    """A flush signs for the region of the session."""
    leave(start, f"--s3-endpoint-url={fake_s3.url}", AWS_REGION="", AWS_DEFAULT_REGION="sa-east-1")
    expect_flushed(begin_flush_of("cache", AWS_REGION="us-west-2"))
    assert regions(fake_s3) == {"sa-east-1"}


def test_the_keys_of_a_profile(start, fake_s3, begin_flush_of, tmp_path):
    """A flush without credentials uses the profile of the session; one with its own does not."""
    keys = tmp_path / "keys"
    keys.write_text("[cache]\naws_access_key_id = FROMPROFILE\naws_secret_access_key = s\n")
    bare = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    flag = f"--s3-endpoint-url={fake_s3.url}"

    def key_ids() -> set:
        """The access keys of the requests since the last call."""
        found = {key_id for key_id, _ in fake_s3.signers}
        fake_s3.signers.clear()
        return found

    named = {"AWS_PROFILE": "cache", "AWS_SHARED_CREDENTIALS_FILE": str(keys)}
    leave(start, flag, **bare, **named)
    key_ids()
    expect_flushed(begin_flush_of("cache", **bare))
    assert key_ids() == {"FROMPROFILE"}
    leave(start, flag, **bare, **named)
    key_ids()
    expect_flushed(begin_flush_of("cache"))
    assert "FROMPROFILE" not in key_ids()
