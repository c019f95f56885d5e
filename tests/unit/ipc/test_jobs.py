"""jobs.py: messages as plain tuples and back, and the results of failures."""

import marshal

import pytest

from cacheplugin.ipc import jobs

A, OUT = "ab" * 32, "cd" * 32
FETCH = jobs.FetchJob(1, A)
UPLOAD = jobs.UploadJob(2, A, OUT, 2**40, 2**62, "/cache/output/cd/é")
ROW = (A, OUT, 5, 7, 9, "bundle", 8, 100, 0, 2**64 - 1)
FINISH, LOAD, RANGE = (
    jobs.FinishJob(3, [A]),
    jobs.LoadJob(4, ("s",)),
    jobs.RangeJob(5, "b", 8, 100, [ROW]),
)
BUNDLE, MANIFEST = jobs.BundleJob(6, "s", [UPLOAD[1:6]]), jobs.ManifestJob(7, "s", b"GCPM")
FILE_FETCH = jobs.FileFetchJob(10, "module/ab/abcd", "/cache/tmp/é", 1000)
FILE_UPLOAD = jobs.FileUploadJob(11, "module/ab/abcd", "/cache/module/ab/abcd", True)
MESSAGES = [
    jobs.BeginJob(8, ("s", "t")),
    jobs.PrefetchJob(9),
    jobs.StatusJob(),
    jobs.PoolStatus({jobs.FETCHING: 1}, {jobs.FETCHING: 2}, 3, {jobs.FETCHING: "open"}, 1.5),
    FETCH,
    UPLOAD,
    FINISH,
    LOAD,
    RANGE,
    BUNDLE,
    MANIFEST,
    FILE_FETCH,
    FILE_UPLOAD,
    jobs.FetchResult(1, A, jobs.HIT, OUT, 5, 7, "/cache/x", 5, ""),
    FETCH.failed(jobs.MISS),
    jobs.UploadResult(2, jobs.STORED, True, 0, ""),
    UPLOAD.failed(jobs.FAILED, "503 Slow Down"),
    jobs.FinishResult(3, jobs.STORED, ""),
    jobs.LoadResult(4, jobs.HIT, "", [ROW], [], [], ["name"], 7.5, [A], True, 1, 8.5),
    jobs.RangeResult(5, jobs.HIT, "", [A], [], False, 100),
    jobs.BundleResult(6, jobs.STORED, "", [ROW], [OUT], 100),
    jobs.ManifestResult(7, jobs.STORED, "", "name", 5),
    jobs.FileResult(10, jobs.HIT, 2**40, ""),
    FILE_UPLOAD.failed(jobs.LOCAL, "no space left on device"),
    jobs.Disabled("no credentials"),
    jobs.Failed("connection refused", True),
    jobs.Expected([A], [OUT], True),
    jobs.Transferred(1, 2, 3),
]
TASKS = [FETCH, UPLOAD, LOAD, RANGE, BUNDLE, MANIFEST]
FILES = [FILE_FETCH, FILE_UPLOAD]


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_cross_processes(message):
    """Each message has the same type and fields after pack, marshal and unpack."""
    fields = jobs.pack(message)
    assert type(fields) is tuple
    again = jobs.unpack(marshal.loads(marshal.dumps(fields)))
    assert type(again) is type(message)
    assert again == message


def test_every_kind_is_tested():
    """MESSAGES has an example of every message."""
    assert {type(message) for message in MESSAGES} == set(jobs._KINDS)


def test_failures_name_their_job():
    """The result of a failed job has its number, the status, no entry, and the reason."""
    assert FETCH.failed(jobs.FAILED, "why") == (
        1,
        A,
        jobs.FAILED,
        None,
        0,
        0,
        None,
        0,
        "why",
    )
    assert UPLOAD.failed(jobs.LOST) == (2, jobs.LOST, False, 0, "")
    assert FETCH.failed(jobs.DAMAGED, "why", OUT).output == OUT


@pytest.mark.parametrize("job", FILES, ids=lambda job: type(job).__name__)
def test_failures_of_file_jobs(job):
    """The result of both is a FileResult with the number, the status, no bytes and the reason."""
    result = job.failed(jobs.DAMAGED, "why", OUT)
    assert type(result) is jobs.FileResult and result == (job.number, jobs.DAMAGED, 0, "why")


@pytest.mark.parametrize("job", [*TASKS, FINISH], ids=lambda job: type(job).__name__)
def test_every_job_can_fail(job):
    """The result of a failure has the job's type and number, and no other fields set."""
    result = job.failed(jobs.SKIPPED, "why")
    assert type(result).__name__ == type(job).__name__.replace("Job", "Result")
    assert (result.number, result.status, result.reason) == (job.number, jobs.SKIPPED, "why")
    rest = result._asdict().items() - {
        ("number", job.number),
        ("status", jobs.SKIPPED),
        ("reason", "why"),
    }
    assert not any(value for name, value in rest if name != "action")


def test_directions():
    """Every task has one of the two directions."""
    assert [task.direction() for task in TASKS] == [
        jobs.FETCHING,
        jobs.UPLOADING,
        jobs.FETCHING,
        jobs.FETCHING,
        jobs.UPLOADING,
        jobs.UPLOADING,
    ]
    assert [task.direction() for task in FILES] == [jobs.FETCHING, jobs.UPLOADING]


def test_statuses_differ():
    """No two statuses have the same text."""
    names = [
        "HIT",
        "ARRIVED",
        "MISS",
        "DAMAGED",
        "FAILED",
        "LOCAL",
        "SKIPPED",
        "STORED",
        "UNUSABLE",
        "TIMED_OUT",
        "LOST",
    ]
    assert len({getattr(jobs, name) for name in names}) == len(names)
