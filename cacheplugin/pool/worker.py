"""A worker process of the pool: receives tasks, does them in threads, sends results back."""

from __future__ import annotations

import logging
import marshal
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..errors import RemoteError, reason_of
from ..ipc import jobs

if TYPE_CHECKING:
    from collections.abc import Iterable
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

    fetches = ThreadPoolExecutor(options.fetches_at_once)
    uploads = ThreadPoolExecutor(options.uploads_at_once)
    try:
        while True:
            message = marshal.loads(connection.recv_bytes())  # noqa: S302 - from our parent process
            task: jobs.Task = jobs.unpack(message)
            (fetches if task.direction() == jobs.FETCHING else uploads).submit(run, task)
    except (EOFError, OSError):
        os._exit(0)  # at once: threads may still wait for S3


def perform(remote: TaskRunner, task: jobs.Task) -> jobs.TaskResult:
    """Do one task and return its result; every exception becomes a failed result."""
    uploading = task.direction() == jobs.UPLOADING
    try:
        return remote.perform(task)
    except (RemoteError, OSError) as error:
        output: str | None = getattr(error, "output", None)  # only Damaged has it
        return task.failed(jobs.status_of(error, uploading), reason_of(error), output)
    except Exception as error:
        logger.warning("unexpected error in a job: %r; the job: %.500r", error, task)
        logger.debug("traceback of the unexpected error", exc_info=True)
        return task.failed(jobs.FAILED, repr(error))
