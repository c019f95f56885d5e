"""The pool process: receives jobs of the front, has worker processes do them, sends results.

pool/client.py starts it with three pipes: jobs on stdin, results on stdout, its log on stderr. It
imports botocore once and forks workers from there. It has one thread, with one poll loop. When
stdin ends, the supervisor and its workers end.
"""

from __future__ import annotations

import logging
import marshal
import os
import select
import signal
from collections import deque
from typing import TYPE_CHECKING

from .. import log
from ..breaker import HALF_OPEN, OPEN, Breaker
from ..errors import LOCAL_TROUBLE, Unusable, reason_of
from ..ipc import channel, jobs
from ..options import Options
from ..remote import layouts
from ..store.cache import LocalCache
from ..store.tree import Store
from .owners import FileJobs, UnreadableBodies, UploadOrder
from .workers import Worker, fork_worker

if TYPE_CHECKING:
    from typing import Any

    from ..remote.contracts import TaskOwner
    from ..remote.plan import Plan

logger = logging.getLogger(__name__)

MAX_WORKERS = 8
BUSY_TASKS = 4  # a worker with fewer tasks gets the next one; if all have more, one is forked
UPLOAD_TRIES = 3  # workers that an upload is given to, each after the death of the one before
DEATHS_TO_GIVE_UP = 3  # deaths of workers in a row, without a result between them
_MULTI_PUT_TASKS = (jobs.BundleJob, jobs.ManifestJob)


