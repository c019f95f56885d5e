"""options.py: which commands take a flag, and which options a command line sets."""

import pytest

from cacheplugin.errors import UsageError
from cacheplugin.options import FLAGS, is_given, load

HOME = {"HOME": "/home/gopher"}
BY_NAME = {flag.name: flag for flag in FLAGS}
OF_SERVE = [flag.name for flag in FLAGS if flag.commands == ("serve",)]

# The flags of the module proxy: flag: (text, value).
VALUES = {
    "modproxy": ("true", True),
    "modproxy-upstream": ("one", "one"),
    "modproxy-max-age": ("1m30s", 90.0),
    "sumdb": ("one", "one"),
    "nosumdb": ("one", "one"),
}


def error(argv) -> str:
    with pytest.raises(UsageError) as caught:
        load(argv, HOME)
    return str(caught.value)


@pytest.mark.parametrize("flag", VALUES)
def test_flags_of_the_module_proxy_work_only_with_serve(flag):
    """With another command the flag is an error. Its variable is not."""
    text, value = VALUES[flag]
    for words in ([], ["connect"], ["prune"]):
        assert error([*words, f"--{flag}={text}"]) == f"--{flag} works only with serve"
    assert load(["help", f"--{flag}={text}"], HOME)[0] == ["help"]
    for words in ([], ["prune"], ["serve"]):
        chosen = load(words, {**HOME, BY_NAME[flag].variable: text})[1]
        assert getattr(chosen, BY_NAME[flag].field) == value


@pytest.mark.parametrize(
    ("argv", "environ", "expected"),
    [
        ([], {}, False),
        (["connect", "1"], {}, False),
        (["connect", "1", "--cache-dir=/x"], {}, True),
        (["--cache-dir", "/x", "connect", "1"], {}, True),
        (["-cache-dir=/x"], {"GOCACHE_DIR": ""}, True),
        ([], {"GOCACHE_DIR": "/x"}, True),
        ([], {"GOCACHE_DIR": ""}, False),
        ([], {"GOCACHE_S3_BUCKET": "b"}, False),
        (["--bucket", "--cache-dir=/x"], {}, False),
        (["--", "--cache-dir=/x"], {}, False),
    ],
)
def test_is_given(argv, environ, expected):
    """An option is given by its flag in any spelling, or by its variable unless that is empty."""
    assert is_given("cache-dir", argv, environ) is expected


def test_is_given_without_a_variable():
    """An option without a variable is given by its flag alone."""
    assert is_given("json", ["prune", "--json"], {}) and not is_given("json", ["prune"], {"": "1"})


@pytest.mark.parametrize("flag", OF_SERVE)
def test_flags_of_serve_work_only_with_serve(flag):
    """Other commands refuse the flags of serve."""
    for words in ([], ["connect", "1"], ["prune"]):
        assert error([*words, f"--{flag}=1"]) == f"--{flag} works only with serve"


def test_variables_of_serve_are_allowed_everywhere():
    """The variables of serve are parsed for every command, since all processes may have them."""
    assert {"plugin", "http"} <= set(OF_SERVE)
    words, chosen = load(["connect", "1"], HOME | {"GOCACHE_PLUGIN": "7", "GOCACHE_HTTP": ":8"})
    assert words == ["connect", "1"]
    assert (chosen.plugin_port, chosen.http) == (7, ("127.0.0.1", 8))


def test_flags_of_several_commands():
    """The error about a flag of several commands names all of them."""
    assert error(["verify", "--remote"]) == "--remote works only with prune, stats"


def test_a_kms_key_implies_kms():
    """--s3-sse-kms-key-id needs no --s3-sse; with AES256, which takes no key, it is an error."""
    chosen = load(["--s3-sse-kms-key-id=k"], HOME)[1]
    assert (chosen.s3_sse, chosen.s3_sse_kms_key_id) == ("aws:kms", "k")
    assert (
        load(["--s3-sse-kms-key-id=k", "--s3-sse=aws:kms:dsse"], HOME)[1].s3_sse == "aws:kms:dsse"
    )
    assert "takes no key id" in error(["--s3-sse-kms-key-id=k", "--s3-sse=AES256"])


# -- buckets that are written as URL or ARN --------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "bucket", "prefix"),
    [
        (["--bucket=b"], "b", ""),
        (["--bucket=s3://b"], "b", ""),
        (["--bucket=s3://b/"], "b", ""),
        (["--bucket=S3://b/p/q/"], "b", "p/q"),
        (["--bucket=b/p"], "b", "p"),
        (["--bucket=s3://b", "--prefix=q"], "b", "q"),
        (["--bucket=s3://b/", "--prefix=q/"], "b", "q"),
        (["--bucket=s3://b/p/q", "--prefix=p//q/"], "b", "p/q"),
        (["--bucket=s3://b/p", "--prefix="], "b", "p"),
    ],
)
def test_a_bucket_with_its_prefix(argv, bucket, prefix):
    """A URL of s3:// is taken apart into bucket and prefix, from the flag and the variable."""
    chosen = load(argv, HOME)[1]
    assert (chosen.bucket, chosen.prefix) == (bucket, prefix)
    environ = {**HOME, "GOCACHE_S3_BUCKET": argv[0].partition("=")[2]}
    chosen = load(argv[1:], environ)[1]
    assert (chosen.bucket, chosen.prefix) == (bucket, prefix)


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (
            ["--bucket=s3://b/p", "--prefix=q"],
            "--bucket=s3://b/p and --prefix=q contradict each other",
        ),
        (["--bucket=s3://"], "write --bucket=NAME"),
        (["--bucket=/p"], "write --bucket=NAME"),
        (["--bucket=arn:aws:s3:::b"], "write --bucket=b"),
        (["--bucket=arn:aws-cn:s3:::b/p/q"], "write --bucket=b --prefix=p/q"),
        (["--bucket=arn:aws:s3:us-east-1:123456789012:accesspoint/a"], "alias"),
        (["--bucket=https://b.s3.amazonaws.com/p"], "--s3-endpoint-url"),
        (["--bucket=gs://b"], "--s3-endpoint-url"),
    ],
)
def test_what_is_no_bucket(argv, part):
    """The error about a bucket that is none says what to write instead."""
    text = error(argv)
    assert part in text and text.startswith(argv[0].partition(" ")[0]) and "\n" not in text
