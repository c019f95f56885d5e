"""remote/objects.py: the Go program's keys and contents, and the requests that are sent."""

import os
import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheplugin.errors import Absent, Damaged, Unavailable, Unreadable
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


@pytest.fixture(autouse=True)
def now(monkeypatch):
    """The puts of these tests were made a moment ago."""
    monkeypatch.setattr(objects.time, "time_ns", lambda: TIME_NS + 10**9)


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


# -- keys and contents -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "start"), [("", ""), ("team", "team/"), ("a/b", "a/b/"), ("/a", "/a/"), ("/", "/")]
)
def test_bucket_byte_for_byte(bucket, cache, prefix, start):
    """An upload makes exactly the two objects of the Go program."""
    ObjectsLayout(bucket, cache, prefix).upload(upload_job(cache))
    assert bucket.objects == {start + ACTION_KEY: RECORD, start + OUTPUT_KEY: BODY}


@given(st.text("ab./", min_size=1, max_size=10))
def test_keys_are_joined_as_paths(prefix):
    """A clean prefix and a key are joined as Go joins paths."""
    layout = ObjectsLayout(FakeBucket(), None, clean_prefix(prefix))
    joined = posixpath.normpath(f"{prefix}/action/ab/abcd")
    expected = "/" + joined.lstrip("/") if prefix.startswith("/") else joined
    assert layout._key("action", "abcd") == expected


def test_entry_of_the_go_program(bucket, cache, layout):
    """An entry that the Go program wrote is fetched."""
    bucket.objects = {ACTION_KEY: RECORD, OUTPUT_KEY: BODY}
    fetched = layout.fetch(A)
    assert fetched == (OUT, len(BODY), TIME_NS, cache.store.output_path(OUT), len(BODY))
    assert read(fetched.path) == BODY


# -- the requests ----------------------------------------------------------------------------------


def test_fetch_reads_action_then_output(bucket, layout):
    """A hit is two requests, a miss is one."""
    with pytest.raises(Absent):
        layout.fetch(A)
    assert bucket.calls == [("read", ACTION_KEY)]
    bucket.objects = {ACTION_KEY: RECORD, OUTPUT_KEY: BODY}
    bucket.calls.clear()
    layout.fetch(A)
    assert bucket.calls == [("read", ACTION_KEY), ("open", OUTPUT_KEY)]


def test_local_output_is_not_downloaded(bucket, cache, layout):
    """If the local store has the output, a fetch is one request."""
    put(cache, "b", BODY)
    bucket.objects = {ACTION_KEY: RECORD}
    assert layout.fetch(A) == (OUT, len(BODY), TIME_NS, cache.store.output_path(OUT), 0)
    assert bucket.calls == [("read", ACTION_KEY)]


def test_damaged_local_output_is_downloaded_again(bucket, cache, layout):
    """A local body with a wrong SHA-256 is replaced."""
    path = put(cache, "b", BODY)
    with open(path, "r+b") as file:
        file.write(b"evil")
    bucket.objects = {ACTION_KEY: RECORD, OUTPUT_KEY: BODY}
    assert read(layout.fetch(A).path) == BODY


def test_upload_writes_output_then_action(bucket, cache, layout):
    """The output is written first, so that no record names an absent output."""
    layout.upload(upload_job(cache))
    assert bucket.calls == [("write_new", OUTPUT_KEY), ("write_over", ACTION_KEY)]


def test_no_record_without_its_output(bucket, cache, layout):
    """If the output cannot be written, the record is not; the next try writes both."""
    bucket.faults = {OUTPUT_KEY: Unavailable("503")}
    job = upload_job(cache)
    with pytest.raises(Unavailable):
        layout.upload(job)
    assert bucket.objects == {}
    bucket.faults = {}
    assert layout.upload(job) == (False, len(BODY))
    assert set(bucket.objects) == {ACTION_KEY, OUTPUT_KEY}


def test_second_upload_skips_the_output(bucket, cache, layout):
    """No request is sent for an output that this process has uploaded."""
    layout.upload(upload_job(cache))
    bucket.calls.clear()
    assert layout.upload(upload_job(cache, "b")) == (True, 0)
    assert bucket.calls == [("write_over", f"action/{B[:2]}/{B}")]


def test_upload_after_fetch_skips_the_output(bucket, cache, layout):
    """No request is sent for an output that this process has fetched."""
    bucket.objects = {ACTION_KEY: RECORD, OUTPUT_KEY: BODY}
    layout.fetch(A)
    bucket.calls.clear()
    layout.upload(upload_job(cache))
    assert set(bucket.calls) == {("write_over", ACTION_KEY), ("read_version", ACTION_KEY)}


