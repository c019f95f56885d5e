"""The owners of tasks that stand between the supervisor and the front, or between it and plans.

Uploads of one action run one after another, so that its last put wins: workers do tasks side by
side, and each upload overwrites the record of its action.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..ipc import jobs
from ..tuples import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..remote.contracts import TaskOwner


logger = logging.getLogger(__name__)

_MOST_WARNINGS = 20


class UnreadableBodies:
    """Warns of bodies that cannot be read and therefore not be uploaded, of each once."""

    def __init__(self) -> None:
        self._reasons: set[str] = set()

    def note(self, message: jobs.Message) -> None:
        """Take a message to the front."""
        if not isinstance(message, jobs.UploadResult) or message.status != jobs.LOCAL:
            return
        if message.reason in self._reasons or len(self._reasons) > _MOST_WARNINGS:
            return
        self._reasons.add(message.reason)
        if len(self._reasons) > _MOST_WARNINGS:
            logger.warning("further entries were not uploaded and stay in the spool")
        else:
            logger.warning("an entry was not uploaded and stays in the spool: %s", message.reason)


class FileJobs:
    """The TaskOwner of file jobs, which belong to no session: each job is one task."""

    def __init__(self, report: Callable[[jobs.Message], None]) -> None:
        self._report = report

    def done(self, _: jobs.Task, result: jobs.TaskResult) -> None:
        self._report(result)


class _Upload(NamedTuple):
    """An upload task and its owner."""

    owner: TaskOwner
    task: jobs.UploadJob

    def answer(self, status: str, reason: str, found: bool) -> None:
        self.owner.done(self.task, self.task.failed(status, reason)._replace(found=found))


class _Line:
    """The uploads of one action: ``current`` is queued or with a worker, the others wait.

    ``superseded``: older puts than ``current``, which are answered together with it.
    """

    def __init__(self, current: _Upload) -> None:
        self.current = current
        self.superseded: list[_Upload] = []
        self.waiting: list[_Upload] = []  # in the order of their arrival


class UploadOrder:
    """Takes the uploads of all plans. ``queue(owner, task)`` queues one for a worker.

    At most one upload of an action is queued or with a worker. Of those that wait behind it the
    latest put comes next; once that is in the bucket, the older ones need not be written.
    """

    def __init__(self, queue: Callable[[TaskOwner, jobs.Task], None]) -> None:
        self._queue = queue
        self._lines: dict[str, _Line] = {}  # by action

    def submit(self, owner: TaskOwner, task: jobs.UploadJob) -> None:
        """Queue an upload, or let it wait for the one of its action that is under way."""
        upload = _Upload(owner, task)
        line = self._lines.get(task.action)
        if line is None:
            self._lines[task.action] = _Line(upload)
            self._queue(self, task)
        else:
            line.waiting.append(upload)

    def done(self, task: jobs.Task, result: jobs.TaskResult) -> None:
        """Pass on the result of an upload, and begin the next one of its action."""
        if not isinstance(task, jobs.UploadJob):
            return  # this owns nothing else
        line, status = self._lines[task.action], result.status
        answered, line.superseded = line.superseded, []
        if status == jobs.STORED:
            answered += [one for one in line.waiting if one.task.time_ns < task.time_ns]
            line.waiting = [one for one in line.waiting if one.task.time_ns >= task.time_ns]
        elif status in (jobs.DAMAGED, jobs.LOCAL):
            # The body of the later put cannot be used; that of an older one may be intact.
            line.waiting, answered = answered + line.waiting, []
        elif status == jobs.SKIPPED:  # S3 is turned off
            answered += line.waiting
            line.waiting = []
        owner = line.current.owner
        if line.waiting:
            self._begin_latest(line)
        else:
            del self._lines[task.action]
        owner.done(task, result)
        for upload in answered:
            upload.answer(status, result.reason, found=status == jobs.STORED)

    def _begin_latest(self, line: _Line) -> None:
        """Queue the latest put that waits; of puts with equal times the one that came last."""
        *line.superseded, line.current = sorted(line.waiting, key=lambda one: one.task.time_ns)
        line.waiting = []
        self._queue(self, line.current.task)
