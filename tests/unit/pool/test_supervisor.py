"""pool/supervisor.py: plans and their sessions; tasks, workers and the circuit breaker."""

import marshal
import os
from types import SimpleNamespace

import pytest

from cacheplugin.breaker import CLOSED, OPEN
from cacheplugin.ipc import jobs
from cacheplugin.options import Options
from cacheplugin.pool import supervisor
from cacheplugin.remote import layouts
from cacheplugin.remote.plan import ObjectsPlan, Plan
from cacheplugin.store.tree import Store
from entries import action_id, output_id


class ScriptedPlan(Plan):
    """A plan that records its jobs; tests set whether it is open, needed and due."""

    def __init__(self, supervisor, scopes) -> None:
        super().__init__(supervisor, scopes)
        self.opens, self.is_needed, self.timeout = True, False, None
        self.got, self.stopped, self.times = [], 0, 0

    @property
    def is_open(self):
        return self.opens

    @property
    def is_over(self):
        return not self.sessions and not self.is_needed

    def prefetch(self):
        self.got.append("prefetch")

    def fetch(self, job):
        self.got.append(job)

    upload = fetch

    def finish(self, job):
        self.got.append(job)
        self.sessions.discard(job.session)

    def stop(self):
        self.stopped += 1

    def timeout_s(self):
        return self.timeout

    def on_time(self):
        self.times += 1


class Driver:
    """The front of a Supervisor without workers; ``plans`` are the plans that it made.

    ``failures`` are the Failed notices that it heard, ``heard`` all other messages.
    """

    def __init__(self, root, monkeypatch, make_plan, **options) -> None:
        self.plans, self.heard, self.failures = [], [], []
        monkeypatch.setattr(layouts, "make_plan", self._make_plan)
        self._make = make_plan
        self.fds = os.pipe()
        sender = SimpleNamespace(
            fd=self.fds[1], queue=lambda fields: self._hear(jobs.unpack(fields))
        )
        self.pool = supervisor.Supervisor(SimpleNamespace(fd=self.fds[0]), sender)
        self.pool._options, self.pool._store = Options(**options), Store(str(root))
        self.pool._is_configured = True

    def _hear(self, message) -> None:
        (self.failures if isinstance(message, jobs.Failed) else self.heard).append(message)

    def _make_plan(self, options, supervisor, store, scopes):
        assert (options, store) == (self.pool._options, self.pool._store)
        self.plans.append(self._make(supervisor, scopes))
        return self.plans[-1]

    def take(self, *messages) -> None:
        """One turn of the loop."""
        for message in messages:
            self.pool._on_message(jobs.pack(message))
        self.pool._run_plans()

    def begin(self, *sessions, scopes=("a", "b")) -> None:
        self.take(*(jobs.BeginJob(session, scopes) for session in sessions))

    def end(self, session) -> None:
        self.take(jobs.FinishJob(1000 + session, [], session))


@pytest.fixture
def driver(tmp_path, monkeypatch):
    driver = Driver(tmp_path, monkeypatch, ScriptedPlan)
    yield driver
    for fd in driver.fds:
        os.close(fd)


@pytest.fixture
def objects(tmp_path, monkeypatch):
    driver = Driver(tmp_path, monkeypatch, ObjectsPlan, layout="objects")
    yield driver
    for fd in driver.fds:
        os.close(fd)


def test_sessions_of_the_same_scopes_share_a_plan(driver):
    """If the scopes are the same in the same order, as a tuple or (from the front) as a list."""
    driver.begin(1)
    driver.begin(2, scopes=["a", "b"])
    driver.begin(3, scopes=("b", "a"))
    driver.begin(4, scopes=("a",))
    assert [plan.sessions for plan in driver.plans] == [{1, 2}, {3}, {4}]
    assert [plan.scopes for plan in driver.plans] == [("a", "b"), ("b", "a"), ("a",)]


def test_jobs_go_to_the_plan_of_their_session(driver):
    """No other plan gets them."""
    driver.begin(1)
    driver.begin(2, scopes=("c",))
    fetch = jobs.FetchJob(5, action_id("a"), 2)
    upload = jobs.UploadJob(6, action_id("a"), output_id(b"x"), 1, 7, "/x", session=2)
    driver.take(jobs.PrefetchJob(1), fetch, upload)
    finish = jobs.FinishJob(7, ["x"], 1)
    driver.take(finish)
    first, second = driver.plans
    assert first.got == ["prefetch", finish] and second.got == [fetch, upload]


