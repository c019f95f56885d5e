"""misspelt.py: which variables are warned of, and what was probably meant."""

import pytest

from cacheplugin.misspelt import warnings
from cacheplugin.options import FLAGS, SECRET_VARIABLES, load, unknown_variables


def lines(environ, argv=()) -> list:
    load(argv, {"HOME": "/h", **environ})  # what warnings demands of its caller
    return warnings(unknown_variables(environ), argv, environ)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("GOCACHE_BUCKET", "GOCACHE_S3_BUCKET"),
        ("GOCACHE_S3_BUKET", "GOCACHE_S3_BUCKET"),
        ("GOCACHE_REGION", "GOCACHE_S3_REGION"),
        ("GOCACHE_AWS_REGION", "GOCACHE_S3_REGION"),
        ("GOCACHE_ENDPOINT", "GOCACHE_S3_ENDPOINT_URL"),
        ("GOCACHE_S3_ENDPOINT", "GOCACHE_S3_ENDPOINT_URL"),
        ("GOCACHE_PATH_STYLE", "GOCACHE_S3_PATH_STYLE"),
        ("GOCACHE_PREFIX", "GOCACHE_KEY_PREFIX"),
        ("GOCACHE_S3_PREFIX", "GOCACHE_KEY_PREFIX"),
        ("GOCACHE_CACHE_DIR", "GOCACHE_DIR"),
        ("GOCACHE_DIRECTORY", "GOCACHE_DIR"),
        ("GOCACHE_MIN_UPLOAD_SIZE", "GOCACHE_MIN_SIZE"),
        ("GOCACHE_MAXSIZE", "GOCACHE_MAX_SIZE"),
        ("GOCACHE_READONLY", "GOCACHE_READ_ONLY"),
        ("GOCACHE_C", "GOCACHE_CONCURRENCY"),
        ("GOCACHE_UPLOADS", "GOCACHE_UPLOAD"),
        ("GOCACHE_s3_bucket", "GOCACHE_S3_BUCKET"),
        ("GOCACHE_ACCESS_KEY_ID", "GOCACHE_S3_ACCESS_KEY_ID"),
        ("GOCACHE_SECRET_KEY", "GOCACHE_S3_SECRET_ACCESS_KEY"),
    ],
)
def test_names_that_resemble_ours(name, meant):
    assert lines({name: "x"}) == [f"the variable {name} has no effect; did you mean {meant}?"]


@pytest.mark.parametrize(
    "name", ["GOCACHE", "GOCACHEPROG", "GOCACHE_REVPROXY", "GOCACHE_FOO", "GOCACHE_", "GOCACHE_S3"]
)
def test_names_of_others(name):
    """The go command's names, the Go program's, and those that resemble none are passed over."""
    assert not lines({name: "x"})


def test_our_own_names():
    """No variable of this program is unknown."""
    own = [*SECRET_VARIABLES, *(flag.variable for flag in FLAGS if flag.variable)]
    assert unknown_variables(dict.fromkeys(own, "x")) == []


def test_a_name_whose_meaning_is_set():
    """A script's own GOCACHE_BUCKET, passed on by flag or variable, is not warned of."""
    environ = {"GOCACHE_BUCKET": "b"}
    assert not lines(environ, ["--bucket=b"])
    assert not lines({**environ, "GOCACHE_S3_BUCKET": "b"})
    assert lines({**environ, "GOCACHE_S3_BUCKET": ""}) and lines(environ, ["--region=r"])
    keys = {"GOCACHE_ACCESS_KEY_ID": "k"}
    assert lines(keys) and not lines({**keys, "GOCACHE_S3_ACCESS_KEY_ID": "k"})


def test_an_empty_variable_counts_as_unset():
    assert unknown_variables({"GOCACHE_BUCKET": ""}) == []
