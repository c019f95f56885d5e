"""aws_settings.py finds the endpoint and the region that botocore finds."""

import os

import botocore.session
import pytest

from cacheplugin import aws_settings

CONFIG = """\
# a comment
[default]
region = us-west-1

[profile plain]
region=eu-central-1
endpoint_url = http://127.0.0.1:1

; another comment
[profile with-services]
Region: ap-south-1
services = local
endpoint_url = http://127.0.0.1:2
s3 =
    addressing_style = path

[profile "quoted name"]
region = sa-east-1

[profile other-services]
services = local2
endpoint_url = http://127.0.0.1:5

[profile ignoring]
ignore_configured_endpoint_urls = true
endpoint_url = http://127.0.0.1:3

[profile both]
region = eu-west-1

[services local]
sts =
  endpoint_url = http://127.0.0.1:6
s3 =
  endpoint_url = http://127.0.0.1:4

[services local2]
sts =
  endpoint_url = http://127.0.0.1:6

[plain]
region = no-profile-1
"""
KEYS = """\
[both]
aws_access_key_id = a
aws_secret_access_key = b
region = eu-west-3

[keys-only]
aws_access_key_id = a
aws_secret_access_key = b
"""
ENDPOINT = "http://127.0.0.1:7"


@pytest.fixture(scope="module")
def loader():
    """Keeps what botocore has read of its own data."""
    return botocore.session.Session().get_component("data_loader")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with the files above, and no variables of AWS."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/config").write_text(CONFIG)
    (tmp_path / ".aws/credentials").write_text(KEYS)
    return tmp_path


def found_by_botocore(loader, profile) -> tuple:
    """(endpoint, region), "" for what is not set."""
    session = botocore.session.Session(profile=profile or None)
    session.register_component("data_loader", loader)
    region = os.environ.get("AWS_REGION") or session.get_config_variable("region") or ""
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
    url = session.create_client("s3", region_name="us-east-1", **keys).meta.endpoint_url
    return ("" if url.endswith("amazonaws.com") else url), region


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"AWS_ENDPOINT_URL": ENDPOINT},
        {"AWS_ENDPOINT_URL": ENDPOINT, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:8"},
        {"AWS_ENDPOINT_URL": "", "AWS_ENDPOINT_URL_S3": ENDPOINT},
        {"AWS_ENDPOINT_URL": ENDPOINT, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "True"},
        {"AWS_ENDPOINT_URL": ENDPOINT, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "no"},
        {"AWS_REGION": "us-east-2"},
        {"AWS_DEFAULT_REGION": "us-east-2"},
        {"AWS_REGION": "us-east-2", "AWS_DEFAULT_REGION": "us-west-2"},
        {"AWS_REGION": "us-east-2", "AWS_PROFILE": "plain"},
        {"AWS_REGION": "", "AWS_PROFILE": "plain"},
        {"AWS_ENDPOINT_URL": ENDPOINT, "AWS_PROFILE": "plain"},
        {"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true", "AWS_PROFILE": "plain"},
        {"AWS_PROFILE": "with-services"},
        {"AWS_PROFILE": "other-services"},
        {"AWS_PROFILE": "quoted name"},
        {"AWS_PROFILE": "ignoring"},
        {"AWS_PROFILE": "ignoring", "AWS_ENDPOINT_URL": ENDPOINT},
        {"AWS_PROFILE": "both"},
        {"AWS_PROFILE": "keys-only"},
        {"AWS_DEFAULT_PROFILE": "both", "AWS_PROFILE": "plain"},
        {"AWS_PROFILE": "plain", "AWS_CONFIG_FILE": "~/other"},
        {"AWS_PROFILE": "plain", "AWS_CONFIG_FILE": "$HOME/other"},
        {"AWS_PROFILE": "keys-only", "AWS_SHARED_CREDENTIALS_FILE": "~/other-keys"},
    ],
    ids=str,
)
def test_botocore_agrees(home, loader, monkeypatch, variables):
    """The same variables and files have the same effect."""
    (home / "other").write_text("[profile plain]\nregion = us-gov-west-1\n")
    (home / "other-keys").write_text("[keys-only]\nregion = ca-west-1\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert aws_settings.endpoint_and_region(os.environ) == found_by_botocore(loader, "")


@pytest.mark.parametrize("profile", ["default", "plain", "with-services", "both"])
def test_a_profile_of_our_own(home, loader, monkeypatch, profile):
    """A profile that is given goes before AWS_PROFILE."""
    monkeypatch.setenv("AWS_PROFILE", "quoted name")
    assert aws_settings.endpoint_and_region(os.environ, profile) == found_by_botocore(
        loader, profile
    )


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"region = x\n", b"[", b" \n  x\n", b"[a]\n="]
)
def test_files_that_cannot_be_read_count_as_empty(home, content):
    (home / ".aws/config").write_bytes(content)
    (home / ".aws/credentials").unlink()
    assert aws_settings.endpoint_and_region(os.environ) == ("", "")
    (home / ".aws/config").unlink()
    assert aws_settings.endpoint_and_region(os.environ) == ("", "")
    (home / ".aws/config").mkdir()
    assert aws_settings.endpoint_and_region(os.environ) == ("", "")


def test_pipes_are_left_to_botocore(home, monkeypatch):
    """A pipe can be read once; and nobody may write to it."""
    os.mkfifo(home / "pipe")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "pipe"))
    assert aws_settings.endpoint_and_region(os.environ) == ("", "")