def test_no_session_joins_a_plan_that_is_not_open(driver):
    """Later sessions share a new plan; the two plans end independently."""
    driver.begin(1)
    driver.plans[0].opens = False
    driver.begin(2, 3)
    old, new = driver.plans
    assert (old.sessions, new.sessions) == ({1}, {2, 3})
    driver.end(1)
    assert driver.pool._plans == [new] and driver.pool._latest == {("a", "b"): new}
    driver.begin(4)
    assert new.sessions == {2, 3, 4}


def test_plans_of_the_same_scopes_end_in_any_order(driver):
    """The newer plan may end first."""
    driver.begin(1)
    driver.plans[0].opens = False
    driver.begin(2)
    driver.end(2)
    old, new = driver.plans
    assert driver.pool._plans == [old] and not driver.pool._latest
    driver.end(1)
    assert not driver.pool._plans and (old.stopped, new.stopped) == (1, 1)


def test_a_plan_is_dropped_when_it_is_over(driver):
    """While it has work left, it stays without sessions, and a new session joins it."""
    driver.begin(1)
    (plan,) = driver.plans
    plan.is_needed = True
    driver.end(1)
    assert driver.pool._plans == [plan] and not plan.stopped
    driver.begin(2)
    assert plan.sessions == {2}
    plan.is_needed = False
    driver.end(2)
    assert not driver.pool._plans and not driver.pool._latest and not driver.pool._plan_of
    assert plan.stopped == 1
    driver.begin(3)
    assert len(driver.plans) == 2 and plan.sessions == set()


def test_the_loop_waits_for_the_earliest_plan(driver):
    """It waits without limit if no plan is due; every plan is called in each turn."""
    assert driver.pool._timeout_ms() is None
    driver.begin(1)
    driver.begin(2, scopes=("c",))
    assert driver.pool._timeout_ms() is None
    driver.plans[0].timeout, driver.plans[1].timeout = 20, 0.5
    assert 500 <= driver.pool._timeout_ms() < 510
    driver.plans[1].timeout = None
    assert 20_000 <= driver.pool._timeout_ms() < 20_010
    before = [plan.times for plan in driver.plans]
    driver.take()
    assert [plan.times for plan in driver.plans] == [count + 1 for count in before]


def test_jobs_after_the_end_of_their_session_are_skipped(driver):
    """Each is answered once with SKIPPED; the plan of other sessions is not affected."""
    driver.begin(1, 2)
    driver.end(1)
    upload = jobs.UploadJob(6, action_id("a"), output_id(b"x"), 1, 7, "/x", session=1)
    driver.take(jobs.FetchJob(5, action_id("a"), 1), upload, jobs.PrefetchJob(1))
    driver.take(jobs.FinishJob(7, [], 1), jobs.FetchJob(8, action_id("a"), 99))
    assert [(one.number, one.status) for one in driver.heard] == [
        (number, jobs.SKIPPED) for number in (5, 6, 7, 8)
    ]
    assert driver.plans[0].sessions == {2}


def test_status_of_a_pool_without_work(driver):
    """The answer comes at once, with zeros."""
    driver.take(jobs.StatusJob())
    (status,) = driver.heard
    assert status.workers == 0 and set(status.queued) == set(status.running) == set(status.breakers)
    assert {*status.queued.values(), *status.running.values()} == {0}


def test_tasks_may_outlive_their_plan(objects):
    """A fetch that ends after its session is answered, and not confused with the next plan's."""
    objects.begin(1, scopes=("",))
    first = jobs.FetchJob(5, action_id("a"), 1)
    objects.take(first)
    objects.end(1)
    assert objects.heard == [jobs.FinishResult(1001, jobs.STORED, "")] and not objects.pool._plans
    objects.begin(2, scopes=("",))
    second = jobs.FetchJob(6, action_id("a"), 2)
    objects.take(second)
    queue = objects.pool._queues[jobs.FETCHING]
    assert [*queue] == [first, second]
    for task in (first, second):
        objects.pool._finish_task(task, task.failed(jobs.MISS))
    assert [one.number for one in objects.heard[1:]] == [5, 6] and not objects.pool._owners


