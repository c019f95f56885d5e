"""spool_target.py: what a session notes of its bucket, and what an uploader makes of it."""

import json
import os

import pytest

from cacheplugin.options import Options
from cacheplugin.store import spool, spool_target

OPTIONS = Options(cache_dir="/c", bucket="b", layout="objects")
URL, OTHER_URL = "http://127.0.0.1:1", "http://127.0.0.1:2"
PROFILE = "[ci]\naws_access_key_id = a\naws_secret_access_key = b\n"


@pytest.fixture
def home(tmp_path):
    """A home with a profile in ~/.aws/credentials."""
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(PROFILE)
    return tmp_path


@pytest.fixture
def note(tmp_path):
    """note(options, **environ): a target directory, as a session with these writes it."""

    def note(options=OPTIONS, **environ):
        for name, content in spool_target.files_of(options, "s", environ).items():
            (tmp_path / name).write_text(content)
        return tmp_path

    return note


@pytest.fixture
def restored(tmp_path, monkeypatch):
    """restored(options, **environ): (options of an uploader with these, what changes in environ)"""

    def restored(options=OPTIONS, **environ):
        monkeypatch.setenv("HOME", str(tmp_path))
        after = dict(environ)
        fields = spool.read_target(str(tmp_path))
        merged = spool_target.restore(str(tmp_path), fields, options, after)
        changed = {
            name: after.get(name)
            for name in environ.keys() | after.keys()
            if environ.get(name) != after.get(name)
        }
        return Options(**merged), changed

    return restored


def test_the_target_has_what_older_versions_read(note):
    """Its fields are those of the first version; endpoint and region are as they were found."""
    home = note(AWS_ENDPOINT_URL=URL, AWS_REGION="r")
    fields = json.loads((home / "target").read_text())
    assert set(fields) == {
        *("endpoint_url", "bucket", "prefix", "region", "path_style", "layout", "scope")
    }
    assert (fields["endpoint_url"], fields["region"], fields["scope"]) == (URL, "r", "s")


def test_options_go_before_variables(note):
    options = OPTIONS.replaced(endpoint_url=URL, region="r")
    note(options, AWS_ENDPOINT_URL=OTHER_URL, AWS_REGION="x")
    fields = spool.read_target(str(note(options)))
    assert (fields["endpoint_url"], fields["region"]) == (URL, "r")


def test_what_was_not_set_stays_unset(note, restored):
    """Neither the endpoint nor the region of an uploader's environment counts."""
    note()
    options, changed = restored(AWS_ENDPOINT_URL=URL, AWS_REGION="x", AWS_DEFAULT_REGION="y")
    assert (options.endpoint_url, options.region) == ("", "")
    assert changed == {
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
        "AWS_REGION": None,
        "AWS_DEFAULT_REGION": None,
    }
    assert restored()[1] == {}


def test_a_directory_of_an_older_version(note, restored):
    """Without settings the environment of the uploader counts, as it always did."""
    (note() / "settings").unlink()
    assert restored(AWS_ENDPOINT_URL=URL, AWS_REGION="x")[1] == {}


def test_options_for_uploads_are_kept(note, restored):
    """Encryption and requester pays come from the session, unless the uploader sets them."""
    note(OPTIONS.replaced(s3_sse="aws:kms", s3_sse_kms_key_id="k", s3_requester_pays=True))
    options, _ = restored()
    assert (options.s3_sse, options.s3_sse_kms_key_id) == ("aws:kms", "k")
    assert options.s3_requester_pays is True
    options, _ = restored(OPTIONS.replaced(s3_sse="AES256"))
    assert (options.s3_sse, options.s3_sse_kms_key_id) == ("AES256", "")


@pytest.mark.parametrize("variable", ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"])
def test_a_profile_from_a_variable(home, note, restored, variable):
    """It is used by uploaders without credentials of their own."""
    note(**{variable: "ci"})
    assert restored()[1] == {variable: "ci"}
    for own in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "GOCACHE_S3_ACCESS_KEY_ID"):
        assert restored(**{own: "x"})[1] == {}
    options, changed = restored(OPTIONS.replaced(s3_profile="own"))
    assert (options.s3_profile, changed) == ("own", {})


def test_a_profile_from_an_option(home, note, restored):
    """It was meant for the cache alone, so it goes before the keys of the environment."""
    note(OPTIONS.replaced(s3_profile="ci"))
    for environ in ({}, {"AWS_ACCESS_KEY_ID": "x"}, {"AWS_PROFILE": "x"}):
        options, changed = restored(**environ)
        assert (options.s3_profile, changed) == ("ci", {})
    assert restored(GOCACHE_S3_ACCESS_KEY_ID="x")[0].s3_profile == ""
    assert restored(OPTIONS.replaced(s3_profile="own"))[0].s3_profile == "own"


def test_the_files_of_a_profile(home, note, restored):
    """The variables that name the files come along with the profile."""
    path = home / "keys"
    path.write_text("[other]\naws_access_key_id = a\n")
    note(OPTIONS.replaced(s3_profile="other"), AWS_SHARED_CREDENTIALS_FILE=str(path))
    options, changed = restored()
    assert options.s3_profile == "other" and changed == {"AWS_SHARED_CREDENTIALS_FILE": str(path)}
    path.unlink()
    options, changed = restored()
    assert options.s3_profile == "" and changed == {}


def test_a_profile_that_does_not_exist_here(note, restored):
    """Another step of a CI job may lack the profile; its own credentials are used then."""
    note(AWS_PROFILE="gone")
    assert restored()[1] == {}
    note(OPTIONS.replaced(s3_profile="gone"))
    assert restored()[0].s3_profile == ""


def test_sessions_with_other_settings_have_other_directories():
    """Entries of two profiles, or two ways of encryption, are not mixed."""
    names = set()
    for options in (OPTIONS, OPTIONS.replaced(s3_sse="AES256"), OPTIONS.replaced(s3_profile="p")):
        for environ in ({}, {"AWS_PROFILE": "x"}, {"AWS_REGION": "r"}, {"UNRELATED": "x"}):
            names.add("".join(spool_target.files_of(options, "s", environ).values()))
    assert len(names) == 9


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no json",
        "[]",
        "null",
        '{"options": [], "variables": 1}',
        '{"options": {"s3_profile": 7}, "variables": {"AWS_PROFILE": ["ci"]}}',
        '{"variables": {"LD_PRELOAD": "/x.so", "AWS_ACCESS_KEY_ID": "x"}}',
    ],
)
def test_settings_that_make_no_sense(home, note, restored, content):
    """Nothing is taken from settings that this program did not write."""
    (note() / "settings").write_text(content)
    options, changed = restored()

    assert (options.s3_profile, changed) == ("", {})


@pytest.mark.parametrize("kind", ["writable", "owner", "link", "pipe", "directory"])
def test_settings_that_another_user_may_have_made(home, note, restored, kind):
    """A profile can run commands, so nobody else chooses it. A pipe does not hold up anybody."""
    path = note(AWS_PROFILE="ci") / "settings"
    assert restored()[1] == {"AWS_PROFILE": "ci"}
    if kind == "writable":
        path.chmod(0o664)
    elif kind == "owner":
        if os.geteuid():
            pytest.skip("only root can give files away")
        os.chown(path, 1, 1)
    else:
        path.rename(home / "moved")
        {"link": lambda: path.symlink_to("moved"), "pipe": lambda: os.mkfifo(path)}.get(
            kind, path.mkdir
        )()
    assert restored()[1] == {}
