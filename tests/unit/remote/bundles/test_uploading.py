"""remote/bundles/uploading.py: puts become bundles and manifests, and each is answered once."""

import pytest

from bundles_driver import WALL_S, Driver
from cacheplugin.ipc import jobs
from cacheplugin.remote.bundles import uploading
from cacheplugin.remote.bundles.uploading import BUNDLE_BYTES, IDLE_S
from entries import TIME_NS, action_id, output_id
from rows import ids, names, row

FAILURES = [jobs.FAILED, jobs.TIMED_OUT, jobs.SKIPPED, jobs.LOST, jobs.UNUSABLE, jobs.LOCAL]


@pytest.fixture
def driver(tmp_path):
    """A driver whose manifests name a."""
    driver = Driver(tmp_path)
    driver.begin(row("a"))
    return driver


def outputs(task) -> list:
    return [output for _, output, *_ in task.entries]


def bodies(text) -> list:
    return [output_id(name.encode()) for name in text]


def flags(driver) -> dict:
    """{number: found} of the puts that were answered."""
    results = [one for one in driver.messages if isinstance(one, jobs.UploadResult)]
    return {one.number: one.found for one in results}


# -- when a bundle is closed -----------------------------------------------------------------------


def test_bundle_closed_by_its_size(driver):
    """Enough bodies are a bundle; what comes then is for the next one."""
    driver.put("b", size=BUNDLE_BYTES - 1)
    assert driver.tasks == []
    driver.put("c", size=1)
    assert outputs(driver.only(jobs.BundleJob)) == bodies("bc")
    driver.put("d", size=BUNDLE_BYTES - 1)
    assert driver.tasks == []
    driver.put("e", size=BUNDLE_BYTES)
    assert outputs(driver.only(jobs.BundleJob)) == bodies("de")


def test_bundle_closed_by_its_entries(driver, monkeypatch):
    """Many entries are a bundle, however small they are."""
    monkeypatch.setattr(uploading, "BUNDLE_ENTRIES", 3)
    for name in "bcdef":
        driver.put(name, size=1)
    assert outputs(driver.only(jobs.BundleJob)) == bodies("bcd")


def test_bundle_closed_when_nothing_comes(driver):
    """A bundle that nothing was added to for a while is written meanwhile."""
    assert driver.plan.timeout_s() is None
    driver.put("b")
    assert driver.plan.timeout_s() == IDLE_S
    driver.now += IDLE_S - 1
    driver.plan.on_time()
    driver.put("c")
    assert driver.plan.timeout_s() == IDLE_S
    driver.now += IDLE_S - 1
    driver.plan.on_time()
    assert driver.plan.timeout_s() == 1 and driver.tasks == []
    driver.now += 5
    assert driver.plan.timeout_s() == 0
    driver.plan.on_time()
    driver.plan.on_time()
    assert outputs(driver.only(jobs.BundleJob)) == bodies("bc")
    assert driver.plan.timeout_s() is None


def test_bundle_closed_by_the_end(driver):
    """The end of a session closes its bundle; its puts are answered when a manifest has them."""
    put, finish = driver.put("b"), driver.finish("ba")
    task = driver.only(jobs.BundleJob)
    (output,) = bodies("b")
    assert task.entries == [(*ids("b"), output, 1000, TIME_NS, f"/store/{output}")]
    driver.bundle(task)
    assert driver.said() == {}
    manifest = driver.manifest()
    assert names(manifest.rows) == ids("ba") and manifest.superseded == ["m-1"]
    assert {one.used_s for one in manifest.rows} == {WALL_S}
    assert driver.said() == {put: jobs.STORED, finish: jobs.STORED}
    sent = [one.sent for one in driver.messages if isinstance(one, jobs.Transferred)]
    assert len(sent) == 2 and min(sent) > 0


def test_manifest_waits_for_every_bundle(driver):
    """One manifest names what is in all bundles of a session, written in whatever order."""
    puts = [driver.put(name, size=BUNDLE_BYTES) for name in "bcd"]
    driver.finish()
    tasks = driver.take(jobs.BundleJob)
    for task in tasks[::-1]:
        assert driver.tasks == []
        driver.bundle(task)
    assert set(names(driver.manifest().rows)) == set(ids("abcd"))
    assert set(puts) < set(driver.said())


def test_session_that_put_nothing(driver):
    """The end of a session without news is answered at once, and nothing is written."""
    finish = driver.finish("a")
    assert driver.said() == {finish: jobs.STORED} and driver.tasks == []