def test_sessions_of_the_objects_layout_end_independently(objects):
    """Each ends when its own uploads are done, in any order."""
    objects.begin(1, 2, scopes=("",))
    puts = [
        jobs.UploadJob(one, action_id(str(one)), output_id(b"x"), 1, 7, "/x", session=one)
        for one in (1, 2)
    ]
    objects.take(*puts)
    objects.end(1)
    objects.end(2)
    assert objects.heard == []
    for task in reversed(puts):
        objects.pool._finish_task(task, jobs.UploadResult(task.number, jobs.STORED, False, 1, ""))
    assert [one.number for one in objects.heard] == [2, 1002, 1, 1001]
    objects.take()
    assert not objects.pool._plans and len(objects.plans) == 1


# -- files outside the store -----------------------------------------------------------------------

FETCH_FILE = jobs.FileFetchJob(5, "module/ab/abcd", "/cache/tmp/1", 1000)
UPLOAD_FILE = jobs.FileUploadJob(6, "module/ab/abcd", "/cache/module/ab/abcd", False)


class Worker:
    """A fake worker process and connection; records the tasks that it is sent."""

    def __init__(self, fd) -> None:
        self.tasks, self.sent, self.connection, self._fd = {}, [], self, fd
        self.process = SimpleNamespace(kill=lambda: None, join=lambda: None, pid=4711)

    def send_bytes(self, data) -> None:
        self.sent.append(jobs.unpack(marshal.loads(data)))

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        pass


@pytest.fixture
def worker(driver, monkeypatch):
    """The only worker of the driver's supervisor."""
    worker = Worker(driver.fds[0])

    def choose():
        driver.pool._workers[worker.fileno()] = worker
        return worker

    monkeypatch.setattr(driver.pool, "_choose_worker", choose)
    monkeypatch.setattr(driver.pool, "_poll", SimpleNamespace(unregister=lambda _: None))
    return worker


def finish(driver, worker, result) -> None:
    """Deliver a result of the worker."""
    worker.recv_bytes = lambda: marshal.dumps(jobs.pack(result))
    driver.pool._on_result(worker)


def test_files_belong_to_no_session(driver, worker):
    """A worker does each, without a plan, and the front gets its result."""
    driver.take(FETCH_FILE, UPLOAD_FILE)
    assert not driver.plans and driver.heard == []
    assert driver.pool._status().queued == {jobs.FETCHING: 1, jobs.UPLOADING: 1}
    driver.pool._dispatch()
    assert worker.sent == [FETCH_FILE, UPLOAD_FILE]
    results = [jobs.FileResult(6, jobs.STORED, 7, ""), jobs.FileResult(5, jobs.HIT, 8, "")]
    for result in results:
        finish(driver, worker, result)
    assert driver.heard == results and not driver.pool._owners and not worker.tasks
    assert set(driver.pool._running.values()) == {0}


def test_files_beside_sessions(driver, worker):
    """They do not end with a session, and its plan gets none of them."""
    driver.begin(1)
    driver.take(FETCH_FILE)
    driver.end(1)
    assert not driver.pool._plans
    driver.pool._dispatch()
    finish(driver, worker, jobs.FileResult(5, jobs.MISS, 0, ""))
    assert driver.heard == [jobs.FileResult(5, jobs.MISS, 0, "")]
    assert all(FETCH_FILE not in plan.got for plan in driver.plans)


def test_files_of_a_worker_that_dies(driver, worker):
    """A fetch is lost; an upload is given to the next worker, up to UPLOAD_TRIES times."""
    driver.take(FETCH_FILE, UPLOAD_FILE)
    driver.pool._dispatch()
    driver.pool._on_worker_death(worker)
    assert driver.heard == [jobs.FileResult(5, jobs.LOST, 0, "the worker died")]
    assert driver.failures == [jobs.Failed("a worker process died", False)]
    for _ in range(supervisor.UPLOAD_TRIES - 1):
        worker.tasks.clear()
        driver.pool._deaths = 0
        driver.pool._dispatch()
        assert worker.sent[-1] == UPLOAD_FILE
        driver.pool._on_worker_death(worker)
    assert driver.heard[1:] == [jobs.FileResult(6, jobs.LOST, 0, "the worker died")]
    assert not driver.pool._owners and set(driver.pool._running.values()) == {0}


