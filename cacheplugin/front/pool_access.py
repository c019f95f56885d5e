"""The front's way to S3, shared by all its sessions: starts the pool, passes its results on.

Made only with a bucket. It never waits: the pool (pool/client.py) does the work, and results arrive
in the front's loop. Each session has a Transfers of its own on top.
"""

import os
import time

from ..errors import LOCAL_TROUBLE, reason_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from ..ipc import jobs
    from ..metrics import Counters, Histogram
    from ..pool.client import PoolClient
    from .contracts import PoolHost, PoolSession
    from .transfers import Transfers

_RETRY_S = 60  # a bucket that was given up is tried again by a session that begins after so long


class PoolAccess:
    """``front`` is the Front, whose counters, store and loop it shares."""

    def __init__(self, front: "PoolHost") -> None:
        self.front = front
        self.usable = True  # False while the bucket is given up
        self.has_answered = False  # S3 has answered once
        self.refused = False  # the bucket was given up for a reason that is not on this machine
        self._off_since: float | None = None  # monotonic; None again when S3 answers
        self.damaged: set[str] = set()  # outputs whose copy in the bucket is damaged
        self.upload_failed = False
        self.failure = ""  # why the last task failed that did
        self._is_told = False  # the user has been told of a failure
        self.left_spooled = False  # a session has left entries in the spool
        self.latencies: dict[str, Histogram] = {}  # by name of the result's class; server only
        self._status_callbacks: list[Callable[[jobs.PoolStatus], None]] = []
        self._options = front.options
        self._pool: PoolClient | None = None
        self._abandoned: list[int] = []  # process ids of abandoned pools, still to be waited for
        self._retry_at = 0.0  # monotonic
        self._sessions: dict[int, PoolSession] = {}  # by their numbers in the pool
        # By number of the job: the callback for its result, and when the job was sent (monotonic).
        self._expected: dict[int, tuple[Callable[[Any], None], float]] = {}

    @property
    def uploads_before_close(self) -> bool:
        """Whether the answer to close waits for uploads."""
        return self._options.upload == "wait"

    @property
    def uploads_after_close(self) -> bool:
        """Whether this process goes on uploading when the go command has gone.

        It does so for bundles; single objects are left to a detached uploader.
        """
        return self._options.upload == "background" and self._options.layout != "objects"

    @property
    def keeps_puts(self) -> bool:
        """Whether the spool takes puts for the bucket, also while it is given up.

        It does not for a bucket that never answered and said no: the spool would grow for ever.
        """
        return self.has_answered or not self.refused

    @property
    def uploads_wanted(self) -> bool:
        return self._options.upload != "off" and not self._options.read_only

    def attach(
        self, counters: "Counters", find_scopes: "Callable[[], Iterable[str]]"
    ) -> "Transfers":
        """The Transfers of a session that begins, made from the same arguments."""
        from .transfers import Transfers

        self._retry_bucket()
        return Transfers(self, counters, find_scopes)

    def _retry_bucket(self) -> None:
        """Use a bucket that was given up again, once its pause is over."""
        if not self.usable and time.monotonic() >= self._retry_at:
            if self._pool is not None and self._pool.alive:
                self._pool.abandon()
                self._abandoned.append(self._pool.process_id)
            self._pool, self.usable, self.refused = None, True, False
            self._abandoned = [
                process_id
                for process_id in self._abandoned
                if os.waitpid(process_id, os.WNOHANG) == (0, 0)
            ]

    def fetch_file(
        self, key: str, path: str, limit: int, on_result: "Callable[[jobs.FileResult], None]"
    ) -> None:
        """Write the object ``key``, of at most ``limit`` bytes, to the file ``path``.

        ``on_result(FileResult)`` is called later, or at once while the bucket is given up.
        """
        self._send_file_job(on_result, lambda pool: pool.fetch_file(key, path, limit))

    def upload_file(
        self, key: str, path: str, replace: bool, on_result: "Callable[[jobs.FileResult], None]"
    ) -> None:
        """Upload the file ``path`` as ``key``; ``on_result`` as in ``fetch_file``."""
        self._send_file_job(on_result, lambda pool: pool.upload_file(key, path, replace))

    def _send_file_job(
        self,
        on_result: "Callable[[jobs.FileResult], None]",
        send: "Callable[[PoolClient], int]",
    ) -> None:
        from ..ipc import jobs

        self._retry_bucket()
        pool = self.pool()
        if pool is None:
            on_result(jobs.FileResult(0, jobs.SKIPPED, 0, "the bucket is not used"))
        else:
            self.expect(send(pool), on_result)

    def pool(self) -> "PoolClient | None":
        """The pool, started if there is none; None while the bucket is given up."""
        if self.usable and self._pool is None:
            front, fields = self.front, self._options.as_dict()
            try:
                from ..pool.client import PoolClient

                if not front.writable:
                    fields["cache_dir"] = front.local.first_store().root
                    # The pool would not see what the unwritable store holds, and fetch it again.
                    fields["prefetch_limit_bytes"] = 0
                self._pool = PoolClient((fields,), front.loop, self._on_message)
            except LOCAL_TROUBLE as error:
                self.give_up(error)
        return self._pool if self.usable else None

    def begin(self, pool: "PoolClient", session: "PoolSession") -> int:
        """Announce a session to ``pool``; returns its number there."""
        self.front.mark_open()
        number = pool.begin(session.scopes)
        self._sessions[number] = session
        return number

    def end(self, session: "PoolSession") -> None:
        """A session gets no more messages."""
        self._sessions = {key: one for key, one in self._sessions.items() if one is not session}

    # Any: each kind of job has its own kind of result.
    def expect(self, number: int, on_result: "Callable[[Any], None]") -> None:
        """Have ``on_result(result)`` called with the result of job ``number``."""
        self._expected[number] = (on_result, time.monotonic())

    def _on_message(self, message: "jobs.JobResult | jobs.Notice") -> None:
        from ..ipc import jobs

        if isinstance(message, jobs.Transferred):
            session = self._sessions.get(message.session)
            counters = self.front.counters if session is None else session.counters
            counters.get_fault_bytes += message.received
            counters.put_s3_bytes += message.sent
            counters.get_fault_damaged += message.damaged
        elif isinstance(message, jobs.Expected):
            self.has_answered, self._off_since = True, None
            if message.session in self._sessions:
                self._sessions[message.session].on_expected(message)
        elif isinstance(message, jobs.PoolStatus):
            callbacks, self._status_callbacks = self._status_callbacks, []
            for on_status in callbacks:
                on_status(message)
        elif isinstance(message, jobs.Failed):
            self.failure = message.reason
            self._is_told |= message.told
        elif isinstance(message, jobs.Disabled):
            self.refused, self.failure, self._is_told = message.refused, message.reason, True
            self._give_up()
            if self._pool is not None and not self._pool.alive:
                self._warn_unused(message.reason)  # a living pool logs its own warning
        else:
            self._on_result(message)

    def _on_result(self, result: "jobs.JobResult") -> None:
        from ..ipc import jobs

        if isinstance(result, jobs.FetchResult):
            is_answer = result.status in (jobs.HIT, jobs.MISS, jobs.DAMAGED)
        else:
            is_answer = result.status in (jobs.HIT, jobs.MISS, jobs.STORED)
        if is_answer and not isinstance(result, jobs.FinishResult):
            self.has_answered, self._off_since = True, None
        elif not self.has_answered and (
            result.status in (jobs.FAILED, jobs.TIMED_OUT, jobs.UNUSABLE)
        ):
            self._note_off()
        on_result, sent_at = self._expected.pop(result.number, (None, 0.0))
        if on_result is not None:
            histogram = self.latencies.get(type(result).__name__)
            if histogram is not None:
                histogram.add(time.monotonic() - sent_at)
            on_result(result)

    @property
    def off_s(self) -> "float | None":
        """For how many seconds the bucket has been given up, or has failed without ever answering.

        None if neither is so.
        """
        return None if self._off_since is None else time.monotonic() - self._off_since

    def _note_off(self) -> None:
        if self._off_since is None:
            self._off_since = time.monotonic()

    def give_up(self, error: Exception) -> None:
        """Stop using the bucket for a while, because of an error in this process; warn of it."""
        was_usable = self.usable
        self._give_up()
        if was_usable:
            self.failure, self._is_told = f"{reason_of(error)}; see ulimit -a", True
            self._warn_unused(self.failure)

    def _give_up(self) -> None:
        self.usable = False
        self._retry_at = time.monotonic() + _RETRY_S
        self._note_off()

    def _warn_unused(self, reason: str) -> None:
        self.front.warn(f"bucket {self._options.bucket} is not used: {reason}")

    @property
    def awaits_first_answer(self) -> bool:
        """Whether nothing is known of the bucket yet: neither an answer nor a failure has come."""
        return self.usable and not self.has_answered and not self.failure

    def state_text(self) -> str:
        """One line on the bucket, for the summary."""
        if self._pool is None and not self.failure:
            state = "not asked"
        elif not self.usable:
            state = f"not used, {self.failure}"
        elif self.has_answered:
            state = (
                f"it answers; the last failure: {self.failure}" if self.failure else "it answers"
            )
        else:
            state = f"no answer, {self.failure}" if self.failure else "no answer yet"
        return f"bucket {self._options.bucket}: {state}"

    def warn_at_close(self, counters: "Counters", outstanding: int) -> None:
        """Say what failed, unless something was said already; ``outstanding``: unanswered gets."""
        bucket = f"bucket {self._options.bucket}"
        if self._is_told:
            return
        if self.failure:
            self._is_told = True
            gets = counters.get_fault_error + counters.get_fault_skipped
            puts = counters.put_s3_error + counters.put_s3_skipped
            counts = f" for {gets} gets and {puts} puts" if gets or puts else ""
            self.front.warn(f"{bucket} failed{counts}; the last failure: {self.failure}")
        elif outstanding and self.awaits_first_answer:
            self._is_told = True
            self.front.warn(f"{bucket} has not answered; {outstanding} gets were still waiting")

    def start_uploader(self) -> "int | None":
        """Start a detached uploader if dead sessions left entries in the spool.

        Returns its process id, None if none was started.
        """
        if self.usable and self.uploads_wanted:
            try:
                if os.path.isdir(f"{self.front.store.root}/spool"):
                    from ..pool import uploader

                    return uploader.start_detached(self._options)
            except LOCAL_TROUBLE:
                pass  # a later session tries again
        return None

    def ask_status(self, on_status: "Callable[[jobs.PoolStatus], None]") -> bool:
        """Have ``on_status(PoolStatus)`` called soon; False if no pool runs."""
        if self._pool is None or not self._pool.alive:
            return False
        self._status_callbacks.append(on_status)
        self._pool.ask_status()
        return True

    def close(self) -> None:
        """Let the pool end."""
        if self._pool is not None:
            self._pool.close()
