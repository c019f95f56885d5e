"""Direct mode: the front of one go command, on stdin and stdout."""

import os
import stat
import sys
import time

from ..store.session_log import append_session
from .front import Front
from .protocol import close_answer
from .session import Session

EXIT_PROTOCOL = 1
EXIT_TERMINATED = 128 + 15
_PROGRESS_AFTER_S = 2.0
_PROGRESS_EVERY_S = 1.0


class Direct(Front):
    """Serves one client until it closes or ends, and then what it has left to upload."""

    def __init__(self, options, writable: bool) -> None:
        super().__init__(options, writable)
        self._session = None
        self._transfers = None  # the session's, where there is a bucket
        self._drain_from = None  # when waiting for uploads began, monotonic seconds
        self._progress_at = None
        self._close_pending = False
        self._done = False

    def run(self, in_fd: int, out_fd: int) -> int:
        """Serve the client on these descriptors; returns the exit status."""
        if stat.S_ISFIFO(os.fstat(out_fd).st_mode) or stat.S_ISSOCK(os.fstat(out_fd).st_mode):
            os.set_blocking(out_fd, False)  # not a file or a terminal, which others share
        self.catch_signals()
        if self.options.verbose:
            self.log_start()
        if self.pool_access is not None:
            self._transfers = self.pool_access.attach(self.counters, self._find_scopes)
            if not os.path.exists(f"{self.store.root}/action"):
                self._transfers.prefetch()  # all will be missed
        self._session = Session(self, in_fd, out_fd, self.counters, self._transfers)
        turn = self.loop.turn
        self.watch_input(self._session)
        while not self._done:
            if self._drain_from is None:
                turn()
            else:
                turn(self._timeout_ms())
            if self._drain_from is not None:
                self._drain()
        self._finish()
        return self.status

    def _find_scopes(self):
        from .. import scope

        return scope.find(self.options, os.environ)

    def on_signal(self) -> None:
        if self.terminated:
            self._session.abort()
            self.status = EXIT_TERMINATED
            self._done = True

    # -- close and the end -------------------------------------------------------------------------

    def begin_close(self, session) -> None:
        """The client asked to close: wait for uploads, answer, end."""
        self._close_pending = True
        self._start_drain()

    def session_ended(self, session) -> None:
        """The client is gone without an answer to close: nobody is to wait for what remains."""
        self.loop.unwatch(session.in_fd)
        self.loop.unwatch(session.out_fd)
        if session.fault:
            self.status = EXIT_PROTOCOL
            if not self.interrupted:
                self.warn(session.fault)
        append_session(self.store.root, self.counters)
        self.print_summary()
        self._let_go(session)
        self._start_drain()
        if self._transfers is not None:
            self._transfers.mark_ending()

    def _start_drain(self) -> None:
        if self._drain_from is None:
            self._drain_from = time.monotonic()
            if self._transfers is not None:
                self._transfers.finish()
            if sys.stderr is not None and os.isatty(2):
                self._progress_at = self._drain_from + _PROGRESS_AFTER_S

    def _timeout_ms(self):
        ends = [self._progress_at] if self._progress_at is not None else []
        lingers = self.pool_access is not None and self.pool_access.lingers
        if self.options.drain_timeout_s is not None and not lingers:
            ends.append(self._drain_from + self.options.drain_timeout_s)
        return max(0, min(ends) - time.monotonic()) * 1000 + 1 if ends else None

    def _drain(self) -> None:
        """Go on with closing as far as that is possible now."""
        now, limit = time.monotonic(), self.options.drain_timeout_s
        session, transfers = self._session, self._transfers
        pending, lingers = 0, False
        if transfers is not None and not self.interrupted:
            lingers = self.pool_access.lingers
            pending = transfers.pending if lingers or self.pool_access.waits else 0
        if pending and (session.ended or not lingers):
            if lingers or limit is None or now < self._drain_from + limit:
                self._show_progress(now, pending)
                return
            self.warn(f"{transfers.pending_text()} not finished within --drain-timeout")
        self.counters.drain_s = now - self._drain_from
        if not session.ended:
            if self._close_pending:
                self._close_pending = False
                session.answer(close_answer(session.closing))
                session.flush()
            if session.waiting:
                return  # the client takes its time with the answers
            # What a user may remove next is complete before go returns, but for what lingers.
            goes_on = lingers and pending
            if goes_on:
                transfers.mark_ending()
            elif transfers is not None:
                transfers.release()
            append_session(self.store.root, self.counters)
            self.print_summary()
            self.loop.unwatch(session.in_fd)
            self._let_go(session)
            if goes_on:
                return
        self._done = True

    def _finish(self) -> None:
        """What is done when nobody waits any more; no name is made in the store by it."""
        if self.pool_access is not None:
            self._finish_uploads()
        self.touch_used()
        if self.writable and not self.terminated:
            self._tidy_up()

    def _finish_uploads(self) -> None:
        """Let go of pool and spool; an uploader goes on with what is there, if it is worth that."""
        pool_access = self.pool_access
        pool_access.close()
        self._transfers.release()
        if self.terminated or self.interrupted or pool_access.upload_failed:
            return
        if not pool_access.left_some or self.options.upload == "background":
            pool_access.start_uploader()

    def _tidy_up(self) -> None:
        """Check what an unclean shutdown left, prune if asked to, make this session's end durable."""
        try:
            if self.store.is_checked:
                from ..store.crash_safety import settle

                settle(self.store.root)
            if self.options.expiry_s or self.options.max_size_bytes:
                from ..store.prune import prune_at_close

                prune_at_close(self.options)
        except OSError:
            pass  # the next session tries again
        marker = self.take_marker()
        if marker is not None:
            marker.close()

    def _show_progress(self, now, pending) -> None:
        if self._progress_at is not None and now >= self._progress_at:
            self._progress_at = now + _PROGRESS_EVERY_S
            self.warn(f"{pending} uploads to go")

    def _let_go(self, session) -> None:
        """Close stdout and stderr, so that neither the go command nor a pipe waits for us."""
        session.ended = True
        if session.out_fd >= 0:
            os.close(session.out_fd)
            session.out_fd = -1
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.close(null)
