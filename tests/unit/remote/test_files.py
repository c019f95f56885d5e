"""remote/files.py: files that are not cache entries, one object for each."""

import os
import resource
import signal
from contextlib import contextmanager

import pytest

from cacheplugin.errors import Absent, Unavailable
from cacheplugin.ipc import jobs
from cacheplugin.options import Options
from cacheplugin.pool import worker
from cacheplugin.remote import body_reader, files
from cacheplugin.remote.files import Files
from cacheplugin.remote.layouts import Remote
from entries import read
from fake_bucket import FakeBucket

LIMIT = 1 << 30
KEY = "module/ab/abcdef"
BODY = bytes(range(256)) * 3000  # several chunks


@pytest.fixture
def bucket():
    return FakeBucket()


@pytest.fixture
def path(tmp_path):
    """An empty file, which the front creates before a fetch."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    return str(path)


@pytest.fixture
def small_is_large(monkeypatch):
    monkeypatch.setattr(files, "LARGE_BYTES", 100)


def fetch(bucket, path, prefix=""):
    return Files(bucket, prefix).fetch(jobs.FileFetchJob(7, KEY, path, LIMIT))


def upload(bucket, path, replace=False, prefix=""):
    return Files(bucket, prefix).upload(jobs.FileUploadJob(7, KEY, path, replace))


# -- fetch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "start"), [("", ""), ("team", "team/"), ("a/b", "a/b/"), ("/a", "/a/"), ("/", "/")]
)
def test_keys_begin_with_the_prefix(bucket, path, prefix, start):
    """Fetches and uploads put the prefix before the key."""
    bucket.objects = {start + KEY: b"body"}
    assert fetch(bucket, path, prefix) == (7, jobs.HIT, 4, "")
    assert read(path) == b"body"
    other = FakeBucket()
    assert upload(other, path, prefix=prefix) == (7, jobs.STORED, 4, "")
    assert other.objects == bucket.objects


@pytest.mark.parametrize("body", [b"", b"x", BODY[:99], BODY[: files._CHUNK_BYTES], BODY], ids=len)
def test_fetch(bucket, path, body):
    """A fetch sends one request and writes the whole object to the file."""
    bucket.objects = {KEY: body}
    assert fetch(bucket, path) == (7, jobs.HIT, len(body), "")
    assert read(path) == body and bucket.methods() == ["open"]


@pytest.mark.parametrize(("size", "methods"), [(100, ["open"]), (101, ["open", "download"])])
def test_large_files_are_downloaded_in_parts(bucket, path, small_is_large, size, methods):
    """A large object is downloaded in parallel parts, which arrive out of order."""
    bucket.objects = {KEY: BODY[:size]}
    assert fetch(bucket, path) == (7, jobs.HIT, size, "")
    assert read(path) == BODY[:size] and bucket.methods() == methods


def test_fetch_keeps_the_inode(bucket, path):
    """A fetch writes into the existing file, which the front may have linked elsewhere."""
    bucket.objects = {KEY: BODY}
    inode = os.stat(path).st_ino
    os.link(path, f"{path}.kept")
    fetch(bucket, path)
    assert os.stat(path).st_ino == inode and read(f"{path}.kept") == BODY


def test_absent_object(bucket, path):
    """An absent object raises Absent and leaves the file as it was."""
    with pytest.raises(Absent):
        fetch(bucket, path)
    assert read(path) == b"" and bucket.methods() == ["open"]


def test_short_and_slow_bodies(bucket, path, monkeypatch):
    """Bodies that end early or come too slowly raise Unavailable."""
    bucket.objects, bucket.lengths = {KEY: BODY}, {KEY: len(BODY) + 1}
    with pytest.raises(Unavailable, match="ended early"):
        fetch(bucket, path)
    bucket.lengths = {}
    now = iter([0.0, 1e6])
    monkeypatch.setattr(body_reader.time, "monotonic", lambda: next(now))
    with pytest.raises(Unavailable, match="slowly"):
        fetch(bucket, path)


def test_fetch_into_a_missing_file(bucket, tmp_path):
    """If the front has removed the file, none is created and no request is sent."""
    bucket.objects = {KEY: BODY}
    with pytest.raises(FileNotFoundError):
        fetch(bucket, str(tmp_path / "gone"))
    assert os.listdir(tmp_path) == [] and bucket.calls == []


@contextmanager
def max_file_size(size):
    """Limit the size of files that this process writes, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("room", [0, 1, 1000, files._CHUNK_BYTES, len(BODY) - 1])
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_disk_full_during_a_fetch(bucket, path, monkeypatch, room, large):
    """A fetch raises OSError if the disk takes only a part of the file."""
    if large:
        monkeypatch.setattr(files, "LARGE_BYTES", 100)
    bucket.objects = {KEY: BODY}
    with pytest.raises(OSError), max_file_size(room):
        fetch(bucket, path)
    assert len(read(path)) <= room


# -- upload ----------------------------------------------------------------------------------------


@pytest.fixture
def full(path):
    with open(path, "wb") as file:
        file.write(BODY)
    return path


