"""prune --remote and stats --remote: unneeded objects are deleted, needed entries still hit."""

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
    """A bucket, with methods that write to it as sessions of any scope and time do."""

    def __init__(self, root) -> None:
        self.bucket = FakeBucket()
        self._root = root
        self._made = 0

    def layout(self):
        self._made += 1
        cache = LocalCache(Store(str(self._root / str(self._made))), spill=False)
        return BundlesLayout(self.bucket, cache, "team", False), cache

    def bundle(self, entries: dict, age_s: float = 0, scope: str = "main") -> list:
        """Upload {name: body} as one bundle; returns its rows."""
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
        """Upload a manifest; returns its name."""
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
        """The outputs that a machine with an empty store gets."""
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


def test_used_objects_are_kept(remote):
    """A young manifest and its bundle are not changed."""
    entries = {**some("a"), "empty": b""}
    remote.manifest(remote.bundle(entries, 29 * DAY_S), 29 * DAY_S)
    before = dict(remote.bucket.objects)
    assert remote.prune()[:4] == (0, 0, 0, 0)
    assert remote.bucket.objects == before
    assert remote.hits() == bodies(entries)


def test_expired_manifests_are_deleted(remote):
    """An old manifest is deleted, and its bundle in the next run: a session may use it now."""
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
    """A dry run counts the same as a run and changes nothing."""
    remote.manifest(remote.bundle(some("old"), 31 * DAY_S), 31 * DAY_S)
    before = dict(remote.bucket.objects)
    would = remote.prune(dry_run=True)
    assert remote.bucket.objects == before
    assert remote.prune() == would and len(remote.bucket.objects) == 1


def test_unnamed_bundles_are_kept_for_a_day(remote):
    """A session may be about to write the manifest of a young bundle."""
    remote.bundle(some("young"), DAY_S - 60)
    remote.bundle(some("lost"), DAY_S + 60)
    assert remote.prune().bundles == 1
    assert len(remote.keys("bundle")) == 1


def test_superseded_manifests_are_kept_for_a_day(remote):
    """Sessions may have read it and still need its bundles. After a day both are deleted."""
    old, new = some("old"), some("new")
    first = remote.manifest(remote.bundle(old, 5 * DAY_S), 5 * DAY_S)
    remote.manifest(remote.bundle(new, 3600), 3600, superseded=[first])
    assert remote.prune().manifests == 0
    assert remote.prune(NOW_S + DAY_S)[:2] == (1, 0)
    assert remote.prune(NOW_S + DAY_S)[:2] == (0, 1)
    assert remote.hits() == bodies(new)


def test_bundles_that_another_scope_needs_are_kept(remote):
    """A bundle is kept for any scope whose manifest names it."""
    entries = some("shared")
    rows = remote.bundle(entries, 40 * DAY_S)
    remote.manifest(rows, 40 * DAY_S)
    remote.manifest(rows, 3600, "branch")
    assert remote.prune()[:2] == (1, 0)
    assert remote.hits("branch") == bodies(entries)


def test_bundle_with_little_live_data_is_rewritten(remote):
    """Its live entries move, in every scope that needs them, and the old bundle is deleted."""
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


def test_rewriting_keeps_times(remote):
    """A rewritten entry keeps the time of its put and of its last use."""
    rows = remote.bundle(some("a", 8, 40_000), 3 * DAY_S)
    remote.manifest(rows[:2], 2 * DAY_S, used_age_s=1234)
    remote.prune()
    layout, _ = remote.layout()
    loaded = [Row(*row) for row in layout.load(jobs.LoadJob(1, ("main",))).own]
    assert [row.action for row in loaded] == [row.action for row in rows[:2]]
    assert {(row.time_ns, row.used_s) for row in loaded} == {(TIME_NS, int(NOW_S - 1234))}


def test_many_small_bundles_are_joined(remote):
    """More than MAX_SMALL_BUNDLES bundles of one working set are rewritten into one."""
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


