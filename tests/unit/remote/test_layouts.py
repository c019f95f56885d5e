"""The contract that every layout keeps (see remote/layouts.py).

Add a new layout to LAYOUTS. Tests of one layout alone are in modules of their own.
"""

import itertools
import os

import pytest

from bundle_reader import read_index
from cacheplugin.errors import TimedOut, Unavailable, Unusable
from cacheplugin.ipc import jobs
from cacheplugin.store.record import timestamp
from entries import TIME, TIME_NS, files, output_id, put, read
from fake_bucket import FakeBucket
from machine import BODY, Machine

LAYOUTS = ("objects", "bundles", "auto", "both")
FETCHED = (jobs.HIT, jobs.ARRIVED)


class FaultsWhere(dict):
    """Faults of a FakeBucket for the keys for which ``matches`` is true."""

    def __init__(self, error, matches=lambda key: True) -> None:
        self._error = error
        self._matches = matches

    def __contains__(self, key) -> bool:
        return self._matches(key)

    def __getitem__(self, key):
        return self._error


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


@pytest.fixture
def bucket():
    return FakeBucket()


@pytest.fixture
def machines(layout, bucket, tmp_path):
    """Makes machines, each with an empty store and its own session."""
    numbers = itertools.count()
    return lambda: Machine(layout, bucket, tmp_path / f"machine-{next(numbers)}")


@pytest.fixture
def machine(machines):
    return machines()


@pytest.fixture
def fresh(machines):
    return machines()


def assert_fetches(machine, name, body=BODY, time_ns=TIME_NS) -> None:
    """Check that a get brings this entry into the machine's store."""
    result = machine.fetch(name)
    assert result.status in FETCHED, result
    path = machine.cache.store.output_path(output_id(body))
    if result.status == jobs.HIT:
        assert result[3:7] == (output_id(body), len(body), time_ns, path)
    assert machine.lookup(name)[:4] == (output_id(body), len(body), timestamp(time_ns), path)
    assert read(path) == body


def assert_nothing_stored(machine) -> None:
    assert files(machine.cache.store.root) == {}


def reader_of(data: bytes):
    """The ``read_range`` that read_index takes, of an object's bytes."""
    return lambda start, length: data[start : start + length]


def places_of_bodies(bucket) -> list:
    """(key, start, end) of the bytes of every body in the bucket."""
    found = []
    for key, data in bucket.objects.items():
        if "/output/" in key:
            found.append((key, 0, len(data)))
        elif "/bundle/" in key:
            rows = read_index(reader_of(data), len(data), "name")
            found += sorted({(key, row.offset, row.offset + row.length) for row in rows})
    return found


def damage_bodies(bucket, damage) -> None:
    """Replace the bytes of every body in the bucket by what ``damage`` returns for them."""
    for key, start, end in places_of_bodies(bucket):
        data = bucket.objects[key]
        bucket.objects[key] = data[:start] + damage(data[start:end]) + data[end:]


# -- from one machine to another -------------------------------------------------------------------


@pytest.mark.parametrize("body", [BODY, b"x", b"", os.urandom(1 << 20)], ids=len)
def test_entry_reaches_another_machine(machine, fresh, body):
    """An uploaded entry is fetched by another machine with the same body, size and time."""
    assert machine.upload("a", body).status == jobs.STORED
    assert_fetches(fresh, "a", body)
    assert fresh.lookup("a")[2] == TIME


def test_large_entry_reaches_another_machine(machine, fresh):
    """An entry that is too large for memory is fetched by another machine."""
    body = os.urandom(9 << 20)
    assert machine.upload("a", body).status == jobs.STORED
    assert_fetches(fresh, "a", body)


def test_many_entries_reach_another_machine(machine, fresh):
    """Entries that were put in many sessions are fetched by a later session."""
    bodies = {f"action {at}": os.urandom(at * at) for at in range(30)}
    for name, body in bodies.items():
        assert machine.upload(name, body).status == jobs.STORED
    for name, body in bodies.items():
        assert_fetches(fresh, name, body)


def test_received_counts_bodies_once(machine, fresh):
    """The bytes of a body that came over the network are counted once."""
    body = os.urandom(50_000)
    machine.upload("a", body)
    machine.upload("b", body)
    assert fresh.fetch("a").status in FETCHED
    assert len(body) <= fresh.received < len(body) + 100
    assert fresh.fetch("b").status in FETCHED
    assert fresh.received < len(body) + 100


def test_absent(fresh):
    """An entry that was never uploaded is a miss, and nothing is stored."""
    assert fresh.fetch("a").status == jobs.MISS
    assert_nothing_stored(fresh)


