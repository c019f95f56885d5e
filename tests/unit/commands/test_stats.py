"""The command ``stats``: the text shows what store.stats.collect found."""

import json
import os

from cacheplugin.commands.stats import text
from cacheplugin.metrics import Counters
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.session_log import append_session
from cacheplugin.store.stats import collect
from cacheplugin.store.tree import Store
from entries import action_id, output_id, put

NOW = 2_000_000_000.0


def test_an_empty_directory(tmp_path):
    assert "no sessions yet" in text(collect(str(tmp_path), NOW))


def test_the_spool_and_module_files(tmp_path):
    """Other files are listed by their directory if there are any."""
    cache = LocalCache(Store(str(tmp_path)))
    path = put(cache, "a", b"x" * 500)
    directory = f"{tmp_path}/spool/target/session"
    os.makedirs(directory)
    os.link(path, f"{directory}/{output_id(b'x' * 500)}")
    with open(f"{directory}/journal", "w") as file:
        file.write(f"put {action_id('a')} {output_id(b'x' * 500)} 500 1\n")
        file.write(f"put {action_id('b')} {output_id(b'x' * 500)} 500 1\n")
    os.makedirs(f"{tmp_path}/module/ab")
    with open(f"{tmp_path}/module/ab/abcd", "wb") as file:
        file.write(b"module")
    shown = text(collect(str(tmp_path), NOW))
    assert "2 entries to upload, 500 B" in shown
    assert "module: 1 files, 6 B" in shown and "revproxy" not in shown


def test_hit_rates(tmp_path):
    """Each session has its rate, - without gets; the last line has the rate of all."""
    for number in range(12):
        counters = Counters()
        counters.get_requests, counters.get_local_hit = 100, 50 + number
        counters.get_fault_hit, counters.get_misses = 10, 40 - number
        append_session(str(tmp_path), counters)
    puts = Counters()
    puts.put_requests = 1
    append_session(str(tmp_path), puts)
    lines = text(collect(str(tmp_path), NOW)).splitlines()
    assert lines[-1] == "hit rate of these: 67.0 %"
    assert lines[-2].split()[-1] == "-" and lines[-3].endswith("71.0 %")


def test_text_and_json_have_the_same_rows(tmp_path):
    """The answer can be printed as JSON; the text shows the totals and a full bar in each table."""
    cache = LocalCache(Store(str(tmp_path)))
    path = put(cache, "a", b"x" * 5000)
    for used in (path, cache.store.action_path(action_id("a"))):
        os.utime(used, (NOW - 10, NOW - 10))
    found = collect(str(tmp_path), NOW)
    assert json.loads(json.dumps(found)) == found
    shown = text(found)
    assert shown.startswith("1 entries, 1 outputs\n5.") and "5.0 kB" in shown
    assert len([line for line in shown.splitlines() if line.endswith("#" * 30)]) == 2