# -- earlier and later puts ------------------------------------------------------------------------

EARLIER = f"{output_id(b'early')} {TIME_NS - 1}".encode()
LATER = f"{output_id(b'late')} {TIME_NS + 1}".encode()


@pytest.mark.parametrize("recovered", [False, True])
@pytest.mark.parametrize(
    ("found", "left"), [(EARLIER, RECORD), (RECORD, RECORD), (LATER, LATER), (b"damaged", RECORD)]
)
def test_a_later_put_in_the_bucket_stays(bucket, cache, layout, recovered, found, left):
    """An upload overwrites the record of an earlier put and a damaged one, never a later one."""
    bucket.objects = {ACTION_KEY: found}
    layout.upload(upload_job(cache)._replace(recovered=recovered))
    assert bucket.objects[ACTION_KEY] == left


def test_a_put_of_the_far_future_is_overwritten(bucket, cache, layout):
    """Otherwise a forged record could never be replaced."""
    bucket.objects = {ACTION_KEY: f"{OUT} {TIME_NS + 2 * 86400 * 10**9}".encode()}
    layout.upload(upload_job(cache))
    assert bucket.objects[ACTION_KEY] == RECORD


@pytest.mark.parametrize(("other", "left"), [(EARLIER, RECORD), (LATER, LATER)])
@pytest.mark.parametrize("before", [None, EARLIER])
def test_another_writer_between_look_and_write(bucket, cache, layout, before, other, left):
    """What another machine writes after the look is seen."""
    bucket.objects = {ACTION_KEY: before} if before else {}
    look, writes = bucket.read_version, [other]

    def read_version(key, limit):
        found = look(key, limit)
        if writes:
            bucket.objects[key] = writes.pop()
        return found

    bucket.read_version = read_version
    layout.upload(upload_job(cache)._replace(recovered=True))
    assert bucket.objects[ACTION_KEY] == left


def test_a_record_that_others_keep_writing(bucket, cache, layout):
    """The upload fails, and so its entry stays in the spool."""
    bucket.write_over = lambda key, data, version: False
    with pytest.raises(Unavailable, match="was replaced 5 times by other machines"):
        layout.upload(upload_job(cache))


@pytest.mark.parametrize("why", ["recovered", "late", "local"])
def test_stores_without_conditional_puts(bucket, cache, layout, monkeypatch, why):
    """A record is looked at before it is overwritten, if there may be that of a later put.

    That is so for uploads of a dead process, for late ones, and if this machine has a later put.
    """
    bucket.write_over = lambda key, data, version: bucket.write(key, data) or True
    bucket.objects = {ACTION_KEY: LATER}
    job = upload_job(cache)._replace(recovered=why == "recovered")
    if why == "late":
        monkeypatch.setattr(objects.time, "time_ns", lambda: TIME_NS + 11 * 10**9)
    if why == "local":
        put(cache, "a", b"late", TIME_NS + 1)
    layout.upload(job)
    assert bucket.objects[ACTION_KEY] == LATER


def test_a_failing_look_fails_the_upload(bucket, cache, layout):
    """While it is unknown whether there is a later put, nothing is overwritten."""
    bucket.objects = {ACTION_KEY: LATER}
    bucket.faults = {ACTION_KEY: Unavailable("503")}
    with pytest.raises(Unavailable):
        layout.upload(upload_job(cache)._replace(recovered=True))


# -- local bodies that cannot be read --------------------------------------------------------------


@pytest.mark.parametrize("large", [100, 8 << 20])
def test_unreadable_body(bucket, cache, layout, monkeypatch, large):
    """The upload fails with the path and the reason, and nothing is written."""
    monkeypatch.setattr(objects, "LARGE_BYTES", large)
    job = upload_job(cache)
    os.unlink(job.path)
    os.symlink(job.path, job.path)  # root may read everything but this
    with pytest.raises(Unreadable, match=f"^{job.path} cannot be read: "):
        layout.upload(job)
    assert bucket.objects == {}


# -- large bodies ----------------------------------------------------------------------------------


@pytest.fixture
def small_is_large(monkeypatch):
    monkeypatch.setattr(objects, "LARGE_BYTES", 100)


