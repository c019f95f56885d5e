"""Direct mode: the front of one go command, on stdin and stdout."""

import os
import stat
import sys
import time

from ..errors import LOCAL_TROUBLE
from ..store.session_log import append_session
from .front import EXIT_TERMINATED, Front
from .protocol import close_answer
from .session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..options import Options
    from .contracts import HostedSession
    from .transfers import Transfers

EXIT_PROTOCOL = 1
_PROGRESS_AFTER_S = 2.0
_PROGRESS_EVERY_S = 1.0
_FIRST_ANSWER_S = 7.0  # close waits so long for gets that S3 leaves unanswered, to say so


class Direct(Front):
    """Serves one client until it closes or ends, then finishes the uploads of its session.

    ``in_fd`` and ``out_fd`` are the descriptors of the client.
    """

    def __init__(self, options: "Options", writable: bool, in_fd: int, out_fd: int) -> None:
        super().__init__(options, writable)
        self._transfers: Transfers | None = None  # with a bucket
        if self.pool_access is not None:
            self._transfers = self.pool_access.attach(self.counters, self._find_scopes)
        self._session = Session(self, in_fd, out_fd, self.counters, self._transfers)
        # When the client asked to close, or ended (monotonic). From then on only uploads remain.
        self._drain_since: float | None = None
        self._progress_at: float | None = None  # monotonic; None: no progress is shown
        self._close_pending = False  # a close request is still to be answered
        self._done = False

    def run(self) -> int:
        """Serve the client; returns the exit status."""
        out_fd = self._session.out_fd
        if stat.S_ISFIFO(os.fstat(out_fd).st_mode) or stat.S_ISSOCK(os.fstat(out_fd).st_mode):
            os.set_blocking(out_fd, False)  # not a file or a terminal, which other processes share
        self.catch_signals()
        if self.options.verbose:
            self.log_start()
        if self._transfers is not None and not os.path.exists(f"{self.store.root}/action"):
            self._transfers.prefetch()  # the store is empty: every get will miss
        turn = self.loop.turn
        self.watch_input(self._session)
        while not self._done:
            if self._drain_since is None:
                turn()
            else:
                turn(self._timeout_ms(self._drain_since))
            if self._drain_since is not None:
                self._drain(self._drain_since)
        self._finish()
        return self.status

    def _find_scopes(self) -> "Iterable[str]":
        from .. import scope

        return scope.find(self.options, os.environ)

    def on_signal(self) -> None:
        """SIGTERM ends the process at once; SIGINT ends waiting for uploads (see ``_pending``)."""
        if self.terminated:
            self._session.abort()
            self.status = EXIT_TERMINATED
            self._done = True

    # -- close and the end -------------------------------------------------------------------------

    def begin_close(self, session: "HostedSession") -> None:
        """The client has asked to close: wait for uploads, answer, end."""
        self._close_pending = True
        self._start_drain()

    def session_ended(self, session: "HostedSession") -> None:
        """The client is gone without an answer to close: upload without keeping its output open."""
        self.loop.unwatch(session.in_fd)
        self.loop.unwatch(session.out_fd)
        if session.fault:
            self.status = EXIT_PROTOCOL
            if not self.interrupted:
                self.warn(session.fault)
        append_session(self.store.root, self.counters)
        self._say_end()
        self._release_output()
        self._start_drain()
        if self._transfers is not None:
            self._transfers.mark_ending()

    def _start_drain(self) -> None:
        if self._drain_since is None:
            self._drain_since = time.monotonic()
            if self._transfers is not None:
                self._transfers.finish()
            if sys.stderr is not None and os.isatty(2):
                self._progress_at = self._drain_since + _PROGRESS_AFTER_S

    @property
    def _uploads_after_close(self) -> bool:
        return self.pool_access is not None and self.pool_access.uploads_after_close

    def _pending(self) -> int:
        """The number of uploads that this process waits for, before or after it answers close."""
        if self._transfers is None or self.pool_access is None or self.interrupted:
            return 0
        if self.pool_access.uploads_before_close or self.pool_access.uploads_after_close:
            return self._transfers.pending
        return 0

    def _awaits_first_answer(self) -> bool:
        """Whether gets wait for a bucket of which nothing is known yet."""
        if self.pool_access is None or self.interrupted or self._session.ended:
            return False
        return self._session.outstanding > 0 and self.pool_access.awaits_first_answer

    def _say_end(self) -> None:
        """Say what the user has to know at the end of the session."""
        if self.pool_access is not None and not self.interrupted:
            self.pool_access.warn_at_close(self.counters, self._session.outstanding)
        self.print_summary()

    def _timeout_ms(self, since: float) -> "float | None":
        """How long a turn of the loop may wait, while closing since then (monotonic)."""
        ends = [self._progress_at] if self._progress_at is not None else []
        if self.options.drain_timeout_s is not None and not self._uploads_after_close:
            ends.append(since + self.options.drain_timeout_s)
        if self._awaits_first_answer():
            ends.append(since + _FIRST_ANSWER_S)
        return max(0, min(ends) - time.monotonic()) * 1000 + 1 if ends else None

    def _drain(self, since: float) -> None:
        """Continue with closing, which began at ``since``, as far as is possible now."""
        now, limit = time.monotonic(), self.options.drain_timeout_s
        if self._awaits_first_answer() and now < since + min(
            _FIRST_ANSWER_S, limit or _FIRST_ANSWER_S
        ):
            return
        pending, after_close = self._pending(), self._uploads_after_close
        if pending and (self._session.ended or not after_close):
            if after_close or limit is None or now < since + limit:
                self._show_progress(now, pending)
                return
            if self._transfers is not None:
                self._warn_unfinished(self._transfers)
        self.counters.drain_s = now - since
        if self._session.ended:
            self._done = True
        elif self._answer_close():
            goes_on = pending > 0 and after_close
            self._end_client(goes_on)
            self._done = not goes_on

    def _warn_unfinished(self, transfers: "Transfers") -> None:
        reason = self.pool_access.failure if self.pool_access is not None else ""
        self.warn(
            f"{transfers.pending_text()} not finished within --drain-timeout"
            + (f"; the last failure: {reason}" if reason else "")
        )

    def _answer_close(self) -> bool:
        """Answer the close request, if there is one; returns whether the client has all answers."""
        if self._close_pending:
            self._close_pending = False
            self._session.answer(close_answer(self._session.close_id))
            self._session.flush()
        return not self._session.has_unsent

    def _end_client(self, goes_on: bool) -> None:
        """Let the go command return; ``goes_on``: uploads continue after it.

        What a user may remove when the go command has returned is complete by then, except for
        uploads that go on.
        """
        if self._transfers is not None:
            if goes_on:
                self._transfers.mark_ending()
            else:
                self._transfers.release()
        append_session(self.store.root, self.counters)
        self._say_end()
        self.loop.unwatch(self._session.in_fd)
        self._release_output()

    def _finish(self) -> None:
        """The work that the go command does not wait for; creates no new names in the store."""
        self._finish_uploads()
        self.touch_used()
        if self.writable and not self.terminated:
            self._tidy_up()

    def _finish_uploads(self) -> None:
        """Close pool and spool; start a detached uploader for what is left, if it may succeed."""
        pool_access = self.pool_access
        if pool_access is None or self._transfers is None:
            return
        pool_access.close()
        self._transfers.release()
        if self.terminated or self.interrupted or pool_access.upload_failed:
            return
        if not pool_access.left_spooled or self.options.upload == "background":
            pool_access.start_uploader()

    def _tidy_up(self) -> None:
        """Check what an unclean shutdown left, prune (--expiry, --max-size), sync the store."""
        try:
            if self.store.is_checked:
                from ..store.crash_safety import settle

                settle(self.store.root)
            if self.options.expiry_s or self.options.max_size_bytes:
                from ..store.prune import prune_at_close

                prune_at_close(self.options)
        except LOCAL_TROUBLE:
            pass  # the next session tries again
        marker = self.take_marker()
        if marker is not None:
            marker.close()

    def _show_progress(self, now: float, pending: int) -> None:
        if self._progress_at is not None and now >= self._progress_at:
            self._progress_at = now + _PROGRESS_EVERY_S
            self.warn(f"{pending} uploads to go")

    def _release_output(self) -> None:
        """Close stdout and stderr: the go command, or a pipe, waits for their last holder."""
        session = self._session
        session.ended = True
        if session.out_fd >= 0:
            os.close(session.out_fd)
            session.out_fd = -1
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.close(null)
