"""prune.py: what goes and what stays, in which order, and what an interruption leaves."""

import errno
import fcntl
import json
import os
import signal
import time

import pytest

from cacheplugin.commands.prune import run
from cacheplugin.errors import UsageError
from cacheplugin.options import Options
from cacheplugin.store import prune as prune_module
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.prune import KINDS, prune, prune_at_close
from cacheplugin.store.tree import EMPTY_OUTPUT, Store
from entries import action_id, files, output_id, put, read

HOUR_S = 3600
BODY_BYTES = 100_000


@pytest.fixture
def cache(tmp_path):
    return LocalCache(Store(str(tmp_path / "cache")))


def age(path, hours) -> None:
    used = time.time() - hours * HOUR_S
    os.utime(path, (used, used))


def store_aged(cache, name, hours, size=BODY_BYTES) -> bytes:
    """An entry with a body of its own, used ``hours`` ago; returns the body."""
    name, body = str(name), os.urandom(size)
    used = time.time() - hours * HOUR_S
    for path in (put(cache, name, body), cache.store.action_path(action_id(name))):
        os.utime(path, (used, used))
    return body


def write_aged(root, path, hours, data=b"x" * 5000) -> str:
    path = os.path.join(root, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    age(path, hours)
    return path


def counts(tallies) -> tuple:
    return tuple(tallies[kind].count for kind in KINDS)


def hits(cache, names) -> list:
    """The names that are found, as they are after prune: nothing is repaired meanwhile."""
    return [name for name in names if os.path.exists(cache.store.action_path(action_id(str(name))))]


def options_of(cache, **fields) -> Options:
    return Options(cache_dir=cache.store.root, **{"min_age_s": HOUR_S, **fields})


# -- what goes -------------------------------------------------------------------------------------


def test_unused_for_longer_than_expiry_goes(cache):
    """Action and output go by the age of their last use; the rest stays and is counted."""
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
@pytest.mark.parametrize("fit", ["exactly", "and one more by all but a byte"])
def test_max_size_keeps_the_most_recently_used(cache, left, fit):
    """As many of the youngest stay as fit: not one more, not one less."""
    ages = (9, 3, 500, 2, 40)
    for hours in ages:
        store_aged(cache, hours, hours)
    each = sum(tally.bytes for tally in prune(cache.store.root).kept.values()) // len(ages)
    spare = 0 if fit == "exactly" else each - 1
    result = prune(cache.store.root, max_size_bytes=max(1, left * each + spare))
    assert sorted(hits(cache, ages)) == sorted(ages)[:left]
    assert sum(tally.bytes for tally in result.kept.values()) == left * each


def test_max_size_within_one_step_of_the_clock(cache):
    """The bound is met exactly also where all was used within seconds."""
    for number in range(20):
        store_aged(cache, number, 5 - number / HOUR_S)
    each = sum(tally.bytes for tally in prune(cache.store.root).kept.values()) // 20
    prune(cache.store.root, max_size_bytes=7 * each + each // 2)
    assert hits(cache, range(20)) == list(range(13, 20))


def test_both_bounds_hold(cache):
    """With an age and a size, what breaks either goes."""
    ages = (2, 3, 4, 30)
    for hours in ages:
        store_aged(cache, hours, hours)
    prune(cache.store.root, expiry_s=24 * HOUR_S, max_size_bytes=1 << 40)
    assert hits(cache, ages) == [2, 3, 4]
    prune(cache.store.root, expiry_s=24 * HOUR_S, max_size_bytes=3 * BODY_BYTES)
    assert hits(cache, ages) == [2, 3]


def test_min_age_beats_both_bounds(cache):
    """What was used within the minimum age stays, whatever the bounds say."""
    ages = (0, 0.9, 1.1, 3)
    for hours in ages:
        store_aged(cache, hours, hours)
    prune(cache.store.root, expiry_s=1, max_size_bytes=1, min_age_s=2 * HOUR_S)
    assert hits(cache, ages) == [0, 0.9, 1.1]
    prune(cache.store.root, expiry_s=1, min_age_s=HOUR_S)
    assert hits(cache, ages) == [0, 0.9]
    prune(cache.store.root, max_size_bytes=1, min_age_s=HOUR_S / 2)
    assert hits(cache, ages) == [0]


def test_no_bounds_remove_nothing(cache):
    """Without an age and a size nothing expires."""
    store_aged(cache, "a", 1e5)
    before = files(cache.store.root)
    result = prune(cache.store.root)
    assert files(cache.store.root) == before
    assert result.cutoff_ns is None and counts(result.kept) == (1, 1, 0)


def test_outputs_without_an_action_go(cache):
    """An output that no action names ages as any other."""
    bodies = [store_aged(cache, hours, hours) for hours in (2, 30)]
    for hours in (2, 30):
        os.unlink(cache.store.action_path(action_id(str(hours))))
    prune(cache.store.root, expiry_s=24 * HOUR_S)
    left = [os.path.exists(cache.store.output_path(output_id(body))) for body in bodies]
    assert left == [True, False]


def test_the_empty_output_stays(cache):
    """Its clock tells nothing of the actions that have it, so only they expire."""
    put(cache, "old", b"")
    put(cache, "new", b"")
    age(cache.store.output_path(EMPTY_OUTPUT), 100)
    age(cache.store.action_path(action_id("old")), 100)
    prune(cache.store.root, expiry_s=24 * HOUR_S, max_size_bytes=1)
    assert hits(cache, ["old", "new"]) == ["new"]
    assert os.path.exists(cache.store.output_path(EMPTY_OUTPUT))


def test_module_and_revproxy_files_are_bounded_too(cache):
    """They count into the size and go by their mtime."""
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


def test_temporary_files_of_the_dead_go(cache):
    """They go after an hour, later with a longer minimum age; with no bounds as well."""
    for number, hours in enumerate((0.9, 1.1, 5)):
        write_aged(cache.store.root, f"tmp/{number}", hours)
    prune(cache.store.root, min_age_s=2 * HOUR_S)
    assert sorted(os.listdir(f"{cache.store.root}/tmp")) == ["0", "1"]
    prune(cache.store.root, min_age_s=0)
    assert os.listdir(f"{cache.store.root}/tmp") == ["0"]


def test_what_the_store_did_not_make_stays(cache, tmp_path):
    """The spool, unknown names and what is behind a symlink are left alone."""
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


def test_a_body_to_be_uploaded_frees_nothing(cache):
    """Its name goes, the spool's link stays, and its bytes do not count as removed."""
    body = store_aged(cache, "a", 100)
    link = f"{cache.store.root}/spool/pin"
    os.mkdir(os.path.dirname(link))
    os.link(cache.store.output_path(output_id(body)), link)
    result = prune(cache.store.root, expiry_s=24 * HOUR_S)
    assert counts(result.removed) == (1, 1, 0) and result.removed["outputs"].bytes == 0
    assert read(link) == body
    assert cache.lookup(action_id("a")) is None


# -- how it goes -----------------------------------------------------------------------------------


@pytest.fixture
def unlinked(monkeypatch):
    """The names that prune unlinks, in order."""
    names, unlink = [], os.unlink

    def note(path, **where):
        unlink(path, **where)
        if where:  # not the store's own
            names.append(path)

    monkeypatch.setattr(os, "unlink", note)
    return names


def test_actions_go_before_outputs(cache, unlinked):
    """Every action is gone before the first output goes."""
    outputs = {output_id(store_aged(cache, number, 30)) for number in range(8)}
    prune(cache.store.root, expiry_s=HOUR_S)
    assert set(unlinked[:8]) == {action_id(str(number)) for number in range(8)}
    assert set(unlinked[8:]) == outputs


def test_dry_run_says_the_same_and_removes_nothing(cache, unlinked):
    """What a dry run says is what the next prune does; it makes no lock file either."""
    for hours in (2, 30, 60):
        store_aged(cache, hours, hours)
    before = files(cache.store.root)
    dry = prune(cache.store.root, expiry_s=24 * HOUR_S, dry_run=True)
    assert run(options_of(cache, expiry_s=24 * HOUR_S, dry_run=True)) == 0
    assert not unlinked and files(cache.store.root) == before
    real = prune(cache.store.root, expiry_s=24 * HOUR_S)
    for kind in KINDS:
        assert dry.removed[kind].count == real.removed[kind].count
        assert dry.removed[kind].bytes == real.removed[kind].bytes
        assert dry.kept[kind].bytes == real.kept[kind].bytes


def test_what_is_used_meanwhile_stays(cache, monkeypatch):
    """An entry used between the search and its turn stays, and the others go."""
    first, used, last = sorted("abc", key=action_id)
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


def test_what_cannot_be_removed_is_passed_over(cache, monkeypatch, capfd):
    """The rest goes, the count is honest, and the exit status says that something failed."""
    for name in "ab":
        store_aged(cache, name, 30)
    unlink = os.unlink

    def refuse_one(path, **where):
        if path == action_id("a"):
            raise PermissionError(errno.EPERM, "no", path)
        unlink(path, **where)

    monkeypatch.setattr(os, "unlink", refuse_one)
    assert run(options_of(cache, expiry_s=24 * HOUR_S, json=True)) == 1
    captured = capfd.readouterr()
    report = json.loads(captured.out)
    assert report["removed"]["actions"]["count"] == 1 and report["failures"] == 1
    assert len(captured.err.splitlines()) == 1
    assert hits(cache, "ab") == ["a"]


def test_a_directory_that_cannot_be_read_is_passed_over(cache, monkeypatch, capfd):
    """The others are pruned, and the exit status says that something failed."""
    for name in "ab":
        store_aged(cache, name, 30)
    scandir, broken = os.scandir, os.path.dirname(cache.store.action_path(action_id("a")))

    def refuse_one(fd):
        if os.path.samestat(os.fstat(fd), os.stat(broken)):
            raise OSError(errno.EIO, "broken")
        return scandir(fd)

    monkeypatch.setattr(os, "scandir", refuse_one)
    assert run(options_of(cache, expiry_s=24 * HOUR_S)) == 1
    assert hits(cache, "ab") == ["a"]
    assert "broken" in capfd.readouterr().err


def test_others_remove_at_the_same_time(cache, monkeypatch):
    """What is gone already is neither an error nor counted."""
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


@pytest.mark.parametrize("stop_at", range(1, 13))
def test_stopped_before_any_unlink_it_leaves_a_valid_store(cache, monkeypatch, stop_at):
    """Wherever it is stopped, a lookup gives the right body or a miss, and what was young a hit."""
    bodies = {f"old{number}": store_aged(cache, f"old{number}", 30, 500) for number in range(6)}
    bodies |= {f"new{number}": store_aged(cache, f"new{number}", 0, 500) for number in range(3)}
    calls, unlink = [], os.unlink

    def stop(path, **where):
        calls.append(path)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        unlink(path, **where)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", stop)
        assert run(options_of(cache, expiry_s=24 * HOUR_S)) == 130
    assert len(calls) == stop_at
    missing = []
    for name, body in bodies.items():
        found = cache.lookup(action_id(name))
        if found is None:
            missing.append(name)
        else:
            assert read(found[3]) == body
    assert len(missing) == min(stop_at - 1, 6)
    assert all(name.startswith("old") for name in missing)
    assert run(options_of(cache, expiry_s=24 * HOUR_S)) == 0
    assert hits(cache, bodies) == ["new0", "new1", "new2"]


# -- one at a time, and at close -------------------------------------------------------------------


@pytest.fixture
def locked(cache):
    """As if another prune of the same directory were running."""
    os.makedirs(cache.store.root, exist_ok=True)
    fd = os.open(f"{cache.store.root}/prune.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield
    os.close(fd)


def test_a_second_prune_says_so_and_leaves(cache, locked, capfd):
    store_aged(cache, "a", 30)
    assert run(options_of(cache, expiry_s=HOUR_S)) == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert "another prune" in line
    assert hits(cache, "a") == ["a"]


@pytest.fixture
def at_close(monkeypatch):
    """prune_at_close without a lasting effect on this process's priority."""
    nice = []
    monkeypatch.setattr(os, "nice", nice.append)
    before = signal.getsignal(signal.SIGINT)
    yield prune_at_close
    assert signal.getsignal(signal.SIGINT) is before


def test_at_close_it_prunes_once_an_hour(cache, at_close, capfd):
    """The second close within an hour leaves what is old; a later one does not. Nothing is said."""
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


def test_at_close_beside_another_prune_it_leaves(cache, at_close, locked):
    """It neither waits nor notes that it pruned."""
    store_aged(cache, "a", 30)
    at_close(options_of(cache, expiry_s=24 * HOUR_S))
    assert hits(cache, "a") == ["a"]
    assert not os.path.exists(f"{cache.store.root}/prune.stamp")


def test_at_close_errors_are_no_trouble(cache, at_close, monkeypatch, tmp_path):
    """No directory, or one that fails, ends it quietly."""
    at_close(Options(cache_dir=str(tmp_path / "none"), expiry_s=1.0))
    os.makedirs(cache.store.root)

    def fail(*_, **__):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(prune_module, "prune", fail)
    at_close(options_of(cache, expiry_s=1.0))
    assert os.path.exists(f"{cache.store.root}/prune.stamp")


# -- what is printed -------------------------------------------------------------------------------


def test_json_is_one_object(cache, capfd):
    """Counts and bytes of all kinds, the cutoff, the time it took."""
    store_aged(cache, "a", 30)
    store_aged(cache, "b", 2)
    assert run(options_of(cache, expiry_s=24 * HOUR_S, json=True)) == 0
    (line,) = capfd.readouterr().out.splitlines()
    report = json.loads(line)
    assert report["removed"]["actions"]["count"] == report["kept"]["actions"]["count"] == 1
    assert report["removed"]["outputs"] == report["kept"]["outputs"]
    assert report["removed"]["outputs"]["bytes"] >= BODY_BYTES
    assert report["removed"]["other"] == {"count": 0, "bytes": 0}
    assert report["dry_run"] is False and report["seconds"] >= 0
    day_ago = time.strftime("%Y-%m-%dT%H", time.gmtime(time.time() - 24 * HOUR_S - 60))
    hour_later = time.strftime("%Y-%m-%dT%H", time.gmtime(time.time() - 24 * HOUR_S + 60))
    assert report["cutoff"][:13] in (day_ago, hour_later)


def test_text_names_counts_and_sizes(cache, capfd):
    store_aged(cache, "a", 30)
    store_aged(cache, "b", 0)
    assert run(options_of(cache, expiry_s=24 * HOUR_S, max_size_bytes=1000)) == 0
    removed, kept, more = capfd.readouterr().out.splitlines()
    assert removed.startswith("removed 1 actions, 1 outputs, 0 other: 1")
    assert kept.startswith("kept 1 actions, 1 outputs, 0 other: 1") and kept.endswith(" kB")
    assert "--max-size" in more


def test_without_bounds_it_says_so_in_one_line(cache, capfd):
    write_aged(cache.store.root, "tmp/dead", 30)
    assert run(options_of(cache)) == 0
    (line,) = capfd.readouterr().out.splitlines()
    assert "nothing expires" in line and "removed 1 temporary" in line


def test_no_directory_is_nothing_to_prune(tmp_path, capfd):
    root = tmp_path / "none"
    assert run(Options(cache_dir=str(root), expiry_s=1.0, json=True)) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)["removed"]["actions"]["count"] == 0
    assert "nothing to prune" in captured.err and not root.exists()


def test_what_is_no_directory_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("x")
    for dry_run in (False, True):
        with pytest.raises(UsageError, match="cannot be used"):
            run(Options(cache_dir=str(tmp_path / "file"), expiry_s=1.0, dry_run=dry_run))


class _Terminal:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text) -> None:
        self.text += text

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def test_progress_is_drawn_on_a_terminal_and_cleared(cache, monkeypatch):
    """At most every 0.1 s; and nothing is left of it at the end."""
    for number in range(50):
        store_aged(cache, number, 30, 100)
    terminal = _Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    begin = time.monotonic()
    assert run(options_of(cache, expiry_s=24 * HOUR_S)) == 0
    lines = terminal.text.split("\r")
    drawn = sum("|" in line for line in lines)
    assert 1 <= drawn <= 2 + (time.monotonic() - begin) / 0.1
    assert "looking" in terminal.text and not lines[-1].strip() and not lines[-2].strip()
