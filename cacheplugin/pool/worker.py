"""A worker process: takes tasks from the pool, does them, sends results back."""

import logging
import marshal
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

from ..errors import RemoteError, reason_of
from ..ipc import jobs

log = logging.getLogger(__name__)


def work(connection, remote, options, inherited) -> None:
    """The worker's main: runs until ``connection`` (to the pool) ends.

    ``inherited`` are the pool's descriptors, closed here so that the death of any process is seen
    by its peers at once.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for fd in inherited:
        os.close(fd)
    lock = threading.Lock()

    def run(task):
        result = perform(remote, task)
        data = marshal.dumps(jobs.pack(result))
        try:
            with lock:
                connection.send_bytes(data)
        except OSError:
            pass  # the pool is gone, and so is whoever waited

    fetches = ThreadPoolExecutor(options.fetches_at_once)
    uploads = ThreadPoolExecutor(options.uploads_at_once)
    try:
        while True:
            task = jobs.unpack(marshal.loads(connection.recv_bytes()))
            (fetches if task.direction() == jobs.FETCHING else uploads).submit(run, task)
    except (EOFError, OSError):
        os._exit(0)  # threads that still wait for S3 have nobody to report to


def perform(remote, task):
    """Do one task and say how it went; nothing is raised."""
    uploading = task.direction() == jobs.UPLOADING
    try:
        return remote.perform(task)
    except (RemoteError, OSError) as error:
        output = getattr(error, "output", None)  # of Damaged
        return task.failed(jobs.status_of(error, uploading), reason_of(error), output)
    except Exception as error:
        log.warning("a job failed in a way nobody foresaw: %.500r: %r", task, error)
        log.debug("it failed here", exc_info=True)
        return task.failed(jobs.FAILED, repr(error))
