"""The front: what all sessions of a process share, between the clients, the store and the pool.

It answers hits from the store itself and never waits for S3, a lock or a worker. What a hit does
not need (the writing half of the store, the pool, json, logging) is imported when it is needed.
direct.py has the front of one client, server.py that of many.
"""

import os
import time
from _signal import SIGINT, SIGTERM, set_wakeup_fd, signal  # the signal module imports enum

from ..loop import READABLE, WRITABLE, Loop
from ..metrics import Counters
from ..options import DEBUG_BUILD_CACHE
from ..store.tree import MIN_AGE_S, Store
from .protocol import json_text

_TOUCH_BATCH = 1024  # a few milliseconds
_TOUCH_DELAY_S = 1.0


class Front:
    """One loop over one store. ``writable`` False: puts go to a directory of the process.

    A subclass has ``run``, and what happens at the ends of sessions: ``begin_close``, ``session_ended``,
    ``on_signal``.
    """

    make_loop = Loop
    hit_latency = None  # a metrics.Histogram of seconds, where anybody wants to know

    def __init__(self, options, writable: bool) -> None:
        self.options = options
        self.counters = Counters()
        self.debug = options.debug & DEBUG_BUILD_CACHE
        self.store = _open_store(options.cache_dir)
        self._marker = None  # says on disk that this process writes
        self.lookup = self.store.lookup  # until a session store may hold entries as well
        self.plain_paths = json_text(options.cache_dir) == options.cache_dir
        self.stale_before = time.time() - MIN_AGE_S / 2
        self.writable = writable
        self._local = None
        self._touched = set()  # actions whose use was noted
        self._used = []  # actions whose record's clock of use is to be set
        self.refreshed = set()  # outputs whose clock was: it hides that of other actions of theirs
        self.loop = self.make_loop()
        self.status = 0  # what the process exits with
        self.pool_access = self._make_uplink()
        self.interrupted = self.terminated = False

    @property
    def local(self):
        """The writing half, made at the first put."""
        if self._local is None:
            from ..store.cache import LocalCache

            self._local = LocalCache(self.store, self.writable)
            self.lookup = self._local.lookup
        self.mark_open()
        return self._local

    def _make_uplink(self):
        """The way to S3, where there is a bucket; None leaves its module unread."""
        if not self.options.bucket:
            return None
        from .pool_access import PoolAccess

        return PoolAccess(self)

    def mark_open(self) -> None:
        """Before this process or a worker of it writes to the store."""
        if self._marker is None and self.writable:
            from ..store.crash_safety import OpenMarker

            self._marker = OpenMarker(self.store.root)

    @property
    def has_marker(self) -> bool:
        return self._marker is not None

    def trust_store(self) -> None:
        """Serve all entries unchecked: those that a shutdown may have damaged were repaired."""
        if self.store.is_checked:
            self.store = Store(self.store.root)
            if self._local is not None:
                self._local.store = self.store
            self.lookup = (self._local or self.store).lookup

    def take_marker(self):
        """The OpenMarker, or None; what is written from now on gets a new one."""
        marker, self._marker = self._marker, None
        return marker

    def watch_output(self, session) -> None:
        """Watch a client's output while answers wait, and its input unless too much does."""
        waiting = session.waiting
        if waiting:
            self.loop.watch(session.out_fd, WRITABLE, session.flush)
        elif session.out_fd != session.in_fd:
            self.loop.unwatch(session.out_fd)
        if session.is_full:
            if session.out_fd != session.in_fd or not waiting:
                self.loop.unwatch(session.in_fd)
        elif not session.ended and not (waiting and session.out_fd == session.in_fd):
            self.watch_input(session)

    def watch_input(self, session) -> None:
        self.loop.watch(session.in_fd, READABLE, session.on_readable)

    # -- signals: handlers record, the loop acts ---------------------------------------------------

    def catch_signals(self) -> None:
        """Have SIGINT and SIGTERM noted, and ``on_signal()`` called in the loop."""
        wake_out, wake_in = os.pipe()
        os.set_blocking(wake_in, False)
        os.set_blocking(wake_out, False)
        set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        signal(SIGINT, self._note_signal)
        signal(SIGTERM, self._note_signal)
        self.loop.watch(wake_out, READABLE, lambda _: self._act_on_signals(wake_out))

    def _note_signal(self, number, _frame) -> None:
        if number == SIGINT:
            self.interrupted = True
        else:
            self.terminated = True

    def _act_on_signals(self, wake_out) -> None:
        try:
            os.read(wake_out, 512)
        except BlockingIOError:
            return
        self.on_signal()

    # -- the clock of use --------------------------------------------------------------------------

    def note_use(self, action: str, output: str) -> bool:
        """Set the clock of use of an entry that was not used lately; False: a prune took its body.

        The body's is set before go is told of it, the record's soon.
        """
        if output not in self.refreshed:
            if not self.store.hold(output):
                return False
            self.refreshed.add(output)
        if action not in self._touched:
            self._touched.add(action)
            if not self._used:
                self.loop.after(_TOUCH_DELAY_S, self._touch_some)
            self._used.append(action)
        return True

    def _touch_some(self) -> None:
        """Set the clocks of some records, which is quick, and of the others later."""
        self.touch_used(_TOUCH_BATCH)
        if self._used:
            self.loop.after(_TOUCH_DELAY_S, self._touch_some)

    def touch_used(self, most: int = None) -> None:
        """Set the clocks of all records that were used, or of ``most`` of them."""
        for action in self._used[:most]:
            self.store.touch(action)
        del self._used[:most]

    def renew_clock(self) -> None:
        """What was used a while ago counts as not used lately any more."""
        self.stale_before = time.time() - MIN_AGE_S / 2
        self.refreshed.clear()
        self._touched.clear()

    # -- to the user -------------------------------------------------------------------------------

    def warn(self, text: str) -> None:
        try:
            os.write(2, f"go-cache-plugin: {text}\n".encode(errors="backslashreplace"))
        except OSError:
            pass

    def print_summary(self) -> None:
        """Print the counters, where that is asked for."""
        if self.options.metrics:
            try:
                os.write(2, self.counters.summary().encode())
            except OSError:
                pass

    def log_start(self) -> None:
        """Log what is served (-v)."""
        import logging

        from .. import log

        log.setup(self.options)
        logging.getLogger(__name__).info(
            "cache directory %s%s, %s",
            self.options.cache_dir,
            "" if self.writable else " (not writable)",
            f"bucket {self.options.bucket}" if self.pool_access else "no bucket: local cache only",
        )

    def log_answers(self, answers) -> None:
        """Log what is answered (--debug 1)."""
        import logging

        logger = logging.getLogger(__name__)
        for text in answers:
            logger.debug("answered %s", text.rstrip())


def _open_store(root: str) -> Store:
    """Return the store at ``root``; after an unclean shutdown one that checks what it serves."""
    try:
        if not os.listdir(f"{root}/open"):
            return Store(root)
    except OSError:
        return Store(root)
    from ..store.crash_safety import open_store

    return open_store(root)