def test_files_of_a_disabled_bucket(driver, worker):
    """Queued, running and later files are answered with SKIPPED, once each."""
    driver.take(FETCH_FILE)
    driver.pool._dispatch()
    driver.take(UPLOAD_FILE)
    driver.pool._disable("access denied", refused=True)
    assert driver.heard[0] == jobs.Disabled("access denied", True)
    assert sorted(driver.heard[1:]) == [
        jobs.FileResult(5, jobs.SKIPPED, 0, "S3 is turned off"),
        jobs.FileResult(6, jobs.SKIPPED, 0, "S3 is turned off"),
    ]
    finish(driver, worker, jobs.FileResult(5, jobs.HIT, 8, ""))
    driver.take(FETCH_FILE._replace(number=7))
    driver.pool._dispatch()
    assert driver.heard[3:] == [jobs.FileResult(7, jobs.SKIPPED, 0, "access denied")]
    assert worker.sent == [FETCH_FILE]


def test_no_worker_can_be_started(driver, monkeypatch):
    """The bucket is given up, not refused; the task, and those after it, are skipped."""

    def refuse(*_):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(supervisor, "fork_worker", refuse)
    driver.take(FETCH_FILE, UPLOAD_FILE)
    driver.pool._dispatch()
    disabled, *results = driver.heard
    reason = "no worker process can be started: resource temporarily unavailable; see ulimit -a"
    assert disabled == jobs.Disabled(reason, refused=False)
    assert sorted((one.number, one.status) for one in results) == [
        (5, jobs.SKIPPED),
        (6, jobs.SKIPPED),
    ]
    assert not driver.pool._owners


def test_no_second_worker_can_be_started(driver, monkeypatch):
    """The one that runs gets all tasks."""
    worker = Worker(driver.fds[0])
    driver.pool._workers[worker.fileno()] = worker
    worker.tasks = dict.fromkeys(range(100, 110), FETCH_FILE)

    def refuse(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(supervisor, "fork_worker", refuse)
    monkeypatch.setattr(supervisor.os, "cpu_count", lambda: 8)
    driver.take(FETCH_FILE)
    driver.pool._dispatch()
    assert worker.sent == [FETCH_FILE] and driver.heard == []


def test_files_open_and_close_the_breaker(driver, worker):
    """Their failures count; the fetch that is the probe is answered before it runs."""
    driver.pool._options = Options(bucket="b")
    for number in range(10, 13):
        driver.take(FETCH_FILE._replace(number=number))
        driver.pool._dispatch()
        finish(driver, worker, jobs.FileResult(number, jobs.FAILED, 0, "503"))
    assert driver.pool._breakers[jobs.FETCHING].state == OPEN
    # The third one opens the breaker, which is logged.
    assert driver.failures == [jobs.Failed("503", told) for told in (False, False, True)]
    driver.take(FETCH_FILE._replace(number=13), UPLOAD_FILE)
    driver.pool._dispatch()
    assert driver.heard[3:] == [
        jobs.FileResult(13, jobs.SKIPPED, 0, "S3 is turned off after failures")
    ]
    assert worker.sent[3:] == [UPLOAD_FILE]
    driver.pool._breakers[jobs.FETCHING]._open_until = 0.0
    driver.take(FETCH_FILE._replace(number=14))
    driver.pool._dispatch()
    assert worker.sent[4:] == [FETCH_FILE._replace(number=14)]
    finish(driver, worker, jobs.FileResult(14, jobs.HIT, 8, ""))
    assert driver.heard[4:] == [jobs.FileResult(14, jobs.SKIPPED, 0, "S3 is being tried again")]
    assert driver.pool._breakers[jobs.FETCHING].state == CLOSED


def test_files_keep_to_the_limits(driver, worker):
    """The limits of tasks at once hold, and uploads wait for queued fetches."""
    driver.pool._options = Options(fetches_at_once=2, uploads_at_once=1)
    driver.take(UPLOAD_FILE, *(FETCH_FILE._replace(number=number) for number in (10, 11, 12)))
    driver.pool._dispatch()
    assert [task.number for task in worker.sent] == [10, 11]
    finish(driver, worker, jobs.FileResult(10, jobs.MISS, 0, ""))
    driver.pool._dispatch()
    assert [task.number for task in worker.sent] == [10, 11, 12, 6]
