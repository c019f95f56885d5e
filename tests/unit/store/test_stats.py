"""store/stats.py: counts, ages, sizes and sessions, also if parts of the directory are missing."""

import os

import pytest

from cacheplugin.metrics import Counters
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.session_log import append_session
from cacheplugin.store.stats import collect
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
    """All counts are 0; nothing is raised and no file is created."""
    found = collect(str(tmp_path), NOW)
    for count in ("entries", "outputs", "bytes", "bytes_on_disk"):
        assert found[count] == 0
    assert found["spool"] == {"entries": 0, "outputs": 0, "bytes": 0}
    assert found["sessions"] == [] and found["hit_rate"] is None
    assert os.listdir(tmp_path) == []


def test_counts_and_bytes(cache):
    """Two actions share an output; sizes are those of the files, sizes on disk those of blocks."""
    put(cache, "a", b"x" * 5000)
    put(cache, "b", b"x" * 5000)
    paths = [
        cache.store.action_path(action_id("a")),
        cache.store.action_path(action_id("b")),
        cache.store.output_path(output_id(b"x" * 5000)),
    ]
    found = collect(cache.store.root, NOW)
    assert (found["entries"], found["outputs"]) == (2, 1)
    assert found["bytes"] == sum(map(os.path.getsize, paths))
    assert found["bytes_on_disk"] == sum(os.stat(path).st_blocks * 512 for path in paths)


def test_ages_by_last_use(cache):
    """A file counts in the row of its mtime; an age equal to a bound is in the row that it ends."""
    for name, age_s in (("a", 10), ("b", 3600), ("c", 3601), ("d", 3 * DAY), ("e", 400 * DAY)):
        put_aged(cache, name, name.encode() * 100, age_s)
    put_aged(cache, "later", b"in the future", -50)
    rows = collect(cache.store.root, NOW)["ages"]
    assert [row["up_to_s"] for row in rows] == [3600, DAY, 7 * DAY, 30 * DAY, 90 * DAY, None]
    assert [row["entries"] for row in rows] == [3, 1, 1, 0, 0, 1]
    assert [row["outputs"] for row in rows] == [3, 1, 1, 0, 0, 1]
    assert [row["bytes"] for row in rows] == [213, 100, 100, 0, 0, 100]


def test_sizes(cache):
    """The rows are powers of ten; the empty body has its own."""
    for size in (0, 1, 100, 101, 1000, 250_000, 20_000_000):
        put(cache, f"{size}", b"s" * size)
    rows = collect(cache.store.root, NOW)["sizes"]
    assert [row["outputs"] for row in rows] == [1, 2, 2, 0, 0, 1, 0, 1, 0]
    assert [row["bytes"] for row in rows] == [0, 101, 1101, 0, 0, 250_000, 0, 20_000_000, 0]
    assert rows[-1]["up_to_bytes"] is None


def test_the_spool_and_module_files(cache):
    """Linked bodies are counted by their names; the journal is not a body."""
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
    found = collect(root, NOW)
    assert found["spool"] == {"entries": 2, "outputs": 1, "bytes": 500}
    assert found["others"]["module"]["count"] == 1 and found["others"]["module"]["bytes"] == 6
    assert found["outputs"] == 1


def test_hit_rates_of_the_last_sessions(cache, tmp_path):
    """The last ten sessions, and the hit rate of all their gets."""
    for number in range(12):
        counters = Counters()
        counters.get_requests, counters.get_local_hit = 100, 50 + number
        counters.get_fault_hit, counters.get_misses = 10, 40 - number
        append_session(str(tmp_path), counters)
    puts = Counters()
    puts.put_requests = 1
    append_session(str(tmp_path), puts)
    found = collect(str(tmp_path), NOW)
    assert [session["local_hits"] for session in found["sessions"]] == [*range(53, 62), 0]
    assert found["hit_rate"] == pytest.approx((57 + 10) / 100)
