"""Plans of bundles that sessions share: who is told what, and whose end ends what."""

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
    """{session: Expected} since the last call, each told once."""
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


def test_sessions_are_told_when_the_manifests_are_there(tmp_path):
    """Those that began before, all the same; one load for all."""
    driver = Driver(tmp_path)
    driver.plan.begin(5)
    assert told(driver) == {}
    driver.plan.prefetch()
    driver.plan.begin(6)
    driver.plan.prefetch()
    driver.load(apart("abc"), missing="cb", has_objects=True)
    found = told(driver)
    assert set(found) == {0, 5, 6} and len({one[:3] for one in map(flat, found.values())}) == 1
    assert (found[5].actions, found[5].others, found[5].complete) == (ids("cb"), ids("a"), False)


def flat(expected) -> tuple:
    """One that can be hashed."""
    return tuple(expected.actions), tuple(expected.others), expected.complete


def test_nobody_is_told_where_manifests_do_not_load(tmp_path):
    """Nor is who joins then; the next try tells all."""
    driver = Driver(tmp_path)
    driver.plan.prefetch()
    driver.fail(driver.only(jobs.LoadJob))
    driver.plan.begin(5)
    assert told(driver) == {} and driver.tasks == []
    driver.begin(*apart("a"), missing="a")
    assert set(told(driver)) == {0, 5}


def test_what_did_not_come_is_still_to_come(tmp_path):
    """A range that failed comes once it is asked for; one that came, or is bad, is not awaited."""
    driver = Driver(tmp_path)
    driver.begin(*apart("abcd"), missing="abcd")
    first, second, third, fourth = driver.take(jobs.RangeJob)
    driver.arrive(first)
    driver.fail(second)
    driver.arrive(third, arrived=[], damaged=ids("c"), status=jobs.DAMAGED)
    told(driver)
    driver.plan.begin(5)
    expected = told(driver)[5]
    assert expected.actions == ids("bd") and expected.others == ids("a")


def test_who_joins_knows_what_others_have_put(tmp_path):
    """An action that is in a bundle by now is no miss for anybody."""
    driver = Driver(tmp_path)
    driver.begin()
    told(driver)
    driver.plan.begin(5)
    put_for(driver, 5, "x")
    driver.plan.finish(jobs.FinishJob(100, ids("x"), 5))
    driver.bundle(driver.only(jobs.BundleJob))
    driver.plan.begin(6)
    assert told(driver)[6].others == ids("x")


def test_one_finish_writes_what_all_have_put(tmp_path):
    """What the other has put is uploaded along; its end then has nothing to write."""
    driver = Driver(tmp_path)
    driver.plan.begin(5)
    driver.begin()
    ours, theirs = driver.put("a"), put_for(driver, 5, "b")
    end = driver.finish("a")
    driver.bundle(driver.only(jobs.BundleJob))
    assert sorted(names(driver.manifest().rows)) == sorted(ids("ab"))
    assert driver.said() == dict.fromkeys((ours, theirs.number, end), jobs.STORED)
    assert driver.plan.sessions == {5} and not driver.plan.is_over
    driver.plan.finish(jobs.FinishJob(101, ids("b"), 5))
    assert driver.tasks == [] and driver.said() == {101: jobs.STORED} and driver.plan.is_over


def test_the_same_body_of_two_sessions_goes_once(tmp_path):
    """Each put is answered."""
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
    assert driver.said() == {first: jobs.STORED, 7: jobs.STORED, end: jobs.STORED}


def test_a_finish_that_leaves_nothing_leaves_the_others_theirs(tmp_path):
    """used=None writes neither bundle nor manifest, though another's puts are gathered."""
    driver = Driver(tmp_path)
    driver.plan.begin(5)
    driver.begin()
    put = driver.put("a")
    driver.plan.finish(jobs.FinishJob(100, None, 5))
    assert driver.tasks == [] and driver.said() == {100: jobs.STORED} and not driver.plan.is_over
    end = driver.finish("a")
    driver.bundle(driver.only(jobs.BundleJob))
    driver.manifest()
    assert driver.said() == {put: jobs.STORED, end: jobs.STORED} and driver.plan.is_over


def test_ends_while_manifests_load(tmp_path):
    """With all sessions the prefetch ends before it began; with one it goes on for the other."""
    for others, count in (((), 0), ((5,), 1)):
        driver = Driver(tmp_path)
        for session in others:
            driver.plan.begin(session)
        driver.plan.prefetch()
        end = driver.finish("a")
        driver.load(apart("a"), missing="a")
        assert len(driver.take(jobs.RangeJob)) == count and driver.said()[end] == jobs.STORED


def test_a_get_for_two_sessions_is_one_range(tmp_path):
    """Both are answered, the end of one in between is no matter, and bytes count once."""
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
    assert driver.said() == {11: jobs.ARRIVED, 12: jobs.ARRIVED}


def test_the_prefetch_goes_on_until_the_last_end(tmp_path):
    """Range after range; then only what gets wait for."""
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
    assert driver.tasks == [] and get not in driver.said() and not driver.plan.is_over


def test_a_plan_is_over_when_its_last_task_is_done(tmp_path):
    """Nobody is left, but a range is under way."""
    driver = Driver(tmp_path)
    driver.begin(row("a"), missing="a")
    driver.finish()
    assert not driver.plan.sessions and not driver.plan.is_over
    driver.arrive(driver.only(jobs.RangeJob))
    assert driver.plan.is_over


def test_who_joins_a_plan_that_is_ending_keeps_it(tmp_path):
    """The manifest of the one that ended is written, and the plan serves on."""
    driver = Driver(tmp_path)
    driver.begin()
    driver.put("a")
    end = driver.finish("a")
    driver.plan.begin(5)
    driver.bundle(driver.only(jobs.BundleJob))
    driver.manifest()
    assert driver.said()[end] == jobs.STORED and not driver.plan.is_over
    put = put_for(driver, 5, "b")
    driver.plan.finish(jobs.FinishJob(101, ids("b"), 5))
    driver.bundle(driver.only(jobs.BundleJob))
    assert set(names(driver.manifest("m-3").rows)) == {*ids("ab")}
    assert driver.said() == {put.number: jobs.STORED, 101: jobs.STORED} and driver.plan.is_over


# -- single objects --------------------------------------------------------------------------------


def test_a_fetch_that_fails_fails_for_all_who_wait():
    """Each by its own number; another action is a task of its own."""
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


def test_a_session_of_single_objects_without_uploads_ends_at_once():
    """Whatever it still fetches, and whatever others upload; a plan of theirs is always open."""
    pool = NotingPool()
    plan = ObjectsPlan(pool, ("",))
    assert plan.is_over and plan.is_open and plan.timeout_s() is None
    plan.begin(1)
    plan.begin(2)
    plan.fetch(jobs.FetchJob(1, action_id("a"), 1))
    plan.upload(jobs.UploadJob(2, action_id("b"), output_id(b"x"), 1, 7, "/x", session=2))
    plan.finish(jobs.FinishJob(3, None, 1))
    assert pool.messages == [jobs.FinishResult(3, jobs.STORED, "")] and plan.sessions == {2}
