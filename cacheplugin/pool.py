"""The pool process: takes the front's jobs, hands them to worker processes, supervises those.

It is started by poollink.py with its jobs on stdin, its results on stdout and its log on stderr,
all three pipes of the front's, in a session of its own. It imports botocore once and forks the
workers from there. One thread, one poll loop. When stdin ends, everything ends.
"""
import logging
import marshal
import multiprocessing
import os
import select
import signal
from collections import deque

from . import channel, jobs, log, remote
from .breaker import HALF_OPEN, OPEN, Breaker
from .errors import Unusable
from .local import LocalCache
from .options import Options
from .store import Store
from .worker import work

logger = logging.getLogger(__name__)

MAX_WORKERS = 8
BUSY_JOBS = 4  # a worker with fewer jobs than this gets the next one; else another is forked
UPLOAD_TRIES = 3
DEATHS_TO_GIVE_UP = 3  # workers lost in a row without one result between


def main(_) -> None:
    """Run until stdin ends."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))  # blocked by poollink meanwhile
    results = os.dup(1)
    os.dup2(2, 1)
    receiver, sender = channel.Receiver(os.dup(0)), channel.Sender(results)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    Supervisor(receiver, sender).run()
    # Workers see the end of their connections; nobody waits for what they still do.
    os._exit(0)


class _Worker:
    def __init__(self, process, connection) -> None:
        self.process = process
        self.connection = connection
        self.jobs = {}  # number: job, of those it has


class Supervisor:
    """Between one front and its workers. The first message on ``receiver`` is the configuration."""

    def __init__(self, receiver, sender) -> None:
        self._receiver = receiver
        self._sender = sender
        self._poll = select.poll()
        self._poll.register(receiver.fd, select.POLLIN)
        self._options = None
        self._layout = None
        self._workers = {}  # descriptor of its connection: _Worker
        self._queues = {jobs.FetchJob: deque(), jobs.UploadJob: deque()}
        self._running = {jobs.FetchJob: 0, jobs.UploadJob: 0}
        self._breakers = {jobs.FetchJob: Breaker(), jobs.UploadJob: Breaker()}
        self._answered = set()  # numbers of jobs under way whose outcome nobody waits for
        self._tries = {}  # number of an upload: workers that died with it
        self._deaths = 0
        self._disabled = None

    def run(self) -> None:
        """Serve until the front is gone."""
        try:
            while True:
                for fd, event in self._poll.poll():
                    if fd == self._receiver.fd:
                        for message in self._receiver.receive():
                            self._take(message)
                    elif fd == self._sender.fd:
                        self._flush()
                    elif fd in self._workers:
                        self._hear(self._workers[fd])
                self._dispatch()
        except (EOFError, BrokenPipeError):
            for worker in self._workers.values():
                worker.process.kill()

    def _take(self, message) -> None:
        if self._options is None:
            self._configure(message)
            return
        job = jobs.unpack(message)
        if self._disabled is not None:
            self._skip(job, self._disabled)
        else:
            self._queues[type(job)].append(job)

    def _configure(self, message) -> None:
        (fields,) = message
        self._options = options = Options(**fields)
        os.umask(0o022)
        log.setup(self._options)
        try:
            cache = LocalCache(Store(options.cache_dir), spill=False)
            self._layout = remote.connect(options, cache)
        except Unusable as error:
            self._disable(str(error))

    # -- out to the workers ------------------------------------------------------------------------

    def _dispatch(self) -> None:
        fetches, uploads = self._queues[jobs.FetchJob], self._queues[jobs.UploadJob]
        while fetches and self._running[jobs.FetchJob] < self._options.fetches_at_once:
            self._start(fetches.popleft())
        while not fetches and uploads:
            if self._running[jobs.UploadJob] >= self._options.uploads_at_once:
                break
            self._start(uploads.popleft())

    def _start(self, job) -> None:
        verdict = self._breakers[type(job)].admit()
        if verdict == OPEN:
            self._skip(job, "S3 is turned off after failures")
            return
        if verdict == HALF_OPEN and isinstance(job, jobs.FetchJob):
            # Whether S3 is back is worth finding out, but no build has to wait for it.
            self._skip(job, "S3 is being tried again")
            self._answered.add(job.number)
        worker = self._choose_worker()
        worker.jobs[job.number] = job
        self._running[type(job)] += 1
        try:
            worker.connection.send_bytes(marshal.dumps(jobs.pack(job)))
        except OSError:
            self._lost(worker)

    def _choose_worker(self) -> _Worker:
        if self._workers:
            idlest = min(self._workers.values(), key=lambda worker: len(worker.jobs))
            most = min(os.cpu_count() or 1, MAX_WORKERS)
            if len(idlest.jobs) < BUSY_JOBS or len(self._workers) >= most:
                return idlest
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        inherited = [self._receiver.fd, self._sender.fd, ours.fileno(), *self._workers]
        process = context.Process(
            target=work, args=(theirs, self._layout, self._options, inherited), daemon=True
        )
        process.start()
        theirs.close()
        worker = self._workers[ours.fileno()] = _Worker(process, ours)
        self._poll.register(ours.fileno(), select.POLLIN)
        logger.debug("worker %d started", process.pid)
        return worker

    # -- back to the front -------------------------------------------------------------------------

    def _hear(self, worker) -> None:
        """Take what a worker says: a result, or, by the end of its connection, that it died."""
        try:
            result = jobs.unpack(marshal.loads(worker.connection.recv_bytes()))
        except (EOFError, OSError):
            self._lost(worker)
            return
        self._deaths = 0
        job = worker.jobs.pop(result.number)
        self._finish(job, result)

    def _finish(self, job, result) -> None:
        self._running[type(job)] -= 1
        self._judge(job, result)
        self._tries.pop(job.number, None)
        if job.number in self._answered:
            self._answered.discard(job.number)
        else:
            self._report(result)

    def _judge(self, job, result) -> None:
        """Let the breaker learn from a result, and warn once when it opens."""
        breaker = self._breakers[type(job)]
        what = "fetching from" if isinstance(job, jobs.FetchJob) else "uploading to"
        if result.status == jobs.UNUSABLE:
            self._disable(result.reason)
        elif result.status in (jobs.FAILED, jobs.TIMED_OUT):
            logger.info("%s S3 failed: %s", what, result.reason)
            timed_out = result.status == jobs.TIMED_OUT
            if breaker.failed(timed_out):
                logger.warning(
                    "%s bucket %s failed repeatedly, going on without it for %d s at a time: %s",
                    what, self._options.bucket, breaker.pause_s, result.reason,
                )
                self._give_up(type(job))
                if timed_out and isinstance(job, jobs.FetchJob):
                    self._breakers[jobs.UploadJob].trip()  # it would hang as well
                    self._give_up(jobs.UploadJob)
        else:
            if result.status in (jobs.DAMAGED, jobs.LOCAL):
                logger.info("%s S3: %s", what, result.reason)
            if breaker.succeeded():
                logger.info("%s bucket %s works again", what, self._options.bucket)

    def _lost(self, worker) -> None:
        """A worker died: answer its fetches, give its uploads to another, count."""
        fd = worker.connection.fileno()
        self._poll.unregister(fd)
        del self._workers[fd]
        worker.connection.close()
        worker.process.kill()
        worker.process.join()
        logger.info("worker %d died with %d jobs", worker.process.pid, len(worker.jobs))
        self._deaths += 1
        for breaker in self._breakers.values():
            if breaker.state == HALF_OPEN:
                breaker.failed()  # the probe may have been among its jobs
        for job in worker.jobs.values():
            self._running[type(job)] -= 1
            tries = self._tries[job.number] = self._tries.get(job.number, 0) + 1
            if isinstance(job, jobs.UploadJob) and tries < UPLOAD_TRIES:
                self._queues[jobs.UploadJob].appendleft(job)
            else:
                self._tries.pop(job.number)
                self._skip(job, "the worker died", jobs.LOST)
        if self._deaths >= DEATHS_TO_GIVE_UP:
            self._disable("its workers keep dying")

    def _disable(self, reason: str) -> None:
        """Give S3 up for this session, with the one warning about it."""
        if self._disabled is None:
            self._disabled = reason
            logger.warning("bucket %s is not used: %s", self._options.bucket, reason)
            self._report(jobs.Disabled(reason))
            self._give_up(jobs.FetchJob)
            self._give_up(jobs.UploadJob)

    def _give_up(self, kind) -> None:
        """Answer all jobs of a kind; those under way go on, with nobody waiting for them."""
        queue = self._queues[kind]
        while queue:
            self._skip(queue.popleft(), "S3 is turned off")
        for worker in self._workers.values():
            for job in worker.jobs.values():
                if isinstance(job, kind):
                    self._skip(job, "S3 is turned off")
                    self._answered.add(job.number)

    def _skip(self, job, reason, status=jobs.SKIPPED) -> None:
        failed = jobs.fetch_failed if isinstance(job, jobs.FetchJob) else jobs.upload_failed
        if job.number in self._answered:
            self._answered.discard(job.number)
        else:
            self._report(failed(job, status, reason))

    def _report(self, message) -> None:
        if not self._sender.send(jobs.pack(message)):
            self._poll.register(self._sender.fd, select.POLLOUT)

    def _flush(self) -> None:
        if self._sender.flush():
            self._poll.unregister(self._sender.fd)
