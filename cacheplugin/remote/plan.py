"""What the pool does with the front's jobs: which tasks it makes of them, and what it answers.

A plan lives in the pool's one thread and does no I/O on the network. The pool calls ``prefetch``,
``fetch``, ``upload`` and ``finish`` with the front's jobs, and ``done`` once for each task that the
plan gave to ``pool.submit(task)``, later. The plan answers through ``pool.report(message)``.
"""
from .. import jobs


class Plan:
    """What all layouts share; ``pool`` is the Supervisor."""

    def __init__(self, pool) -> None:
        self._pool = pool
        self.report = pool.report

    def prefetch(self) -> None:
        """Much will be asked for soon."""

    def stop(self) -> None:
        """The front is gone."""

    def timeout_s(self):
        """Seconds until ``on_time`` is wanted; None: never."""
        return None

    def on_time(self) -> None:
        """Do what was to be done by now."""


class ObjectsPlan(Plan):
    """The layout ``objects``: each job of the front's is one task."""

    def fetch(self, job) -> None:
        self._pool.submit(job)

    def upload(self, job) -> None:
        self._pool.submit(job)

    def finish(self, job) -> None:
        self.report(jobs.FinishResult(job.number, jobs.STORED, ""))

    def done(self, _, result) -> None:
        self.report(result)
