"""prune --remote and stats --remote: what nobody needs goes, what somebody needs still hits."""

import os

import pytest

from cacheplugin.commands.stats import remote_text
from cacheplugin.errors import TimedOut, Unavailable
from cacheplugin.ipc import jobs
from cacheplugin.remote import prune, stats
from cacheplugin.remote.bundles import manifest
from cacheplugin.remote.bundles.ranges import ranges_of
from cacheplugin.remote.bundles.rows import Row
from cacheplugin.remote.bundles.tasks import BundlesLayout
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.tree import Store
from entries import TIME_NS, action_id, output_id, put
from fake_bucket import FakeBucket

DAY_S = 86400
NOW_S = 1_800_000_000.0
EXPIRY_S = 30 * DAY_S


class Remote:
    """A bucket that sessions of any scope and time leave things in."""

    def __init__(self, root) -> None:
        self.bucket = FakeBucket()
        self._root = root
        self._made = 0

    def layout(self):
        self._made += 1
        cache = LocalCache(Store(str(self._root / str(self._made))), spill=False)
        return BundlesLayout(self.bucket, cache, "team", False), cache

    def bundle(self, entries: dict, age_s: float = 0, scope: str = "main") -> list:
        """Upload {name: body} as one bundle; its Rows."""
        layout, cache = self.layout()
        fields = [
            (action_id(name), output_id(body), len(body), TIME_NS, put(cache, name, body))
            for name, body in entries.items()
        ]
        before = set(self.bucket.objects)
        result = layout.upload(jobs.BundleJob(1, scope, fields))
        self._age(before, age_s)
        return [Row(*row) for row in result.rows]

    def manifest(self, rows, age_s=0, scope="main", superseded=(), used_age_s=0) -> str:
        """Leave a manifest; its name."""
        layout, _ = self.layout()
        rows = [row._replace(used_s=int(NOW_S - used_age_s)) for row in rows]
        before = set(self.bucket.objects)
        data = manifest.encode(manifest.Manifest(scope, list(superseded), rows))
        name = layout.write_manifest(jobs.ManifestJob(1, scope, data)).name
        self._age(before, age_s)
        return name

    def _age(self, before, age_s) -> None:
        for key in set(self.bucket.objects) - before:
            self.bucket.modified[key] = NOW_S - age_s

    def keys(self, kind) -> list:
        return [key for key in self.bucket.objects if key.startswith(f"team/{kind}/")]

    def prune(self, now_s=NOW_S, dry_run=False):
        before = set(self.bucket.objects)
        self.bucket.clock = now_s
        done = prune.RemotePrune(self.bucket, "team").run(EXPIRY_S, dry_run)
        for key in set(self.bucket.objects) - before:
            self.bucket.modified[key] = now_s
        return done

    def hits(self, scope="main") -> set:
        """The bodies that a fresh machine gets."""
        layout, cache = self.layout()
        loaded = layout.load(jobs.LoadJob(1, (scope,)))
        rows = [Row(*row) for row in (*loaded.own, *loaded.related)]
        for part in ranges_of(rows):
            layout.fetch(
                jobs.RangeJob(
                    1, part.bundle, part.start, part.length, [tuple(r) for r in part.rows]
                )
            )
        found = [cache.store.lookup(row.action) for row in rows]
        return {one[0] for one in found if one}


@pytest.fixture
def remote(tmp_path):
    return Remote(tmp_path)


def bodies(entries) -> set:
    return {output_id(body) for body in entries.values()}


def some(word, count=3, size=1000) -> dict:
    return {f"{word} {n}": os.urandom(size) for n in range(count)}


def test_what_is_used_stays(remote):
    """A young manifest and its bundle are left as they are, byte for byte."""
    entries = {**some("a"), "empty": b""}
    remote.manifest(remote.bundle(entries, 29 * DAY_S), 29 * DAY_S)
    before = dict(remote.bucket.objects)
    assert remote.prune()[:4] == (0, 0, 0, 0)
    assert remote.bucket.objects == before
    assert remote.hits() == bodies(entries)


