"""remote/bundles/plan.py: several sessions on one plan."""

from bundles_driver import Driver
from cacheplugin.ipc import jobs
from cacheplugin.remote.bundles.fetching import PREFETCHES_AT_ONCE
from cacheplugin.remote.bundles.ranges import GAP_BYTES
from cacheplugin.remote.plan import ObjectsPlan
from entries import action_id, output_id
from noting_pool import NotingPool
from rows import ids, names, row

MANY = [str(at) for at in range(PREFETCHES_AT_ONCE + 4)]


def apart(letters) -> list:
    """Rows that are too far from each other for one range."""
    return [row(name, 8 + at * 2 * GAP_BYTES) for at, name in enumerate(letters)]


def told(driver) -> dict:
    """The Expected messages since the last call by session, at most one for each."""
    found = [one for one in driver.messages if isinstance(one, jobs.Expected)]
    driver.messages = [one for one in driver.messages if not isinstance(one, jobs.Expected)]
    assert len({one.session for one in found}) == len(found)
    return {one.session: one for one in found}


def put_for(driver, session, name) -> jobs.UploadJob:
    """A put of one of several sessions."""
    output = output_id(name.encode())
    job = jobs.UploadJob(
        500 + session, action_id(name), output, 1000, 7, f"/store/{output}", session=session
    )
    driver.plan.upload(job)
    return job


def test_sessions_are_told_after_one_load(tmp_path):
    """One load serves all sessions, also those that began before it."""
    driver = Driver(tmp_path)
    driver.plan.begin(5)
    assert told(driver) == {}
    driver.plan.prefetch()
    driver.plan.begin(6)
    driver.plan.prefetch()
    driver.load(apart("abc"), missing="cb", has_objects=True)
    found = told(driver)
    assert set(found) == {0, 5, 6} and len({one[:3] for one in map(hashable, found.values())}) == 1
    assert (found[5].actions, found[5].others, found[5].complete) == (ids("cb"), ids("a"), False)


def hashable(expected) -> tuple:
    """The fields of an Expected, hashable."""
    return tuple(expected.actions), tuple(expected.others), expected.complete


def test_failed_load_tells_no_session(tmp_path):
    """A failed load tells no session anything; the next load tells all."""
    driver = Driver(tmp_path)
    driver.plan.prefetch()
    driver.fail(driver.only(jobs.LoadJob))
    driver.plan.begin(5)
    assert told(driver) == {} and driver.tasks == []
    driver.begin(*apart("a"), missing="a")
    assert set(told(driver)) == {0, 5}


def test_failed_ranges_are_still_coming(tmp_path):
    """A joining session expects ranges that failed, not those that arrived or are damaged."""
    driver = Driver(tmp_path)
    driver.begin(*apart("abcd"), missing="abcd")
    first, second, third, _ = driver.take(jobs.RangeJob)
    driver.arrive(first)
    driver.fail(second)
    driver.arrive(third, arrived=[], damaged=ids("c"), status=jobs.DAMAGED)
    told(driver)
    driver.plan.begin(5)
    expected = told(driver)[5]
    assert expected.actions == ids("bd") and expected.others == ids("a")


def test_joining_session_is_told_puts_of_others(tmp_path):
    """A joining session is told the actions that others have put into bundles."""
    driver = Driver(tmp_path)
    driver.begin()
    told(driver)
    driver.plan.begin(5)
    put_for(driver, 5, "x")
    driver.plan.finish(jobs.FinishJob(100, ids("x"), 5))
    driver.bundle(driver.only(jobs.BundleJob))
    driver.plan.begin(6)
    assert told(driver)[6].others == ids("x")


def test_finish_writes_puts_of_all_sessions(tmp_path):
    """Puts of the other session are uploaded along; its finish then has nothing to write."""
    driver = Driver(tmp_path)
    driver.plan.begin(5)
    driver.begin()
    put, other_put = driver.put("a"), put_for(driver, 5, "b")
    end = driver.finish("a")
    driver.bundle(driver.only(jobs.BundleJob))
    assert sorted(names(driver.manifest().rows)) == sorted(ids("ab"))
    assert driver.answers() == dict.fromkeys((put, other_put.number, end), jobs.STORED)
    assert driver.plan.sessions == {5} and not driver.plan.is_over
    driver.plan.finish(jobs.FinishJob(101, ids("b"), 5))
    assert driver.tasks == [] and driver.answers() == {101: jobs.STORED} and driver.plan.is_over


def test_body_of_two_sessions_is_uploaded_once(tmp_path):
    """Both puts are answered."""
    driver = Driver(tmp_path)
    driver.plan.begin(5)
    driver.begin()
    first = driver.put("a", "same")
    second = jobs.UploadJob(7, action_id("b"), output_id(b"same"), 1000, 7, "/x", session=5)
    driver.plan.upload(second)
    end = driver.finish("a")
    task = driver.only(jobs.BundleJob)
    assert [one[1] for one in task.entries].count(output_id(b"same")) == len(task.entries)
    driver.bundle(task)
    driver.manifest()
    assert driver.answers() == {first: jobs.STORED, 7: jobs.STORED, end: jobs.STORED}


