"""The front's end of the pool: starts its process, sends jobs, receives results, restarts it.

The process gets three pipes: jobs on stdin, results on stdout, its log on stderr. So it holds no
descriptor of the go command's, and ends with the front, when its stdin ends. Pipes, because a
socket pair would make the front import socket; posix_spawn, as subprocess takes 8 ms to import.
"""

import os

from ..ipc import channel, jobs
from ..ipc.spawn import spawn
from ..loop import READABLE, WRITABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from ..loop import Loop
    from ..store.spool import Entry

_NOTICES = (jobs.Disabled, jobs.Failed, jobs.Expected, jobs.Transferred, jobs.PoolStatus)
MAX_STARTS = 3  # after so many the pool is given up


class _Session:
    """A session that the next pool would have to know.

    ``begin``: its BeginJob; ``uploads``: the number of its unanswered uploads; ``has_ended``: its
    FinishJob has been answered.
    """

    __slots__ = ("begin", "has_ended", "uploads")

    def __init__(self, begin: jobs.BeginJob) -> None:
        self.begin, self.uploads, self.has_ended = begin, 0, False


class PoolClient:
    """Runs in the Loop of its process. ``configuration`` is the first message to each pool.

    ``on_message(message)`` gets each result and notice; ``before_log()`` is called before a pool's
    log is copied to stderr. When a pool dies its fetches are answered with LOST and its uploads are
    sent to the next pool. Every job but those for files belongs to a session that has begun.
    """

    def __init__(
        self,
        configuration: "tuple[dict[str, Any]]",
        loop: "Loop",
        on_message: "Callable[[jobs.JobResult | jobs.Notice], None]",
        before_log: "Callable[[], object] | None" = None,
    ) -> None:
        self.alive = True  # False once it is closed, or its processes died too often
        self.process_id = 0
        self._configuration = configuration
        self._loop = loop
        self._on_message = on_message
        self._before_log = before_log
        # Unanswered jobs by number. All files are in _fetches: they are not sent again.
        self._fetches: dict[int, jobs.FetchJob | jobs.FileFetchJob | jobs.FileUploadJob] = {}
        self._uploads: dict[int, jobs.UploadJob | jobs.FinishJob] = {}
        self._sessions: dict[int, _Session] = {}
        self._number = 0  # of the last job or session
        self._starts = 0
        self._start()

    @property
    def uploads_pending(self) -> int:
        """The number of unanswered uploads and finishes."""
        return len(self._uploads)

    def begin(self, scopes: "Sequence[str]") -> int:
        """A session with these scopes begins; returns its number."""
        job = jobs.BeginJob(self._next_number(), scopes)
        self._sessions[job.session] = _Session(job)
        self._send(jobs.pack(job))
        return job.session

    def fetch(self, session: int, action: str) -> int:
        """Fetch an action; returns the number of its FetchResult."""
        return self._send_fetch(jobs.FetchJob(self._next_number(), action, session))

    def upload(
        self, session: int, entry: "Entry", recovered: bool = False, replace: bool = False
    ) -> int:
        """Upload an entry of the spool; returns the number of its UploadResult.

        ``recovered`` and ``replace`` as in UploadJob.
        """
        job = jobs.UploadJob(
            self._next_number(),
            entry.action,
            entry.output,
            entry.size,
            entry.time_ns,
            entry.path,
            recovered,
            replace,
            session,
        )
        return self._send_upload(job)

    def prefetch(self, session: int) -> None:
        """Fetch what the session will ask for, if the layout knows it."""
        self._send(jobs.pack(jobs.PrefetchJob(session)))

    def finish(self, session: int, used: "Sequence[str] | None") -> int:
        """A session has ended; returns the number of the FinishResult.

        It comes once everything is written. ``used``: the actions that the session used, for its
        manifest; None if it writes none.
        """
        return self._send_upload(jobs.FinishJob(self._next_number(), used, session))

    def fetch_file(self, key: str, path: str, limit: int) -> int:
        """Write an object of at most ``limit`` bytes to a file; returns its FileResult's number."""
        return self._send_fetch(jobs.FileFetchJob(self._next_number(), key, path, limit))

    def upload_file(self, key: str, path: str, replace: bool) -> int:
        """Upload a file; returns the number of its FileResult."""
        return self._send_fetch(jobs.FileUploadJob(self._next_number(), key, path, replace))

    def _send_fetch(self, job: "jobs.FetchJob | jobs.FileFetchJob | jobs.FileUploadJob") -> int:
        self._fetches[job.number] = job
        self._send(jobs.pack(job))
        return job.number

    def _send_upload(self, job: "jobs.UploadJob | jobs.FinishJob") -> int:
        self._uploads[job.number] = job
        self._sessions[job.session].uploads += 1
        self._send(jobs.pack(job))
        return job.number

    def ask_status(self) -> None:
        """Ask for a PoolStatus, which ``on_message`` gets."""
        self._send(jobs.pack(jobs.StatusJob()))

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _send(self, message: "tuple[Any, ...]") -> None:
        try:
            sent = self._sender.send(message)
        except OSError:
            return  # the pool has died: _on_results will read the end of its results
        if not sent:
            self._loop.watch(self._sender.fd, WRITABLE, self._flush)

    def _flush(self, _events: int) -> None:
        try:
            if self._sender.flush():
                self._loop.unwatch(self._sender.fd)
        except OSError:
            self._loop.unwatch(self._sender.fd)

    def _start(self) -> None:
        """Start a pool process and tell it the sessions; raises OSError."""
        self._starts += 1
        pipes: list[tuple[int, int]] = []
        try:
            for _ in range(3):
                pipes.append(os.pipe())
            (jobs_out, jobs_in), (results_out, results_in), (log_out, log_in) = pipes
            child_fds = (jobs_out, results_in, log_in)
            self.process_id = spawn(
                "cacheplugin.pool.supervisor",
                "",
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, at) for at, fd in enumerate(child_fds)],
            )
        except OSError:
            for fd in (fd for pair in pipes for fd in pair):
                os.close(fd)
            raise
        for fd in child_fds:
            os.close(fd)
        self._log_fd = log_out
        os.set_blocking(log_out, False)
        self._sender, self._receiver = channel.Sender(jobs_in), channel.Receiver(results_out)
        self._loop.watch(results_out, READABLE, self._on_results)
        self._loop.watch(self._log_fd, READABLE, self._copy_log)
        self._send(self._configuration)
        for session in self._sessions.values():
            self._send(jobs.pack(session.begin))

    def _on_results(self, _events: int) -> None:
        try:
            messages = self._receiver.receive()
        except (EOFError, OSError):
            self._on_death()
            return
        self._copy_log(0)  # first: a result may end the session, and with it this process
        for fields in messages:
            message: jobs.JobResult | jobs.Notice = jobs.unpack(fields)
            if isinstance(message, _NOTICES) or self._fetches.pop(message.number, None) is not None:
                self._on_message(message)
            elif (job := self._uploads.pop(message.number, None)) is not None:
                session = self._sessions[job.session]
                session.uploads -= 1
                session.has_ended |= isinstance(job, jobs.FinishJob)
                if session.has_ended and not session.uploads:
                    del self._sessions[job.session]
                self._on_message(message)

    def _copy_log(self, _events: int) -> None:
        """Write what the pool has logged to stderr."""
        try:
            data = os.read(self._log_fd, 65536)
            if not data:
                self._loop.unwatch(self._log_fd)
            elif self._before_log is not None:
                self._before_log()
            os.write(2, data)
        except OSError:
            pass

    def _on_death(self) -> None:
        """The pool has died: answer its fetches, and start another one for its uploads."""
        self._copy_log(0)
        self.close()
        os.waitpid(self.process_id, 0)
        try:
            self.alive = self._starts < MAX_STARTS
            if self.alive:
                self._start()
        except OSError:
            self.alive = False
        if not self.alive:
            self._on_message(jobs.Disabled("its pool process keeps dying; check the memory limit"))
        lost: list[jobs.Job] = [*self._fetches.values()]
        self._fetches.clear()
        if self.alive:
            self._on_message(jobs.Failed("its pool process died", False))
            for job in self._uploads.values():
                if isinstance(job, jobs.UploadJob):  # maybe done, and followed by a later put
                    job = job._replace(recovered=True)
                self._send(jobs.pack(job))
            for number, session in self._sessions.items():
                if session.has_ended:
                    # The new pool must write the last bundle of its uploads, without a manifest.
                    self._send(jobs.pack(jobs.FinishJob(self._next_number(), [], number)))
        else:
            lost += self._uploads.values()
            self._uploads.clear()
        # Last, because a callback may send more jobs.
        self._answer_lost(lost)

    def abandon(self) -> None:
        """Let the pool end, and answer with LOST what it has not answered."""
        self.close()
        lost: list[jobs.Job] = [*self._fetches.values(), *self._uploads.values()]
        self._fetches.clear()
        self._uploads.clear()
        self._answer_lost(lost)

    def _answer_lost(self, lost: "Iterable[jobs.Job]") -> None:
        for job in lost:
            self._on_message(job.failed(jobs.LOST))

    def close(self) -> None:
        """Let the pool and its workers end, by closing the pipes. No-op if it is not alive."""
        if not self.alive:
            return
        self.alive = False
        for fd in (self._sender.fd, self._receiver.fd, self._log_fd):
            self._loop.unwatch(fd)
            os.close(fd)
