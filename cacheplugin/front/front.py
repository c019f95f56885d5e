"""The front: what all sessions of a process share, between the clients, the store and the pool.

It answers hits from the store itself and never waits for S3, a lock or a worker. Modules that a hit
does not need (the writing half of the store, the pool, json, logging) are imported when first used.
direct.py has the front of one client, server/server.py that of many.
"""

import os
import time

from ..errors import LOCAL_TROUBLE
from ..loop import READABLE, WRITABLE, Loop
from ..metrics import Counters
from ..options import DEBUG_BUILD_CACHE
from ..store.tree import MIN_AGE_S, Store
from .protocol import json_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from signal import (
        ITIMER_REAL,
        SIGALRM,
        SIGINT,
        SIGTERM,
        set_wakeup_fd,
        setitimer,
        signal,
    )

    from ..metrics import Histogram
    from ..options import Options
    from ..store.cache import LocalCache
    from ..store.crash_safety import OpenMarker
    from .contracts import HostedSession, Lookup
    from .pool_access import PoolAccess
else:
    from _signal import (  # the signal module imports enum
        ITIMER_REAL,
        SIGALRM,
        SIGINT,
        SIGTERM,
        set_wakeup_fd,
        setitimer,
        signal,
    )

_TOUCH_BATCH = 1024  # records in one turn of the loop; takes a few milliseconds
_TOUCH_DELAY_S = 1.0
EXIT_TERMINATED = 128 + 15
STUCK_S = 5.0  # a process that has to end and does not get there is ended after this time


