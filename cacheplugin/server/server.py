"""Server mode: the front of many go commands, which come through ``connect`` or plain TCP.

No client can hold the others: each gets a bounded piece of work a turn, is not read from while it
takes no answers, and is given up when it stops in the middle of a request.
"""

import gc
import logging
import os
import time

from .. import scope
from ..front.front import Front
from ..front.protocol import HELLO, close_answer
from ..front.session import Session
from ..loop import READABLE, Loop
from ..metrics import Counters, Histogram
from ..store.session_log import append_session
from . import fd_passing, systemd
from .acceptor import Acceptor, address_text
from .maintenance import Maintenance

log = logging.getLogger(__name__)

EXIT_INTERRUPTED, EXIT_TERMINATED = 128 + 2, 128 + 15
_STALL_CHECKS = 4  # in the time that a client may stop
_CLOCK_S = 600
_MOST_FAILURES = 100  # then it is better to begin anew


class _Client(Session):
    """A Session with what the server notes of it."""

    def __init__(self, front, fds, counters, transfers, control, wants_summary) -> None:
        super().__init__(front, *fds, counters, transfers)
        self.control = control  # the socket to connect, or None
        self.wants_summary = wants_summary
        self.stalls = 0
        self.io_count_seen = -1

    def on_readable(self, _=None) -> None:
        """As Session's, but what nobody foresaw ends this session alone."""
        try:
            super().on_readable()
        except Exception as error:
            log.exception("a session failed in a way nobody foresaw")
            self.fault = f"internal error of the server: {error!r}"
            self.end()


class _SteadyLoop(Loop):
    """One in which what nobody foresaw is logged, and ends nothing else, unless it goes on and on."""

    def __init__(self) -> None:
        super().__init__()
        self._failures = 0

    def call(self, handler, *arguments) -> None:
        try:
            handler(*arguments)
        except Exception:
            self._failures += 1
            if self._failures > _MOST_FAILURES:
                raise
            log.exception("something failed in a way nobody foresaw")


