"""remote/objects.py: the keys and texts of the Go program, and the requests made for them."""

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheplugin.errors import Absent, Damaged, Unavailable
from cacheplugin.ipc.jobs import UploadJob
from cacheplugin.options import clean_prefix
from cacheplugin.remote import body_reader, objects
from cacheplugin.remote.objects import ObjectsLayout, parse_action
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.record import MAX_TIME_NS
from cacheplugin.store.tree import Store
from entries import TIME_NS, action_id, files, output_id, put, read
from fake_bucket import FakeBucket

BODY = b"package main\n" * 100
A, B, OUT = action_id("a"), action_id("b"), output_id(BODY)
ACTION_KEY, OUTPUT_KEY = f"action/{A[:2]}/{A}", f"output/{OUT[:2]}/{OUT}"
RECORD = f"{OUT} {TIME_NS}".encode()


@pytest.fixture
def bucket():
    return FakeBucket()


@pytest.fixture
def cache(tmp_path):
    return LocalCache(Store(str(tmp_path / "cache")), spill=False)


@pytest.fixture
def layout(bucket, cache):
    return ObjectsLayout(bucket, cache, "")


def upload_job(cache, name="a", body=BODY) -> UploadJob:
    path = put(cache, name, body)
    return UploadJob(1, action_id(name), output_id(body), len(body), TIME_NS, path)


# -- what lies in the bucket -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "start"), [("", ""), ("team", "team/"), ("a/b", "a/b/"), ("/a", "/a/"), ("/", "/")]
)
def test_bucket_byte_for_byte(bucket, cache, prefix, start):
    """An upload makes exactly the two objects of the reference."""
    ObjectsLayout(bucket, cache, prefix).upload(upload_job(cache))
    assert bucket.objects == {start + ACTION_KEY: RECORD, start + OUTPUT_KEY: BODY}


@given(st.text("ab./", min_size=1, max_size=10))
def test_keys_are_joined_as_paths(prefix):
    """A prefix, once cleaned, makes the key that joining paths would make."""
    layout = ObjectsLayout(FakeBucket(), None, clean_prefix(prefix))
    joined = posixpath.normpath(f"{prefix}/action/ab/abcd")
    expected = "/" + joined.lstrip("/") if prefix.startswith("/") else joined
    assert layout._key("action", "abcd") == expected


def test_entry_written_by_hand(bucket, cache, layout):
    """What the Go program wrote is served."""
    bucket.objects = {ACTION_KEY: RECORD, OUTPUT_KEY: BODY}
    fetched = layout.fetch(A)
    assert fetched == (OUT, len(BODY), TIME_NS, cache.store.output_path(OUT), len(BODY))
    assert read(fetched.path) == BODY


# -- the requests ----------------------------------------------------------------------------------


def test_fetch_reads_action_then_output(bucket, layout):
    """A fetch is two requests, a miss one."""
    with pytest.raises(Absent):
        layout.fetch(A)
    assert bucket.calls == [("read", ACTION_KEY)]
    bucket.objects = {ACTION_KEY: RECORD, OUTPUT_KEY: BODY}
    bucket.calls.clear()
    layout.fetch(A)
    assert bucket.calls == [("read", ACTION_KEY), ("open", OUTPUT_KEY)]


def test_output_that_is_here_is_not_downloaded(bucket, cache, layout):
    """An output already in the local store is adopted after one request."""
    put(cache, "b", BODY)
    bucket.objects = {ACTION_KEY: RECORD}
    assert layout.fetch(A) == (OUT, len(BODY), TIME_NS, cache.store.output_path(OUT), 0)
    assert bucket.calls == [("read", ACTION_KEY)]


def test_damaged_local_output_is_downloaded_again(bucket, cache, layout):
    """A local body that is not what its name says is not adopted but replaced."""
    path = put(cache, "b", BODY)
    with open(path, "r+b") as file:
        file.write(b"evil")
    bucket.objects = {ACTION_KEY: RECORD, OUTPUT_KEY: BODY}
    assert read(layout.fetch(A).path) == BODY


def test_upload_writes_output_then_action(bucket, cache, layout):
    """No record ever names an output that is not there."""
    layout.upload(upload_job(cache))
    assert bucket.calls == [("write_new", OUTPUT_KEY), ("write", ACTION_KEY)]


def test_no_record_without_its_output(bucket, cache, layout):
    """Where the output does not go, the record is not written; the next try does both."""
    bucket.faults = {OUTPUT_KEY: Unavailable("503")}
    job = upload_job(cache)
    with pytest.raises(Unavailable):
        layout.upload(job)
    assert bucket.objects == {}
    bucket.faults = {}
    assert layout.upload(job) == (False, len(BODY))
    assert set(bucket.objects) == {ACTION_KEY, OUTPUT_KEY}


def test_second_upload_skips_the_output(bucket, cache, layout):
    """An output that this process uploaded or fetched is not asked about again."""
    layout.upload(upload_job(cache))
    bucket.calls.clear()
    assert layout.upload(upload_job(cache, "b")) == (True, 0)
    assert bucket.calls == [("write", f"action/{B[:2]}/{B}")]


def test_upload_after_fetch_skips_the_output(bucket, cache, layout):
    """What came from the bucket is there."""
    bucket.objects = {ACTION_KEY: RECORD, OUTPUT_KEY: BODY}
    layout.fetch(A)
    bucket.calls.clear()
    layout.upload(upload_job(cache))
    assert bucket.calls == [("write", ACTION_KEY)]


# -- large bodies ----------------------------------------------------------------------------------