def test_finish_without_manifest_keeps_puts_of_others(tmp_path):
    """A finish with ``used`` None writes nothing, and the puts of the other session are kept."""
    driver = Driver(tmp_path)
    driver.plan.begin(5)
    driver.begin()
    put = driver.put("a")
    driver.plan.finish(jobs.FinishJob(100, None, 5))
    assert driver.tasks == [] and driver.answers() == {100: jobs.STORED} and not driver.plan.is_over
    end = driver.finish("a")
    driver.bundle(driver.only(jobs.BundleJob))
    driver.manifest()
    assert driver.answers() == {put: jobs.STORED, end: jobs.STORED} and driver.plan.is_over


def test_finish_while_manifests_load(tmp_path):
    """A prefetch begins after the load unless all sessions have ended."""
    for others, count in (((), 0), ((5,), 1)):
        driver = Driver(tmp_path)
        for session in others:
            driver.plan.begin(session)
        driver.plan.prefetch()
        end = driver.finish("a")
        driver.load(apart("a"), missing="a")
        assert len(driver.take(jobs.RangeJob)) == count and driver.answers()[end] == jobs.STORED


def test_gets_of_two_sessions_share_a_range(tmp_path):
    """Both are answered, also after one session has ended, and bytes count once."""
    driver = Driver(tmp_path, prefetch_limit_bytes=0)
    driver.plan.begin(5)
    driver.begin(row("a"), missing="a")
    for number, session in ((11, 0), (12, 5)):
        driver.plan.fetch(jobs.FetchJob(number, action_id("a"), session))
    task = driver.only(jobs.RangeJob)
    driver.plan.finish(jobs.FinishJob(100, None, 5))
    driver.messages.clear()
    driver.arrive(task)
    assert driver.tasks == []
    moved = [one for one in driver.messages if isinstance(one, jobs.Transferred)]
    assert [(one.received, one.session) for one in moved] == [(task.length, 0)]
    assert driver.answers() == {11: jobs.ARRIVED, 12: jobs.ARRIVED}


def test_prefetch_goes_on_until_the_last_finish(tmp_path):
    """After the last finish only ranges that gets wait for are fetched."""
    driver = Driver(tmp_path)
    driver.plan.begin(5)
    driver.begin(*apart(MANY), missing=MANY)
    running = driver.take(jobs.RangeJob)
    assert len(running) == PREFETCHES_AT_ONCE
    driver.finish()
    for task in running[:2]:
        driver.arrive(task)
    assert len(driver.take(jobs.RangeJob)) == 2
    get = driver.get(MANY[-1])
    driver.take(jobs.RangeJob)
    driver.plan.finish(jobs.FinishJob(100, [], 5))
    for task in running[2:]:
        driver.arrive(task)
    assert driver.tasks == [] and get not in driver.answers() and not driver.plan.is_over


def test_plan_is_over_after_its_last_task(tmp_path):
    """A plan without sessions is not over while a range is fetched."""
    driver = Driver(tmp_path)
    driver.begin(row("a"), missing="a")
    driver.finish()
    assert not driver.plan.sessions and not driver.plan.is_over
    driver.arrive(driver.only(jobs.RangeJob))
    assert driver.plan.is_over


def test_session_joins_an_ending_plan(tmp_path):
    """The manifest of the ended session is written, and the plan serves the new one."""
    driver = Driver(tmp_path)
    driver.begin()
    driver.put("a")
    end = driver.finish("a")
    driver.plan.begin(5)
    driver.bundle(driver.only(jobs.BundleJob))
    driver.manifest()
    assert driver.answers()[end] == jobs.STORED and not driver.plan.is_over
    put = put_for(driver, 5, "b")
    driver.plan.finish(jobs.FinishJob(101, ids("b"), 5))
    driver.bundle(driver.only(jobs.BundleJob))
    assert set(names(driver.manifest("m-3").rows)) == {*ids("ab")}
    assert driver.answers() == {put.number: jobs.STORED, 101: jobs.STORED} and driver.plan.is_over


# -- the layout objects ----------------------------------------------------------------------------


def test_failed_fetch_answers_all_gets():
    """Each get has its own number; another action is its own task."""
    pool = NotingPool()
    plan = ObjectsPlan(pool, ("",))
    gets = [
        jobs.FetchJob(at, action_id("ab"[at == 3]), session)
        for at, session in ((1, 1), (2, 2), (3, 1))
    ]
    for job in gets:
        plan.begin(job.session)
        plan.fetch(job)
    assert pool.tasks == [gets[0], gets[2]]
    plan.done(gets[0], gets[0].failed(jobs.FAILED, "why"))
    assert [(one.number, one.status, one.reason) for one in pool.messages] == [
        (1, jobs.FAILED, "why"),
        (2, jobs.FAILED, "why"),
    ]


def test_objects_session_without_uploads_ends_at_once():
    """It does not wait for its fetches, nor for the uploads of others. The plan is always open."""
    pool = NotingPool()
    plan = ObjectsPlan(pool, ("",))
    assert plan.is_over and plan.is_open and plan.timeout_s() is None
    plan.begin(1)
    plan.begin(2)
    plan.fetch(jobs.FetchJob(1, action_id("a"), 1))
    plan.upload(jobs.UploadJob(2, action_id("b"), output_id(b"x"), 1, 7, "/x", session=2))
    plan.finish(jobs.FinishJob(3, None, 1))
    assert pool.messages == [jobs.FinishResult(3, jobs.STORED, "")] and plan.sessions == {2}
