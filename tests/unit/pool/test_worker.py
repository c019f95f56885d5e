"""pool/worker.py: every outcome of a task becomes a result."""

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
