"""remote/bundles/plan.py: the layouts auto and both, which use both kinds of objects."""

import pytest

from bundles_driver import Driver
from cacheplugin.ipc import jobs
from entries import TIME_NS, action_id, output_id
from rows import ids, names, row


def hit(task, name) -> jobs.FetchResult:
    output = output_id(name.encode())
    return jobs.FetchResult(
        task.number, action_id(name), jobs.HIT, output, 1000, TIME_NS, f"/store/{output}", 1000, ""
    )


@pytest.mark.parametrize(("layout", "objects"), [("auto", True), ("both", False), ("both", True)])
def test_unnamed_actions_are_looked_up_in_objects(tmp_path, layout, objects):
    """If the bucket may hold the objects layout, other actions are fetched from it."""
    driver = Driver(tmp_path, layout=layout)
    driver.begin(row("a"), has_objects=objects)
    found, absent = driver.get("b"), driver.get("c")
    tasks = driver.take(jobs.FetchJob)
    assert [task.action for task in tasks] == ids("bc")
    driver.plan.done(tasks[0], hit(tasks[0], "b"))
    driver.fail(tasks[1], jobs.MISS)
    assert driver.answers() == {found: jobs.HIT, absent: jobs.MISS}


def test_hits_in_objects_are_bundled(tmp_path):
    """A hit in objects is in the session's bundle and manifest."""
    driver = Driver(tmp_path, layout="auto")
    driver.begin(has_objects=True)
    driver.get("b")
    task = driver.only(jobs.FetchJob)
    driver.plan.done(task, hit(task, "b"))
    driver.answers()
    finish = driver.finish("b")
    task = driver.only(jobs.BundleJob)
    assert [entry[0] for entry in task.entries] == ids("b")
    driver.bundle(task)
    assert names(driver.manifest().rows) == ids("b")
    assert driver.answers() == {finish: jobs.STORED}


@pytest.mark.parametrize("options", [{"read_only": True}, {"upload": "off"}], ids=str)
def test_hits_in_objects_are_not_bundled_without_uploads(tmp_path, options):
    """A session that uploads nothing does not bundle hits."""
    driver = Driver(tmp_path, layout="auto", **options)
    driver.begin(has_objects=True)
    driver.get("b")
    task = driver.only(jobs.FetchJob)
    driver.plan.done(task, hit(task, "b"))
    driver.now += 1000
    driver.plan.on_time()
    driver.finish("b")
    assert driver.tasks == []


@pytest.mark.parametrize("of_object", [jobs.STORED, jobs.FAILED, jobs.TIMED_OUT])
@pytest.mark.parametrize("of_bundle", [jobs.STORED, jobs.FAILED, jobs.LOST])
@pytest.mark.parametrize("object_first", [False, True])
def test_put_into_both(tmp_path, of_object, of_bundle, object_first):
    """A put is answered once, when both layouts are done with it, with the worse status."""
    driver = Driver(tmp_path, layout="both")
    driver.begin()
    put = driver.put("a")
    driver.finish("a")
    upload = driver.only(jobs.UploadJob)
    assert upload[1:5] == (*ids("a"), output_id(b"a"), 1000, TIME_NS)

    def end_object():
        driver.plan.done(upload, jobs.UploadResult(upload.number, of_object, False, 1000, ""))

    def end_bundle():
        task = driver.only(jobs.BundleJob)
        if of_bundle == jobs.STORED:
            driver.bundle(task)
            driver.manifest()
        else:
            driver.fail(task, of_bundle)

    first, second = (end_object, end_bundle) if object_first else (end_bundle, end_object)
    first()
    assert put not in driver.answers()
    second()
    assert driver.answers()[put] in ({of_object, of_bundle} - {jobs.STORED} or {jobs.STORED})
    assert driver.tasks == []


@pytest.mark.parametrize("found", [False, True])
def test_put_of_a_body_in_both_layouts(tmp_path, found):
    """``found`` means that both layouts had the body; bytes sent are added up."""
    driver = Driver(tmp_path, layout="both")
    driver.begin(row("a"))
    driver.put("b", body="a")
    driver.finish("b")
    task = driver.only(jobs.UploadJob)
    driver.plan.done(task, jobs.UploadResult(task.number, jobs.STORED, found, 500, ""))
    driver.manifest()
    (result,) = [one for one in driver.messages if isinstance(one, jobs.UploadResult)]
    assert (result.found, result.sent) == (found, 500)


def test_damaged_entries_are_looked_up_in_objects(tmp_path):
    """Damage is counted; a hit in objects answers the get and is bundled."""
    driver = Driver(tmp_path, layout="both", prefetch_limit_bytes=0)
    driver.begin(row("a"), missing="a")
    number = driver.get("a")
    driver.arrive(driver.only(jobs.RangeJob), status=jobs.DAMAGED, arrived=[], damaged=ids("a"))
    assert driver.answers() == {}
    assert sum(getattr(message, "damaged", 0) for message in driver.messages) == 1
    task = driver.only(jobs.FetchJob)
    driver.plan.done(task, hit(task, "a"))
    assert driver.answers() == {number: jobs.HIT}
    driver.finish("a")
    assert [entry[0] for entry in driver.only(jobs.BundleJob).entries] == ids("a")