def main(_: str) -> None:
    """Run until stdin ends."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))  # ipc.spawn blocks it
    results = os.dup(1)
    os.dup2(2, 1)
    receiver, sender = channel.Receiver(os.dup(0)), channel.Sender(results)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    Supervisor(receiver, sender).run()
    # Without clean-up, which would wait for workers; they see the end of their connections.
    os._exit(0)


class Supervisor:
    """Stands between one front and the workers. The first message is the configuration.

    Plans of the layout (remote/plan.py) decide what to do. Sessions with the same scopes share a
    plan. A plan receives the front's jobs, submits tasks for workers (``submit``), receives their
    results, and sends results to the front (``report``).
    """

    def __init__(self, receiver: channel.Receiver, sender: channel.Sender) -> None:
        self._receiver = receiver
        self._sender = sender
        self._poll = select.poll()
        self._poll.register(receiver.fd, select.POLLIN)
        self._is_configured = False  # then _options, _store and _remote are set
        self._options = Options()
        self._store: Store
        self._remote: layouts.Remote | None = None  # None if the bucket is unusable
        self._plans: list[Plan] = []  # until they are over
        self._latest: dict[tuple[str, ...], Plan] = {}  # by scopes: which new sessions join
        self._plan_of: dict[int, Plan] = {}  # by session, until it ends
        self._owners: dict[int, TaskOwner] = {}  # by number of the task
        self._file_jobs = FileJobs(self.report)
        self._workers: dict[int, Worker] = {}  # by descriptor of the connection
        self._queues: dict[str, deque[jobs.Task]] = {
            jobs.FETCHING: deque(),
            jobs.UPLOADING: deque(),
        }
        self._upload_order = UploadOrder(self._queue)
        self._unreadable = UnreadableBodies()
        self._running = dict.fromkeys(self._queues, 0)
        self._breakers = {direction: Breaker() for direction in self._queues}
        self._answered: set[int] = set()  # running tasks whose owner already has a result
        self._tries: dict[int, int] = {}  # by task: workers that died while they had it
        self._deaths = 0  # of workers, since the last result
        self._disabled: str | None = None  # why the bucket is not used any more
        self._warned = False  # about a bundle or manifest that was not uploaded
        self._watches_sender = False  # the pipe to the front is full

    def run(self) -> None:
        """Serve until the front closes its pipe."""
        try:
            while True:
                for fd, _ in self._poll.poll(self._timeout_ms()):
                    if fd == self._receiver.fd:
                        for message in self._receiver.receive():
                            self._on_message(message)
                    elif fd in self._workers:
                        self._on_result(self._workers[fd])
                self._run_plans()
                self._dispatch()
                self._flush()
        except (EOFError, BrokenPipeError):
            for worker in self._workers.values():
                worker.process.kill()
            for plan in self._plans:
                plan.stop()

    def _timeout_ms(self) -> float | None:
        ends = [plan.timeout_s() for plan in self._plans]
        return min((end * 1000 + 1 for end in ends if end is not None), default=None)

    def _run_plans(self) -> None:
        """Let plans do what is due; drop those that are over."""
        for plan in [*self._plans]:
            plan.on_time()
            if plan.is_over:
                plan.stop()
                self._plans.remove(plan)
                if self._latest.get(plan.scopes) is plan:
                    del self._latest[plan.scopes]

    def _on_message(self, message: tuple[Any, ...]) -> None:
        if not self._is_configured:
            self._configure(message)
            return
        job: jobs.Job | jobs.Order = jobs.unpack(message)
        if isinstance(job, jobs.BeginJob):
            self._begin(job)
            return
        if isinstance(job, jobs.StatusJob):
            self.report(self._status())
            return
        if isinstance(job, (jobs.FileFetchJob, jobs.FileUploadJob)):
            self.submit(self._file_jobs, job)
            return
        plan = self._plan_of.get(job.session)
        if plan is None:  # a front may send jobs again after the end of their session
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
            max(
                (one.off_s for one in self._breakers.values() if one.off_s is not None),
                default=None,
            ),
        )

    def _begin(self, job: jobs.BeginJob) -> None:
        logger.info("session %d: scope %s", job.session, ", else ".join(job.scopes) or "(none)")
        scopes = tuple(job.scopes)
        plan = self._latest.get(scopes)
        if plan is None or not plan.is_open:
            plan = layouts.make_plan(self._options, self, self._store, scopes)
            self._plans.append(plan)
            self._latest[scopes] = plan
        self._plan_of[job.session] = plan
        plan.begin(job.session)

    def _configure(self, message: tuple[Any, ...]) -> None:
        (fields,) = message
        self._is_configured = True
        self._options = Options(**fields)
        os.umask(0o022)
        log.setup(self._options)
        self._store = Store(self._options.cache_dir)
        try:
            self._remote = layouts.connect(self._options, LocalCache(self._store, spill=False))
        except Unusable as error:
            self._disable(str(error), refused=True)

    # -- tasks to workers --------------------------------------------------------------------------

    def submit(self, owner: TaskOwner, task: jobs.Task) -> None:
        """Queue a task for a worker; ``owner.done`` gets its result, later."""
        if isinstance(task, jobs.UploadJob):
            self._upload_order.submit(owner, task)
        else:
            self._queue(owner, task)

    def _queue(self, owner: TaskOwner, task: jobs.Task) -> None:
        self._owners[task.number] = owner
        self._queues[task.direction()].append(task)

    def _dispatch(self) -> None:
        """Start queued tasks up to the limits; uploads only while no fetch is queued."""
        fetches, uploads = self._queues[jobs.FETCHING], self._queues[jobs.UPLOADING]
        options, running = self._options, self._running
        while True:
            if fetches and running[jobs.FETCHING] < options.fetches_at_once:
                self._start(fetches.popleft())
            elif uploads and not fetches and running[jobs.UPLOADING] < options.uploads_at_once:
                self._start(uploads.popleft())
            else:
                break

    def _start(self, task: jobs.Task) -> None:
        if self._disabled is not None:
            self._skip(task, self._disabled)
            return
        direction = task.direction()
        verdict = self._breakers[direction].admit()
        if verdict == OPEN:
            self._skip(task, "S3 is turned off after failures")
            return
        if verdict == HALF_OPEN and direction == jobs.FETCHING:
            # The fetch runs as the probe, but the build must not wait for what may time out.
            self._skip(task, "S3 is being tried again")
            self._answered.add(task.number)
        worker = self._choose_worker()
        if worker is None:
            self._skip(task, "no worker process can be started")
            return
        worker.tasks[task.number] = task
        self._running[direction] += 1
        try:
            worker.connection.send_bytes(marshal.dumps(jobs.pack(task)))
        except OSError:
            self._on_worker_death(worker)

    def _choose_worker(self) -> Worker | None:
        """The least busy worker; a new one if all are busy and there may be more.

        None if there is none and none can be started. The bucket is then not used any more.
        """
        idlest = min(self._workers.values(), key=lambda worker: len(worker.tasks), default=None)
        if idlest is not None:
            limit = min(os.cpu_count() or 1, MAX_WORKERS)
            if len(idlest.tasks) < BUSY_TASKS or len(self._workers) >= limit:
                return idlest
        inherited = [self._receiver.fd, self._sender.fd, *self._workers]
        try:
            worker = fork_worker(self._remote, self._options, inherited)
        except LOCAL_TROUBLE as error:
            reason = f"no worker process can be started: {reason_of(error)}; see ulimit -a"
            logger.info("%s", reason)
            if idlest is None:
                self._disable(reason)
            return idlest
        self._workers[worker.connection.fileno()] = worker
        self._poll.register(worker.connection.fileno(), select.POLLIN)
        logger.debug("worker %d started", worker.process.pid)
        return worker

    # -- results from workers ----------------------------------------------------------------------

    def _on_result(self, worker: Worker) -> None:
        """Receive a result; the end of the connection means that the worker has died."""
        try:
            data = worker.connection.recv_bytes()
        except (EOFError, OSError):
            self._on_worker_death(worker)
            return
        result: jobs.TaskResult = jobs.unpack(marshal.loads(data))  # noqa: S302 - from our child
        self._deaths = 0
        task = worker.tasks.pop(result.number)
        self._running[task.direction()] -= 1
        self._update_breaker(task, result)
        self._tries.pop(task.number, None)
        self._finish_task(task, result)

    def _finish_task(self, task: jobs.Task, result: jobs.TaskResult) -> None:
        """Give the owner of a task its result, unless it already has one."""
        if task.number in self._answered:
            self._answered.discard(task.number)
        else:
            self._owners.pop(task.number).done(task, result)

    def _update_breaker(self, task: jobs.Task, result: jobs.TaskResult) -> None:
        """Note a success or failure of S3; log one warning when the breaker opens."""
        direction = task.direction()
        breaker = self._breakers[direction]
        if result.status == jobs.UNUSABLE:
            self._disable(result.reason, refused=True)
        elif result.status in (jobs.FAILED, jobs.TIMED_OUT):
            logger.info("%s S3 failed: %s", direction, result.reason)
            timed_out, told = result.status == jobs.TIMED_OUT, True
            if breaker.failed(timed_out):
                self._on_breaker_open(direction, timed_out, result.reason)
            elif isinstance(task, _MULTI_PUT_TASKS) and not self._warned:
                # A session has so few of these tasks that the breaker may never open.
                self._warned = True
                logger.warning(
                    "%s bucket %s failed, entries stay in the spool for a later upload: %s",
                    direction,
                    self._options.bucket,
                    result.reason,
                )
            else:
                told = False
            self.report(jobs.Failed(result.reason, told))
        else:
            if result.status in (jobs.DAMAGED, jobs.LOCAL):
                logger.info("%s S3: %s", direction, result.reason)
            if result.status == jobs.LOCAL and direction == jobs.FETCHING:
                self.report(jobs.Failed(result.reason, False))
            if breaker.succeeded():
                logger.info("%s bucket %s works again", direction, self._options.bucket)

    def _on_breaker_open(self, direction: str, timed_out: bool, reason: str) -> None:
        logger.warning(
            "%s bucket %s failed repeatedly, continuing without it for %d s at a time: %s",
            direction,
            self._options.bucket,
            self._breakers[direction].pause_s,
            reason,
        )
        self._give_up(direction)
        if timed_out and direction == jobs.FETCHING:
            self._breakers[jobs.UPLOADING].trip()  # uploads would time out as well
            self._give_up(jobs.UPLOADING)

    def _on_worker_death(self, worker: Worker) -> None:
        """A worker died: answer its fetches, queue its uploads again, count the death."""
        fd = worker.connection.fileno()
        self._poll.unregister(fd)
        del self._workers[fd]
        worker.connection.close()
        worker.process.kill()
        worker.process.join()
        logger.info("worker %d died with %d tasks", worker.process.pid, len(worker.tasks))
        self._deaths += 1
        self.report(jobs.Failed("a worker process died", False))
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
            self._disable("its worker processes keep dying; check the memory limit")

    def _disable(self, reason: str, refused: bool = False) -> None:
        """Stop using the bucket for all sessions of this pool; log one warning.

        ``refused`` as in Disabled.
        """
        if self._disabled is None:
            self._disabled = reason
            logger.warning("bucket %s is not used: %s", self._options.bucket, reason)
            self.report(jobs.Disabled(reason, refused))
            for direction in self._queues:
                self._give_up(direction)

    def _give_up(self, direction: str) -> None:
        """Answer all tasks of a direction; running ones continue, and their results are ignored."""
        queue = self._queues[direction]
        while queue:
            self._skip(queue.popleft(), "S3 is turned off")
        for worker in self._workers.values():
            for task in worker.tasks.values():
                if task.direction() == direction and task.number not in self._answered:
                    self._skip(task, "S3 is turned off")
                    self._answered.add(task.number)

    def _skip(self, task: jobs.Task, reason: str, status: str = jobs.SKIPPED) -> None:
        self._finish_task(task, task.failed(status, reason))

    def report(self, message: jobs.Message) -> None:
        """Queue a message to the front; it is sent at the end of this turn of the loop."""
        self._unreadable.note(message)
        self._sender.queue(jobs.pack(message))

    def _flush(self) -> None:
        """Send queued messages; watch the pipe while it does not take them all."""
        is_full = not self._sender.flush()
        if is_full:
            self._poll.register(self._sender.fd, select.POLLOUT)
        elif self._watches_sender:
            self._poll.unregister(self._sender.fd)
        self._watches_sender = is_full