def test_rewriting_leaves_out_damaged_entries(remote):
    """Damaged entries are misses after the rewrite, the others hit."""
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


def test_newer_manifest_keeps_all_bundles(remote):
    """The bundles that a manifest of a newer version names are unknown, so none is deleted."""
    remote.bundle(some("a"), 40 * DAY_S)
    name = remote.manifest([], 3600)
    (key,) = remote.keys("manifest")
    data = bytearray(remote.bucket.objects[key])
    data[4] = 2
    remote.bucket.objects[key] = bytes(data)
    remote.bucket.modified[key] = NOW_S - 3600
    assert name in key and remote.prune().bundles == 0
    assert remote.keys("bundle")


def test_damaged_manifests_are_deleted_after_a_day(remote):
    remote.manifest(remote.bundle(some("a"), 2 * DAY_S))
    (key,) = remote.keys("manifest")
    for age_s, stays in ((DAY_S - 60, 1), (DAY_S + 60, 0)):
        remote.bucket.objects[key] = b"GCPM\x01\0\0\0nonsense"
        remote.bucket.modified[key] = NOW_S - age_s
        remote.prune()
        assert len(remote.keys("manifest")) == stays


def test_other_keys_are_not_touched(remote):
    """Objects of the objects layout and of other programs are kept."""
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
    """Uploads of other keys, and young ones, are not aborted."""
    name = f"{'0' * 12}-{'1' * 16}-{'2' * 8}"
    old_s, young_s = NOW_S - DAY_S - 60, NOW_S - DAY_S + 60
    own, young = f"team/bundle/{name}", f"team/bundle/{name[:-1]}3"
    other_keys = ("team/bundle/release.tar", f"team/bundle/{name}.bak", "team/output/ab/abcd")
    remote.bucket.unfinished = {own: old_s, young: young_s, **dict.fromkeys(other_keys, old_s)}
    remote.prune(dry_run=True)
    assert own in remote.bucket.unfinished
    remote.prune()
    assert set(remote.bucket.unfinished) == {young, *other_keys}


@pytest.mark.parametrize("error", [Unavailable("reset"), TimedOut("late")])
def test_failing_prune_changes_nothing(remote, error):
    """If a range cannot be read, nothing is written or deleted, and the error is raised."""
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


def test_unreadable_manifest_keeps_all_bundles(remote):
    """It may name any bundle, so none is deleted until it is deleted itself after a day."""
    remote.bundle(some("lost"), 2 * DAY_S)
    remote.manifest([], 3600)
    (key,) = remote.keys("manifest")
    remote.bucket.objects[key] = remote.bucket.objects[key][:-1]
    remote.bucket.modified[key] = NOW_S - 3600
    assert remote.prune()[:2] == (0, 0)
    assert remote.prune(NOW_S + DAY_S)[:2] == (1, 0)
    assert remote.prune(NOW_S + DAY_S)[:2] == (0, 1)


def test_tiny_bodies_are_not_rewritten(remote):
    """The index counts as live, so a bundle of tiny bodies with a larger index is not rewritten."""
    remote.manifest(remote.bundle(some("tiny", 30, 10), 2 * DAY_S), 3600)
    assert remote.prune().rewritten == 0


def test_unused_scopes_are_not_rewritten(remote):
    """A new manifest would renew a scope that was not used for half of the expiry."""
    rows = remote.bundle(some("a", 8, 40_000), 20 * DAY_S)
    remote.manifest(rows[:2], 20 * DAY_S)
    assert remote.prune().rewritten == 0
    remote.manifest(rows[:2], 10 * DAY_S, "used")
    assert remote.prune().rewritten == 1


def test_stats(remote):
    """Counts, live bytes, missing bundles, and scopes from the newest to the oldest."""
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
    assert "1 bundles that manifests name are missing" in text and "1 h  branch" in text
