"""remote/bundles/tasks.py: the requests that tasks send, and the failures that they survive."""

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
    """Makes machines with the given scopes, each with an empty store and its own session."""
    numbers = itertools.count()
    return lambda *scopes: Machine(
        "bundles", bucket, tmp_path / f"machine-{next(numbers)}", scopes or (MAIN,)
    )


def keys(bucket, kind) -> list:
    return [key for key in bucket.objects if f"/{kind}/" in key]


def bundle_with(machine, *bodies) -> None:
    """Upload one bundle with these bodies; their actions are their positions."""
    for at, body in enumerate(bodies):
        path = put(machine.cache, str(at), body)
        job = jobs.UploadJob(100 + at, action_id(str(at)), output_id(body), len(body), 5, path)
        machine._plan.upload(job)
        machine._run()
    machine.finish([action_id(str(at)) for at in range(len(bodies))])


def range_job(bucket) -> jobs.RangeJob:
    """A RangeJob for all entries of the only bundle in the bucket."""
    (key,) = keys(bucket, "bundle")
    data, name = bucket.objects[key], key.rpartition("/")[2]
    rows = read_index(lambda start, length: data[start : start + length], len(data), name)
    rows.sort(key=lambda row: (row.offset, row.inner))
    return jobs.RangeJob(1, name, 8, len(data) - 8, [tuple(row) for row in rows])


# -- keys ------------------------------------------------------------------------------------------


def test_keys_in_the_bucket(machines, bucket):
    """The keys of a bundle and a manifest, and what they hold."""
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


# -- loading manifests -----------------------------------------------------------------------------


def test_load_skips_superseded_manifests(machines, bucket):
    """Manifests that the newest one supersedes are listed and not read."""
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
    """A branch has the entries of its default branch, but not the other way round."""
    machines(MAIN).upload("a", b"a")
    machines(FEATURE, MAIN).upload("b", b"b")
    feature, main = machines(FEATURE, MAIN), machines(MAIN)
    feature.begin()
    main.begin()
    assert set(feature.expected.actions) == {action_id("a"), action_id("b")}
    assert main.expected.actions == [action_id("a")]


def test_expected_actions_are_named_once(machines):
    """An action that both scopes name is expected and fetched once."""
    machines(MAIN).upload("a", b"a")
    first = machines(FEATURE, MAIN)
    first.fetch("a")
    first.finish([action_id("a")])
    second = machines(FEATURE, MAIN)
    second.begin()
    assert second.expected.actions == [action_id("a")]


def test_load_of_unrelated_scopes(machines):
    """If neither the scope nor related ones have entries, the scopes written to last are read."""
    machines(UNRELATED).upload("a", b"a")
    fresh = machines(FEATURE, MAIN)
    fresh.begin()
    assert fresh.expected.actions == [action_id("a")]
    machines(MAIN).upload("b", b"b")
    fresh = machines(FEATURE, MAIN)
    fresh.begin()
    assert fresh.expected.actions == [action_id("b")]


def test_failing_manifests_of_related_scopes(machines, bucket):
    """The load goes on with the scope's own entries."""
    machines(MAIN).upload("a", b"a")
    bucket.faults = dict.fromkeys(keys(bucket, "manifest"), Unavailable("503"))
    machines(FEATURE).upload("b", b"b")
    fresh = machines(FEATURE, MAIN)
    fresh.begin()
    assert fresh.expected.actions == [action_id("b")]


def test_failing_manifests_of_unrelated_scopes(machines, bucket):
    """The load goes on without entries."""
    machines(UNRELATED).upload("a", b"a")
    bucket.faults = dict.fromkeys(keys(bucket, "manifest"), Unavailable("503"))
    fresh = machines(MAIN)
    assert fresh.fetch("a").status == jobs.MISS
    assert fresh.upload("b", b"b").status == jobs.STORED


def test_damaged_manifest_is_left_out(machines, bucket):
    """A damaged manifest is counted, and entries of other manifests are not affected."""
    machines().upload("a", b"a")
    (first,) = keys(bucket, "manifest")
    machines().upload("b", b"b")
    (second,) = set(keys(bucket, "manifest")) - {first}
    bucket.objects[second] = b"?" + bucket.objects[second][1:]
    fresh = machines()
    fresh.begin()
    assert fresh.expected.actions == [action_id("a")]
    assert worker.perform(fresh.remote, jobs.LoadJob(1, (MAIN,))).damaged == 1


def test_damaged_manifest_is_not_superseded(machines, bucket):
    """A manifest that was damaged only once, on the way, is read again later."""
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
def test_load_gives_up_after_failures(machines, bucket, error):
    """If no manifest can be read, the load ends soon, because gets wait for it."""
    for at in range(200):
        bucket.objects[f"prefix/manifest/{scope_key(MAIN)}/{at:012x}-00000000"] = b"?"
    bucket.faults = dict.fromkeys(bucket.objects, error)
    fresh = machines()
    assert fresh.fetch("a").status in (jobs.FAILED, jobs.TIMED_OUT)
    assert bucket.methods().count("read_all") <= 2 * tasks._AT_ONCE + 1


def test_load_of_many_damaged_manifests(machines, bucket):
    """Damaged manifests count for the most that are read."""
    for at in range(200):
        bucket.objects[f"prefix/manifest/{scope_key(MAIN)}/{at:012x}-00000000"] = b"?"
    assert machines().fetch("a").status == jobs.MISS
    assert bucket.methods().count("read_all") <= tasks._OWN_MANIFESTS + tasks._AT_ONCE


