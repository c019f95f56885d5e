"""remote/bundles/plan.py: the layouts auto and both, which use bundles and objects together."""

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
def test_what_no_manifest_names_is_looked_for_in_objects(tmp_path, layout, objects):
    """Where there may be objects, what is unknown is asked for there, and answered as it comes."""
    driver = Driver(tmp_path, layout=layout)
    driver.begin(row("a"), has_objects=objects)
    found, absent = driver.get("b"), driver.get("c")
    tasks = driver.take(jobs.FetchJob)
    assert [task.action for task in tasks] == ids("bc")
    driver.plan.done(tasks[0], hit(tasks[0], "b"))
    driver.fail(tasks[1], jobs.MISS)
    assert driver.said() == {found: jobs.HIT, absent: jobs.MISS}


def test_what_objects_had_is_bundled(tmp_path):
    """What was found in objects is in the session's bundle, and its manifest, for the next one."""
    driver = Driver(tmp_path, layout="auto")
    driver.begin(has_objects=True)
    driver.get("b")
    task = driver.only(jobs.FetchJob)
    driver.plan.done(task, hit(task, "b"))
    driver.said()
    finish = driver.finish("b")
    task = driver.only(jobs.BundleJob)
    assert [entry[0] for entry in task.entries] == ids("b")
    driver.bundle(task)
    assert names(driver.manifest().rows) == ids("b")
    assert driver.said() == {finish: jobs.STORED}


@pytest.mark.parametrize("options", [{"read_only": True}, {"upload": "off"}], ids=str)
def test_what_objects_had_is_not_bundled(tmp_path, options):
    """A session that is to upload nothing uploads nothing."""
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
    """A put is answered once, when both layouts are done with it, as the worse of them says."""
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
    assert put not in driver.said()
    second()
    assert driver.said()[put] in ({of_object, of_bundle} - {jobs.STORED} or {jobs.STORED})
    assert driver.tasks == []


@pytest.mark.parametrize("found", [False, True])
def test_put_that_both_have(tmp_path, found):
    """Found is what both layouts had; what went over the network is counted."""
    driver = Driver(tmp_path, layout="both")
    driver.begin(row("a"))
    driver.put("b", body="a")
    driver.finish("b")
    task = driver.only(jobs.UploadJob)
    driver.plan.done(task, jobs.UploadResult(task.number, jobs.STORED, found, 500, ""))
    driver.manifest()
    (result,) = [one for one in driver.messages if isinstance(one, jobs.UploadResult)]
    assert (result.found, result.sent) == (found, 500)


def test_what_is_damaged_in_bundles_is_looked_for_in_objects(tmp_path):
    """It is counted, answered as objects has it, and bundled anew."""
    driver = Driver(tmp_path, layout="both", prefetch_limit_bytes=0)
    driver.begin(row("a"), missing="a")
    number = driver.get("a")
    driver.arrive(driver.only(jobs.RangeJob), status=jobs.DAMAGED, arrived=[], damaged=ids("a"))
    assert driver.said() == {}
    assert sum(getattr(message, "damaged", 0) for message in driver.messages) == 1
    task = driver.only(jobs.FetchJob)
    driver.plan.done(task, hit(task, "a"))
    assert driver.said() == {number: jobs.HIT}
    driver.finish("a")
    assert [entry[0] for entry in driver.only(jobs.BundleJob).entries] == ids("a")