def test_large_bodies_are_uploaded_in_parts(bucket, cache, layout, small_is_large):
    """Bodies above LARGE_BYTES are uploaded in parts, unless a HEAD request finds them."""
    job = upload_job(cache)
    assert layout.upload(job) == (False, len(BODY))
    other = ObjectsLayout(bucket, cache, "")
    assert other.upload(job) == (True, 0)
    methods = [method for method, key in bucket.calls if key == OUTPUT_KEY]
    assert methods == ["exists", "upload_file", "exists"]
    assert bucket.objects == {ACTION_KEY: RECORD, OUTPUT_KEY: BODY}


def test_recovered_large_body_aborts_its_unfinished_upload(bucket, cache, layout, small_is_large):
    """Unfinished uploads of this key alone are aborted, not those of keys that begin with it."""
    bucket.unfinished = {OUTPUT_KEY: 1.0, f"{OUTPUT_KEY}.bak": 1.0}
    layout.upload(upload_job(cache)._replace(recovered=True))
    assert set(bucket.unfinished) == {f"{OUTPUT_KEY}.bak"}


def test_large_download(bucket, cache, layout, small_is_large):
    """A parallel download, whose parts are out of order, is checked and stored."""
    bucket.objects = {ACTION_KEY: RECORD, OUTPUT_KEY: BODY}
    fetched = layout.fetch(A)
    assert bucket.methods() == ["read", "open", "download"]
    assert read(fetched.path) == BODY


@pytest.mark.parametrize("body", [BODY[:-1], BODY + b"x", b"x" + BODY[1:]])
def test_damaged_large_download(bucket, cache, layout, small_is_large, body):
    """A parallel download of a wrong body is not stored."""
    bucket.objects = {ACTION_KEY: RECORD, OUTPUT_KEY: body}
    with pytest.raises(Damaged):
        layout.fetch(A)
    assert files(cache.store.root) == {}


# -- damage ----------------------------------------------------------------------------------------


def test_absent_output_is_damage(bucket, layout):
    """A record whose output is absent is Damaged, not a miss."""
    bucket.objects = {ACTION_KEY: RECORD}
    with pytest.raises(Damaged, match="which is absent"):
        layout.fetch(A)


@pytest.mark.parametrize(
    ("length", "error"), [(0, Damaged), (len(BODY) - 1, Damaged), (len(BODY) + 1, Unavailable)]
)
def test_body_of_another_length_than_announced(bucket, cache, layout, length, error):
    """A body that is shorter or longer than the response says is not stored."""
    bucket.objects = {ACTION_KEY: RECORD, OUTPUT_KEY: BODY}
    bucket.lengths = {OUTPUT_KEY: length}
    with pytest.raises(error):
        layout.fetch(A)
    assert files(cache.store.root) == {}


def test_slow_body(bucket, cache, layout, monkeypatch):
    """A body that comes too slowly is given up, and nothing is stored."""
    bucket.objects = {ACTION_KEY: RECORD, OUTPUT_KEY: BODY}
    now = iter([0.0, 1e6])
    monkeypatch.setattr(body_reader.time, "monotonic", lambda: next(now))
    with pytest.raises(Unavailable, match="slowly"):
        layout.fetch(A)
    assert files(cache.store.root) == {}


INVALID_RECORDS = [
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


@pytest.mark.parametrize("text", INVALID_RECORDS, ids=repr)
def test_invalid_record_is_damage(bucket, layout, text):
    """A record without two valid fields is Damaged, and its output is not read."""
    bucket.objects = {ACTION_KEY: text, OUTPUT_KEY: BODY}
    with pytest.raises(Damaged):
        layout.fetch(A)
    assert bucket.calls == [("read", ACTION_KEY)]


def test_long_record_is_not_read_whole(bucket, layout):
    """Only the beginning of a long record is read."""
    bucket.objects = {ACTION_KEY: RECORD + b" " * 10**6 + b"1"}
    bucket.read = lambda key, limit: b"x" * limit if limit <= 1024 else pytest.fail("unbounded")
    with pytest.raises(Damaged):
        layout.fetch(A)


@given(st.integers(0, 2**63 - 1))
def test_parse_action(time_ns):
    """The two fields are returned.

    A newline at the end, which another program may add, is allowed.
    """
    text = f"{OUT} {time_ns}".encode()
    assert parse_action(text) == parse_action(text + b"\n") == (OUT, time_ns)


@given(st.binary(max_size=100))
def test_parse_action_of_noise(data):
    """Arbitrary bytes are Damaged, with a reason of one short line."""
    with pytest.raises(Damaged) as caught:
        parse_action(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