# -- fetching --------------------------------------------------------------------------------------


class Body(io.BytesIO):
    """A body that may end early, and notes the amounts that were read."""

    def __init__(self, data) -> None:
        super().__init__(data)
        self.amounts = []
        self._empty = 0

    def read(self, amount=-1) -> bytes:
        data = super().read(amount)
        self.amounts.append(amount)
        self._empty += not data
        assert self._empty < 100, "read without end"
        return data


@pytest.fixture
def open_range(bucket, monkeypatch):
    """Makes ranges of the bucket return ``change(data)``; returns a list of their Bodies."""

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
    """A body that cannot be compressed, the same for the same arguments."""
    blocks = (bytes.fromhex(output_id(seed + b"%d" % at)) for at in range(size // 32 + 1))
    return b"".join(blocks)[:size]


BODIES = [body(40_000, b"%d" % at) for at in range(4)]


@pytest.mark.parametrize("size", [0, 1, 39_000, 41_000, 100_000])
def test_short_range(machines, bucket, open_range, size):
    """Entries before the end of a short response are stored, and reading ends."""
    bundle_with(machines(), *BODIES)
    job = range_job(bucket)
    rows = [job.rows[0], job.rows[3]]  # with unwanted blocks between
    open_range(lambda data: data[:size])
    fresh = machines()
    result = worker.perform(fresh.remote, job._replace(rows=rows))
    assert "without end" not in result.reason
    expected = {rows[0][0]} if size > 40_100 else set()
    assert set(result.arrived) == expected
    assert {name for name in files(fresh.cache.store.root) if name.startswith("action")} == {
        f"action/{action[:2]}/{action}" for action in expected
    }


def test_overlapping_blocks(machines, bucket, open_range):
    """Overlapping rows of an invalid manifest are not stored; other entries are right."""
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
def test_failing_range(machines, bucket, monkeypatch, error):
    """The result has the entries that arrived before the failure, and its status."""
    bundle_with(machines(), *BODIES)
    job = range_job(bucket)

    @contextmanager
    def opened(key, start, length):
        yield failing_body(bucket.objects[key][start : start + 60_000], error)

    monkeypatch.setattr(bucket, "open_range", opened)
    result = worker.perform(machines().remote, job)
    assert result.status == jobs.status_of(error, uploading=False)
    assert result.arrived == [job.rows[0][0]] and result.damaged == []


def failing_body(data, error):
    """A body that raises ``error`` at its end."""

    class FailingBody(io.BytesIO):
        def read(self, amount=-1) -> bytes:
            if amount > len(self.getvalue()) - self.tell():
                raise error
            return super().read(amount)

    return FailingBody(data)


def test_absent_bundle(machines, bucket):
    """An absent bundle is reported; entries that the store has are reported as arrived."""
    bundle_with(machines(), *BODIES)
    job = range_job(bucket)
    fresh = machines()
    put(fresh.cache, "0", BODIES[0])
    bucket.faults = dict.fromkeys(bucket.objects, Absent("404"))
    result = worker.perform(fresh.remote, job)
    assert result.gone and result.status == jobs.DAMAGED
    assert result.arrived == [action_id("0")]
    assert set(result.damaged) == {action_id(name) for name in "123"}


def test_range_of_wanted_entries_only(machines, bucket):
    """The request begins and ends with entries that the store lacks."""
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
    """A large body is fetched once and stored for all of its actions."""
    bundle_with(machines(), BODY, b"x", BODY)
    job = range_job(bucket)
    result = worker.perform(machines().remote, job)
    assert set(result.arrived) == {row[0] for row in job.rows} and result.damaged == []


def test_large_body_of_too_many_bytes(machines, bucket, small_is_large):
    """A large body that is longer than its row says is not stored; the next entry is."""
    bundle_with(machines(), bytes(1 << 20), BODIES[0])
    job = range_job(bucket)
    rows = [(*job.rows[0][:2], 1000, *job.rows[0][3:]), job.rows[1]]
    fresh = machines()
    result = worker.perform(fresh.remote, job._replace(rows=rows))
    assert result.damaged == [rows[0][0]] and result.arrived == [rows[1][0]]
    assert read(fresh.cache.store.output_path(rows[1][1])) == BODIES[0]


@pytest.mark.parametrize("large", [100, 8 << 20])
def test_slow_bundle(machines, bucket, open_range, monkeypatch, large):
    """A bundle that comes too slowly is given up, with most of it unread."""
    for module in bundle, tasks:
        monkeypatch.setattr(module, "LARGE_BYTES", large)
    bundle_with(machines(), body(6 << 20), body(6 << 20, b"other"))
    bodies = open_range(lambda data: data)
    seconds = itertools.count(0, 100)
    monkeypatch.setattr(body_reader.time, "monotonic", lambda: next(seconds))
    result = worker.perform(machines().remote, range_job(bucket))
    assert result.status == jobs.FAILED and "slowly" in result.reason
    assert bodies[0].tell() <= 4 << 20


def test_failing_store(machines, bucket):
    """If the local disk does not take a body, the status is LOCAL."""
    bundle_with(machines(), *BODIES)
    fresh = machines()
    os.makedirs(os.path.dirname(fresh.cache.store.root), exist_ok=True)
    with open(fresh.cache.store.root, "w"):
        pass
    assert worker.perform(fresh.remote, range_job(bucket)).status == jobs.LOCAL
