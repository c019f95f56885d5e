"""What the pool does with the front's jobs: which tasks it makes of them, and what it answers.

A plan lives in the pool's one thread and does no I/O on the network. It serves the sessions that
``begin`` on it, which share their scopes. The pool calls ``prefetch``, ``fetch``, ``upload`` and
``finish`` with the front's jobs, and ``done`` once for each task that the plan gave to
``pool.submit(plan, task)``, later. The plan answers through ``pool.report(message)``.
"""

from collections import Counter

from ..ipc import jobs


class Plan:
    """What all layouts share; ``pool`` is the Supervisor, ``scopes`` a tuple as in BeginJob."""

    def __init__(self, pool, scopes) -> None:
        self.scopes = scopes
        self._pool = pool
        self.report = pool.report
        self.sessions = set()  # numbers of those that have not ended

    def begin(self, session: int) -> None:
        """A session's jobs follow."""
        self.sessions.add(session)

    @property
    def is_open(self) -> bool:
        """Whether a session that begins now may join."""
        return True

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do, nor anybody to do it for."""
        return not self.sessions

    def prefetch(self) -> None:
        """Much will be asked for soon."""

    def stop(self) -> None:
        """Nobody will ask for anything more."""

    def timeout_s(self):
        """Seconds until ``on_time`` is wanted; None: never."""
        return

    def on_time(self) -> None:
        """Do what was to be done by now."""


class Fetches:
    """Gets that wait for fetches from the objects layout, one fetch an action."""

    def __init__(self) -> None:
        self._waiting = {}  # action: [FetchJob]

    def add(self, job) -> bool:
        """Whether the fetch of a job's action is still to be begun."""
        waiting = self._waiting.setdefault(job.action, [])
        waiting.append(job)
        return len(waiting) == 1

    def results(self, result):
        """A FetchResult for each job that waited for this one."""
        for job in self._waiting.pop(result.action):
            yield result._replace(number=job.number)
            result = result._replace(received=0)


class ObjectsPlan(Plan):
    """The layout ``objects``: each job of the front's is one task."""

    def __init__(self, pool, scopes) -> None:
        super().__init__(pool, scopes)
        self._fetches = Fetches()
        self._uploads = Counter()  # session: how many it has
        self._finishing = {}  # session: FinishJob

    def fetch(self, job) -> None:
        if self._fetches.add(job):
            self._pool.submit(self, job)

    def upload(self, job) -> None:
        self._uploads[job.session] += 1
        self._pool.submit(self, job)

    def finish(self, job) -> None:
        self._finishing[job.session] = job
        self._end_if_done(job.session)

    def _end_if_done(self, session) -> None:
        if session in self._finishing and not self._uploads[session]:
            del self._uploads[session]
            self.sessions.discard(session)
            job = self._finishing.pop(session)
            self.report(jobs.FinishResult(job.number, jobs.STORED, ""))

    def done(self, task, result) -> None:
        if isinstance(task, jobs.FetchJob):
            for answer in self._fetches.results(result):
                self.report(answer)
        else:
            self.report(result)
            self._uploads[task.session] -= 1
            self._end_if_done(task.session)