# -- a body goes once ------------------------------------------------------------------------------


def test_body_that_a_bundle_has(driver):
    """A put of a body that lies in a bundle is only named, and was found."""
    put = driver.put("b", body="a")
    driver.finish("b")
    manifest = driver.manifest()
    assert flags(driver) == {put: True}
    assert manifest.rows[0] == row("b", output=output_id(b"a"), used_s=WALL_S)


def test_body_put_twice(driver):
    """A body that is gathered already goes once, and one of its puts has sent it."""
    puts = driver.put("b", body="x"), driver.put("c", body="x")
    driver.finish("bc")
    task = driver.only(jobs.BundleJob)
    assert set(outputs(task)) == set(bodies("x"))
    driver.bundle(task)
    manifest = driver.manifest()
    assert names(manifest.rows[:2]) == ids("bc")
    assert len({one[5:8] for one in manifest.rows[:2]}) == 1
    assert flags(driver) == {puts[0]: False, puts[1]: True}


def test_body_whose_bundle_is_being_written(driver):
    """A put of a body that is on its way waits for that bundle, and adds none."""
    first = driver.put("b", body="x", size=BUNDLE_BYTES)
    task = driver.only(jobs.BundleJob)
    second = driver.put("c", body="x", size=BUNDLE_BYTES)
    driver.finish("bc")
    assert driver.tasks == [] and driver.said() == {}
    driver.bundle(task)
    assert set(names(driver.manifest().rows)) == set(ids("abc"))
    assert flags(driver) == {first: False, second: True}


