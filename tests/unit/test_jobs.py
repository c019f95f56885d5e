"""jobs.py: what crosses between processes survives the crossing."""

import marshal

import pytest

from cacheplugin import jobs

A, OUT = "ab" * 32, "cd" * 32
FETCH = jobs.FetchJob(1, A)
UPLOAD = jobs.UploadJob(2, A, OUT, 2**40, 2**62, "/cache/output/cd/é")
MESSAGES = [
    FETCH,
    UPLOAD,
    jobs.FetchResult(1, A, jobs.HIT, OUT, 5, 7, "/cache/x", 5, ""),
    jobs.fetch_failed(FETCH, jobs.MISS),
    jobs.UploadResult(2, jobs.STORED, True, 0, ""),
    jobs.upload_failed(UPLOAD, jobs.FAILED, "503 Slow Down"),
    jobs.Disabled("no credentials"),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_cross_processes(message):
    """Each kind of message is the same, and of the same kind, after marshal."""
    fields = jobs.pack(message)
    assert type(fields) is tuple
    again = jobs.unpack(marshal.loads(marshal.dumps(fields)))
    assert type(again) is type(message)
    assert again == message


def test_every_kind_is_tested():
    """A new kind of message needs a line above."""
    assert {type(message) for message in MESSAGES} == set(jobs._KINDS)


def test_failures_name_their_job():
    """A failed job's result has its number, its status, no entry and the reason."""
    assert jobs.fetch_failed(FETCH, jobs.FAILED, "why") == (
        1, A, jobs.FAILED, None, 0, 0, None, 0, "why",
    )  # fmt: skip
    assert jobs.upload_failed(UPLOAD, jobs.LOST) == (2, jobs.LOST, False, 0, "")


def test_statuses_differ():
    """No two statuses are the same word."""
    names = "HIT MISS DAMAGED FAILED LOCAL SKIPPED STORED UNUSABLE TIMED_OUT LOST".split()
    assert len({getattr(jobs, name) for name in names}) == len(names)