def test_what_was_not_renewed_goes(remote):
    """An old manifest goes, and next time the bundle that it alone named: it may just be read."""
    kept = some("kept")
    remote.manifest(remote.bundle(kept, 31 * DAY_S), 1)
    remote.manifest(remote.bundle(some("old"), 31 * DAY_S, "old"), 31 * DAY_S, "old")
    for expected in (1, 0, 2), (0, 1, 1), (0, 0, 1):
        size = sum(map(len, remote.bucket.objects.values()))
        done = remote.prune()
        assert (done.manifests, done.bundles, done.kept) == expected
        assert done.bytes == size - sum(map(len, remote.bucket.objects.values()))
    assert remote.hits() == bodies(kept) and not remote.hits("old")


def test_dry_run_changes_nothing(remote):
    """It counts the same and touches nothing."""
    remote.manifest(remote.bundle(some("old"), 31 * DAY_S), 31 * DAY_S)
    before = dict(remote.bucket.objects)
    would = remote.prune(dry_run=True)
    assert remote.bucket.objects == before
    assert remote.prune() == would and len(remote.bucket.objects) == 1


def test_a_bundle_that_no_manifest_names_has_a_day(remote):
    """Its session may be about to write the manifest."""
    remote.bundle(some("young"), DAY_S - 60)
    remote.bundle(some("lost"), DAY_S + 60)
    assert remote.prune().bundles == 1
    assert len(remote.keys("bundle")) == 1


def test_a_superseded_manifest_has_a_day(remote):
    """Sessions that have read it may still read its bundles; after that both go."""
    old, new = some("old"), some("new")
    first = remote.manifest(remote.bundle(old, 5 * DAY_S), 5 * DAY_S)
    remote.manifest(remote.bundle(new, 3600), 3600, superseded=[first])
    assert remote.prune().manifests == 0
    assert remote.prune(NOW_S + DAY_S)[:2] == (1, 0)
    assert remote.prune(NOW_S + DAY_S)[:2] == (0, 1)
    assert remote.hits() == bodies(new)


def test_a_bundle_of_another_scope_that_a_manifest_names_stays(remote):
    """Scopes share bundles."""
    entries = some("shared")
    rows = remote.bundle(entries, 40 * DAY_S)
    remote.manifest(rows, 40 * DAY_S)
    remote.manifest(rows, 3600, "branch")
    assert remote.prune()[:2] == (1, 0)
    assert remote.hits("branch") == bodies(entries)


def test_a_mostly_dead_bundle_is_rewritten(remote):
    """What is live of it moves, in every scope that needs it; then the old one goes."""
    live, dead = some("live", 2, 40_000), some("dead", 6, 40_000)
    rows = remote.bundle({**live, **dead, "empty": b""}, 3 * DAY_S)
    needed = [row for row in rows if row.output in bodies(live) | {output_id(b"")}]
    remote.manifest(needed, 2 * DAY_S)
    remote.manifest(needed[:1], 2 * DAY_S, "branch")
    size = sum(len(remote.bucket.objects[key]) for key in remote.keys("bundle"))
    assert remote.prune().rewritten == 1
    wanted = bodies(live) | {output_id(b"")}
    assert remote.hits() == wanted and remote.hits("branch") == {needed[0].output}
    assert remote.prune(NOW_S + DAY_S + 1)[:2] == (2, 0)
    done = remote.prune(NOW_S + DAY_S + 1)
    assert (done.manifests, done.bundles, done.rewritten) == (0, 1, 0)
    assert done.kept_bytes < size / 2
    assert remote.hits() == wanted and remote.hits("branch") == {needed[0].output}