def test_absent_beside_other_entries(machine, fresh):
    """A miss does not depend on other entries in the bucket."""
    machine.upload("a")
    assert fresh.fetch("b").status == jobs.MISS
    assert_fetches(fresh, "a")


def test_second_upload_of_a_body_sends_no_bytes(machine, bucket):
    """A body is sent once, whichever action it belongs to."""
    assert not machine.upload("a").found
    sent, there = machine.sent, places_of_bodies(bucket)
    assert machine.upload("b").found and machine.upload("a").found
    assert places_of_bodies(bucket) == there and sent > 0


def test_upload_of_a_body_that_another_machine_uploaded(machine, fresh, machines, bucket):
    """A body that is in the bucket is found and not replaced."""
    machine.upload("a")
    there = places_of_bodies(bucket)
    result = fresh.upload("b")
    assert (result.status, result.found, result.sent) == (jobs.STORED, True, 0)
    assert places_of_bodies(bucket) == there
    third = machines()
    assert_fetches(third, "b")
    assert_fetches(third, "a")


def test_latest_put_counts(machine, machines):
    """A later upload of an action replaces its output and its time."""
    machine.upload("a")
    machine.upload("a", BODY, TIME_NS + 1)
    assert_fetches(machines(), "a", BODY, TIME_NS + 1)
    machine.upload("a", b"other", TIME_NS + 2)
    assert_fetches(machines(), "a", b"other", TIME_NS + 2)


def test_concurrent_sessions(machines):
    """Of ten sessions that run at the same time, none loses the entries of another."""
    ten = [machines() for _ in range(10)]
    for machine in ten:
        machine.begin()
    for at, machine in enumerate(ten):
        assert machine.upload(f"a{at}", b"%d" % at).status == jobs.STORED
        assert machine.upload("shared", b"shared", TIME_NS + at).status == jobs.STORED
    eleventh = machines()
    for at in range(10):
        assert_fetches(eleventh, f"a{at}", b"%d" % at)
    assert_fetches(eleventh, "shared", b"shared", TIME_NS + 9)
    eleventh.upload("another", b"another")
    twelfth = machines()
    for at in range(10):
        assert_fetches(twelfth, f"a{at}", b"%d" % at)
    assert_fetches(twelfth, "another", b"another")


# -- damage in the bucket --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: b"y" + data[1:],
        lambda data: b"",
        lambda data: os.urandom(len(data)),
        lambda data: bytes(len(data)),
    ],
    ids=["short", "changed", "empty", "other", "zeros"],
)
@pytest.mark.parametrize("body", [BODY, os.urandom(40_000)], ids=["text", "noise"])
def test_damaged_body_is_never_stored(machine, fresh, bucket, damage, body):
    """A body with a wrong SHA-256 is damaged and not stored."""
    machine.upload("a", body)
    damage_bodies(bucket, damage)
    assert fresh.fetch("a").status == jobs.DAMAGED
    assert_nothing_stored(fresh)


def test_bytes_after_a_body(machine, fresh, bucket):
    """Bytes that follow a body are never stored as part of it."""
    machine.upload("a")
    damage_bodies(bucket, lambda data: data + b"x")
    if fresh.fetch("a").status == jobs.DAMAGED:
        assert_nothing_stored(fresh)
    else:
        assert read(fresh.lookup("a")[3]) == BODY


@pytest.mark.parametrize("damage", [lambda data: data[:20], lambda data: b"y" + data[1:]])
def test_next_put_repairs_a_damaged_body(layout, machine, fresh, machines, bucket, damage):
    """A damaged body is right again after the machine that found the damage has put it.

    With the layout ``both`` the other layout serves the entry meanwhile.
    """
    machine.upload("a")
    for key, start, end in places_of_bodies(bucket):
        if layout != "both" or "/bundle/" in key:
            data = bucket.objects[key]
            bucket.objects[key] = data[:start] + damage(data[start:end]) + data[end:]
    assert fresh.fetch("a").status == (jobs.HIT if layout == "both" else jobs.DAMAGED)
    assert fresh.upload("a", BODY, TIME_NS + 1).status == jobs.STORED
    assert_fetches(machines(), "a", BODY, TIME_NS + 1)


