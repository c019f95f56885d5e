"""store/prune.py: which files are removed, in which order, and the prune at the end of sessions."""

import errno
import os
import signal

import pytest

from aged_entries import (
    BODY_BYTES,
    HOUR_S,
    age,
    hits,
    options_of,
    other_prune,
    store_aged,
    write_aged,
)
from cacheplugin.options import Options
from cacheplugin.store import prune as prune_module
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.prune import KINDS, prune, prune_at_close
from cacheplugin.store.tree import EMPTY_OUTPUT, Store
from entries import action_id, files, output_id, put, read


@pytest.fixture
def cache(tmp_path):
    return LocalCache(Store(str(tmp_path / "cache")))


def counts(tallies) -> tuple:
    return tuple(tallies[kind].count for kind in KINDS)


# -- what is removed -------------------------------------------------------------------------------


def test_entries_unused_for_longer_than_expiry_are_removed(cache):
    """Actions and outputs are removed by the time of last use; the rest is counted as kept."""
    bodies = {hours: store_aged(cache, hours, hours) for hours in (2, 23, 25, 90)}
    result = prune(cache.store.root, expiry_s=24 * HOUR_S)
    assert hits(cache, bodies) == [2, 23]
    assert counts(result.removed) == (2, 2, 0) and counts(result.kept) == (2, 2, 0)
    assert result.removed["outputs"].bytes >= 2 * BODY_BYTES
    for hours, body in bodies.items():
        found = cache.lookup(action_id(str(hours)))
        assert (found is not None and read(found[3]) == body) == (hours < 24)
        assert os.path.exists(cache.store.output_path(output_id(body))) == (hours < 24)


@pytest.mark.parametrize("left", range(6))
@pytest.mark.parametrize("fit", ["exactly", "one byte short of one more"])
def test_max_size_keeps_the_most_recently_used(cache, left, fit):
    """Exactly as many of the most recently used entries stay as fit."""
    ages = (9, 3, 500, 2, 40)
    for hours in ages:
        store_aged(cache, hours, hours)
    each = sum(tally.bytes for tally in prune(cache.store.root).kept.values()) // len(ages)
    spare = 0 if fit == "exactly" else each - 1
    result = prune(cache.store.root, max_size_bytes=max(1, left * each + spare))
    assert sorted(hits(cache, ages)) == sorted(ages)[:left]
    assert sum(tally.bytes for tally in result.kept.values()) == left * each