@pytest.fixture
def small_is_large(monkeypatch):
    monkeypatch.setattr(objects, "LARGE_BYTES", 100)


def test_large_bodies_go_in_parts(bucket, cache, layout, small_is_large):
    """Above a size, bodies go through the parallel transfers, both ways, and are found by HEAD."""
    job = upload_job(cache)
    assert layout.upload(job) == (False, len(BODY))
    other = ObjectsLayout(bucket, cache, "")
    assert other.upload(job) == (True, 0)
    assert bucket.methods() == ["exists", "upload_file", "write", "exists", "write"]
    assert bucket.objects == {ACTION_KEY: RECORD, OUTPUT_KEY: BODY}


def test_recovered_large_body_aborts_what_was_begun_of_it_alone(
    bucket, cache, layout, small_is_large
):
    """A dead session's parts of this object go; another key that begins alike is somebody else's."""
    bucket.unfinished = {OUTPUT_KEY: 1.0, f"{OUTPUT_KEY}.bak": 1.0}
    layout.upload(upload_job(cache)._replace(recovered=True))
    assert set(bucket.unfinished) == {f"{OUTPUT_KEY}.bak"}


def test_large_body_that_arrives_out_of_order(bucket, cache, layout, small_is_large):
    """A parallel download is hashed when it is whole."""
    bucket.objects = {ACTION_KEY: RECORD, OUTPUT_KEY: BODY}
    fetched = layout.fetch(A)
    assert bucket.methods() == ["read", "open", "download"]
    assert read(fetched.path) == BODY


@pytest.mark.parametrize("body", [BODY[:-1], BODY + b"x", b"x" + BODY[1:]])
def test_large_body_that_is_damaged(bucket, cache, layout, small_is_large, body):
    """A parallel download of a wrong body is never stored."""
    bucket.objects = {ACTION_KEY: RECORD, OUTPUT_KEY: body}
    with pytest.raises(Damaged):
        layout.fetch(A)
    assert files(cache.store.root) == {}


# -- damage ----------------------------------------------------------------------------------------


def test_missing_output_is_damage(bucket, layout):
    """A record whose output is gone is not a plain miss: somebody lost it."""
    bucket.objects = {ACTION_KEY: RECORD}
    with pytest.raises(Damaged, match="which is absent"):
        layout.fetch(A)


@pytest.mark.parametrize(
    ("length", "error"), [(0, Damaged), (len(BODY) - 1, Damaged), (len(BODY) + 1, Unavailable)]
)
def test_body_of_another_length_than_announced(bucket, cache, layout, length, error):
    """A body that ends early or goes on too long is never stored."""
    bucket.objects = {ACTION_KEY: RECORD, OUTPUT_KEY: BODY}
    bucket.lengths = {OUTPUT_KEY: length}
    with pytest.raises(error):
        layout.fetch(A)
    assert files(cache.store.root) == {}


def test_body_that_trickles(bucket, cache, layout, monkeypatch):
    """A body that comes too slowly is given up, and leaves nothing behind."""
    bucket.objects = {ACTION_KEY: RECORD, OUTPUT_KEY: BODY}
    now = iter([0.0, 1e6])
    monkeypatch.setattr(body_reader.time, "monotonic", lambda: next(now))
    with pytest.raises(Unavailable, match="slowly"):
        layout.fetch(A)
    assert files(cache.store.root) == {}


GARBLED = [
    b"",
    b" ",
    b"\0" * 80,
    OUT.encode(),
    b"%b " % OUT.encode(),
    RECORD + b" 1",
    RECORD[1:],
    b"0" + RECORD,
    RECORD.upper(),
    RECORD.replace(b" ", b"\0"),
    b"%b -1" % OUT.encode(),
    b"%b 1.5" % OUT.encode(),
    b"%b 1e9" % OUT.encode(),
    b"%b 0x10" % OUT.encode(),
    b"%b 1_0" % OUT.encode(),
    b"%b %d" % (OUT.encode(), MAX_TIME_NS + 1),
    b"%b %b" % (OUT.encode(), b"9" * 400),
    b"../" * 21 + b"a 1",
    b"g" * 64 + b" 1",
    b"<?xml version='1.0'?><Error/>",
    b"\xff" * 512,
]


@pytest.mark.parametrize("text", GARBLED, ids=repr)
def test_garbled_record_is_damage(bucket, layout, text):
    """A record that is not two proper fields is Damaged, and no output is asked for."""
    bucket.objects = {ACTION_KEY: text, OUTPUT_KEY: BODY}
    with pytest.raises(Damaged):
        layout.fetch(A)
    assert bucket.calls == [("read", ACTION_KEY)]


def test_long_record_is_not_read_whole(bucket, layout):
    """However large a record is, only its beginning is read."""
    bucket.objects = {ACTION_KEY: RECORD + b" " * 10**6 + b"1"}
    bucket.read = lambda key, limit: b"x" * limit if limit <= 1024 else pytest.fail("unbounded")
    with pytest.raises(Damaged):
        layout.fetch(A)


@given(st.integers(0, 2**63 - 1))
def test_parse_action(time_ns):
    """The two fields come back; a newline at the end, which another writer may add, is no harm."""
    text = f"{OUT} {time_ns}".encode()
    assert parse_action(text) == parse_action(text + b"\n") == (OUT, time_ns)


@given(st.binary(max_size=100))
def test_parse_action_of_noise(data):
    """Arbitrary bytes are Damaged, with a reason of one short line."""
    with pytest.raises(Damaged) as caught:
        parse_action(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
