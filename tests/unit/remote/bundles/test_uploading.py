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
    """A driver whose manifests name the action "a"."""
    driver = Driver(tmp_path)
    driver.begin(row("a"))
    return driver


def outputs(task) -> list:
    return [output for _, output, *_ in task.entries]


def bodies(text) -> list:
    return [output_id(name.encode()) for name in text]


def found_by_number(driver) -> dict:
    """The ``found`` of the puts that were answered, by number."""
    results = [one for one in driver.messages if isinstance(one, jobs.UploadResult)]
    return {one.number: one.found for one in results}


# -- closing a bundle ------------------------------------------------------------------------------


def test_bundle_closed_by_size(driver):
    """A bundle is closed at BUNDLE_BYTES; later puts are for the next one."""
    driver.put("b", size=BUNDLE_BYTES - 1)
    assert driver.tasks == []
    driver.put("c", size=1)
    assert outputs(driver.only(jobs.BundleJob)) == bodies("bc")
    driver.put("d", size=BUNDLE_BYTES - 1)
    assert driver.tasks == []
    driver.put("e", size=BUNDLE_BYTES)
    assert outputs(driver.only(jobs.BundleJob)) == bodies("de")


def test_bundle_closed_by_entries(driver, monkeypatch):
    """A bundle is closed at BUNDLE_ENTRIES, whatever its size."""
    monkeypatch.setattr(uploading, "BUNDLE_ENTRIES", 3)
    for name in "bcdef":
        driver.put(name, size=1)
    assert outputs(driver.only(jobs.BundleJob)) == bodies("bcd")


def test_bundle_closed_when_idle(driver):
    """A bundle is closed IDLE_S after its last put."""
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


def test_bundle_closed_by_finish(driver):
    """A finish closes the bundle. Its puts are answered once a manifest names them."""
    put, finish = driver.put("b"), driver.finish("ba")
    task = driver.only(jobs.BundleJob)
    (output,) = bodies("b")
    assert task.entries == [(*ids("b"), output, 1000, TIME_NS, f"/store/{output}")]
    driver.bundle(task)
    assert driver.answers() == {}
    manifest = driver.manifest()
    assert names(manifest.rows) == ids("ba") and manifest.superseded == ["m-1"]
    assert {one.used_s for one in manifest.rows} == {WALL_S}
    assert driver.answers() == {put: jobs.STORED, finish: jobs.STORED}
    sent = [one.sent for one in driver.messages if isinstance(one, jobs.Transferred)]
    assert len(sent) == 2 and min(sent) > 0


def test_manifest_waits_for_all_bundles(driver):
    """One manifest names the entries of all bundles, written in any order."""
    puts = [driver.put(name, size=BUNDLE_BYTES) for name in "bcd"]
    driver.finish()
    tasks = driver.take(jobs.BundleJob)
    for task in tasks[::-1]:
        assert driver.tasks == []
        driver.bundle(task)
    assert set(names(driver.manifest().rows)) == set(ids("abcd"))
    assert set(puts) < set(driver.answers())


def test_session_without_news(driver):
    """A finish without news is answered at once, and nothing is written."""
    finish = driver.finish("a")
    assert driver.answers() == {finish: jobs.STORED} and driver.tasks == []


# -- a body is uploaded once -----------------------------------------------------------------------


def test_put_of_a_body_in_a_bundle(driver):
    """A put whose body is in a bundle is only named, and reported as found."""
    put = driver.put("b", body="a")
    driver.finish("b")
    manifest = driver.manifest()
    assert found_by_number(driver) == {put: True}
    assert manifest.rows[0] == row("b", output=output_id(b"a"), used_s=WALL_S)


def test_body_put_twice(driver):
    """A body that two puts share is uploaded once; the second put is reported as found."""
    puts = driver.put("b", body="x"), driver.put("c", body="x")
    driver.finish("bc")
    task = driver.only(jobs.BundleJob)
    assert set(outputs(task)) == set(bodies("x"))
    driver.bundle(task)
    manifest = driver.manifest()
    assert names(manifest.rows[:2]) == ids("bc")
    assert len({one[5:8] for one in manifest.rows[:2]}) == 1
    assert found_by_number(driver) == {puts[0]: False, puts[1]: True}