def test_max_size_is_exact_within_one_coarse_step(cache):
    """The limit is met exactly even if all entries were used within seconds."""
    for number in range(20):
        store_aged(cache, number, 5 - number / HOUR_S)
    each = sum(tally.bytes for tally in prune(cache.store.root).kept.values()) // 20
    prune(cache.store.root, max_size_bytes=7 * each + each // 2)
    assert hits(cache, range(20)) == list(range(13, 20))


def test_both_limits_hold(cache):
    """With a limit of age and of size, an entry that exceeds either is removed."""
    ages = (2, 3, 4, 30)
    for hours in ages:
        store_aged(cache, hours, hours)
    prune(cache.store.root, expiry_s=24 * HOUR_S, max_size_bytes=1 << 40)
    assert hits(cache, ages) == [2, 3, 4]
    prune(cache.store.root, expiry_s=24 * HOUR_S, max_size_bytes=3 * BODY_BYTES)
    assert hits(cache, ages) == [2, 3]


def test_min_age_overrides_both_limits(cache):
    """Entries used within the minimum age stay, whatever the limits are."""
    ages = (0, 0.9, 1.1, 3)
    for hours in ages:
        store_aged(cache, hours, hours)
    prune(cache.store.root, expiry_s=1, max_size_bytes=1, min_age_s=2 * HOUR_S)
    assert hits(cache, ages) == [0, 0.9, 1.1]
    prune(cache.store.root, expiry_s=1, min_age_s=HOUR_S)
    assert hits(cache, ages) == [0, 0.9]
    prune(cache.store.root, max_size_bytes=1, min_age_s=HOUR_S / 2)
    assert hits(cache, ages) == [0]


def test_without_limits_nothing_is_removed(cache):
    store_aged(cache, "a", 1e5)
    before = files(cache.store.root)
    result = prune(cache.store.root)
    assert files(cache.store.root) == before
    assert result.cutoff_ns is None and counts(result.kept) == (1, 1, 0)


def test_outputs_without_an_action_are_removed(cache):
    """An output that no action names expires like any other."""
    bodies = [store_aged(cache, hours, hours) for hours in (2, 30)]
    for hours in (2, 30):
        os.unlink(cache.store.action_path(action_id(str(hours))))
    prune(cache.store.root, expiry_s=24 * HOUR_S)
    left = [os.path.exists(cache.store.output_path(output_id(body))) for body in bodies]
    assert left == [True, False]


def test_the_empty_output_stays(cache):
    """Its mtime says nothing about the actions that share it, so only the actions expire."""
    put(cache, "old", b"")
    put(cache, "new", b"")
    age(cache.store.output_path(EMPTY_OUTPUT), 100)
    age(cache.store.action_path(action_id("old")), 100)
    prune(cache.store.root, expiry_s=24 * HOUR_S, max_size_bytes=1)
    assert hits(cache, ["old", "new"]) == ["new"]
    assert os.path.exists(cache.store.output_path(EMPTY_OUTPUT))


def test_module_and_revproxy_files_are_limited_too(cache):
    """They count towards the size and are removed by their mtime."""
    name = output_id(b"x")
    paths = [
        write_aged(cache.store.root, f"{tree}/{name[:2]}/{name[:-1]}{digit}", hours)
        for tree in ("module", "revproxy")
        for digit, hours in ((0, 2), (1, 30))
    ]
    result = prune(cache.store.root, expiry_s=24 * HOUR_S)
    assert [os.path.exists(path) for path in paths] == [True, False, True, False]
    assert counts(result.removed) == (0, 0, 2) and result.removed["other"].bytes >= 10_000
    assert counts(prune(cache.store.root, max_size_bytes=9000).removed) == (0, 0, 1)


def test_temporary_files_of_dead_processes_are_removed(cache):
    """They are removed after an hour, later with a longer minimum age, and without limits too."""
    for number, hours in enumerate((0.9, 1.1, 5)):
        write_aged(cache.store.root, f"tmp/{number}", hours)
    prune(cache.store.root, min_age_s=2 * HOUR_S)
    assert sorted(os.listdir(f"{cache.store.root}/tmp")) == ["0", "1"]
    prune(cache.store.root, min_age_s=0)
    assert os.listdir(f"{cache.store.root}/tmp") == ["0"]


def test_foreign_files_stay(cache, tmp_path):
    """The spool, unknown names and the targets of symbolic links are left alone."""
    root = cache.store.root
    name = output_id(b"x")
    kept = [
        "spool/ab/abcd",
        "action/README",
        f"action/zz/{name}",
        "action/ab/abcd.txt",
        f"output/{name[:2]}/deeper/{name}",
        "output/00/ffff",
        "other/ab/abcd",
        "open/ab",
        "tmp/deeper/file",
        "abcd",
    ]
    for path in kept:
        write_aged(root, path, 1000)
    outside = write_aged(tmp_path, "outside/ab/abcd", 1000)
    os.symlink(tmp_path / "outside", f"{root}/module")
    os.makedirs(f"{root}/revproxy")
    os.symlink(tmp_path / "outside/ab", f"{root}/revproxy/ab")
    os.symlink(outside, f"{root}/output/00/00ab")
    os.utime(f"{root}/output/00/00ab", (1, 1), follow_symlinks=False)
    before = files(root)
    prune(root, expiry_s=24 * HOUR_S, max_size_bytes=1, min_age_s=0)
    assert files(root) == before and os.path.islink(f"{root}/output/00/00ab")
    assert os.path.exists(outside)


def test_a_body_awaiting_upload_frees_nothing(cache):
    """Its file is removed, the spool's link stays, and its bytes do not count as removed."""
    body = store_aged(cache, "a", 100)
    link = f"{cache.store.root}/spool/pin"
    os.mkdir(os.path.dirname(link))
    os.link(cache.store.output_path(output_id(body)), link)
    result = prune(cache.store.root, expiry_s=24 * HOUR_S)
    assert counts(result.removed) == (1, 1, 0) and result.removed["outputs"].bytes == 0
    assert read(link) == body
    assert cache.lookup(action_id("a")) is None


# -- order, dry run and concurrent use -------------------------------------------------------------


@pytest.fixture
def unlinked(monkeypatch):
    """The names that prune removes, in order."""
    names, unlink = [], os.unlink

    def note(path, **where):
        unlink(path, **where)
        if where:  # by prune, not by the store
            names.append(path)

    monkeypatch.setattr(os, "unlink", note)
    return names


def test_actions_are_removed_before_outputs(cache, unlinked):
    """Every action is removed before the first output."""
    outputs = {output_id(store_aged(cache, number, 30)) for number in range(8)}
    prune(cache.store.root, expiry_s=HOUR_S)
    assert set(unlinked[:8]) == {action_id(str(number)) for number in range(8)}
    assert set(unlinked[8:]) == outputs


def test_dry_run_reports_the_same_and_removes_nothing(cache, unlinked):
    """The report of a dry run is that of the next prune."""
    for hours in (2, 30, 60):
        store_aged(cache, hours, hours)
    before = files(cache.store.root)
    dry = prune(cache.store.root, expiry_s=24 * HOUR_S, dry_run=True)
    assert not unlinked and files(cache.store.root) == before
    real = prune(cache.store.root, expiry_s=24 * HOUR_S)
    for kind in KINDS:
        assert dry.removed[kind].count == real.removed[kind].count
        assert dry.removed[kind].bytes == real.removed[kind].bytes
        assert dry.kept[kind].bytes == real.kept[kind].bytes


def test_an_entry_used_meanwhile_stays(cache, monkeypatch):
    """An entry used between the scan and its removal stays; the others are removed."""
    first, used, _ = sorted("abc", key=action_id)
    for name in "abc":
        store_aged(cache, name, 30)
    unlink = os.unlink

    def use_one(path, **where):
        unlink(path, **where)
        if path == action_id(first):
            assert cache.store.hold(cache.lookup(action_id(used))[0])
            cache.store.touch(action_id(used))

    monkeypatch.setattr(os, "unlink", use_one)
    prune(cache.store.root, expiry_s=24 * HOUR_S)
    assert hits(cache, "abc") == [used]
    assert cache.lookup(action_id(used)) is not None


def test_another_process_removes_at_the_same_time(cache, monkeypatch):
    """A file that is already gone is neither a failure nor counted."""
    for name in "ab":
        store_aged(cache, name, 30)
    stat = os.stat

    def take_one(path, **where):
        if path == action_id("a"):
            os.unlink(cache.store.action_path(path))
        return stat(path, **where)

    monkeypatch.setattr(os, "stat", take_one)
    result = prune(cache.store.root, expiry_s=24 * HOUR_S)
    assert result.failures == 0 and counts(result.removed) == (1, 2, 0)


# -- at the end of a session -----------------------------------------------------------------------


@pytest.fixture
def locked(cache):
    """Another prune of the same directory is running."""
    with other_prune(cache.store.root):
        yield


@pytest.fixture
def at_close(monkeypatch):
    """prune_at_close, without its lasting effect on the priority of this process."""
    nice = []
    monkeypatch.setattr(os, "nice", nice.append)
    before = signal.getsignal(signal.SIGINT)
    yield prune_at_close
    assert signal.getsignal(signal.SIGINT) is before


def test_prune_at_close_runs_once_an_hour(cache, at_close, capfd):
    """A second close within an hour does not prune; a later one does. Nothing is printed."""
    asked = options_of(cache, expiry_s=24 * HOUR_S)
    store_aged(cache, "a", 30)
    at_close(asked)
    assert hits(cache, "a") == []
    store_aged(cache, "b", 30)
    at_close(asked)
    assert hits(cache, "b") == ["b"]
    age(f"{cache.store.root}/prune.stamp", 1.01)
    at_close(asked)
    assert hits(cache, "b") == []
    assert capfd.readouterr() == ("", "")


def test_prune_at_close_yields_to_another_prune(cache, at_close, locked):
    """It neither waits nor writes the time of a prune."""
    store_aged(cache, "a", 30)
    at_close(options_of(cache, expiry_s=24 * HOUR_S))
    assert hits(cache, "a") == ["a"]
    assert not os.path.exists(f"{cache.store.root}/prune.stamp")


def test_prune_at_close_ignores_errors(cache, at_close, monkeypatch, tmp_path):
    """A missing or failing directory ends it without an exception."""
    at_close(Options(cache_dir=str(tmp_path / "none"), expiry_s=1.0))
    os.makedirs(cache.store.root)

    def fail(*_, **__):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(prune_module, "prune", fail)
    at_close(options_of(cache, expiry_s=1.0))
    assert os.path.exists(f"{cache.store.root}/prune.stamp")