class Front:
    """One loop over one store. ``writable`` False: puts go to a directory of the process.

    A subclass adds ``run`` and overrides ``begin_close``, ``session_ended`` and ``on_signal``.
    """

    make_loop = Loop
    hit_latency: "Histogram | None" = None  # of local hits, in seconds; None: not measured

    def __init__(self, options: "Options", writable: bool) -> None:
        self.options = options
        self.counters = Counters()
        self.debug: int = options.debug & DEBUG_BUILD_CACHE
        self.store = _open_store(options.cache_dir)
        self._marker: OpenMarker | None = None  # on disk while this process writes to the store
        self.lookup: Lookup = self.store.lookup  # once there is a LocalCache, its lookup
        self.plain_paths = json_text(options.cache_dir) == options.cache_dir
        self.stale_before = time.time() - MIN_AGE_S / 2  # an older mtime is set anew by a hit
        self.writable = writable
        self._local: LocalCache | None = None
        self._touched: set[str] = set()  # actions whose record's mtime is set, or will be
        self._to_touch: list[str] = []  # actions whose record's mtime is still to be set
        # Outputs whose mtime was set. A hit of another action with the same output finds that mtime
        # recent, and would leave its own record's mtime old if this set did not tell.
        self.refreshed: set[str] = set()
        self.loop: Loop = self.make_loop()
        self.status = 0  # exit status of the process
        self.pool_access = self._make_pool_access()
        self.interrupted = self.terminated = False

    @property
    def local(self) -> "LocalCache":
        """The writing half of the store, made at the first put."""
        if self._local is None:
            from ..store.cache import LocalCache

            self._local = LocalCache(self.store, self.writable)
            self.lookup = self._local.lookup
        self.mark_open()
        return self._local

    def _make_pool_access(self) -> "PoolAccess | None":
        """The way to S3; None without a bucket, which then costs no import."""
        if not self.options.bucket:
            return None
        from .pool_access import PoolAccess

        return PoolAccess(self)

    def mark_open(self) -> None:
        """Make the marker that says: this process or its workers write to the store."""
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

    def take_marker(self) -> "OpenMarker | None":
        """Give the marker away, for its end; the next write makes a new one."""
        marker, self._marker = self._marker, None
        return marker

    def watch_output(self, session: "HostedSession") -> None:
        """Watch the descriptors of a session for what it can do now.

        Its output while answers are unsent; its input unless it is paused, or shares the descriptor
        with unsent answers.
        """
        has_unsent = session.has_unsent
        if has_unsent:
            self.loop.watch(session.out_fd, WRITABLE, session.flush)
        elif session.out_fd != session.in_fd:
            self.loop.unwatch(session.out_fd)
        if session.is_paused:
            if session.out_fd != session.in_fd or not has_unsent:
                self.loop.unwatch(session.in_fd)
        elif not session.ended and not (has_unsent and session.out_fd == session.in_fd):
            self.watch_input(session)

    def watch_input(self, session: "HostedSession") -> None:
        """Have the session read when its client has sent something."""
        self.loop.watch(session.in_fd, READABLE, session.on_readable)

    # -- what a subclass does ----------------------------------------------------------------------

    def begin_close(self, session: "HostedSession") -> None:
        """A client has asked to close."""
        raise NotImplementedError

    def session_ended(self, session: "HostedSession") -> None:
        """A client is gone without an answer to close."""
        raise NotImplementedError

    def on_signal(self) -> None:
        """``interrupted`` or ``terminated`` has become true, perhaps again."""
        raise NotImplementedError

    # -- signals: handlers record, the loop acts ---------------------------------------------------

    def catch_signals(self) -> None:
        """Note SIGINT and SIGTERM, and call ``on_signal()`` from the loop."""
        wake_out, wake_in = os.pipe()
        os.set_blocking(wake_in, False)
        os.set_blocking(wake_out, False)
        set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        signal(SIGINT, self._note_signal)
        signal(SIGTERM, self._note_signal)
        self.loop.watch(wake_out, READABLE, lambda _: self._act_on_signals(wake_out))

    def _note_signal(self, number: int, _frame: object) -> None:
        if number == SIGINT:
            self.interrupted = True
        else:
            self.terminated = True
            self.must_end()

    def must_end(self) -> None:
        """End the process after STUCK_S, whatever it waits for then.

        The loop may wait in a system call, such as for a file system that does not answer, and then
        acts on no signal. A handler runs all the same, if the call can be interrupted.
        """
        signal(SIGALRM, lambda *_: os._exit(EXIT_TERMINATED))
        setitimer(ITIMER_REAL, STUCK_S)

    def may_go_on(self) -> None:
        """Take ``must_end`` back: the loop acts."""
        setitimer(ITIMER_REAL, 0)

    def _act_on_signals(self, wake_out: int) -> None:
        try:
            os.read(wake_out, 512)
        except BlockingIOError:
            return
        self.on_signal()

    # -- mtimes, which say when an entry was last used ---------------------------------------------

    def note_use(self, action: str, output: str) -> bool:
        """Set the mtimes of an entry that was not used recently; False if its body was pruned.

        The body's mtime is set at once, before the go command learns its path; the record's later.
        """
        if output not in self.refreshed:
            if not self.store.hold(output):
                return False
            self.refreshed.add(output)
        if action not in self._touched:
            self._touched.add(action)
            if not self._to_touch:
                self.loop.after(_TOUCH_DELAY_S, self._touch_batch)
            self._to_touch.append(action)
        return True

    def _touch_batch(self) -> None:
        """Set the mtimes of one batch of records; a later turn does the next batch."""
        self.touch_used(_TOUCH_BATCH)
        if self._to_touch:
            self.loop.after(_TOUCH_DELAY_S, self._touch_batch)

    def touch_used(self, most: "int | None" = None) -> None:
        """Set the mtimes of the records that were used: of all, or of ``most`` of them."""
        for action in self._to_touch[:most]:
            self.store.touch(action)
        del self._to_touch[:most]

    def forget_uses(self) -> None:
        """Have hits set mtimes again; a long-lived process calls this now and then."""
        self.stale_before = time.time() - MIN_AGE_S / 2
        self.refreshed.clear()
        self._touched.clear()

    # -- to the user -------------------------------------------------------------------------------

    def warn(self, text: str) -> None:
        """Print one line to stderr."""
        try:
            from ..console import say  # most sessions print nothing
        except LOCAL_TROUBLE:
            return
        say(text)

    def print_summary(self) -> None:
        """Print the counters to stderr (--metrics)."""
        if self.options.metrics:
            try:
                text = self.counters.summary()
                if self.pool_access is not None:
                    text += f"go-cache-plugin: {self.pool_access.state_text()}\n"
                os.write(2, text.encode(errors="backslashreplace"))
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

    def log_answers(self, answers: list[str]) -> None:
        """Log answers before they are sent (--debug 1)."""
        import logging

        logger = logging.getLogger(__name__)
        for text in answers:
            logger.debug("answered %s", text.rstrip())


def _open_store(root: str) -> Store:
    """The store at ``root``; after an unclean shutdown one that checks entries before use.

    In the common case this is one listdir; the checks are imported only if needed.
    """
    try:
        if not os.listdir(f"{root}/open"):
            return Store(root)
    except OSError:
        return Store(root)
    from ..store.crash_safety import open_store

    return open_store(root)
