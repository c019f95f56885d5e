"""pool/worker.py: every outcome of a task becomes a result."""

import threading

import pytest

from cacheplugin import errors
from cacheplugin.ipc import jobs
from cacheplugin.pool import worker

FETCH = jobs.FetchJob(1, "ab" * 32)
UPLOAD = jobs.UploadJob(2, "ab" * 32, "cd" * 32, 5, 7, "/x")


class Remote:
    """A fake Remote: returns ``answer`` for every task, or raises it if it is an exception."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def perform(self, _):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_result():
    """The result of the remote is passed on."""
    result = jobs.UploadResult(2, jobs.STORED, True, 0, "")
    assert worker.perform(Remote(result), UPLOAD) is result


@pytest.mark.parametrize(
    ("error", "of_a_fetch", "of_an_upload"),
    [
        (errors.Absent("why"), jobs.MISS, jobs.FAILED),
        (errors.Damaged("why"), jobs.DAMAGED, jobs.DAMAGED),
        (errors.Unavailable("why"), jobs.FAILED, jobs.FAILED),
        (errors.TimedOut("why"), jobs.TIMED_OUT, jobs.TIMED_OUT),
        (errors.Unusable("why"), jobs.UNUSABLE, jobs.UNUSABLE),
        (errors.RemoteError("why"), jobs.FAILED, jobs.FAILED),
        (PermissionError("why"), jobs.LOCAL, jobs.LOCAL),
        (ZeroDivisionError("why"), jobs.FAILED, jobs.FAILED),
    ],
    ids=repr,
)
def test_errors(error, of_a_fetch, of_an_upload):
    """Every exception becomes a status and a reason; perform raises none."""
    fetched = worker.perform(Remote(error), FETCH)
    assert (fetched.number, fetched.action, fetched.status) == (1, FETCH.action, of_a_fetch)
    uploaded = worker.perform(Remote(error), UPLOAD)
    assert (uploaded.number, uploaded.status, uploaded.found) == (2, of_an_upload, False)
    assert "why" in fetched.reason and "why" in uploaded.reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "no memory is left"),
        (ImportError("No module named 'x'"), "No module named 'x'"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
    ],
    ids=repr,
)
def test_a_machine_without_resources(error, reason, caplog):
    """It is local trouble, not an unexpected error and not a failure of S3."""
    for task in (FETCH, UPLOAD):
        result = worker.perform(Remote(error), task)
        assert (result.status, result.reason) == (jobs.LOCAL, reason)
    assert not caplog.records


class Gate:
    """``run`` for _Threads: tasks wait at it until ``open``; ``names`` are the threads' names."""

    def __init__(self) -> None:
        self._open, self._entered = threading.Event(), threading.Semaphore(0)
        self._done = threading.Semaphore(0)
        self.names, self.tasks = set(), []
        self.open = self._open.set

    def __call__(self, task) -> None:
        self.names.add(threading.get_ident())
        self._entered.release()
        assert self._open.wait(10)
        self.tasks.append(task)
        self._done.release()

    def wait(self, entered=0, done=0) -> None:
        for semaphore, count in ((self._entered, entered), (self._done, done)):
            assert all(semaphore.acquire(timeout=10) for _ in range(count))


def test_as_many_threads_as_tasks_up_to_a_limit():
    """Three tasks run at once; the others wait for these threads."""
    gate = Gate()
    threads = worker._Threads(gate, 3)
    for task in range(7):
        threads.submit(task)
    gate.wait(entered=3)
    gate.open()
    gate.wait(done=7)
    assert sorted(gate.tasks) == [*range(7)] and len(gate.names) == 3


@pytest.mark.parametrize("started", [0, 1])
def test_no_more_threads(monkeypatch, started):
    """Every task is done once: by the threads that could be started, else by the caller."""
    start, left = threading.Thread.start, [None] * started

    def refuse(thread):
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    gate = Gate()
    gate.open()
    threads = worker._Threads(gate, 4)
    for task in range(5):
        threads.submit(task)
    gate.wait(done=5)
    assert sorted(gate.tasks) == [*range(5)] and len(gate.names) == 1
    assert (threading.get_ident() in gate.names) is (started == 0)
