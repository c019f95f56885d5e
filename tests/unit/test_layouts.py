"""The contract that every layout of the remote keeps (see cacheplugin/remote/__init__.py).

A new layout is one more line in LAYOUTS. What is particular to one layout has a module of its own.
"""

import os

import pytest
from entries import TIME, TIME_NS, action_id, files, output_id, put, read
from fake_bucket import FakeBucket

from cacheplugin.errors import Absent, Damaged, TimedOut, Unavailable, Unusable
from cacheplugin.jobs import UploadJob
from cacheplugin.local import LocalCache
from cacheplugin.record import timestamp
from cacheplugin.remote.objects import ObjectsLayout
from cacheplugin.store import Store

LAYOUTS = {"objects": ObjectsLayout}
BODY = b"package main\n" * 5000


class Machine:
    """One machine's local cache, and its way to the bucket that all share."""

    def __init__(self, layout, bucket, root) -> None:
        self.cache = LocalCache(Store(str(root)), spill=False)
        self.remote = layout(bucket, self.cache, "prefix")

    def upload(self, name, body=BODY, time_ns=TIME_NS):
        path = put(self.cache, name, body, time_ns)
        action, output = action_id(name), output_id(body)
        return self.remote.upload(UploadJob(1, action, output, len(body), time_ns, path))

    def fetch(self, name):
        return self.remote.fetch(action_id(name))


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def layout(request):
    return request.param


@pytest.fixture
def bucket():
    return FakeBucket()


@pytest.fixture
def machine(layout, bucket, tmp_path):
    return Machine(layout, bucket, tmp_path / "first")


@pytest.fixture
def fresh(layout, bucket, tmp_path):
    return Machine(layout, bucket, tmp_path / "second")


def assert_nothing_stored(machine) -> None:
    assert files(machine.cache.store.root) == {}


@pytest.mark.parametrize("body", [BODY, b"x", b"", os.urandom(1 << 20)], ids=len)
def test_entry_reaches_another_machine(machine, fresh, body):
    """What one machine uploads another fetches: body, size and time, now in its own store."""
    machine.upload("a", body)
    fetched = fresh.fetch("a")
    assert fetched[:3] == (output_id(body), len(body), TIME_NS)
    assert fetched.path == fresh.cache.store.output_path(output_id(body))
    assert read(fetched.path) == body
    assert fresh.cache.lookup(action_id("a"))[:4] == (
        output_id(body), len(body), TIME, fetched.path,
    )  # fmt: skip


def test_received_counts_what_came(machine, fresh):
    """The bytes of a body that came over the network are counted, once."""
    machine.upload("a")
    machine.upload("b")
    assert fresh.fetch("a").received == len(BODY)
    assert fresh.fetch("b").received == 0


def test_absent(fresh):
    """What nobody uploaded is Absent, and leaves nothing behind."""
    with pytest.raises(Absent):
        fresh.fetch("a")
    assert_nothing_stored(fresh)


def test_second_upload_of_a_body_sends_none(machine):
    """A body goes once, whichever action it belongs to."""
    first, second, third = machine.upload("a"), machine.upload("b"), machine.upload("a")
    assert first == (False, len(BODY))
    assert second == third == (True, 0)


def test_upload_finds_what_another_machine_uploaded(machine, fresh):
    """A body that the bucket has from elsewhere is found and not replaced."""
    machine.upload("a")
    assert fresh.upload("b") == (True, 0)
    assert fresh.fetch("a").output == output_id(BODY)


def test_latest_put_counts(machine, fresh):
    """A later upload of an action replaces its output and its time."""
    machine.upload("a")
    machine.upload("a", BODY, TIME_NS + 1)
    assert fresh.fetch("a").time_ns == TIME_NS + 1
    machine.upload("a", b"other", TIME_NS + 2)
    fetched = fresh.fetch("a")
    assert fetched[:3] == (output_id(b"other"), 5, TIME_NS + 2)
    assert fresh.cache.lookup(action_id("a"))[2] == timestamp(TIME_NS + 2)


@pytest.mark.parametrize("damage", [
    lambda body: body[:-1], lambda body: body + b"x", lambda body: b"y" + body[1:],
    lambda body: b"",
    lambda body: os.urandom(len(body)),
], ids=["short", "long", "changed", "empty", "other"])  # fmt: skip
def test_damaged_body_is_never_stored(machine, fresh, bucket, damage):
    """A body that is not what its name says is Damaged, and nothing of it stays."""
    machine.upload("a")
    (key,) = [key for key, data in bucket.objects.items() if data == BODY]
    bucket.objects[key] = damage(BODY)
    with pytest.raises(Damaged):
        fresh.fetch("a")
    assert_nothing_stored(fresh)


@pytest.mark.parametrize(
    "error", [Unavailable("503"), TimedOut("late"), Unusable("no credentials")]
)
def test_trouble_comes_out_as_it_is(machine, fresh, bucket, error):
    """Errors of the bucket pass through fetch and upload, and nothing half done stays."""
    machine.upload("a")
    for key in list(bucket.objects):
        bucket.faults = {key: error}
        with pytest.raises(type(error)):
            fresh.fetch("a")
        assert_nothing_stored(fresh)
    bucket.faults = dict.fromkeys(bucket.objects, error)
    with pytest.raises(type(error)):
        fresh.upload("a")


def test_upload_of_a_body_that_is_gone(machine):
    """A local body that is gone is Damaged, and no record is uploaded without it."""
    job = UploadJob(1, action_id("a"), output_id(BODY), len(BODY), TIME_NS, "/nonexistent/body")
    with pytest.raises(Damaged):
        machine.remote.upload(job)
    with pytest.raises(Absent):
        machine.fetch("a")


def test_upload_of_a_damaged_body(machine, bucket):
    """A local body that lost its contents is not given to everybody."""
    path = put(machine.cache, "a", BODY)
    with open(path, "r+b") as file:
        file.write(b"evil")
    job = UploadJob(1, action_id("a"), output_id(BODY), len(BODY), TIME_NS, path)
    with pytest.raises(Damaged):
        machine.remote.upload(job)
    assert bucket.objects == {}
