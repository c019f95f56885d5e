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
from .protocol import close_answer, hit_answer, json_text
from .record import timestamp
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
        self._writable = writable
        self._local = None
        self._touched = set()  # actions whose use this session has noted
        self._used = []  # actions whose record's clock of use is to be set
        self.refreshed = set()  # outputs whose clock was: it hides that of other actions of theirs
        self._pool = None
        self._spool = None
        self._damaged = set()  # outputs that are wrong in the bucket
        self._all_uploaded = True
        self._spooled = {}  # number of an upload job: number of its entry in the spool
        self._upload_failed = False
        self._bucket_worked = False  # it answered once; what comes after is worth keeping for it
        self._remote = bool(options.bucket)
        self._fetching = {}  # action: [(session, request id)] that wait for it
        # What the bundles layout knows and needs to know.
        self._bundles = self._remote and options.layout != "objects"
        self.used = [] if self._bundles else None  # actions, in the order of use
        self.expected = None  # actions that came or come from bundles, and did not hit yet
        self._known = None  # all that bundles have
        self._complete = False  # whether nothing else is in the bucket
        self._finishing = False
        self._timed = False  # whether the loop has more to do than to wait for descriptors
        self._loop = Loop()
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

            self._mark_open()
            self._local = LocalCache(self.store, self._writable)
            self.lookup = self._local.lookup
        return self._local

    def _mark_open(self) -> None:
        """Before this session or a worker of it writes to the store."""
        if self._marker is None and self._writable:
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
        if self._bundles and not os.path.exists(f"{self.store.root}/action"):
            if self._pool_usable():  # all will be missed, so it is wanted at once
                self._pool.prefetch()
        turn = self._loop.turn
        self._loop.watch(in_fd, READABLE, self._session.on_readable)
        while not self._done:
            busy = turn(self._timeout_ms() if self._timed else None)
            if self._timed:
                self._on_time(idle=not busy)
        self._finish()
        return self._status

    def watch_output(self, session, waiting: bool, full: bool) -> None:
        """Watch a client's output while answers wait, and its input unless too many do."""
        if waiting:
            self._loop.watch(session.out_fd, WRITABLE, session.flush)
        elif session.out_fd != session.in_fd:
            self._loop.unwatch(session.out_fd)
        if full:
            self._loop.unwatch(session.in_fd)
        elif not self._loop.watches(session.in_fd) and not session.ended:
            self._loop.watch(session.in_fd, READABLE, session.on_readable)

    def _timeout_ms(self):
        if self._drain_from is not None:
            now = time.monotonic()
            ends = [self._progress_at] if self._progress_at is not None else []
            if self.options.drain_timeout_s is not None and not self._lingers:
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
        self._loop.watch(wake_out, READABLE, lambda _: self._act_on_signals(wake_out))

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

    # -- gets that miss, puts that are stored ------------------------------------------------------

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

    def fetch(self, session, number: int, action: str) -> None:
        """Answer a get that misses locally: from S3 where there is a bucket. One fetch an action."""
        waiting = self._fetching.get(action)
        if waiting is not None:
            waiting.append((session, number))
        elif self._complete and self._remote and action not in self._known:
            self.counters.get_fault_miss += 1
            session.answer_miss(number)
        elif self._pool_usable():
            self._fetching[action] = [(session, number)]
            self._pool.fetch(action)
        else:
            session.answer_miss(number)

    def upload(self, action: str, output: str, size: int, time_ns: int, path: str) -> None:
        """Have a stored entry uploaded, if it is to be."""
        if not self.options.bucket:
            return
        if self.used is not None:
            self.used.append(action)
        if self.options.read_only:
            self.counters.put_skip_read_only += 1
        elif size < self.options.min_upload_bytes:
            self.counters.put_skip_small += 1
        elif not self._remote and not self._bucket_worked:
            self.counters.put_s3_skipped += 1  # a spool that nothing ever empties only grows
        else:
            entry, number = self._spool_entry(action, output, size, time_ns, path)
            if self._uploads_wanted and self._pool_usable():
                job = self._pool.upload(entry, replace=output in self._damaged)
                self._spooled[job] = number
            else:
                self.counters.put_s3_skipped += 1

    @property
    def _lingers(self) -> bool:
        """Whether a bundle that was begun goes on without the go command.

        (Single objects are left to an uploader.)
        """
        return self._bundles and self.options.upload == "background"

    @property
    def _uploads_wanted(self) -> bool:
        return self.options.upload != "off" and not self.options.read_only

    def _spool_entry(self, *put):
        """(entry, its number in the spool or None): what is answered shall survive this process."""
        from . import spool

        try:
            if self._spool is None:
                self._spool = spool.SpoolSession.create(self.store, self.options)
            number = self._spool.add(*put)
            return self._spool.pending[number], number
        except OSError:
            return spool.Entry(*put), None  # a full disk: it has to do without

    def _pool_usable(self) -> bool:
        if self._remote and self._pool is None:
            from .poollink import PoolLink

            fields = self.options.as_dict()
            self._mark_open()
            try:
                if not self._writable:
                    fields["cache_dir"] = self.local.first_store().root
                self._pool = PoolLink((fields,), self._loop, self._on_result)
            except OSError as error:
                self._remote = False
                self.warn(f"bucket {self.options.bucket} is not used: {error.strerror}")
        return self._remote

    def _on_result(self, message) -> None:
        from . import jobs

        counters = self.counters
        if isinstance(message, jobs.Disabled):
            self._remote = False
            if not self._pool.alive:
                self.warn(f"bucket {self.options.bucket} is not used: {message.reason}")
        elif isinstance(message, jobs.Expected):
            self.expected = set(message.actions)
            self._known = self.expected | set(message.others)
            self._complete = message.complete
            self._bucket_worked = True
        elif isinstance(message, jobs.Transferred):
            counters.get_fault_bytes += message.received
            counters.put_s3_bytes += message.sent
            counters.get_fault_damaged += message.damaged
        elif isinstance(message, jobs.FetchResult):
            self._on_fetched(message)
        elif isinstance(message, jobs.UploadResult):
            self._on_uploaded(message)
        else:
            self._finishing = False

    def _on_fetched(self, result) -> None:
        from . import jobs

        counters = self.counters
        counters.get_fault_bytes += result.received
        self._bucket_worked |= result.status in (jobs.HIT, jobs.MISS, jobs.DAMAGED)
        waiting = self._fetching.pop(result.action, ())
        if result.status == jobs.ARRIVED:
            if not all([self._answer_arrived(*one, result.action) for one in waiting]):
                counters.get_fault_error += 1
        elif result.status == jobs.HIT:
            put_time, path = timestamp(result.time_ns), json_text(result.path)
            for session, number in waiting:
                answer = hit_answer(number, result.output, result.size, put_time, path)
                self._answer_hit(session, answer, result.action, result.size)
        else:
            if result.status == jobs.MISS:
                counters.get_fault_miss += 1
            elif result.status == jobs.DAMAGED:
                counters.get_fault_damaged += 1
                self._damaged.add(result.output)
            elif result.status == jobs.SKIPPED:
                counters.get_fault_skipped += 1
            else:
                counters.get_fault_error += 1
            for session, number in waiting:
                session.answer_miss(number)
        for session in {session for session, _ in waiting}:
            session.flush()

    def _answer_arrived(self, session, number, action) -> bool:
        """Answer a get of what a worker has stored; False where it is gone again, a miss."""
        found = self.lookup(action)
        if found is not None:
            output, size, put_time, path, mtime = found
            if mtime >= self.stale_before or self.note_use(action, output):
                answer = hit_answer(number, output, size, put_time, json_text(path))
                self._answer_hit(session, answer, action, size)
                return True
        session.answer_miss(number)
        return False

    def _answer_hit(self, session, answer, action, size) -> None:
        session.answer(answer)
        if self.used is not None:
            self.used.append(action)
        if self.expected:
            self.expected.discard(action)
        self.counters.get_fault_hit += 1
        self.counters.get_hits += 1
        self.counters.get_hit_bytes += size

    def _on_uploaded(self, result) -> None:
        from . import jobs

        counters = self.counters
        counters.put_s3_bytes += result.sent
        number = self._spooled.pop(result.number)
        if result.status not in (jobs.STORED, jobs.DAMAGED):
            self._upload_failed = True
        elif number is not None:
            self._spool.done(number)
        if result.status == jobs.STORED:
            self._bucket_worked = True
            counters.put_s3_action += 1
            if result.found:
                counters.put_s3_found += 1
            else:
                counters.put_s3_object += 1
        elif result.status == jobs.SKIPPED:
            counters.put_s3_skipped += 1
        else:
            counters.put_s3_error += 1

    # -- close and the end -------------------------------------------------------------------------

    def begin_close(self, session) -> None:
        """The client asked to close: wait for uploads, answer, end."""
        self._close_pending = True
        self._start_drain()

    def session_ended(self, session) -> None:
        """The client is gone without an answer to close: nobody is to wait for what remains."""
        self._loop.unwatch(session.in_fd)
        self._loop.unwatch(session.out_fd)
        if session.fault:
            self._status = EXIT_PROTOCOL
            if not self._interrupted:
                self.warn(session.fault)
        append_session(self.store.root, self.counters)
        self._print_summary()
        self._let_go(session)
        self._start_drain()
        if self._finishing:
            self._mark_ending()

    def _start_drain(self) -> None:
        if self._drain_from is None:
            self._drain_from = time.monotonic()
            self._timed = True
            # Also where S3 is turned off: what is gathered for a bundle has to be answered.
            alive = self._pool is not None and self._pool.alive
            if self._bundles and alive and self._uploads_wanted:
                self._finishing = True
                self._pool.finish(list(dict.fromkeys(self.used)))
            if sys.stderr is not None and os.isatty(2):
                self._progress_at = self._drain_from + _PROGRESS_AFTER_S

    def _drain(self) -> None:
        """Go on with closing as far as that is possible now."""
        now, limit = time.monotonic(), self.options.drain_timeout_s
        session, pending = self._session, 0  # pending: what somebody or something is to wait for
        if not self._interrupted and (self.options.upload == "wait" or self._lingers):
            pending = len(self._spooled) + self._finishing
        if pending and (session.ended or not self._lingers):
            if self._lingers or limit is None or now < self._drain_from + limit:
                self._show_progress(now, pending)
                return
            what = f"{len(self._spooled)} uploads" if self._spooled else "the manifest"
            self.warn(f"{what} not finished within --drain-timeout")
        self.counters.drain_s = now - self._drain_from
        if not session.ended:
            if self._close_pending:
                self._close_pending = False
                session.answer(close_answer(session.closing))
                session.flush()
            if session.waiting:
                return  # the client takes its time with the answers
            # What a user may remove next is complete before go returns.
            if pending:
                self._mark_ending()
            else:
                self._release_spool()
            append_session(self.store.root, self.counters)
            self._print_summary()
            self._loop.unwatch(session.in_fd)
            self._let_go(session)
            if pending:
                return
        self._done = True

    def _mark_ending(self) -> None:
        """Let a flush wait for what this session still writes, be it a manifest alone."""
        try:
            if self._spool is None:
                from .spool import SpoolSession

                self._spool = SpoolSession.create(self.store, self.options)
            self._spool.mark_ending()
        except OSError:
            pass  # then it does not wait

    def _finish(self) -> None:
        """What is done when nobody waits any more; no name is made in the store by it."""
        if self._pool is not None:
            self._pool.close()
        self._release_spool()
        self._touch_used()
        self._upload_rest()
        if self._writable and not self._terminated:
            self._tidy_up()

    def _release_spool(self) -> None:
        if self._spool is not None:
            self._all_uploaded = self._spool.release()
            self._spool = None

    def _upload_rest(self) -> None:
        """Start an uploader for what this session or a dead one left in the spool, if wanted."""
        options = self.options
        if self._terminated or self._interrupted or self._upload_failed or not self._remote:
            return
        if options.upload == "off" or options.read_only:
            return
        if self._all_uploaded or options.upload == "background":
            try:
                if os.path.isdir(f"{self.store.root}/spool"):
                    from . import flush

                    flush.start_detached(options)
            except OSError:
                pass  # a later session tries again

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
            "" if self._writable else " (not writable)",
            f"bucket {self.options.bucket}" if self._remote else "no bucket: local cache only",
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
