"""A worker process: takes jobs from the pool, asks the layout, sends results back."""
import logging
import marshal
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

from . import jobs
from .errors import Absent, Damaged, RemoteError, TimedOut, Unusable

log = logging.getLogger(__name__)


def work(connection, layout, options, inherited) -> None:
    """The worker's main: runs until ``connection`` (to the pool) ends.

    ``inherited`` are the pool's descriptors, closed here so that the death of any process is seen
    by its peers at once.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for fd in inherited:
        os.close(fd)
    lock = threading.Lock()

    def run(job):
        result = perform(layout, job)
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
            job = jobs.unpack(marshal.loads(connection.recv_bytes()))
            (fetches if isinstance(job, jobs.FetchJob) else uploads).submit(run, job)
    except (EOFError, OSError):
        os._exit(0)  # threads that still wait for S3 have nobody to report to


def perform(layout, job):
    """Do one job and say how it went; nothing is raised."""
    failed = jobs.fetch_failed if isinstance(job, jobs.FetchJob) else jobs.upload_failed
    try:
        if isinstance(job, jobs.FetchJob):
            got = layout.fetch(job.action)
            return jobs.FetchResult(
                job.number, job.action, jobs.HIT, got.output, got.size, got.time_ns, got.path,
                got.received, "",
            )
        done = layout.upload(job)
        return jobs.UploadResult(job.number, jobs.STORED, done.found, done.sent, "")
    except Absent as error:
        # For an upload, what is absent is the bucket's own doing.
        return failed(job, jobs.MISS if failed is jobs.fetch_failed else jobs.FAILED, str(error))
    except Damaged as error:
        result = failed(job, jobs.DAMAGED, str(error))
        return result._replace(output=error.output) if failed is jobs.fetch_failed else result
    except Unusable as error:
        return failed(job, jobs.UNUSABLE, str(error))
    except TimedOut as error:
        return failed(job, jobs.TIMED_OUT, str(error))
    except RemoteError as error:
        return failed(job, jobs.FAILED, str(error))
    except OSError as error:
        return failed(job, jobs.LOCAL, str(error))
    except Exception as error:
        log.warning("a job failed in a way nobody foresaw: %r: %r", job, error)
        log.debug("it failed here", exc_info=True)
        return failed(job, jobs.FAILED, repr(error))
