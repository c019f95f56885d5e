"""remote/bundles/layout.py: what its tasks ask of a bucket, and what they bear from it."""

import io
import itertools
import os
import re
from contextlib import contextmanager

import pytest

from bundle_reader import read_index
from cacheplugin.errors import Absent, TimedOut, Unavailable
from cacheplugin.ipc import jobs
from cacheplugin.pool import worker
from cacheplugin.remote import body_reader
from cacheplugin.remote.bundles import bundle, manifest, tasks
from cacheplugin.remote.bundles.keys import scope_key
from entries import action_id, files, output_id, put, read
from fake_bucket import FakeBucket
from machine import BODY, SCOPE, Machine

MAIN, FEATURE = SCOPE, "example.com/a linux/amd64 feature"
UNRELATED = "example.com/b linux/amd64 main"


@pytest.fixture
def bucket():
    return FakeBucket()


@pytest.fixture
def machines(bucket, tmp_path):
    """Makes machines whose scopes are given, each with nothing stored and a session of its own."""
    numbers = itertools.count()
    return lambda *scopes: Machine(
        "bundles", bucket, tmp_path / f"machine-{next(numbers)}", scopes or (MAIN,)
    )


def keys(bucket, kind) -> list:
    return [key for key in bucket.objects if f"/{kind}/" in key]


def bundle_with(machine, *bodies) -> None:
    """Have one bundle hold entries of these bodies, named after their places."""
    for at, body in enumerate(bodies):
        path = put(machine.cache, str(at), body)
        job = jobs.UploadJob(100 + at, action_id(str(at)), output_id(body), len(body), 5, path)
        machine._plan.upload(job)
        machine._run()
    machine.finish([action_id(str(at)) for at in range(len(bodies))])


def range_job(bucket) -> jobs.RangeJob:
    """A RangeJob for all that the one bundle of the bucket holds."""
    (key,) = keys(bucket, "bundle")
    data, name = bucket.objects[key], key.rpartition("/")[2]
    rows = read_index(lambda start, length: data[start : start + length], len(data), name)
    rows.sort(key=lambda row: (row.offset, row.inner))
    return jobs.RangeJob(1, name, 8, len(data) - 8, [tuple(row) for row in rows])


# -- names -----------------------------------------------------------------------------------------


def test_names_in_the_bucket(machines, bucket):
    """Bundles lie beside each other, manifests by their scopes; both are written once."""
    machines().upload("a")
    scope = scope_key(MAIN)
    (of_bundle,), (of_manifest,) = keys(bucket, "bundle"), keys(bucket, "manifest")
    assert re.fullmatch(rf"prefix/bundle/[0-9a-f]{{12}}-{scope}-[0-9a-f]{{8}}", of_bundle)
    assert re.fullmatch(rf"prefix/manifest/{scope}/[0-9a-f]{{12}}-[0-9a-f]{{8}}", of_manifest)
    name = of_bundle.rpartition("/")[2]
    data = bucket.objects[of_bundle]
    rows = read_index(lambda start, length: data[start : start + length], len(data), name)
    written = manifest.decode(bucket.objects[of_manifest])
    assert [row._replace(used_s=0) for row in written.rows] == rows
    assert written.scope == MAIN


# -- loading ---------------------------------------------------------------------------------------


def test_load_reads_no_more_than_the_newest(machines, bucket):
    """What the newest manifest supersedes is listed and not read."""
    for name in "abc":
        machine = machines()
        machine.begin()
        machine.upload(name, name.encode())
    bucket.calls.clear()
    fresh = machines()
    fresh.begin()
    assert set(fresh.expected.actions) == {action_id(name) for name in "abc"}
    assert [key for method, key in bucket.calls if method == "read_all"] == [
        max(keys(bucket, "manifest"), key=bucket.modified.get)
    ]


def test_load_of_related_scopes(machines):
    """A branch has what its default branch has; not the other way round."""
    machines(MAIN).upload("a", b"a")
    machines(FEATURE, MAIN).upload("b", b"b")
    feature, main = machines(FEATURE, MAIN), machines(MAIN)
    feature.begin()
    main.begin()
    assert set(feature.expected.actions) == {action_id("a"), action_id("b")}
    assert main.expected.actions == [action_id("a")]


def test_expected_actions_are_named_once(machines):
    """What a scope and its default branch both name is expected, and fetched, once."""
    machines(MAIN).upload("a", b"a")
    first = machines(FEATURE, MAIN)
    first.fetch("a")
    first.finish([action_id("a")])
    second = machines(FEATURE, MAIN)
    second.begin()
    assert second.expected.actions == [action_id("a")]


def test_load_of_foreign_scopes(machines):
    """Where neither scope nor related ones have anything, what others wrote last is of use."""
    machines(UNRELATED).upload("a", b"a")
    fresh = machines(FEATURE, MAIN)
    fresh.begin()
    assert fresh.expected.actions == [action_id("a")]
    machines(MAIN).upload("b", b"b")
    fresh = machines(FEATURE, MAIN)
    fresh.begin()
    assert fresh.expected.actions == [action_id("b")]