def test_times_and_uses_move_along(remote):
    """A rewritten entry has the time of its put and of its last use."""
    rows = remote.bundle(some("a", 8, 40_000), 3 * DAY_S)
    remote.manifest(rows[:2], 2 * DAY_S, used_age_s=1234)
    remote.prune()
    layout, _ = remote.layout()
    loaded = [Row(*row) for row in layout.load(jobs.LoadJob(1, ("main",))).own]
    assert [row.action for row in loaded] == [row.action for row in rows[:2]]
    assert {(row.time_ns, row.used_s) for row in loaded} == {(TIME_NS, int(NOW_S - 1234))}


def test_many_small_bundles_become_one(remote):
    """A working set that is scattered over more than MAX_SMALL_BUNDLES bundles is put together."""
    everything, rows = {}, []
    for n in range(prune.MAX_SMALL_BUNDLES + 1):
        entries = some(f"commit {n}", 2)
        everything.update(entries)
        rows += remote.bundle(entries, 2 * DAY_S)
    remote.manifest(rows, 3600)
    assert remote.prune().rewritten == prune.MAX_SMALL_BUNDLES + 1
    layout, _ = remote.layout()
    assert len({Row(*row).bundle for row in layout.load(jobs.LoadJob(1, ("main",))).own}) == 1
    assert remote.hits() == bodies(everything)


