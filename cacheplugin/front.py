"""The front: one thread and one poll loop between the clients, the store and the pool.

It answers hits from the store itself and never waits for S3, a lock or a worker. What a hit does
not need (the writing half of the store, the pool, json, logging) is imported when it is needed.
"""
import os
import stat
import sys
import time
from _signal import SIGINT, SIGTERM, set_wakeup_fd, signal  # the signal module imports enum

from .history import append_session
from .loop import READABLE, WRITABLE, Loop
from .metrics import Counters
from .options import DEBUG_BUILD_CACHE
from .protocol import close_answer, json_text
from .session import Session
from .store import MIN_AGE_S, Store

EXIT_PROTOCOL = 1
EXIT_TERMINATED = 128 + 15
_TOUCH_BATCH = 4096
_TOUCH_DELAY_S = 1.0
_PROGRESS_AFTER_S = 2.0
_PROGRESS_EVERY_S = 1.0


class Front:
    """Serves sessions over one store. ``writable`` False: puts go to a directory of the session."""

    def __init__(self, options, writable: bool) -> None:
        self.options = options
        self.counters = Counters()
        self.debug = options.debug & DEBUG_BUILD_CACHE
        self.store = Store(options.cache_dir)
        self._marker = None  # says on disk that this session writes
        self._suspects = _suspects(self.store)
        self.lookup = self.store.lookup  # until a session store may hold entries as well
        self.plain_paths = json_text(options.cache_dir) == options.cache_dir
        self.stale_before = time.time() - MIN_AGE_S / 2
        self.writable = writable
        self._local = None
        self._touched = set()  # actions whose use this session has noted
        self._used = []  # actions whose record's clock of use is to be set
        self.refreshed = set()  # outputs whose clock was: it hides that of other actions of theirs
        self.loop = Loop()
        self.uplink = self._make_uplink()
        self._timed = False  # whether the loop has more to do than to wait for descriptors
        self._interrupted = self._terminated = False
        self._status = 0
        self._session = None  # the client of direct mode
        self._drain_from = None  # when waiting for uploads began, monotonic seconds
        self._progress_at = None
        self._close_pending = False
        self._done = False

    @property
    def local(self):
        """The writing half, made at the first put."""
        if self._local is None:
            from .local import LocalCache

            self.mark_open()
            self._local = LocalCache(self.store, self.writable)
            self.lookup = self._local.lookup
        return self._local

    def _make_uplink(self):
        """The way to S3, where there is a bucket; None leaves its module unread."""
        if not self.options.bucket:
            return None
        from .uplink import Uplink

        return Uplink(self)

    def mark_open(self) -> None:
        """Before this session or a worker of it writes to the store."""
        if self._marker is None and self.writable:
            from .shutdown import OpenMarker

            self._marker = OpenMarker(self.store.root)

    # -- the loop ----------------------------------------------------------------------------------

    def serve_direct(self, in_fd: int, out_fd: int) -> int:
        """Serve one client until it closes or ends; returns the exit status."""
        if stat.S_ISFIFO(os.fstat(out_fd).st_mode) or stat.S_ISSOCK(os.fstat(out_fd).st_mode):
            os.set_blocking(out_fd, False)  # not a file or a terminal, which others share
        self._catch_signals()
        if self.options.verbose:
            self._log_start()
        self._session = Session(self, in_fd, out_fd)
        if self.uplink is not None:
            self.uplink.begin()
        turn = self.loop.turn
        self.loop.watch(in_fd, READABLE, self._session.on_readable)
        while not self._done:
            busy = turn(self._timeout_ms() if self._timed else None)
            if self._timed:
                self._on_time(idle=not busy)
        self._finish()
        return self._status

    def watch_output(self, session, waiting: bool, full: bool) -> None:
        """Watch a client's output while answers wait, and its input unless too many do."""
        if waiting:
            self.loop.watch(session.out_fd, WRITABLE, session.flush)
        elif session.out_fd != session.in_fd:
            self.loop.unwatch(session.out_fd)
        if full:
            self.loop.unwatch(session.in_fd)
        elif not self.loop.watches(session.in_fd) and not session.ended:
            self.loop.watch(session.in_fd, READABLE, session.on_readable)

    def _timeout_ms(self):
        if self._drain_from is not None:
            now = time.monotonic()
            ends = [self._progress_at] if self._progress_at is not None else []
            lingers = self.uplink is not None and self.uplink.lingers
            if self.options.drain_timeout_s is not None and not lingers:
                ends.append(self._drain_from + self.options.drain_timeout_s)
            return max(0, min(ends) - now) * 1000 + 1 if ends else None
        return _TOUCH_DELAY_S * 1000

    def _on_time(self, idle) -> None:
        if self._drain_from is not None:
            self._drain()
        elif idle or len(self._used) >= _TOUCH_BATCH:
            self._touch_used()
            self._timed = False

    # -- signals: handlers record, the loop acts ---------------------------------------------------

    def _catch_signals(self) -> None:
        wake_out, wake_in = os.pipe()
        os.set_blocking(wake_in, False)
        os.set_blocking(wake_out, False)
        set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        signal(SIGINT, self._on_signal)
        signal(SIGTERM, self._on_signal)
        self.loop.watch(wake_out, READABLE, lambda _: self._act_on_signals(wake_out))

    def _on_signal(self, number, _frame) -> None:
        if number == SIGINT:
            self._interrupted = True
        else:
            self._terminated = True

    def _act_on_signals(self, wake_out) -> None:
        os.read(wake_out, 512)
        if self._terminated:
            self._session.abort()
            self._status = EXIT_TERMINATED
            self._done = True

    # -- the clock of use --------------------------------------------------------------------------

    def note_use(self, action: str, output: str) -> bool:
        """Set the clock of use of an entry that was not used lately; False: a prune took its body.

        The body's is set before go is told of it, the record's once the client leaves time for it.
        """
        if output not in self.refreshed:
            if not self.store.hold(output):
                return False
            self.refreshed.add(output)
        if action not in self._touched:
            self._touched.add(action)
            self._used.append(action)
            self._timed = True
        return True

    def _touch_used(self) -> None:
        for action in self._used:
            self.store.touch(action)
        self._used.clear()

    # -- gets that miss, puts that are stored ------------------------------------------------------

    def fetch(self, session, number: int, action: str) -> None:
        """Answer a get that misses locally, from S3 where there is a bucket."""
        if self.uplink is None:
            session.answer_miss(number)
        else:
            self.uplink.fetch(session, number, action)

    def upload(self, *put) -> None:
        """Have a stored entry uploaded where there is a bucket: action, output, size, time, path."""
        if self.uplink is not None:
            self.uplink.upload(*put)

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
            self._status = EXIT_PROTOCOL
            if not self._interrupted:
                self.warn(session.fault)
        append_session(self.store.root, self.counters)
        self._print_summary()
        self._let_go(session)
        self._start_drain()
        if self.uplink is not None:
            self.uplink.mark_ending()

    def _start_drain(self) -> None:
        if self._drain_from is None:
            self._drain_from = time.monotonic()
            self._timed = True
            if self.uplink is not None:
                self.uplink.finish()
            if sys.stderr is not None and os.isatty(2):
                self._progress_at = self._drain_from + _PROGRESS_AFTER_S

    def _drain(self) -> None:
        """Go on with closing as far as that is possible now."""
        now, limit = time.monotonic(), self.options.drain_timeout_s
        session, uplink = self._session, self.uplink
        pending, lingers = 0, False
        if uplink is not None and not self._interrupted:
            lingers = uplink.lingers
            pending = uplink.pending if lingers or uplink.waits else 0
        if pending and (session.ended or not lingers):
            if lingers or limit is None or now < self._drain_from + limit:
                self._show_progress(now, pending)
                return
            self.warn(f"{uplink.pending_text()} not finished within --drain-timeout")
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
                uplink.mark_ending()
            elif uplink is not None:
                uplink.release()
            append_session(self.store.root, self.counters)
            self._print_summary()
            self.loop.unwatch(session.in_fd)
            self._let_go(session)
            if goes_on:
                return
        self._done = True

    def _finish(self) -> None:
        """What is done when nobody waits any more; no name is made in the store by it."""
        if self.uplink is not None:
            self.uplink.close(rest=not self._terminated and not self._interrupted)
        self._touch_used()
        if self.writable and not self._terminated:
            self._tidy_up()

    def _tidy_up(self) -> None:
        """Check what an unclean shutdown left, prune if asked to, make this session's end durable."""
        try:
            if self._suspects is not None:
                self._suspects.settle(self.store.root)
            if self.options.expiry_s or self.options.max_size_bytes:
                from .prune import prune_at_close

                prune_at_close(self.options)
        except OSError:
            pass  # the next session tries again
        if self._marker is not None:
            self._marker.close()

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

    # -- to the user -------------------------------------------------------------------------------

    def warn(self, text: str) -> None:
        try:
            os.write(2, f"go-cache-plugin: {text}\n".encode(errors="backslashreplace"))
        except OSError:
            pass

    def _print_summary(self) -> None:
        if self.options.metrics:
            try:
                os.write(2, self.counters.summary().encode())
            except OSError:
                pass

    def _log_start(self) -> None:
        import logging

        from . import log

        log.setup(self.options)
        logging.getLogger(__name__).info(
            "cache directory %s%s, %s",
            self.options.cache_dir,
            "" if self.writable else " (not writable)",
            f"bucket {self.options.bucket}" if self.uplink else "no bucket: local cache only",
        )

    def log_answers(self, answers) -> None:
        """Log what is answered (--debug 1)."""
        import logging

        logger = logging.getLogger(__name__)
        for text in answers:
            logger.debug("answered %s", text.rstrip())


def _suspects(store):
    """What an unclean shutdown of the machine made doubtful, checked before it is served; or None."""
    try:
        if not os.listdir(f"{store.root}/open"):
            return None
    except OSError:
        return None
    from .shutdown import guard

    return guard(store)