def test_upload_of_a_new_file(bucket, full):
    """An upload sends one request, which does not replace an object that exists by then."""
    assert upload(bucket, full) == (7, jobs.STORED, len(BODY), "")
    assert bucket.objects == {KEY: BODY} and bucket.methods() == ["write_new"]


def test_upload_of_an_existing_object(bucket, full):
    """An object that exists is kept, as its key names its content; no bytes are counted."""
    bucket.objects = {KEY: b"there"}
    assert upload(bucket, full) == (7, jobs.STORED, 0, "")
    assert bucket.objects == {KEY: b"there"} and bucket.methods() == ["write_new"]


def test_upload_with_replace(bucket, full):
    """With ``replace`` the object is written whether or not it exists."""
    for bucket.objects in ({}, {KEY: b"old"}):
        bucket.calls.clear()
        assert upload(bucket, full, replace=True) == (7, jobs.STORED, len(BODY), "")
        assert bucket.objects == {KEY: BODY} and bucket.methods() == ["write"]


@pytest.mark.parametrize(
    ("there", "replace", "methods", "size"),
    [
        (False, False, ["exists", "upload_file"], len(BODY)),
        (True, False, ["exists"], 0),
        (False, True, ["upload_file"], len(BODY)),
        (True, True, ["upload_file"], len(BODY)),
    ],
)
def test_large_uploads(bucket, full, small_is_large, there, replace, methods, size):
    """A large file is uploaded in parts, unless the object exists and is not to be replaced."""
    bucket.objects = {KEY: b"there"} if there else {}
    assert upload(bucket, full, replace) == (7, jobs.STORED, size, "")
    assert bucket.methods() == methods and bucket.objects == {KEY: BODY if size else b"there"}


@pytest.mark.parametrize(
    ("size", "methods"), [(100, ["write_new"]), (101, ["exists", "upload_file"])]
)
def test_size_from_which_uploads_use_parts(bucket, path, small_is_large, size, methods):
    """Uploads have the same limit as fetches."""
    with open(path, "wb") as file:
        file.write(BODY[:size])
    upload(bucket, path)
    assert bucket.methods() == methods


def test_upload_of_an_empty_file(bucket, path):
    """An empty file, such as a version list without versions, is uploaded."""
    assert upload(bucket, path) == (7, jobs.STORED, 0, "")
    assert bucket.objects == {KEY: b""}


def test_upload_of_a_missing_file(bucket, tmp_path):
    """A file that a prune has removed raises FileNotFoundError, and no request is sent."""
    with pytest.raises(FileNotFoundError):
        upload(bucket, str(tmp_path / "gone"))
    assert bucket.calls == []


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("replace", [False, True])
def test_failing_uploads(bucket, full, monkeypatch, large, replace):
    """The bucket's error is raised."""
    if large:
        monkeypatch.setattr(files, "LARGE_BYTES", 100)
    bucket.faults = {KEY: Unavailable("503")}
    with pytest.raises(Unavailable):
        upload(bucket, full, replace)
    assert bucket.objects == {}


# -- as tasks of a worker --------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["auto", "bundles", "objects", "both"])
def test_every_layout_has_files(bucket, full, tmp_path, layout):
    """Files have the same objects in every layout."""
    remote = Remote(Options(layout=layout, prefix="p"), bucket, None)
    done = worker.perform(remote, jobs.FileUploadJob(1, KEY, full, False))
    assert done == jobs.FileResult(1, jobs.STORED, len(BODY), "")
    assert bucket.objects == {f"p/{KEY}": BODY}
    (tmp_path / "other").write_bytes(b"")
    done = worker.perform(remote, jobs.FileFetchJob(2, KEY, str(tmp_path / "other"), LIMIT))
    assert done == jobs.FileResult(2, jobs.HIT, len(BODY), "") and read(tmp_path / "other") == BODY


@pytest.mark.parametrize(
    ("fault", "fetched", "uploaded"),
    [
        (None, jobs.MISS, jobs.STORED),
        (Unavailable("why"), jobs.FAILED, jobs.FAILED),
        (Absent("why"), jobs.MISS, jobs.FAILED),
    ],
)
def test_failures_are_results(bucket, full, fault, fetched, uploaded):
    """A failure becomes a FileResult with the job's number and the right status."""
    bucket.faults = {} if fault is None else {KEY: fault}
    remote = Remote(Options(layout="objects"), bucket, None)
    results = [
        worker.perform(remote, job)
        for job in (jobs.FileFetchJob(1, KEY, full, LIMIT), jobs.FileUploadJob(2, KEY, full, False))
    ]
    assert [result[:2] for result in results] == [(1, fetched), (2, uploaded)]
    assert {type(result) for result in results} == {jobs.FileResult}


def test_missing_files_are_local_failures(bucket, tmp_path):
    """A missing local file has the status LOCAL for fetches and uploads."""
    remote = Remote(Options(layout="objects"), bucket, None)
    bucket.objects = {KEY: BODY}
    gone = f"{tmp_path}/x"
    for job in (jobs.FileFetchJob(1, KEY, gone, LIMIT), jobs.FileUploadJob(1, KEY, gone, True)):
        assert worker.perform(remote, job) == (1, jobs.LOCAL, 0, "no such file or directory")