class Server(Front):
    """``listeners`` are those of serve.py, which this closes."""

    make_loop = _SteadyLoop

    def __init__(self, options, writable: bool, listeners) -> None:
        super().__init__(options, writable)
        self.hit_latency = Histogram() if listeners.http is not None else None
        self.sessions_begun = {"unix": 0, "tcp": 0}
        self._listeners = listeners
        self._acceptor = Acceptor(self, listeners.tcp, listeners.unix)
        self._clients = set()
        self._closing = []  # clients whose answer to close is on its way
        self._ended = []  # Transfers of sessions that have ended, which still upload
        self._clock_from = time.monotonic()
        self._maintenance = Maintenance(self)
        self._idle_timer = None
        self._web = None
        self.is_stopping = False
        self._was_told = False  # a signal came
        self._hurried = False  # a second one
        self._drain_timer = None
        self.is_cut_off = False  # those who were to finish have had their time
        self._given_up = False  # on uploads that were not done in time
        self._done = False

    # -- the loop ----------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until a signal, or the end of clients, says so; returns the exit status."""
        self.catch_signals()
        if self.options.verbose:
            self.log_start()
        if self.pool_access is not None:
            self.pool_access.latencies = {"FetchResult": Histogram(), "UploadResult": Histogram()}
            self.pool_access.pool()  # the first client finds it warm
        self._acceptor.open()
        if self._listeners.http is not None:
            from .http_process import HttpProcess

            self._web = HttpProcess(self, self._listeners.http)
            log.info("HTTP on %s", address_text(self._listeners.http))
        systemd.notify("READY=1")
        self._maintenance.do()
        if self.options.client_timeout_s:
            self._check_stalls()
        self.watch_idleness()
        gc.freeze()  # what is imported stays: no collection need look at it again
        while not self._done:
            self.loop.turn()
            self.loop.call(self._after_turn)
        self._finish()
        return self.status

    def _after_turn(self) -> None:
        if self._closing:
            closing, self._closing = self._closing, []
            for client in closing:
                if client.ended:
                    continue
                if client.has_unsent:
                    self._closing.append(client)
                else:
                    client.ended = True
                    client.abort()
                    self._end(client, 0)
        if self._ended:
            self._let_go_of_transfers()
        if self.is_stopping and not self._clients and (self.is_cut_off or not self._web_is_busy):
            self._drain()

    # -- clients come ------------------------------------------------------------------------------

    @property
    def client_count(self) -> int:
        return len(self._clients)

    @property
    def is_idle(self) -> bool:
        """Whether there is neither a client nor an upload of one that has ended."""
        return not self._clients and not self._ended

    @property
    def _web_is_busy(self) -> bool:
        return self._web is not None and self._web.is_busy

    @property
    def _uploads_pending(self) -> int:
        """How many uploads of sessions that have ended, and of the HTTP process, are not done."""
        found = sum(transfers.pending for transfers in self._ended)
        return found + (self._web.uploads_pending if self._web is not None else 0)

    def own_scopes(self):
        """The scopes of clients that have none of their own."""
        return scope.find(self.options, os.environ)

    def begin(self, way, fds, find_scopes, control=None, wants_summary=False) -> None:
        """Serve a client that came by ``way`` on two descriptors, which are this Server's from now on.

        ``control`` is the socket to a connect, to be told of the end.
        """
        now = time.monotonic()
        if now - self._clock_from >= _CLOCK_S:
            self._clock_from = now
            self.forget_uses()
        counters, transfers = Counters(), None
        if self.pool_access is not None:
            transfers = self.pool_access.attach(counters, find_scopes)
        client = _Client(self, fds, counters, transfers, control, wants_summary)
        self._clients.add(client)
        self.sessions_begun[way] += 1
        if control is not None:
            self.loop.watch(control.fileno(), READABLE, lambda _: self._on_control(client))
        self.watch_input(client)
        client.answer(HELLO.decode())
        client.flush()

    def _on_control(self, client) -> None:
        """connect says nothing: it has died, or was killed, so its session ends as well."""
        try:
            if client.control.recv(fd_passing.MAX_BYTES):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        client.fault = "connect was killed"
        client.end()

    # -- clients go --------------------------------------------------------------------------------

    def begin_close(self, session) -> None:
        """The client asked to close: its session ends when it has the answer."""
        session.answer(close_answer(session.close_id))
        self._closing.append(session)

    def session_ended(self, session) -> None:
        """The client is gone without an answer to close."""
        if session.fault:
            log.info("a session failed: %s", session.fault)
        self._end(session, 1 if session.fault else 0)

    def _end(self, client, status) -> None:
        """Let go of a client's descriptors, and have its uploads finished."""
        self._clients.discard(client)
        for fd in {client.in_fd, client.out_fd}:
            self.loop.unwatch(fd)
            os.close(fd)
        client.in_fd = client.out_fd = -1
        counters = client.counters
        if client.control is not None:
            self.loop.unwatch(client.control.fileno())
            text = f"go-cache-plugin: {client.fault}\n" if client.fault else ""
            fd_passing.tell(
                client.control, text + (counters.summary() if client.wants_summary else ""), status
            )
            client.control.close()
        append_session(self.store.root, counters)
        log.debug(
            "a session has ended: %d gets, %d hits, %d puts",
            counters.get_requests,
            counters.get_hits,
            counters.put_requests,
        )
        # What comes later is of no session that lives.
        self.counters.add(counters)
        client.counters = self.counters
        if client.transfers is not None:
            client.transfers.counters = self.counters
            client.transfers.finish()
            client.transfers.mark_ending()
            self._ended.append(client.transfers)
        self._acceptor.open_doors()
        self.watch_idleness()

    def _let_go_of_transfers(self) -> None:
        """Release what is uploaded, or will not be."""
        for transfers in [*self._ended]:
            if not transfers.pending:
                self._ended.remove(transfers)
                transfers.release()
                self.pool_access.end(transfers)

    def _check_stalls(self) -> None:
        """Give up clients that have stopped in the middle of something."""
        self.loop.after(self.options.client_timeout_s / _STALL_CHECKS, self._check_stalls)
        for client in [*self._clients]:
            if client.is_stalled and client.io_count == client.io_count_seen:
                client.stalls += 1
            else:
                client.stalls, client.io_count_seen = 0, client.io_count
            if client.stalls >= _STALL_CHECKS:
                client.fault = "the client has stopped in the middle of a request"
                client.end()
        self._acceptor.check_stalls(_STALL_CHECKS)

    # -- the end -----------------------------------------------------------------------------------

    def on_signal(self) -> None:
        if self._was_told:
            self._hurried = self._done = True
            self.status = EXIT_INTERRUPTED if self.interrupted else EXIT_TERMINATED
            return
        self._was_told = True
        log.info("stopping; %d clients may finish", len(self._clients))
        self.stop()

    def stop(self) -> None:
        """Take no more clients, let those that are there finish, and end."""
        if self.is_stopping:
            return
        self.is_stopping = True
        systemd.notify("STOPPING=1")
        self._acceptor.close()
        self.loop.after(self.options.stop_timeout_s, self._cut)

    def _cut(self) -> None:
        """The time of those who were to finish is over."""
        self.is_cut_off = True
        for client in [*self._clients]:
            client.fault = "the server is stopping"
            client.end()

    def _drain(self) -> None:
        """All clients are gone: end when all is uploaded."""
        if (self._ended or self._uploads_pending) and not self._given_up:
            if self._drain_timer is None and self.options.drain_timeout_s is not None:
                self._drain_timer = self.loop.after(self.options.drain_timeout_s, self._give_up)
            return
        self._done = True

    def _give_up(self) -> None:
        self._given_up = True
        log.warning(
            "%d uploads not finished within --drain-timeout; those of entries stay in the spool",
            self._uploads_pending,
        )

    def watch_idleness(self) -> None:
        """Begin to count the time without a client, if there is none and it counts."""
        self.loop.cancel(self._idle_timer)
        if self.options.idle_exit_s and self._has_nobody:
            self._idle_timer = self.loop.after(self.options.idle_exit_s, self._on_idle)

    @property
    def _has_nobody(self) -> bool:
        return not self._clients and not self._acceptor.is_busy and not self._web_is_busy

    def _on_idle(self) -> None:
        if self._has_nobody and not self.is_stopping:
            log.info("stopping; no client for %g s", self.options.idle_exit_s)
            self.stop()

    def _finish(self) -> None:
        for client in [*self._clients]:
            client.abort()
        if self.pool_access is not None:
            self.pool_access.close()
            for transfers in (*self._ended, *(client.transfers for client in self._clients)):
                transfers.release()
        if self._web is not None:
            self._web.close()
        self.touch_used()
        for client in self._clients:
            self.counters.add(client.counters)
        self.print_summary()
        marker = self.take_marker()
        if marker is not None and not self._hurried:
            marker.close()

    # -- what others want to know ------------------------------------------------------------------

    def snapshot(self) -> dict:
        """Plain values for the HTTP process: counters, histograms, numbers of what there is now."""
        counters = Counters()
        for one in (self.counters, *(client.counters for client in self._clients)):
            counters.add(one)
        histograms = {"local": self.hit_latency or Histogram()}
        uploads_pending = self._uploads_pending
        if self.pool_access is not None:
            histograms["s3"] = self.pool_access.latencies["FetchResult"]
            histograms["upload"] = self.pool_access.latencies["UploadResult"]
            uploads_pending += sum(client.transfers.pending for client in self._clients)
        return {
            "counters": counters.as_dict(),
            "histograms": {name: (one.counts, one.sum_s) for name, one in histograms.items()},
            "sessions": len(self._clients),
            "sessions_begun": self.sessions_begun,
            "uploads_pending": uploads_pending,
            "is_stopping": self.is_stopping,
            "bucket_usable": self.pool_access.usable if self.pool_access is not None else None,
        }
