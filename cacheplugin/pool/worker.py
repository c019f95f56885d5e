"""A worker process of the pool: receives tasks, does them in threads, sends results back."""

from __future__ import annotations

import logging
import marshal
import os
import signal
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

from ..errors import LOCAL_TROUBLE, RemoteError, is_exhausted, reason_of
from ..ipc import jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from multiprocessing.connection import Connection
    from typing import Any, Protocol

    from ..options import Options

    class TaskRunner(Protocol):
        """Does tasks, from many threads. Implemented by remote.layouts.Remote; used here."""

        def perform(self, task: jobs.Task) -> jobs.TaskResult:
            """Raises RemoteError, and OSError for failures of the local disk."""


logger = logging.getLogger(__name__)


def work(
    connection: Connection[Any, Any],
    remote: TaskRunner,
    options: Options,
    inherited: Iterable[int],
) -> None:
    """The main function of a worker: runs until ``connection``, to the supervisor, ends.

    ``inherited``: the supervisor's descriptors. They are closed here, so that the death of any
    process is seen at once by the processes at the other ends.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for fd in inherited:
        os.close(fd)
    lock = threading.Lock()

    def run(task: jobs.Task) -> None:
        data = marshal.dumps(jobs.pack(perform(remote, task)))
        try:
            with lock:
                connection.send_bytes(data)
        except OSError:
            pass  # the supervisor has ended: the result is not needed

    fetches = _Threads(run, options.fetches_at_once)
    uploads = _Threads(run, options.uploads_at_once)
    try:
        while True:
            message = marshal.loads(connection.recv_bytes())  # noqa: S302 - from our parent process
            task: jobs.Task = jobs.unpack(message)
            (fetches if task.direction() == jobs.FETCHING else uploads).submit(task)
    except (EOFError, OSError):
        os._exit(0)  # at once: threads may still wait for S3
    except MemoryError:
        os._exit(1)  # the supervisor sees a death, and says so


class _Threads:
    """At most ``most`` threads, which call ``run(task)``.

    If no thread can be started, those that run do the work, and without any the caller does it. A
    ThreadPoolExecutor would raise, although it has queued the task.
    """

    def __init__(self, run: Callable[[jobs.Task], None], most: int) -> None:
        self._run = run
        self._most = most
        self._tasks: SimpleQueue[jobs.Task] = SimpleQueue()
        self._count = 0
        self._idle = threading.Semaphore(0)  # its value: threads that wait for a task

    def submit(self, task: jobs.Task) -> None:
        if not self._idle.acquire(blocking=False) and self._count < self._most:
            try:
                threading.Thread(target=self._work, daemon=True).start()
                self._count += 1
            except (RuntimeError, MemoryError):
                logger.info("no more threads can be started than %d", self._count)
                if not self._count:
                    self._run(task)
                    return
        self._tasks.put(task)

    def _work(self) -> None:
        while True:
            self._run(self._tasks.get())
            self._idle.release()


def perform(remote: TaskRunner, task: jobs.Task) -> jobs.TaskResult:
    """Do one task and return its result; every exception becomes a failed result."""
    uploading = task.direction() == jobs.UPLOADING
    try:
        return remote.perform(task)
    except (RemoteError, *LOCAL_TROUBLE) as error:
        output: str | None = getattr(error, "output", None)  # only Damaged has it
        return task.failed(jobs.status_of(error, uploading), reason_of(error), output)
    except Exception as error:
        if is_exhausted(error):
            return task.failed(jobs.LOCAL, str(error))
        logger.warning("unexpected error in a job: %r; the job: %.500r", error, task)
        logger.debug("traceback of the unexpected error", exc_info=True)
        return task.failed(jobs.FAILED, repr(error))
