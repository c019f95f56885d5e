"""remote/plan.py and remote/bundles/plan.py: several sessions on one plan."""

from bundles_driver import Driver
from cacheplugin.ipc import jobs
from cacheplugin.remote.bundles.plan import JOIN_S
from cacheplugin.remote.plan import ObjectsPlan
from entries import action_id, output_id
from noting_pool import NotingPool
from rows import row


def fetched(number, name="a") -> jobs.FetchResult:
    return jobs.FetchResult(number, action_id(name), jobs.HIT, output_id(b"x"), 1, 7, "/x", 500, "")


def upload(number, session) -> jobs.UploadJob:
    put = (action_id(str(number)), output_id(b"x"), 1, 7, "/x")
    return jobs.UploadJob(number, *put, session=session)


def test_gets_of_one_action_share_a_fetch():
    """Two gets are one task with two answers, and its bytes count once.

    A later get is a new task.
    """
    pool = NotingPool()
    plan = ObjectsPlan(pool, ("",))
    plan.begin(1)
    plan.begin(2)
    first, second = jobs.FetchJob(11, action_id("a"), 1), jobs.FetchJob(12, action_id("a"), 2)
    plan.fetch(first)
    plan.fetch(second)
    assert pool.tasks == [first]
    plan.done(first, fetched(11))
    assert [(one.number, one.received) for one in pool.messages] == [(11, 500), (12, 0)]
    plan.fetch(second)
    assert pool.tasks == [first, second]


def test_session_ends_after_its_last_upload():
    """A session waits for its own uploads and not for those of other sessions."""
    pool = NotingPool()
    plan = ObjectsPlan(pool, ("",))
    plan.begin(1)
    plan.begin(2)
    jobs_ = [upload(1, 1), upload(2, 2)]
    for job in jobs_:
        plan.upload(job)
    plan.finish(jobs.FinishJob(3, None, 1))
    assert pool.messages == [] and not plan.is_over
    plan.done(jobs_[0], jobs.UploadResult(1, jobs.STORED, False, 1, ""))
    assert pool.messages[-1] == jobs.FinishResult(3, jobs.STORED, "") and plan.sessions == {2}
    plan.done(jobs_[1], jobs.UploadResult(2, jobs.FAILED, False, 0, "why"))
    plan.finish(jobs.FinishJob(4, None, 2))
    assert pool.messages[-1].number == 4 and plan.is_over


def test_joining_session_is_told_what_is_coming(tmp_path):
    """Actions that arrived already are in ``others``."""
    driver = Driver(tmp_path)
    driver.begin(row("a", 8), row("b", 1 << 30), missing="ab")
    first, _ = driver.take(jobs.RangeJob)
    driver.arrive(first)
    driver.messages.clear()
    driver.plan.begin(5)
    (told,) = driver.messages
    assert told.session == 5 and told.complete
    assert (told.actions, told.others) == ([action_id("b")], [action_id("a")])


def test_prefetch_ends_with_the_last_session(tmp_path):
    """A prefetch goes on until its last session ends."""
    driver = Driver(tmp_path)
    driver.plan.begin(5)
    rows = [row(str(at), 8 + (at << 26)) for at in range(12)]
    driver.begin(*rows, missing=[str(at) for at in range(12)])
    running = driver.take(jobs.RangeJob)
    driver.plan.finish(jobs.FinishJob(100, None, 5))
    driver.arrive(running[0])
    assert len(driver.take(jobs.RangeJob)) == 1
    driver.finish()
    driver.arrive(running[1])
    assert driver.take(jobs.RangeJob) == []


def test_session_without_manifest(tmp_path):
    """A session whose ``used`` is None writes no bundle and no manifest."""
    driver = Driver(tmp_path)
    driver.begin()
    driver.plan.finish(jobs.FinishJob(100, None, 0))
    assert driver.tasks == [] and driver.answers() == {100: jobs.STORED}
    assert driver.plan.is_over


def test_plan_is_over_when_all_is_written(tmp_path):
    """A plan is not over before the manifest of its last session is written."""
    driver = Driver(tmp_path)
    driver.begin()
    driver.put("a")
    driver.finish("a")
    assert not driver.plan.sessions and not driver.plan.is_over
    driver.bundle(driver.only(jobs.BundleJob))
    assert not driver.plan.is_over
    driver.manifest()
    assert driver.plan.is_over


def test_late_session_does_not_join(tmp_path):
    """A late session gets its own plan, which loads newer manifests."""
    driver = Driver(tmp_path)
    begun = driver.plan._clock()
    driver.plan._clock = lambda: begun + JOIN_S / 2
    assert driver.plan.is_open
    driver.plan._clock = lambda: begun + JOIN_S + 1
    assert not driver.plan.is_open
