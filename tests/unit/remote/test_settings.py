"""remote/settings.py: what the user says about S3 reaches each request."""

import io
import os

import pytest

from cacheplugin.errors import Unavailable, Unusable
from cacheplugin.options import Options
from cacheplugin.remote import s3
from cacheplugin.remote.settings import open_session

LARGE = os.urandom(s3.LARGE_BYTES + 100)


@pytest.fixture
def connect(server, keys):
    """connect(**options): a Bucket of the server."""

    def connect(**more):
        fields = {"bucket": "bucket", "region": "us-east-1", "endpoint_url": server.url, **more}
        return s3.Bucket(Options(**fields, path_style=True))

    return connect


def refuse(handler) -> bool:
    """Answer a request with 403."""
    body = b"<Error><Code>AccessDenied</Code><Message>refused</Message></Error>"
    handler.send_response_only(403)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
    return True


def wants_payer(handler) -> bool:
    """Refuse requests without x-amz-request-payer."""
    return handler.headers.get("x-amz-request-payer") != "requester" and refuse(handler)


def wants_encryption(handler) -> bool:
    """Refuse to begin an object without server-side encryption by one key of KMS."""
    begins = handler.command == "PUT" and "partNumber" not in handler.path
    begins |= handler.command == "POST" and "uploads" in handler.path
    kind = handler.headers.get("x-amz-server-side-encryption")
    key = handler.headers.get("x-amz-server-side-encryption-aws-kms-key-id")
    return begins and (kind, key) != ("aws:kms", "our-key") and refuse(handler)


def test_requester_pays(server, connect):
    """Every request says that the requester pays, also those that go past botocore's client."""
    server.quirk = wants_payer
    with pytest.raises(Unavailable, match="AccessDenied"):
        connect().write("a", b"1")
    bucket = connect(s3_requester_pays=True)
    bucket.write("a", b"1")
    bucket.upload_file("large", io.BytesIO(LARGE))
    for _ in range(3):
        assert bucket.read("a", 9) == b"1"
    assert bucket.exists("a") and len(bucket.list("")) == 2
    bucket.abort_uploads("", lambda *_: True)
    bucket.delete(["a", "large"])
    assert not server.objects


def test_encryption(server, connect):
    """Every write says how S3 encrypts the object."""
    server.quirk = wants_encryption
    with pytest.raises(Unavailable, match="AccessDenied"):
        connect().write("a", b"1")
    bucket = connect(s3_sse="aws:kms", s3_sse_kms_key_id="our-key")
    bucket.write("a", b"1")
    assert bucket.write_new("b", b"2") and bucket.write_over("c", b"3", None)
    bucket.upload_file("small", io.BytesIO(b"4"))
    bucket.upload_file("large", io.BytesIO(LARGE))
    assert set(server.objects) == {"a", "b", "c", "small", "large"}


@pytest.mark.parametrize("value", [None, "when_supported"])
def test_checksums_are_the_users_choice(server, connect, monkeypatch, value):
    """Checksum headers are sent only if the user has asked for them."""
    if value:
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", value)
    seen = []
    server.quirk = lambda handler: seen.append(dict(handler.headers)) or False
    connect().write("a", b"1")
    assert ("x-amz-checksum-crc32" in seen[0]) == bool(value)


def test_addressing_style_of_the_config_file(keys, monkeypatch, tmp_path):
    """It counts where --s3-path-style does not say otherwise."""
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = path\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    bucket = s3.Bucket(Options(bucket="bucket", region="us-east-1"))
    urls = []

    def stop(request, **_):
        urls.append(request.url)
        raise Unavailable("not sent")

    bucket._fetches.meta.events.register("before-send.s3", stop)
    with pytest.raises(Unavailable):
        bucket.list("")
    assert "amazonaws.com/bucket?" in urls[0]


def test_own_keys_come_before_those_of_aws_programs(keys):
    """The GOCACHE_S3_ variables win over AWS_ variables and over a profile."""
    own = {
        "GOCACHE_S3_ACCESS_KEY_ID": "own",
        "GOCACHE_S3_SECRET_ACCESS_KEY": "own-secret",
        "GOCACHE_S3_SESSION_TOKEN": "own-token",
    }
    found = open_session(Options(), own).get_credentials()
    assert (found.access_key, found.secret_key, found.token) == ("own", "own-secret", "own-token")
    assert open_session(Options(), {}).get_credentials().access_key == "tester"


@pytest.mark.parametrize("name", ["ACCESS_KEY_ID", "SECRET_ACCESS_KEY"])
def test_half_a_key_is_refused(keys, name):
    """The text names both variables."""
    text = f"^GOCACHE_S3_{name} is set and GOCACHE_S3_.* is not: set both or none$"
    with pytest.raises(Unusable, match=text):
        open_session(Options(), {f"GOCACHE_S3_{name}": "x"})


def test_the_profile(own_environment, monkeypatch):
    """--s3-profile takes its keys from the shared files, before the AWS_ variables."""
    (own_environment / "credentials").write_text(
        "[team]\naws_access_key_id = of-team\naws_secret_access_key = secret\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(own_environment / "credentials"))
    found = open_session(Options(s3_profile="team"), {}).get_credentials()
    assert found.access_key == "of-team"