def test_trouble_with_the_manifests_of_related_scopes(machines, bucket):
    """Without those of the default branch the load goes on, with what the branch has itself."""
    machines(MAIN).upload("a", b"a")
    bucket.faults = dict.fromkeys(keys(bucket, "manifest"), Unavailable("503"))
    machines(FEATURE).upload("b", b"b")
    fresh = machines(FEATURE, MAIN)
    fresh.begin()
    assert fresh.expected.actions == [action_id("b")]


def test_trouble_with_the_manifests_of_foreign_scopes(machines, bucket):
    """Without those of strangers the load goes on, with nothing."""
    machines(UNRELATED).upload("a", b"a")
    bucket.faults = dict.fromkeys(keys(bucket, "manifest"), Unavailable("503"))
    fresh = machines(MAIN)
    assert fresh.fetch("a").status == jobs.MISS
    assert fresh.upload("b", b"b").status == jobs.STORED


def test_damaged_manifest_is_passed_over(machines, bucket):
    """A manifest that cannot be used is told of, and hides nothing that others name."""
    machines().upload("a", b"a")
    (first,) = keys(bucket, "manifest")
    machines().upload("b", b"b")
    (second,) = set(keys(bucket, "manifest")) - {first}
    bucket.objects[second] = b"?" + bucket.objects[second][1:]
    fresh = machines()
    fresh.begin()
    assert fresh.expected.actions == [action_id("a")]
    assert worker.perform(fresh.remote, jobs.LoadJob(1, (MAIN,))).damaged == 1


def test_manifest_that_was_damaged_on_the_way(machines, bucket):
    """A manifest that could not be used once is not superseded: its entries come back with it."""
    machines().upload("a", b"a")
    (key,) = keys(bucket, "manifest")
    whole = bucket.objects[key]
    bucket.objects[key] = whole[:-1]
    machines().upload("b", b"b")
    bucket.objects[key] = whole
    fresh = machines()
    fresh.begin()
    assert set(fresh.expected.actions) == {action_id("a"), action_id("b")}


@pytest.mark.parametrize("error", [Unavailable("503"), TimedOut("late")], ids=repr)
def test_load_gives_up(machines, bucket, error):
    """Where no manifest can be read the load ends soon, as gets wait for it."""
    for at in range(200):
        bucket.objects[f"prefix/manifest/{scope_key(MAIN)}/{at:012x}-00000000"] = b"?"
    bucket.faults = dict.fromkeys(bucket.objects, error)
    fresh = machines()
    assert fresh.fetch("a").status in (jobs.FAILED, jobs.TIMED_OUT)
    assert bucket.methods().count("read_all") <= 2 * tasks._AT_ONCE + 1


def test_load_of_many_that_are_damaged(machines, bucket):
    """No more manifests are read than there may be good ones, however many are damaged."""
    for at in range(200):
        bucket.objects[f"prefix/manifest/{scope_key(MAIN)}/{at:012x}-00000000"] = b"?"
    assert machines().fetch("a").status == jobs.MISS
    assert bucket.methods().count("read_all") <= tasks._OWN_MANIFESTS + tasks._AT_ONCE


# -- fetching --------------------------------------------------------------------------------------


class Body(io.BytesIO):
    """A body that may end too early, and notes what is asked of it."""

    def __init__(self, data) -> None:
        super().__init__(data)
        self.amounts = []
        self._empty = 0

    def read(self, amount=-1) -> bytes:
        data = super().read(amount)
        self.amounts.append(amount)
        self._empty += not data
        assert self._empty < 100, "asked for ever"
        return data


@pytest.fixture
def open_range(bucket, monkeypatch):
    """Sets what ranges of the bucket give: ``change(data)`` of them. Returns the last Body."""

    def set_change(change) -> list:
        bodies = []

        @contextmanager
        def opened(key, start, length):
            bodies.append(Body(change(bucket.objects[key][start : start + length])))
            yield bodies[-1]

        monkeypatch.setattr(bucket, "open_range", opened)
        return bodies

    return set_change


