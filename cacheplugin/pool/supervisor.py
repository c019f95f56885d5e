"""The pool process: takes the front's jobs, has worker processes do them, supervises those.

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

from .. import log
from ..breaker import HALF_OPEN, OPEN, Breaker
from ..errors import Unusable
from ..ipc import channel, jobs
from ..options import Options
from ..remote import layouts
from ..store.cache import LocalCache
from ..store.tree import Store
from .worker import work

logger = logging.getLogger(__name__)

MAX_WORKERS = 8
BUSY_JOBS = 4  # a worker with fewer jobs than this gets the next one; else another is forked
UPLOAD_TRIES = 3
_WEIGHTY = (jobs.BundleJob, jobs.ManifestJob)  # one task for many puts
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
        self.tasks = {}  # number: task, of those it has


class _Files:
    """The plan of tasks that belong to no session: each is the front's own job."""

    def __init__(self, pool) -> None:
        self._pool = pool

    def done(self, _, result) -> None:
        self._pool.report(result)


class Supervisor:
    """Between one front and its workers. The first message on ``receiver`` is the configuration.

    The plans of the layout (remote/plan.py), one for the sessions of the same scopes, say what to do:
    a plan gets the front's jobs, gives tasks for workers to ``submit``, hears how each ended, and
    ``report``s to the front.
    """

    def __init__(self, receiver, sender) -> None:
        self._receiver = receiver
        self._sender = sender
        self._poll = select.poll()
        self._poll.register(receiver.fd, select.POLLIN)
        self._options = None
        self._store = None
        self._remote = None
        self._plans = []  # those that are not over
        self._latest = {}  # scopes: the plan for sessions that begin
        self._plan_of = {}  # number of a session that has not ended: its plan
        self._owners = {}  # number of a task: its plan
        self._files = _Files(self)
        self._workers = {}  # descriptor of its connection: _Worker
        self._queues = {jobs.FETCHING: deque(), jobs.UPLOADING: deque()}
        self._running = dict.fromkeys(self._queues, 0)
        self._breakers = {direction: Breaker() for direction in self._queues}
        self._answered = set()  # numbers of tasks under way whose outcome nobody waits for
        self._tries = {}  # number of an uploading task: workers that died with it
        self._deaths = 0
        self._disabled = None
        self._warned = False  # that a bundle or manifest was not uploaded
        self._sending = False  # whether the pipe to the front is full

    def run(self) -> None:
        """Serve until the front is gone."""
        try:
            while True:
                for fd, event in self._poll.poll(self._timeout_ms()):
                    if fd == self._receiver.fd:
                        for message in self._receiver.receive():
                            self._take(message)
                    elif fd in self._workers:
                        self._hear(self._workers[fd])
                self._attend_plans()
                self._dispatch()
                self._flush()
        except (EOFError, BrokenPipeError):
            for worker in self._workers.values():
                worker.process.kill()
            for plan in self._plans:
                plan.stop()

    def _timeout_ms(self):
        ends = [plan.timeout_s() for plan in self._plans]
        return min((end * 1000 + 1 for end in ends if end is not None), default=None)

    def _attend_plans(self) -> None:
        """Let them do what time brings, and let go of those that nobody needs."""
        for plan in [*self._plans]:
            plan.on_time()
            if plan.is_over:
                plan.stop()
                self._plans.remove(plan)
                if self._latest.get(plan.scopes) is plan:
                    del self._latest[plan.scopes]

    def _take(self, message) -> None:
        if self._options is None:
            self._configure(message)
            return
        job = jobs.unpack(message)
        if isinstance(job, jobs.BeginJob):
            self._begin(job)
            return
        if isinstance(job, jobs.StatusJob):
            self.report(self._status())
            return
        if isinstance(job, (jobs.FileFetchJob, jobs.FileUploadJob)):
            self.submit(self._files, job)
            return
        plan = self._plan_of.get(job.session)
        if plan is None:  # one that a front sends again after the end of its session
            if not isinstance(job, jobs.PrefetchJob):
                self.report(job.failed(jobs.SKIPPED, "its session has ended"))
            return
        if isinstance(job, jobs.FetchJob):
            plan.fetch(job)
        elif isinstance(job, jobs.UploadJob):
            plan.upload(job)
        elif isinstance(job, jobs.FinishJob):
            del self._plan_of[job.session]
            plan.finish(job)
        else:
            plan.prefetch()

    def _status(self) -> jobs.PoolStatus:
        return jobs.PoolStatus(
            {direction: len(queue) for direction, queue in self._queues.items()},
            dict(self._running),
            len(self._workers),
            {direction: breaker.state for direction, breaker in self._breakers.items()},
        )

    def _begin(self, job) -> None:
        logger.info("session %d: scope %s", job.session, ", else ".join(job.scopes) or "(none)")
        scopes = tuple(job.scopes)
        plan = self._latest.get(scopes)
        if plan is None or not plan.is_open:
            plan = layouts.make_plan(self._options, self, self._store, scopes)
            self._plans.append(plan)
            self._latest[scopes] = plan
        self._plan_of[job.session] = plan
        plan.begin(job.session)

    def _configure(self, message) -> None:
        (fields,) = message
        self._options = options = Options(**fields)
        os.umask(0o022)
        log.setup(self._options)
        self._store = Store(options.cache_dir)
        try:
            self._remote = layouts.connect(options, LocalCache(self._store, spill=False))
        except Unusable as error:
            self._disable(str(error))

    # -- out to the workers ------------------------------------------------------------------------

    def submit(self, plan, task) -> None:
        """Have a worker do a task of the plan's, later."""
        self._owners[task.number] = plan
        self._queues[task.direction()].append(task)

    def _dispatch(self) -> None:
        fetches, uploads = self._queues[jobs.FETCHING], self._queues[jobs.UPLOADING]
        options, running = self._options, self._running
        while True:
            if fetches and running[jobs.FETCHING] < options.fetches_at_once:
                self._start(fetches.popleft())
            elif uploads and not fetches and running[jobs.UPLOADING] < options.uploads_at_once:
                self._start(uploads.popleft())
            else:
                break

    def _start(self, task) -> None:
        if self._disabled is not None:
            self._skip(task, self._disabled)
            return
        direction = task.direction()
        verdict = self._breakers[direction].admit()
        if verdict == OPEN:
            self._skip(task, "S3 is turned off after failures")
            return
        if verdict == HALF_OPEN and direction == jobs.FETCHING:
            # Whether S3 is back is worth finding out, but no build has to wait for it.
            self._skip(task, "S3 is being tried again")
            self._answered.add(task.number)
        worker = self._choose_worker()
        worker.tasks[task.number] = task
        self._running[direction] += 1
        try:
            worker.connection.send_bytes(marshal.dumps(jobs.pack(task)))
        except OSError:
            self._lost(worker)

    def _choose_worker(self) -> _Worker:
        if self._workers:
            idlest = min(self._workers.values(), key=lambda worker: len(worker.tasks))
            most = min(os.cpu_count() or 1, MAX_WORKERS)
            if len(idlest.tasks) < BUSY_JOBS or len(self._workers) >= most:
                return idlest
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        inherited = [self._receiver.fd, self._sender.fd, ours.fileno(), *self._workers]
        process = context.Process(
            target=work, args=(theirs, self._remote, self._options, inherited), daemon=True
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
        task = worker.tasks.pop(result.number)
        self._running[task.direction()] -= 1
        self._judge(task, result)
        self._tries.pop(task.number, None)
        self._end(task, result)

    def _end(self, task, result) -> None:
        """Tell the plan how a task ended, once."""
        if task.number in self._answered:
            self._answered.discard(task.number)
        else:
            self._owners.pop(task.number).done(task, result)

    def _judge(self, task, result) -> None:
        """Let the breaker learn from a result, and warn once when it opens."""
        direction = task.direction()
        breaker = self._breakers[direction]
        if result.status == jobs.UNUSABLE:
            self._disable(result.reason)
        elif result.status in (jobs.FAILED, jobs.TIMED_OUT):
            logger.info("%s S3 failed: %s", direction, result.reason)
            timed_out = result.status == jobs.TIMED_OUT
            opened = breaker.failed(timed_out)
            if not opened and isinstance(task, _WEIGHTY) and not self._warned:
                self._warned = True  # so few of these are made that the breaker may never open
                logger.warning(
                    "%s bucket %s failed, what is not there stays for a later upload: %s",
                    direction,
                    self._options.bucket,
                    result.reason,
                )
            if opened:
                logger.warning(
                    "%s bucket %s failed repeatedly, going on without it for %d s at a time: %s",
                    direction,
                    self._options.bucket,
                    breaker.pause_s,
                    result.reason,
                )
                self._give_up(direction)
                if timed_out and direction == jobs.FETCHING:
                    self._breakers[jobs.UPLOADING].trip()  # it would hang as well
                    self._give_up(jobs.UPLOADING)
        else:
            if result.status in (jobs.DAMAGED, jobs.LOCAL):
                logger.info("%s S3: %s", direction, result.reason)
            if breaker.succeeded():
                logger.info("%s bucket %s works again", direction, self._options.bucket)

    def _lost(self, worker) -> None:
        """A worker died: answer its fetches, give its uploads to another, count."""
        fd = worker.connection.fileno()
        self._poll.unregister(fd)
        del self._workers[fd]
        worker.connection.close()
        worker.process.kill()
        worker.process.join()
        logger.info("worker %d died with %d tasks", worker.process.pid, len(worker.tasks))
        self._deaths += 1
        for breaker in self._breakers.values():
            if breaker.state == HALF_OPEN:
                breaker.failed()  # the probe may have been among its tasks
        for task in worker.tasks.values():
            direction = task.direction()
            self._running[direction] -= 1
            tries = self._tries[task.number] = self._tries.get(task.number, 0) + 1
            if direction == jobs.UPLOADING and tries < UPLOAD_TRIES:
                self._queues[direction].appendleft(task)
            else:
                self._tries.pop(task.number)
                self._skip(task, "the worker died", jobs.LOST)
        if self._deaths >= DEATHS_TO_GIVE_UP:
            self._disable("its workers keep dying")

    def _disable(self, reason: str) -> None:
        """Give S3 up for this session, with the one warning about it."""
        if self._disabled is None:
            self._disabled = reason
            logger.warning("bucket %s is not used: %s", self._options.bucket, reason)
            self.report(jobs.Disabled(reason))
            for direction in self._queues:
                self._give_up(direction)

    def _give_up(self, direction) -> None:
        """Answer all tasks of a direction; those under way go on, with nobody waiting for them."""
        queue = self._queues[direction]
        while queue:
            self._skip(queue.popleft(), "S3 is turned off")
        for worker in self._workers.values():
            for task in worker.tasks.values():
                if task.direction() == direction and task.number not in self._answered:
                    self._skip(task, "S3 is turned off")
                    self._answered.add(task.number)

    def _skip(self, task, reason, status=jobs.SKIPPED) -> None:
        self._end(task, task.failed(status, reason))

    def report(self, message) -> None:
        """Tell the front, at the end of this turn of the loop."""
        self._sender.queue(jobs.pack(message))

    def _flush(self) -> None:
        """Send what was reported; what the pipe does not take waits until it does."""
        waits = not self._sender.flush()
        if waits:
            self._poll.register(self._sender.fd, select.POLLOUT)
        elif self._sending:
            self._poll.unregister(self._sender.fd)
        self._sending = waits
