"""Plans: which tasks the pool makes of the front's jobs, and how it answers the jobs.

A plan runs in the pool's one thread and does no network I/O. It serves the sessions that ``begin``
on it; all of them have the same scopes. The pool calls ``prefetch``, ``fetch``, ``upload`` and
``finish`` with the front's jobs. The plan gives tasks to ``pool.submit(plan, task)``, gets each
result in ``done``, and answers the front with ``pool.report(message)``.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ..ipc import jobs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .contracts import PlanHost


class Plan:
    """What the Supervisor uses of a plan, and its base class. ``scopes`` are those of BeginJob."""

    def __init__(self, pool: PlanHost, scopes: tuple[str, ...]) -> None:
        self.scopes = scopes
        self._pool = pool
        self.report = pool.report
        self.sessions: set[int] = set()  # that have not ended

    def begin(self, session: int) -> None:
        """Serve a session from now on."""
        self.sessions.add(session)

    @property
    def is_open(self) -> bool:
        """Whether a session that begins now may join."""
        return True

    @property
    def is_over(self) -> bool:
        """Whether the plan has no session and no work left, so that the pool can drop it."""
        return not self.sessions

    def prefetch(self) -> None:
        """Begin to fetch what the sessions will probably ask for."""

    def fetch(self, job: jobs.FetchJob) -> None:
        """Report a FetchResult, now or later."""
        raise NotImplementedError

    def upload(self, job: jobs.UploadJob) -> None:
        """Report an UploadResult once the entry is in the bucket or has failed."""
        raise NotImplementedError

    def finish(self, job: jobs.FinishJob) -> None:
        """End a session: report a FinishResult after the results of all its uploads."""
        raise NotImplementedError

    def done(self, task: jobs.Task, result: jobs.TaskResult) -> None:
        """Take the result of a task. Called once for each task."""
        raise NotImplementedError

    def stop(self) -> None:
        """Begin no more prefetches and release locks: no session is left."""

    def timeout_s(self) -> float | None:
        """Seconds until ``on_time`` must be called; None for never."""
        return None

    def on_time(self) -> None:
        """Do what is due by now. Called at least once after each ``timeout_s``."""


class CoalescedFetches:
    """Fetches from the objects layout, one for all gets that wait for the same action."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[jobs.FetchJob]] = {}  # by action

    def add(self, job: jobs.FetchJob) -> bool:
        """Let a job wait; returns whether the caller must begin the fetch of its action."""
        waiting = self._waiting.setdefault(job.action, [])
        waiting.append(job)
        return len(waiting) == 1

    def results(self, result: jobs.FetchResult) -> Iterator[jobs.FetchResult]:
        """A result for each job that waited; the first alone counts the bytes received."""
        for job in self._waiting.pop(result.action):
            yield result._replace(number=job.number)
            result = result._replace(received=0)


class ObjectsPlan(Plan):
    """The plan of the layout ``objects``: each of the front's jobs is one task."""

    def __init__(self, pool: PlanHost, scopes: tuple[str, ...]) -> None:
        super().__init__(pool, scopes)
        self._fetches = CoalescedFetches()
        self._uploads: Counter[int] = Counter()  # uploads not yet done, by session
        self._finishing: dict[int, jobs.FinishJob] = {}  # by session

    def fetch(self, job: jobs.FetchJob) -> None:
        if self._fetches.add(job):
            self._pool.submit(self, job)

    def upload(self, job: jobs.UploadJob) -> None:
        self._uploads[job.session] += 1
        self._pool.submit(self, job)

    def finish(self, job: jobs.FinishJob) -> None:
        self._finishing[job.session] = job
        self._end_if_done(job.session)

    def _end_if_done(self, session: int) -> None:
        if session in self._finishing and not self._uploads[session]:
            del self._uploads[session]
            self.sessions.discard(session)
            job = self._finishing.pop(session)
            self.report(jobs.FinishResult(job.number, jobs.STORED))

    def done(self, task: jobs.Task, result: jobs.TaskResult) -> None:
        if isinstance(result, jobs.FetchResult):
            for answer in self._fetches.results(result):
                self.report(answer)
        elif isinstance(task, jobs.UploadJob):
            self.report(result)
            self._uploads[task.session] -= 1
            self._end_if_done(task.session)
