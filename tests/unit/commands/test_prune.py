"""The command ``prune``: its exit status, its report, and what an interruption leaves."""

import errno
import json
import os
import time

import pytest

from aged_entries import (
    BODY_BYTES,
    HOUR_S,
    hits,
    options_of,
    other_prune,
    store_aged,
    write_aged,
)
from cacheplugin.commands.prune import run
from cacheplugin.errors import UsageError
from cacheplugin.options import Options
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.tree import Store
from entries import action_id, files, read


@pytest.fixture
def cache(tmp_path):
    return LocalCache(Store(str(tmp_path / "cache")))


def test_a_dry_run_changes_no_file(cache):
    """It removes nothing and creates no lock file."""
    for hours in (2, 30, 60):
        store_aged(cache, hours, hours)
    before = files(cache.store.root)
    assert run(options_of(cache, expiry_s=24 * HOUR_S, dry_run=True)) == 0
    assert files(cache.store.root) == before


def test_a_file_that_cannot_be_removed_is_skipped(cache, monkeypatch, capfd):
    """The rest is removed; counts and exit status tell that one file failed."""
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


def test_a_directory_that_cannot_be_read_is_skipped(cache, monkeypatch, capfd):
    """The others are pruned, and the exit status tells of the failure."""
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


@pytest.mark.parametrize("stop_at", range(1, 13))
def test_an_interruption_leaves_a_valid_store(cache, monkeypatch, stop_at):
    """After any interruption old entries are hits with the right body or misses; new ones hits."""
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


@pytest.fixture
def locked(cache):
    """Another prune of the same directory is running."""
    with other_prune(cache.store.root):
        yield


def test_a_second_prune_prints_a_line_and_exits(cache, locked, capfd):
    store_aged(cache, "a", 30)
    assert run(options_of(cache, expiry_s=HOUR_S)) == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert "another prune" in line
    assert hits(cache, "a") == ["a"]


# -- the report ------------------------------------------------------------------------------------


def test_json_is_one_object(cache, capfd):
    """It has counts and bytes of all kinds, the cutoff and the duration."""
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
    assert more == "still over --max-size: the rest is younger than --min-age or awaits upload"


def test_without_limits_it_prints_one_line(cache, capfd):
    write_aged(cache.store.root, "tmp/dead", 30)
    assert run(options_of(cache)) == 0
    (line,) = capfd.readouterr().out.splitlines()
    assert "nothing expires" in line and "removed 1 temporary" in line


def test_a_missing_directory_is_no_error(tmp_path, capfd):
    root = tmp_path / "none"
    assert run(Options(cache_dir=str(root), expiry_s=1.0, json=True)) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)["removed"]["actions"]["count"] == 0
    assert "nothing to prune" in captured.err and not root.exists()


def test_a_file_in_place_of_the_directory_is_a_usage_error(tmp_path):
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


def test_progress_is_drawn_on_a_terminal_and_erased(cache, monkeypatch):
    """It is drawn at most every 0.1 s, and the line is blank at the end."""
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