def test_put_of_a_body_whose_bundle_is_being_written(driver):
    """The put waits for that bundle, and no other is written."""
    first = driver.put("b", body="x", size=BUNDLE_BYTES)
    task = driver.only(jobs.BundleJob)
    second = driver.put("c", body="x", size=BUNDLE_BYTES)
    driver.finish("bc")
    assert driver.tasks == [] and driver.answers() == {}
    driver.bundle(task)
    assert set(names(driver.manifest().rows)) == set(ids("abc"))
    assert found_by_number(driver) == {first: False, second: True}


def test_shared_body_counts_once(driver):
    """A bundle's size counts each body once."""
    for name in "bcdefgh":
        driver.put(name, body="x", size=BUNDLE_BYTES // 2)
    assert driver.tasks == []


def test_put_with_another_size_than_the_row(driver):
    """A put with another size than the known row of its output is uploaded."""
    driver.put("b", body="a", size=999)
    driver.finish("b")
    assert outputs(driver.only(jobs.BundleJob)) == bodies("a")


# -- two puts of an action -------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["a", "x"])
def test_put_older_than_the_known_row(driver, body):
    """A late upload is answered as stored and changes nothing."""
    put, finish = driver.put("a", body, TIME_NS - 1), driver.finish("a")
    assert found_by_number(driver) == {put: True}
    assert driver.answers() == {put: jobs.STORED, finish: jobs.STORED} and driver.tasks == []


def test_put_later_than_the_known_row(driver):
    """A later put replaces the known row in the manifest."""
    driver.put("a", "x", TIME_NS + 1)
    driver.finish("a")
    driver.bundle(driver.only(jobs.BundleJob))
    (found,) = driver.manifest().rows
    assert (found.output, found.time_ns, found.bundle) == (output_id(b"x"), TIME_NS + 1, "bundle-n")


@pytest.mark.parametrize("late_first", [False, True])
def test_two_puts_in_one_bundle(driver, late_first):
    """Both are answered, and the manifest names the later one, in whatever order they came."""
    by_time = [("b", "x", TIME_NS + 1), ("b", "y", TIME_NS + 2)]
    puts = [driver.put(*one) for one in sorted(by_time, reverse=late_first)]
    driver.finish("b")
    driver.bundle(driver.only(jobs.BundleJob))
    assert driver.manifest().rows[0].output == output_id(b"y")
    assert set(driver.answers()) > set(puts)


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", FAILURES)
def test_failing_bundle(driver, status):
    """The puts of a bundle that fails get its status; the manifest names the others."""
    puts = driver.put("b"), driver.put("c"), driver.put("d", body="c")
    found, finish = driver.put("e", body="a"), driver.finish("bcde")
    driver.fail(driver.only(jobs.BundleJob), status)
    assert names(driver.manifest().rows) == ids("ea")
    answers = driver.answers()
    assert answers.pop(finish)
    assert answers == dict.fromkeys(puts, status) | {found: jobs.STORED}


def test_failing_only_bundle(driver):
    """If nothing was uploaded, no manifest is written."""
    driver.put("b")
    finish = driver.finish("b")
    driver.fail(driver.only(jobs.BundleJob))
    assert finish in driver.answers() and driver.tasks == []


def test_put_after_a_failed_bundle(driver):
    """A later put of the same body is uploaded."""
    driver.put("b", size=BUNDLE_BYTES)
    driver.fail(driver.only(jobs.BundleJob))
    driver.answers()
    put = driver.put("b", size=BUNDLE_BYTES)
    driver.finish("b")
    driver.bundle(driver.only(jobs.BundleJob))
    assert names(driver.manifest().rows) == ids("ba")
    assert driver.answers()[put] == jobs.STORED


def test_bad_bodies(driver):
    """Puts of missing or wrong bodies are damaged; the others of the bundle are stored."""
    good, bad, twice = driver.put("b"), driver.put("c"), driver.put("d", body="c")
    finish = driver.finish("bcd")
    driver.bundle(driver.only(jobs.BundleJob), bad="c")
    assert names(driver.manifest().rows) == ids("ba")
    assert driver.answers() == {
        good: jobs.STORED,
        bad: jobs.DAMAGED,
        twice: jobs.DAMAGED,
        finish: jobs.STORED,
    }


def test_unreadable_bodies(driver):
    """Only the puts of a body that cannot be read stay in the spool, with its reason."""
    good, bad, sick = driver.put("b"), driver.put("c"), driver.put("d")
    driver.finish("bcd")
    driver.bundle(driver.only(jobs.BundleJob), bad="c", unreadable="d")
    (reason,) = [one.reason for one in driver.messages if getattr(one, "number", 0) == sick]
    assert reason == f"{output_id(b'd')} cannot be read"
    assert names(driver.manifest().rows) == ids("ba")
    answers = driver.answers()
    assert [answers[put] for put in (good, bad, sick)] == [jobs.STORED, jobs.DAMAGED, jobs.LOCAL]


def test_bundle_of_bad_bodies_only(driver):
    """If no body is right, there is no bundle and no manifest, and every put is damaged."""
    put, finish = driver.put("b"), driver.finish("b")
    driver.bundle(driver.only(jobs.BundleJob), bad="b")
    answers = driver.answers()
    assert answers[put] == jobs.DAMAGED and finish in answers and driver.tasks == []


@pytest.mark.parametrize("status", FAILURES)
def test_failing_manifest(driver, status):
    """The puts get its status. The next session's manifest names them without a second upload."""
    puts, finish = [driver.put("b"), driver.put("c", body="a")], driver.finish("bc")
    driver.bundle(driver.only(jobs.BundleJob))
    driver.fail(driver.only(jobs.ManifestJob), status)
    assert driver.answers() == dict.fromkeys([*puts, finish], status)
    again, finish = driver.put("b"), driver.finish("b")
    assert set(names(driver.manifest().rows)) == set(ids("abc"))
    assert driver.answers() == {again: jobs.STORED, finish: jobs.STORED}


# -- several sessions ------------------------------------------------------------------------------


def test_finish_while_a_manifest_is_written(driver):
    """The second manifest waits for the first, supersedes it, and has its rows."""
    first, first_end = driver.put("b"), driver.finish("b")
    driver.bundle(driver.only(jobs.BundleJob))
    task = driver.only(jobs.ManifestJob)
    second, second_end = driver.put("c"), driver.finish("c")
    driver.bundle(driver.only(jobs.BundleJob), bundle="bundle-m")
    assert driver.tasks == [] and driver.answers() == {}
    driver.plan.done(task, jobs.ManifestResult(task.number, jobs.STORED, "", "m-2", 50))
    assert driver.answers() == {first: jobs.STORED, first_end: jobs.STORED}
    manifest = driver.manifest("m-3")
    assert manifest.superseded == ["m-2", "m-1"]
    assert set(names(manifest.rows)) == set(ids("abc"))
    assert driver.answers() == {second: jobs.STORED, second_end: jobs.STORED}


def test_two_finishes_share_a_manifest(driver):
    """Sessions whose bundles end together share a manifest, in the order of their uses."""
    puts = driver.put("b"), driver.put("c")
    ends = driver.finish("ca"), driver.finish("ab")
    driver.bundle(driver.only(jobs.BundleJob))
    assert names(driver.manifest().rows) == ids("cab")
    assert set(driver.answers()) == {*puts, *ends}


def test_finishes_in_a_row(driver):
    """Each session's manifest carries the puts of those before it."""
    for name in "bcd":
        driver.put(name)
        driver.finish(name)
        driver.bundle(driver.only(jobs.BundleJob))
        manifest = driver.manifest(f"m-{name}")
    assert manifest.superseded == ["m-c", "m-b", "m-1"]
    assert set(names(manifest.rows)) == set(ids("abcd"))
    assert action_id("d") == manifest.rows[0].action


def test_bundles_at_once(driver, monkeypatch):
    """At most BUNDLES_AT_ONCE bundles are written at the same time, and in the end all are."""
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
    assert driver.answers() == dict.fromkeys([*puts, finish], jobs.STORED)