def test_a_damaged_bundle_is_left_out_of_the_rewritten(remote):
    """What of it cannot be moved is a miss from then on, the rest hits."""
    live = some("live", 2, 40_000)
    rows = remote.bundle({**live, **some("dead", 6, 40_000)}, 3 * DAY_S)
    needed = [row for row in rows if row.output in bodies(live)]
    remote.manifest(needed, 2 * DAY_S)
    (key,) = remote.keys("bundle")
    data = bytearray(remote.bucket.objects[key])
    data[needed[0].offset + needed[0].length // 2] ^= 1
    age = remote.bucket.modified[key]
    remote.bucket.objects[key] = bytes(data)
    remote.bucket.modified[key] = age
    assert remote.prune().rewritten == 1
    assert remote.hits() == {needed[1].output}


def test_a_manifest_of_a_newer_program_keeps_all_bundles(remote):
    """Nobody here knows what it names."""
    remote.bundle(some("a"), 40 * DAY_S)
    name = remote.manifest([], 3600)
    (key,) = remote.keys("manifest")
    data = bytearray(remote.bucket.objects[key])
    data[4] = 2
    remote.bucket.objects[key] = bytes(data)
    remote.bucket.modified[key] = NOW_S - 3600
    assert name in key and remote.prune().bundles == 0
    assert remote.keys("bundle")


def test_a_damaged_manifest_goes_after_a_day(remote):
    """It is of no use to anybody."""
    remote.manifest(remote.bundle(some("a"), 2 * DAY_S))
    (key,) = remote.keys("manifest")
    for age_s, stays in ((DAY_S - 60, 1), (DAY_S + 60, 0)):
        remote.bucket.objects[key] = b"GCPM\x01\0\0\0nonsense"
        remote.bucket.modified[key] = NOW_S - age_s
        remote.prune()
        assert len(remote.keys("manifest")) == stays


def test_objects_of_others_are_not_touched(remote):
    """The objects layout, and what lies elsewhere, are not its business."""
    others = [
        "team/action/ab/abcd",
        "team/output/ab/abcd",
        "bundle/x",
        "else",
        "team/manifest-of/x",
    ]
    for key in others:
        remote.bucket.objects[key] = b"x"
        remote.bucket.modified[key] = 1.0
    assert remote.prune()[:2] == (0, 0)
    assert set(others) == set(remote.bucket.objects)


def test_unfinished_uploads_of_bundles_are_aborted_after_a_day(remote):
    """What somebody else uploads below the same prefix is not ours to abort, nor a young one."""
    name = f"{'0' * 12}-{'1' * 16}-{'2' * 8}"
    old_s, young_s = NOW_S - DAY_S - 60, NOW_S - DAY_S + 60
    ours, young = f"team/bundle/{name}", f"team/bundle/{name[:-1]}3"
    others = ("team/bundle/release.tar", f"team/bundle/{name}.bak", "team/output/ab/abcd")
    remote.bucket.unfinished = {ours: old_s, young: young_s, **dict.fromkeys(others, old_s)}
    remote.prune(dry_run=True)
    assert ours in remote.bucket.unfinished
    remote.prune()
    assert set(remote.bucket.unfinished) == {young, *others}


@pytest.mark.parametrize("error", [Unavailable("reset"), TimedOut("late")])
def test_a_prune_that_fails_in_the_middle_loses_nothing(remote, error):
    """Where a range cannot be read nothing is written or deleted, and the error comes out."""
    live = some("live", 2, 40_000)
    rows = remote.bundle({**live, **some("dead", 6, 40_000)}, 3 * DAY_S)
    remote.manifest([row for row in rows if row.output in bodies(live)], 2 * DAY_S)
    remote.manifest(remote.bundle(some("old"), 40 * DAY_S), 40 * DAY_S, "old")
    before = dict(remote.bucket.objects)
    remote.bucket.faults = dict.fromkeys(remote.keys("bundle"), error)
    with pytest.raises(Unavailable):
        remote.prune()
    assert remote.bucket.objects == before
    remote.bucket.faults = {}
    assert remote.hits() == bodies(live)


def test_while_a_manifest_cannot_be_read_no_bundle_goes(remote):
    """It may name any of them; it itself goes after its day, if it is no newer program's."""
    remote.bundle(some("lost"), 2 * DAY_S)
    remote.manifest([], 3600)
    (key,) = remote.keys("manifest")
    remote.bucket.objects[key] = remote.bucket.objects[key][:-1]
    remote.bucket.modified[key] = NOW_S - 3600
    assert remote.prune()[:2] == (0, 0)
    assert remote.prune(NOW_S + DAY_S)[:2] == (1, 0)
    assert remote.prune(NOW_S + DAY_S)[:2] == (0, 1)


def test_tiny_bodies_are_not_rewritten(remote):
    """The index of a bundle of tiny bodies has more bytes than they: that is no waste."""
    remote.manifest(remote.bundle(some("tiny", 30, 10), 2 * DAY_S), 3600)
    assert remote.prune().rewritten == 0


def test_a_scope_that_nobody_uses_is_not_rewritten(remote):
    """A fresh manifest would keep it for ever."""
    rows = remote.bundle(some("a", 8, 40_000), 20 * DAY_S)
    remote.manifest(rows[:2], 20 * DAY_S)
    assert remote.prune().rewritten == 0
    remote.manifest(rows[:2], 10 * DAY_S, "used")
    assert remote.prune().rewritten == 1


def test_stats(remote):
    """Counts, live bytes, what is missing, and scopes, the latest first."""
    live, dead = some("live", 2, 40_000), some("dead", 2, 40_000)
    rows = remote.bundle({**live, **dead}, 3 * DAY_S)
    needed = [row for row in rows if row.output in bodies(live)]
    remote.manifest(needed, 2 * DAY_S)
    remote.manifest([needed[0]._replace(bundle="gone")], 3600, "branch")
    remote.bucket.clock = NOW_S
    found = stats.collect(remote.bucket, "team")
    (key,) = remote.keys("bundle")
    assert (found["bundles"], found["manifests"], found["live_bundles"]) == (1, 2, 1)
    assert found["bundle_bytes"] == len(remote.bucket.objects[key])
    assert found["live_bytes"] == sum(row.length for row in needed)
    assert found["missing_bundles"] == 1 and found["unreadable_manifests"] == 0
    assert found["scopes"] == [
        {"scope": "branch", "entries": 1, "bytes": 40_000, "bundles": 1, "heads": 1, "age_s": 3600},
        {
            "scope": "main",
            "entries": 2,
            "bytes": 80_000,
            "bundles": 1,
            "heads": 1,
            "age_s": 2 * DAY_S,
        },
    ]
    text = remote_text(found)
    assert "1 bundles that manifests name are not there" in text and "1 h  branch" in text