def test_next_put_repairs_a_deleted_body(machine, fresh, machines, bucket):
    """A deleted body is in the bucket again after the next put."""
    machine.upload("a")
    for key, _, _ in places_of_bodies(bucket):
        del bucket.objects[key]
    assert fresh.fetch("a").status == jobs.DAMAGED
    assert_nothing_stored(fresh)
    assert fresh.upload("a", BODY, TIME_NS + 1).status == jobs.STORED
    assert_fetches(machines(), "a", BODY, TIME_NS + 1)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: b"?" * 500]
)
def test_damaged_action_or_manifest(machine, fresh, machines, bucket, damage):
    """An entry is a miss if its action object or manifest is damaged; the next put repairs it."""
    machine.upload("a")
    for key in bucket.objects:
        if "/action/" in key or "/manifest/" in key:
            bucket.objects[key] = damage(bucket.objects[key]) if "/manifest/" in key else b"?"
    assert fresh.fetch("a").status in (jobs.MISS, jobs.DAMAGED)
    assert_nothing_stored(fresh)
    assert fresh.upload("a", BODY, TIME_NS + 1).status == jobs.STORED
    assert_fetches(machines(), "a", BODY, TIME_NS + 1)


# -- failures of S3 --------------------------------------------------------------------------------

FAILURES = pytest.mark.parametrize(
    ("error", "status"),
    [
        (Unavailable("503"), jobs.FAILED),
        (TimedOut("late"), jobs.TIMED_OUT),
        (Unusable("no credentials"), jobs.UNUSABLE),
    ],
    ids=repr,
)


@FAILURES
def test_failing_fetches(layout, machine, machines, bucket, error, status):
    """If any object cannot be read, the get has the right status and nothing is stored."""
    machine.upload("a")
    for key in list(bucket.objects):
        if layout == "both" and ("/action/" in key or "/output/" in key):
            continue  # not read, because a bundle has the entry
        fresh = machines()
        bucket.faults = {key: error}
        assert fresh.fetch("a").status == status
        assert_nothing_stored(fresh)
        bucket.faults = {}
        assert_fetches(fresh, "a")


@FAILURES
def test_failing_uploads(fresh, machines, bucket, error, status):
    """If S3 takes nothing, the put has the right status and the entry is a miss elsewhere."""
    bucket.faults = FaultsWhere(error)
    assert fresh.upload("a").status == status
    bucket.faults = {}
    assert bucket.objects == {}
    assert machines().fetch("a").status == jobs.MISS
    assert fresh.upload("a").status == jobs.STORED
    assert_fetches(machines(), "a")


@FAILURES
@pytest.mark.parametrize("kind", ["action", "output", "bundle", "manifest"])
def test_failing_writes_of_one_kind(machine, machines, bucket, kind, error, status):
    """If S3 takes one kind of object and not another, other machines see no half entry."""
    machine.begin()
    bucket.faults = FaultsWhere(error, lambda key: f"/{kind}/" in key)
    result = machine.upload("a")
    asked = any(f"/{kind}/" in key for method, key in bucket.calls if "list" not in method)
    assert result.status == (status if asked else jobs.STORED)
    bucket.faults = {}
    fresh = machines()
    assert fresh.fetch("a").status == jobs.MISS or fresh.lookup("a")[0] == output_id(BODY)
    assert machine.upload("a").status == jobs.STORED
    assert_fetches(machines(), "a")


# -- wrong or missing local bodies -----------------------------------------------------------------


def test_upload_of_a_missing_body(machine, fresh):
    """A missing local body has the status DAMAGED, and no record of it is uploaded."""
    assert machine.upload("a", path="/nonexistent/body").status == jobs.DAMAGED
    assert fresh.fetch("a").status == jobs.MISS


@pytest.mark.parametrize("body", [BODY, os.urandom(9 << 20)], ids=["small", "large"])
def test_upload_of_a_damaged_body(machine, fresh, bucket, body):
    """A local body with a wrong SHA-256 is not uploaded."""
    path = put(machine.cache, "a", body)
    with open(path, "r+b") as file:
        file.write(b"evil")
    assert machine.upload("a", body, path=path).status == jobs.DAMAGED
    assert bucket.objects == {}
    assert fresh.fetch("a").status == jobs.MISS


def test_local_body_is_not_fetched(machine, fresh):
    """A body that the local store has is not fetched for another action."""
    machine.upload("a")
    put(fresh.cache, "b", BODY)
    assert_fetches(fresh, "a")
    assert fresh.received == 0


def test_actions_that_share_a_body(machine, machines):
    """Entries that share a body, large or small, are all fetched."""
    for body in BODY, os.urandom(9 << 20):
        for name in "abc":
            machine.upload(f"{name} {len(body)}", body)
        fresh = machines()
        for name in "abc":
            assert_fetches(fresh, f"{name} {len(body)}", body)
