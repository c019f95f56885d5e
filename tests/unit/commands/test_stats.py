"""stats.py: counts, ages, sizes and sessions as they are, also where parts are missing."""

import json
import os

import pytest

from cacheplugin.commands import stats
from cacheplugin.metrics import Counters
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.session_log import append_session
from cacheplugin.store.tree import Store
from entries import action_id, output_id, put

NOW = 2_000_000_000.0
DAY = 86400


@pytest.fixture
def cache(tmp_path):
    return LocalCache(Store(str(tmp_path / "cache")))


def put_aged(cache, name, body, age_s) -> None:
    path = put(cache, name, body)
    for used in (path, cache.store.action_path(action_id(name))):
        os.utime(used, (NOW - age_s, NOW - age_s))


def test_an_empty_directory(tmp_path):
    """Nothing is there, and nothing is raised or made."""
    found = stats.collect(str(tmp_path), NOW)
    for count in ("entries", "outputs", "bytes", "bytes_on_disk"):
        assert found[count] == 0
    assert found["spool"] == {"entries": 0, "outputs": 0, "bytes": 0}
    assert found["sessions"] == [] and found["hit_rate"] is None
    assert "no sessions yet" in stats.text(found)
    assert os.listdir(tmp_path) == []


def test_counts_and_bytes(cache):
    """Two actions with one output; apparent bytes are those of files, on disk those of blocks."""
    put(cache, "a", b"x" * 5000)
    put(cache, "b", b"x" * 5000)
    paths = [
        cache.store.action_path(action_id("a")),
        cache.store.action_path(action_id("b")),
        cache.store.output_path(output_id(b"x" * 5000)),
    ]
    found = stats.collect(cache.store.root, NOW)
    assert (found["entries"], found["outputs"]) == (2, 1)
    assert found["bytes"] == sum(map(os.path.getsize, paths))
    assert found["bytes_on_disk"] == sum(os.stat(path).st_blocks * 512 for path in paths)


def test_ages_by_the_clock_of_use(cache):
    """A file stands in the row of its mtime; a bound belongs to the row below it."""
    for name, age_s in (("a", 10), ("b", 3600), ("c", 3601), ("d", 3 * DAY), ("e", 400 * DAY)):
        put_aged(cache, name, name.encode() * 100, age_s)
    put_aged(cache, "later", b"in the future", -50)
    rows = stats.collect(cache.store.root, NOW)["ages"]
    assert [row["up_to_s"] for row in rows] == [3600, DAY, 7 * DAY, 30 * DAY, 90 * DAY, None]
    assert [row["entries"] for row in rows] == [3, 1, 1, 0, 0, 1]
    assert [row["outputs"] for row in rows] == [3, 1, 1, 0, 0, 1]
    assert [row["bytes"] for row in rows] == [213, 100, 100, 0, 0, 100]


def test_sizes(cache):
    """Powers of ten, the empty body apart."""
    for size in (0, 1, 100, 101, 1000, 250_000, 20_000_000):
        put(cache, f"{size}", b"s" * size)
    rows = stats.collect(cache.store.root, NOW)["sizes"]
    assert [row["outputs"] for row in rows] == [1, 2, 2, 0, 0, 1, 0, 1, 0]
    assert [row["bytes"] for row in rows] == [0, 101, 1101, 0, 0, 250_000, 0, 20_000_000, 0]
    assert rows[-1]["up_to_bytes"] is None


def test_the_spool_and_the_proxies_files(cache):
    """Links are counted by their names; the journal and the target's description are no bodies."""
    path = put(cache, "a", b"x" * 500)
    root = cache.store.root
    directory = f"{root}/spool/target/session"
    os.makedirs(directory)
    os.link(path, f"{directory}/{output_id(b'x' * 500)}")
    with open(f"{directory}/journal", "w") as file:
        file.write(f"put {action_id('a')} {output_id(b'x' * 500)} 500 1\n")
        file.write(f"put {action_id('b')} {output_id(b'x' * 500)} 500 1\n")
        file.write(f"put {action_id('c')} {output_id(b'')} 0 1\ndone 2\n")
    os.makedirs(f"{root}/module/ab")
    with open(f"{root}/module/ab/abcd", "wb") as file:
        file.write(b"module")
    found = stats.collect(root, NOW)
    assert found["spool"] == {"entries": 2, "outputs": 1, "bytes": 500}
    assert found["others"]["module"]["count"] == 1 and found["others"]["module"]["bytes"] == 6
    assert found["outputs"] == 1
    assert "2 entries to upload, 500 B" in stats.text(found)
    assert "module: 1 files, 6 B" in stats.text(found) and "revproxy" not in stats.text(found)


def test_hit_rates_of_the_last_sessions(cache, tmp_path):
    """The last ten, and the rate of all their gets; a session without gets has none."""
    for number in range(12):
        counters = Counters()
        counters.get_requests, counters.get_local_hit = 100, 50 + number
        counters.get_fault_hit, counters.get_misses = 10, 40 - number
        append_session(str(tmp_path), counters)
    puts = Counters()
    puts.put_requests = 1
    append_session(str(tmp_path), puts)
    found = stats.collect(str(tmp_path), NOW)
    assert [session["local_hits"] for session in found["sessions"]] == [*range(53, 62), 0]
    assert found["hit_rate"] == pytest.approx((57 + 10) / 100)
    lines = stats.text(found).splitlines()
    assert lines[-1] == "hit rate of these: 67.0 %"
    assert lines[-2].split()[-1] == "-" and lines[-3].endswith("71.0 %")


def test_json_says_what_the_text_says(cache):
    """What --json prints can be printed, and the text shows each row and the totals."""
    put_aged(cache, "a", b"x" * 5000, 10)
    found = stats.collect(cache.store.root, NOW)
    assert json.loads(json.dumps(found)) == found
    text = stats.text(found)
    assert text.startswith("1 entries, 1 outputs\n5.") and "5.0 kB" in text
    assert len([line for line in text.splitlines() if line.endswith("#" * 30)]) == 2