def test_many_puts_of_one_body_are_few_bytes(driver):
    """A bundle's size is that of its bodies, however many entries share one."""
    for name in "bcdefgh":
        driver.put(name, body="x", size=BUNDLE_BYTES // 2)
    assert driver.tasks == []


def test_body_of_another_size_than_a_bundle_says(driver):
    """A body is not taken for one that a manifest gives another size."""
    driver.put("b", body="a", size=999)
    driver.finish("b")
    assert outputs(driver.only(jobs.BundleJob)) == bodies("a")


# -- of two puts of an action ----------------------------------------------------------------------


@pytest.mark.parametrize("body", ["a", "x"])
def test_older_put_than_is_known(driver, body):
    """A late upload changes nothing, and is done."""
    put, finish = driver.put("a", body, TIME_NS - 1), driver.finish("a")
    assert flags(driver) == {put: True}
    assert driver.said() == {put: jobs.STORED, finish: jobs.STORED} and driver.tasks == []


def test_later_put_than_is_known(driver):
    """A later put of an action is named in place of the one before, by its new body."""
    driver.put("a", "x", TIME_NS + 1)
    driver.finish("a")
    driver.bundle(driver.only(jobs.BundleJob))
    (found,) = driver.manifest().rows
    assert (found.output, found.time_ns, found.bundle) == (output_id(b"x"), TIME_NS + 1, "bundle-n")


@pytest.mark.parametrize("late_first", [False, True])
def test_two_puts_in_one_bundle(driver, late_first):
    """Both are answered; the later one is named, in whichever order they came."""
    by_time = [("b", "x", TIME_NS + 1), ("b", "y", TIME_NS + 2)]
    puts = [driver.put(*one) for one in sorted(by_time, reverse=late_first)]
    driver.finish("b")
    driver.bundle(driver.only(jobs.BundleJob))
    assert driver.manifest().rows[0].output == output_id(b"y")
    assert set(driver.said()) > set(puts)


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", FAILURES)
def test_bundle_that_fails(driver, status):
    """Every put of a bundle that is not there is answered so, and the session's end as well."""
    puts = driver.put("b"), driver.put("c"), driver.put("d", body="c")
    found, finish = driver.put("e", body="a"), driver.finish("bcde")
    driver.fail(driver.only(jobs.BundleJob), status)
    assert names(driver.manifest().rows) == ids("ea")
    answers = driver.said()
    assert answers.pop(finish)
    assert answers == dict.fromkeys(puts, status) | {found: jobs.STORED}


def test_only_bundle_fails(driver):
    """Where nothing was uploaded, no manifest says so."""
    driver.put("b")
    finish = driver.finish("b")
    driver.fail(driver.only(jobs.BundleJob))
    assert finish in driver.said() and driver.tasks == []


def test_body_of_a_failed_bundle_is_put_again(driver):
    """What did not go the first time goes the next."""
    driver.put("b", size=BUNDLE_BYTES)
    driver.fail(driver.only(jobs.BundleJob))
    driver.said()
    put = driver.put("b", size=BUNDLE_BYTES)
    driver.finish("b")
    driver.bundle(driver.only(jobs.BundleJob))
    assert names(driver.manifest().rows) == ids("ba")
    assert driver.said()[put] == jobs.STORED


def test_bodies_that_are_bad(driver):
    """Puts of a body that is gone or wrong are damaged; the others of the bundle are not."""
    good, bad, twice = driver.put("b"), driver.put("c"), driver.put("d", body="c")
    finish = driver.finish("bcd")
    driver.bundle(driver.only(jobs.BundleJob), bad="c")
    assert names(driver.manifest().rows) == ids("ba")
    assert driver.said() == {
        good: jobs.STORED,
        bad: jobs.DAMAGED,
        twice: jobs.DAMAGED,
        finish: jobs.STORED,
    }


def test_bundle_of_bad_bodies_alone(driver):
    """Where no body was good there is neither bundle nor manifest, and every put is damaged."""
    put, finish = driver.put("b"), driver.finish("b")
    driver.bundle(driver.only(jobs.BundleJob), bad="b")
    answers = driver.said()
    assert answers[put] == jobs.DAMAGED and finish in answers and driver.tasks == []


@pytest.mark.parametrize("status", FAILURES)
def test_manifest_that_fails(driver, status):
    """Without a manifest nothing is uploaded; the next session's names it, and sends no body."""
    puts, finish = [driver.put("b"), driver.put("c", body="a")], driver.finish("bc")
    driver.bundle(driver.only(jobs.BundleJob))
    driver.fail(driver.only(jobs.ManifestJob), status)
    assert driver.said() == dict.fromkeys([*puts, finish], status)
    again, finish = driver.put("b"), driver.finish("b")
    assert set(names(driver.manifest().rows)) == set(ids("abc"))
    assert driver.said() == {again: jobs.STORED, finish: jobs.STORED}


# -- several sessions in one pool ------------------------------------------------------------------


def test_session_that_ends_while_a_manifest_is_written(driver):
    """The second manifest waits for the first, supersedes it, and has what it has."""
    first, first_end = driver.put("b"), driver.finish("b")
    driver.bundle(driver.only(jobs.BundleJob))
    task = driver.only(jobs.ManifestJob)
    second, second_end = driver.put("c"), driver.finish("c")
    driver.bundle(driver.only(jobs.BundleJob), bundle="bundle-m")
    assert driver.tasks == [] and driver.said() == {}
    driver.plan.done(task, jobs.ManifestResult(task.number, jobs.STORED, "", "m-2", 50))
    assert driver.said() == {first: jobs.STORED, first_end: jobs.STORED}
    manifest = driver.manifest("m-3")
    assert manifest.superseded == ["m-2", "m-1"]
    assert set(names(manifest.rows)) == set(ids("abc"))
    assert driver.said() == {second: jobs.STORED, second_end: jobs.STORED}


def test_sessions_that_end_at_once(driver):
    """Sessions whose bundles end together share a manifest, in the order of their use."""
    puts = driver.put("b"), driver.put("c")
    ends = driver.finish("ca"), driver.finish("ab")
    driver.bundle(driver.only(jobs.BundleJob))
    assert names(driver.manifest().rows) == ids("cab")
    assert set(driver.said()) == {*puts, *ends}


def test_ends_one_after_another(driver):
    """Each session's manifest carries what those before it put."""
    for name in "bcd":
        driver.put(name)
        driver.finish(name)
        driver.bundle(driver.only(jobs.BundleJob))
        manifest = driver.manifest(f"m-{name}")
    assert manifest.superseded == ["m-c", "m-b", "m-1"]
    assert set(names(manifest.rows)) == set(ids("abcd"))
    assert action_id("d") == manifest.rows[0].action


def test_bundles_at_once_are_bounded(driver, monkeypatch):
    """Each takes memory: the rest wait for their turn, and all are written."""
    monkeypatch.setattr(uploading, "BUNDLE_BYTES", 1000)
    letters = "bcdefghi"
    puts = [driver.put(name) for name in letters]
    finish = driver.finish(letters)
    done = 0
    while tasks := driver.take(jobs.BundleJob):
        assert len(tasks) <= uploading.BUNDLES_AT_ONCE
        for task in tasks:
            driver.bundle(task, bundle=f"bundle-{done}")
            done += 1
    assert done == len(letters)
    driver.manifest()
    assert driver.said() == dict.fromkeys([*puts, finish], jobs.STORED)