def body(size, seed=b"") -> bytes:
    """A body that nothing compresses, which is the same each time."""
    blocks = (bytes.fromhex(output_id(seed + b"%d" % at)) for at in range(size // 32 + 1))
    return b"".join(blocks)[:size]


BODIES = [body(40_000, b"%d" % at) for at in range(4)]


@pytest.mark.parametrize("size", [0, 1, 39_000, 41_000, 100_000])
def test_range_that_ends_early(machines, bucket, open_range, size):
    """A connection that ends before its time brings what it brought, and no more is waited for."""
    bundle_with(machines(), *BODIES)
    job = range_job(bucket)
    rows = [job.rows[0], job.rows[3]]  # with a part between that nobody wants
    open_range(lambda data: data[:size])
    fresh = machines()
    result = worker.perform(fresh.remote, job._replace(rows=rows))
    assert "for ever" not in result.reason
    expected = {rows[0][0]} if size > 40_100 else set()
    assert set(result.arrived) == expected
    assert {name for name in files(fresh.cache.store.root) if name.startswith("action")} == {
        f"action/{action[:2]}/{action}" for action in expected
    }


def test_blocks_that_overlap(machines, bucket, open_range):
    """Rows that a hostile manifest lets overlap harm nobody but themselves."""
    bundle_with(machines(), *BODIES)
    job = range_job(bucket)
    first, second, *_ = job.rows
    inside = (*second[:6], first[6] + 100, 50, 0, 0)
    bodies = open_range(lambda data: data)
    fresh = machines()
    result = worker.perform(fresh.remote, job._replace(rows=[first, inside, *job.rows[2:]]))
    assert first[0] in result.arrived and second[0] not in result.arrived
    assert min(bodies[0].amounts) >= 0
    for path, data in files(f"{fresh.cache.store.root}/output").items():
        assert output_id(data) == os.path.basename(path)


@pytest.mark.parametrize("error", [Unavailable("reset"), TimedOut("late")], ids=repr)
def test_range_that_breaks(machines, bucket, monkeypatch, error):
    """What arrived before a failure is told of, and the failure as well."""
    bundle_with(machines(), *BODIES)
    job = range_job(bucket)

    @contextmanager
    def opened(key, start, length):
        yield iter_body(bucket.objects[key][start : start + 60_000], error)

    monkeypatch.setattr(bucket, "open_range", opened)
    result = worker.perform(machines().remote, job)
    assert result.status == jobs.status_of(error, uploading=False)
    assert result.arrived == [job.rows[0][0]] and result.damaged == []


def iter_body(data, error):
    """A body that breaks at its end."""

    class Breaking(io.BytesIO):
        def read(self, amount=-1) -> bytes:
            if amount > len(self.getvalue()) - self.tell():
                raise error
            return super().read(amount)

    return Breaking(data)


def test_bundle_that_is_gone(machines, bucket):
    """A bundle that is not there is told of; what the store has of it has arrived all the same."""
    bundle_with(machines(), *BODIES)
    job = range_job(bucket)
    fresh = machines()
    put(fresh.cache, "0", BODIES[0])
    bucket.faults = dict.fromkeys(bucket.objects, Absent("404"))
    result = worker.perform(fresh.remote, job)
    assert result.gone and result.status == jobs.DAMAGED
    assert result.arrived == [action_id("0")]
    assert set(result.damaged) == {action_id(name) for name in "123"}


def test_only_what_is_wanted_is_asked_for(machines, bucket):
    """A range begins and ends with what the store lacks."""
    bundle_with(machines(), *BODIES)
    fresh = machines()
    for at in (0, 3):
        put(fresh.cache, f"other {at}", BODIES[at])
    result = worker.perform(fresh.remote, range_job(bucket))
    assert set(result.arrived) == {action_id(name) for name in "0123"}
    assert 80_000 < result.received < 81_000


@pytest.fixture
def small_is_large(monkeypatch):
    for module in bundle, tasks:
        monkeypatch.setattr(module, "LARGE_BYTES", 100)


def test_large_body_of_two_actions(machines, bucket, small_is_large):
    """A large body comes once and is there for all of its actions."""
    bundle_with(machines(), BODY, b"x", BODY)
    job = range_job(bucket)
    result = worker.perform(machines().remote, job)
    assert set(result.arrived) == {row[0] for row in job.rows} and result.damaged == []


def test_large_body_of_too_many_bytes(machines, bucket, small_is_large):
    """A large body that does not end where its row says is never stored, and what follows it is."""
    bundle_with(machines(), bytes(1 << 20), BODIES[0])
    job = range_job(bucket)
    rows = [(*job.rows[0][:2], 1000, *job.rows[0][3:]), job.rows[1]]
    fresh = machines()
    result = worker.perform(fresh.remote, job._replace(rows=rows))
    assert result.damaged == [rows[0][0]] and result.arrived == [rows[1][0]]
    assert read(fresh.cache.store.output_path(rows[1][1])) == BODIES[0]


@pytest.mark.parametrize("large", [100, 8 << 20])
def test_bundle_that_trickles(machines, bucket, open_range, monkeypatch, large):
    """A bundle that comes too slowly is given up at once, with most of it unread."""
    for module in bundle, tasks:
        monkeypatch.setattr(module, "LARGE_BYTES", large)
    bundle_with(machines(), body(6 << 20), body(6 << 20, b"other"))
    bodies = open_range(lambda data: data)
    seconds = itertools.count(0, 100)
    monkeypatch.setattr(body_reader.time, "monotonic", lambda: next(seconds))
    result = worker.perform(machines().remote, range_job(bucket))
    assert result.status == jobs.FAILED and "slowly" in result.reason
    assert bodies[0].tell() <= 4 << 20


def test_store_that_takes_nothing(machines, bucket):
    """Where the local disk does not take a body it is told so."""
    bundle_with(machines(), *BODIES)
    fresh = machines()
    os.makedirs(os.path.dirname(fresh.cache.store.root), exist_ok=True)
    with open(fresh.cache.store.root, "w"):
        pass
    assert worker.perform(fresh.remote, range_job(bucket)).status == jobs.LOCAL
