"""The front's end of the pool: starts the process, sends jobs, hears results, supervises.

The pool gets three pipes: jobs on its stdin, results on its stdout, its log on its stderr. So it
holds nothing of the go command's, and dies with the front by the end of its stdin. (Pipes, because
a socket pair would make the front import socket; posix_spawn for the same reason.)
"""

import os

from ..ipc import channel, jobs
from ..ipc.spawn import spawn
from ..loop import READABLE, WRITABLE

STARTS = 3  # a pool that died this often is not started again in this session


class _Session:
    """``begin``: its BeginJob; ``uploads``: how many it has; ``has_ended``: its end is answered."""

    __slots__ = ("begin", "has_ended", "uploads")

    def __init__(self, begin) -> None:
        self.begin, self.uploads, self.has_ended = begin, 0, False


class PoolClient:
    """Lives in the loop.Loop of its process; ``configuration`` is what the pool gets first.

    ``on_message(message)`` gets each result; a job whose pool died is answered LOST, or, where it is
    an upload, sent again to the next pool. Every job belongs to a session that has begun.
    """

    def __init__(self, configuration, loop, on_message) -> None:
        self.alive = True  # False once it has died for good
        self.process_id = None
        self._configuration = configuration
        self._loop = loop
        self._on_message = on_message
        # number: job, of those not answered; files are among the fetches, finishes among the uploads
        self._fetches, self._uploads = {}, {}
        self._sessions = {}  # number: _Session, of those a next pool would have to know
        self._number = 0
        self._starts = 0
        self._start()

    @property
    def uploads_pending(self) -> int:
        return len(self._uploads)

    def begin(self, scopes) -> int:
        """A session of these scopes begins; returns its number."""
        job = jobs.BeginJob(self._next(), scopes)
        self._sessions[job.session] = _Session(job)
        self._send(jobs.pack(job))
        return job.session

    def fetch(self, session: int, action: str) -> int:
        """Fetch an action; returns the number its FetchResult will have."""
        job = jobs.FetchJob(self._next(), action, session)
        self._fetches[job.number] = job
        self._send(jobs.pack(job))
        return job.number

    def upload(self, session: int, entry, recovered: bool = False, replace: bool = False) -> int:
        """Upload a spool.Entry; returns the number its UploadResult will have."""
        put = (entry.action, entry.output, entry.size, entry.time_ns, entry.path)
        job = jobs.UploadJob(self._next(), *put, recovered, replace, session)
        return self._send_upload(job)

    def prefetch(self, session: int) -> None:
        """Have what the session will want fetched now, where the layout knows what that is."""
        self._send(jobs.pack(jobs.PrefetchJob(session)))

    def finish(self, session: int, used) -> int:
        """A session has ended; returns the number of the FinishResult, which comes when all is written.

        ``used`` are the actions that it used, None where it is to leave nothing.
        """
        job = jobs.FinishJob(self._next(), used, session)
        return self._send_upload(job)

    def fetch_file(self, key: str, path: str, limit: int) -> int:
        """Have an object of at most ``limit`` bytes written to a file; returns the FileResult's number."""
        return self._send_file(jobs.FileFetchJob(self._next(), key, path, limit))

    def upload_file(self, key: str, path: str, replace: bool) -> int:
        """Upload a file; returns the number of the FileResult."""
        return self._send_file(jobs.FileUploadJob(self._next(), key, path, replace))

    def _send_file(self, job) -> int:
        self._fetches[job.number] = job
        self._send(jobs.pack(job))
        return job.number

    def _send_upload(self, job) -> int:
        self._uploads[job.number] = job
        self._sessions[job.session].uploads += 1
        self._send(jobs.pack(job))
        return job.number

    def ask_status(self) -> None:
        """Have a PoolStatus sent."""
        self._send(jobs.pack(jobs.StatusJob()))

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _send(self, message) -> None:
        try:
            sent = self._sender.send(message)
        except OSError:
            return  # the end of the results says the same, and is heard in the loop
        if not sent:
            self._loop.watch(self._sender.fd, WRITABLE, self._flush)

    def _flush(self, _) -> None:
        try:
            if self._sender.flush():
                self._loop.unwatch(self._sender.fd)
        except OSError:
            self._loop.unwatch(self._sender.fd)

    def _start(self) -> None:
        self._starts += 1
        pipes = []
        try:
            for _ in range(3):
                pipes.append(os.pipe())
            (jobs_out, jobs_in), (results_out, results_in), (log_out, log_in) = pipes
            inner = (jobs_out, results_in, log_in)
            self.process_id = spawn(
                "cacheplugin.pool.supervisor",
                "",
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, at) for at, fd in enumerate(inner)],
            )
        except OSError:
            for fd in (fd for pair in pipes for fd in pair):
                os.close(fd)
            raise
        for fd in inner:
            os.close(fd)
        self._log_fd = log_out
        os.set_blocking(log_out, False)
        self._sender, self._receiver = channel.Sender(jobs_in), channel.Receiver(results_out)
        self._loop.watch(results_out, READABLE, self._hear)
        self._loop.watch(self._log_fd, READABLE, self._pass_log)
        self._send(self._configuration)
        for session in self._sessions.values():
            self._send(jobs.pack(session.begin))

    def _hear(self, _) -> None:
        try:
            messages = self._receiver.receive()
        except (EOFError, OSError):
            self._died()
            return
        self._pass_log(0)  # before what it is about may end the session
        for fields in messages:
            message = jobs.unpack(fields)
            if isinstance(
                message, (jobs.Disabled, jobs.Expected, jobs.Transferred, jobs.PoolStatus)
            ) or self._fetches.pop(message.number, None):
                self._on_message(message)
            elif job := self._uploads.pop(message.number, None):
                session = self._sessions[job.session]
                session.uploads -= 1
                session.has_ended |= isinstance(job, jobs.FinishJob)
                if session.has_ended and not session.uploads:
                    del self._sessions[job.session]
                self._on_message(message)

    def _pass_log(self, _) -> None:
        try:
            data = os.read(self._log_fd, 65536)
            if not data:
                self._loop.unwatch(self._log_fd)
            os.write(2, data)
        except OSError:
            pass

    def _died(self) -> None:
        """Answer its fetches and start another pool for its uploads."""
        self._pass_log(0)
        self.close()
        os.waitpid(self.process_id, 0)
        try:
            self.alive = self._starts < STARTS
            if self.alive:
                self._start()
        except OSError:
            self.alive = False
        if not self.alive:
            self._on_message(jobs.Disabled("its processes keep dying"))
        fetches, self._fetches = self._fetches, {}
        if self.alive:
            for job in self._uploads.values():
                self._send(jobs.pack(job))
            for number, session in self._sessions.items():
                if session.has_ended:  # and what it still has is written at an end
                    self._send(jobs.pack(jobs.FinishJob(self._next(), [], number)))
            uploads = {}
        else:
            uploads, self._uploads = self._uploads, {}
        # Last, as who hears of it may have more to send.
        self._answer_lost(fetches, uploads)

    def abandon(self) -> None:
        """Let go of the pool, and answer as LOST what it has not answered."""
        self.close()
        fetches, self._fetches = self._fetches, {}
        uploads, self._uploads = self._uploads, {}
        self._answer_lost(fetches, uploads)

    def _answer_lost(self, *lost) -> None:
        for found in lost:
            for job in found.values():
                self._on_message(job.failed(jobs.LOST))

    def close(self) -> None:
        """Let go of the pool, which then ends with all its workers; nothing after it died for good."""
        if not self.alive:
            return
        self.alive = False
        for fd in (self._sender.fd, self._receiver.fd, self._log_fd):
            self._loop.unwatch(fd)
            os.close(fd)
