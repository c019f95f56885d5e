"""pool/owners.py: the order of the uploads of one action."""

import pytest

from cacheplugin.ipc import jobs
from cacheplugin.pool.owners import UnreadableBodies, UploadOrder
from entries import action_id, output_id


class Rig:
    """An UploadOrder whose queue and whose one owner note what they get."""

    def __init__(self) -> None:
        self.queued = []  # numbers
        self.answers = {}  # number: (status, found)
        self._tasks = {}
        self.order = UploadOrder(self._queue)

    def _queue(self, owner, task):
        assert owner is self.order
        self.queued.append(task.number)

    def done(self, task, result):
        assert task.number == result.number and result.number not in self.answers
        self.answers[result.number] = (result.status, result.found)

    def put(self, number, time_ns, name="a"):
        task = jobs.UploadJob(number, action_id(name), output_id(b"x"), 1, time_ns, "/x")
        self._tasks[number] = task
        self.order.submit(self, task)

    def end(self, number, status=jobs.STORED):
        """A worker has done a task, which must be the one that was queued last."""
        assert number == self.queued[-1]
        task = self._tasks[number]
        self.order.done(task, jobs.UploadResult(number, status, False, 1, "why"))


@pytest.fixture
def rig():
    return Rig()


def test_uploads_of_one_action_run_one_after_another(rig):
    """Those of other actions do not wait."""
    rig.put(1, 100)
    rig.put(2, 200)
    rig.put(3, 300, "b")
    assert rig.queued == [1, 3]
    rig.order.done(rig._tasks[1], jobs.UploadResult(1, jobs.STORED))
    assert rig.queued == [1, 3, 2]
    rig.end(2)
    assert rig.answers == {1: (jobs.STORED, False), 2: (jobs.STORED, False)}


def test_superseded_puts_are_answered_with_the_latest(rig):
    """Of three puts that wait, only the latest is written; the others are then stored as well."""
    for number, time_ns in ((1, 100), (2, 200), (3, 400), (4, 300)):
        rig.put(number, time_ns)
    rig.end(1)
    assert rig.queued == [1, 3]
    assert set(rig.answers) == {1}
    rig.end(3)
    stored = (jobs.STORED, True)
    assert rig.queued == [1, 3] and rig.answers[2] == rig.answers[4] == stored


def test_an_older_put_that_comes_late_is_not_written(rig):
    """A put that arrives while a later one of its action is uploaded is answered with it."""
    rig.put(1, 200)
    rig.put(2, 100)
    rig.end(1)
    assert rig.queued == [1] and rig.answers[2] == (jobs.STORED, True)


@pytest.mark.parametrize("status", [jobs.DAMAGED, jobs.LOCAL])
def test_an_older_put_is_written_if_the_latest_has_no_body(rig, status):
    """A put whose body is damaged or cannot be read does not take the place of an intact one."""
    for number in (1, 2, 3):
        rig.put(number, number)
    rig.end(1)
    rig.end(3, status)
    assert rig.queued == [1, 3, 2] and rig.answers[3] == (status, False)
    rig.end(2)
    assert rig.answers[2] == (jobs.STORED, False)


@pytest.mark.parametrize("status", [jobs.FAILED, jobs.TIMED_OUT, jobs.LOST])
def test_superseded_puts_fail_with_the_latest(rig, status):
    """They remain in the spool, as the latest does."""
    for number in (1, 2, 3):
        rig.put(number, number)
    rig.end(1)
    rig.end(3, status)
    assert rig.answers[2] == rig.answers[3] == (status, False)


def test_a_failed_upload_lets_the_next_one_begin(rig):
    """A later put is tried also if the older one has failed."""
    rig.put(1, 1)
    rig.put(2, 2)
    rig.end(1, jobs.FAILED)
    rig.end(2)
    assert rig.answers == {1: (jobs.FAILED, False), 2: (jobs.STORED, False)}


def test_uploads_that_wait_are_skipped_with_the_current_one(rig):
    """When S3 is turned off, no upload stays unanswered."""
    for number in (1, 2, 3):
        rig.put(number, number)
    rig.end(1, jobs.SKIPPED)
    assert rig.queued == [1]
    assert rig.answers == dict.fromkeys((1, 2, 3), (jobs.SKIPPED, False))
    rig.put(4, 4)
    assert rig.queued == [1, 4]


def test_each_unreadable_body_is_named_once(caplog):
    """Results of both layouts; a disk that gives out nothing does not flood the log."""
    bodies = UnreadableBodies()
    for number in [*range(100), *range(100)]:
        bodies.note(jobs.UploadResult(number, jobs.LOCAL, reason=f"/{number} cannot be read"))
        bodies.note(jobs.UploadResult(number, jobs.FAILED, reason="503"))
    texts = [record.message for record in caplog.records]
    named = [
        f"an entry was not uploaded and stays in the spool: /{n} cannot be read" for n in range(20)
    ]
    assert texts == [*named, "further entries were not uploaded and stay in the spool"]
