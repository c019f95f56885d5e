"""The commands prune --remote and stats --remote, beside running sessions."""

import json
import subprocess
import time

import pytest

from bundle_sessions import bundle_gets, expect_all, fill, get_all, keys, noise, put_all, some
from helpers import PROGRAM, wait_until

DAY_S = 86400
PUTS = some(6)


@pytest.fixture
def command(processes, fake_s3):
    """command(word, *flags): returns (exit status, stdout, stderr) of prune or stats --remote."""

    def command(word, *flags):
        done = subprocess.run(
            [PROGRAM, word, "--remote", *fake_s3.flags(layout="bundles"), *flags],
            env=processes.environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr

    return command


def age(fake_s3, days: float) -> None:
    """Make all objects in the bucket ``days`` older."""
    for key in fake_s3.objects:
        fake_s3.modified[key] = time.time() - days * DAY_S


def test_old_working_sets_are_deleted_and_recent_ones_stay(machine, fake_s3, command):
    """The working set of the last session still hits; that of an older scope is deleted."""
    fill(machine("old", "--scope=theirs"), some(4, "old"))
    age(fake_s3, 31)
    fill(machine("young"), PUTS)
    assert command("prune", "--expiry=720h", "--dry-run")[1].startswith(
        "would delete 1 manifests and 0 bundles"
    )
    assert len(fake_s3.objects) == 4
    for manifests, bundles in (
        (1, 0),
        (0, 1),
    ):  # the bundle is deleted by the second prune: a session may be reading it
        status, out, err = command("prune", "--expiry=720h")
        said = f"deleted {manifests} manifests and {bundles} bundles"
        assert (status, err) == (0, "") and out.startswith(said)
    assert len(fake_s3.objects) == 2
    plugin = machine("fresh")
    expect_all(plugin, PUTS)
    plugin.finish()


def test_json(machine, fake_s3, command):
    """Both commands print one line of JSON."""
    fill(machine("a"), PUTS)
    found = json.loads(command("stats", "--json")[1])
    assert (found["bundles"], found["manifests"]) == (1, 1)
    assert found["scopes"][0]["scope"] == "ours" and found["scopes"][0]["entries"] == len(PUTS)
    done = json.loads(command("prune", "--expiry=720h", "--json")[1])
    assert (done["manifests"], done["bundles"], done["kept"]) == (0, 0, 1)
    assert done["kept_bytes"] == found["bundle_bytes"]


@pytest.mark.alone  # two commands must end within the time-out of a request
def test_a_session_survives_the_prune_of_its_bundles(machine, fake_s3, command):
    """Deleted entries are misses and are uploaded again; no command fails."""
    fill(machine("first"), PUTS)
    age(fake_s3, 31)
    fake_s3.hold = lambda method, key: method == "GET" and key.startswith("bundle/")
    plugin = machine("second")
    numbers = [plugin.get(action) for action in PUTS]
    wait_until(lambda: fake_s3.held, "the ranges")
    for _ in range(2):
        assert command("prune", "--expiry=720h")[0] == 0
    assert not fake_s3.objects
    fake_s3.release()
    missed = [action for action, number in zip(PUTS, numbers) if plugin.answer(number).get("Miss")]
    assert missed
    put_all(plugin, {action: PUTS[action] for action in missed})
    plugin.finish()
    again = machine("second")
    expect_all(again, PUTS)
    again.finish()
    fresh = machine("third")
    expect_all(fresh, {action: PUTS[action] for action in missed})
    fresh.finish()


def test_repeated_prunes_beside_sessions(machine, fake_s3, command):
    """Each session gets the entries of earlier ones, whatever is rewritten or deleted meanwhile."""
    everything = {}
    for turn in range(4):
        puts = noise(3, 40_000, f"turn {turn}")
        plugin = machine(f"machine {turn}")
        expect_all(plugin, everything)
        put_all(plugin, puts)
        assert command("prune", "--expiry=720h")[0] == 0  # no manifest names its bundles yet
        plugin.finish()
        everything |= puts
        age(fake_s3, 2)  # past the grace period: superseded objects are deleted
    status, out, _ = command("prune", "--expiry=720h")
    assert (status == 0 and "deleted 3 manifests" in out) or "deleted 1 manifests" in out
    plugin = machine("fresh")
    expect_all(plugin, everything)
    plugin.finish()


def test_a_scattered_working_set_is_rewritten(machine, fake_s3, command):
    """After many small sessions and a prune, a fresh machine needs fewer requests."""
    everything = {}
    for turn in range(18):
        puts = noise(1, 1000, f"turn {turn}")
        fill(machine("one"), puts)
        everything |= puts
    plugin = machine("before")
    get_all(plugin, everything)
    plugin.finish()
    assert bundle_gets(fake_s3) == 18
    status, out, _ = command("prune", "--expiry=720h")
    assert status == 0 and "18 bundles rewritten" in out
    del fake_s3.requests[:]
    plugin = machine("after")
    expect_all(plugin, everything)
    plugin.finish()
    assert bundle_gets(fake_s3) == 1
    assert len(keys(fake_s3, "bundle")) == 19  # the old ones stay for a day


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "needs --expiry"),
        (["--expiry=1h", "--max-size=1GB"], "leave out --max-size"),
        (["--expiry=1h", "--read-only"], "--read-only forbids"),
    ],
)
def test_flags_that_do_not_fit(command, fake_s3, flags, said):
    """It prints one line, exits with 2 and sends no request."""
    status, out, err = command("prune", *flags)
    assert (status, out) == (2, "") and said in err and err.count("\n") == 1
    assert not fake_s3.requests


@pytest.mark.parametrize("word, flags", [("prune", ["--expiry=1h"]), ("stats", [])])
def test_a_bucket_that_fails(machine, fake_s3, command, word, flags):
    """It prints one line, exits with 1 and deletes nothing."""
    fill(machine("a"), PUTS)
    age(fake_s3, 31)
    before = dict(fake_s3.objects)
    fake_s3.fail("403")
    status, out, err = command(word, *flags)
    assert (status, out) == (1, "") and err.startswith("go-cache-plugin: bucket bucket: ")
    assert err.count("\n") == 1 and fake_s3.objects == before


def test_without_a_bucket(processes):
    """stats --remote needs a bucket."""
    done = subprocess.run(
        [PROGRAM, "stats", "--remote"], env=processes.environ(), capture_output=True, text=True
    )
    assert (
        done.returncode == 2 and done.stderr == "go-cache-plugin: stats --remote needs --bucket\n"
    )
