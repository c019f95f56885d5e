"""Server mode: the front of many go commands, which come through ``connect`` or plain TCP.

No client can delay the others: each gets a bounded piece of work in a turn of the loop, is not read
from while it reads no answers, and is given up when it stops in the middle of a request.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from typing import TYPE_CHECKING, cast

from .. import scope
from ..front.front import EXIT_TERMINATED, Front
from ..front.protocol import HELLO, close_answer
from ..loop import READABLE
from ..metrics import Counters, Histogram
from ..store.session_log import append_session
from . import systemd
from .acceptor import Acceptor, address_text
from .client import MAX_STALLS, Client
from .lifecycle import Event, Lifecycle, State
from .maintenance import Maintenance
from .resilient_loop import ResilientLoop

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from ..front.contracts import HostedSession
    from ..front.transfers import Transfers
    from ..ipc.web_messages import ServerSnapshot
    from ..loop import Timer
    from ..options import Options
    from .http_process import HttpProcess
    from .listeners import Listeners

log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 128 + 2
_FORGET_USES_S = 600


class Server(Front):
    """Serves the clients of ``listeners`` until it is told to stop, and closes the listeners."""

    make_loop = ResilientLoop

    def __init__(self, options: Options, writable: bool, listeners: Listeners) -> None:
        super().__init__(options, writable)
        self.hit_latency = Histogram() if listeners.http is not None else None
        self._listeners = listeners
        self._acceptor = Acceptor(self, listeners.tcp, listeners.unix)
        self._maintenance = Maintenance(self)
        self._http: HttpProcess | None = None
        self._clients: set[Client] = set()
        self._closing: list[Client] = []  # the answer to close is queued, maybe not yet sent
        self._uploading: list[Transfers] = []  # of ended sessions
        self._sessions_begun = {"unix": 0, "tcp": 0}
        self._uses_forgotten_at = time.monotonic()
        self._lifecycle = Lifecycle()
        self._signal_count = 0
        self._idle_timer: Timer | None = None
        self._drain_timer: Timer | None = None

    # -- the loop ----------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until a signal or --idle-exit ends it; returns the exit status."""
        self.catch_signals()
        if self.options.verbose:
            self.log_start()
        if self.pool_access is not None:
            self.pool_access.latencies = {"FetchResult": Histogram(), "UploadResult": Histogram()}
            self.pool_access.pool()  # started now, so that the first client does not wait for it
        self._acceptor.open()
        if self._listeners.http is not None:
            from .http_process import HttpProcess

            self._http = HttpProcess(self, self._listeners.http)
            log.info("HTTP on %s", address_text(self._listeners.http))
        systemd.notify("READY=1")
        self._maintenance.run_every_minute()
        if self.options.client_timeout_s:
            self._check_stalls()
        self.restart_idle_timer()
        gc.freeze()  # imported modules are never freed: the garbage collector need not scan them
        while not self._lifecycle.is_over:
            self.loop.turn()
            self.loop.call(self._after_turn)
        self._finish()
        return self.status

    def _after_turn(self) -> None:
        if self._closing:
            self._end_closed_sessions()
        if self._uploading:
            self._release_transfers()
        if self._lifecycle.is_stopping:
            self._go_on_stopping()

    # -- clients come ------------------------------------------------------------------------------

    @property
    def client_count(self) -> int:
        """The number of sessions."""
        return len(self._clients)

    @property
    def is_idle(self) -> bool:
        """Whether there is neither a client nor an upload of an ended session."""
        return not self._clients and not self._uploading

    @property
    def _is_http_busy(self) -> bool:
        return self._http is not None and self._http.is_busy

    @property
    def _uploads_pending(self) -> int:
        """Unfinished uploads of ended sessions and of the HTTP process."""
        count = sum(transfers.pending for transfers in self._uploading)
        return count + (self._http.uploads_pending if self._http is not None else 0)

    def own_scopes(self) -> Sequence[str]:
        """The scopes of clients that name none."""
        return scope.find(self.options, os.environ)

    def begin_session(
        self,
        way: str,
        fds: tuple[int, int],
        find_scopes: Callable[[], Sequence[str]],
        control: socket.socket | None = None,
        wants_summary: bool = False,
    ) -> None:
        """Serve a client that reads and writes ``fds``, which the server closes.

        ``way``: "unix" or "tcp", for metrics. ``find_scopes()`` gives the scopes of the session.
        ``control``: the socket to connect, which is told of the end; None for a TCP client.
        """
        now = time.monotonic()
        if now - self._uses_forgotten_at >= _FORGET_USES_S:
            self._uses_forgotten_at = now
            self.forget_uses()
        counters, transfers = Counters(), None
        if self.pool_access is not None:
            transfers = self.pool_access.attach(counters, find_scopes)
        client = Client(self, fds, counters, transfers, control, wants_summary)
        self._clients.add(client)
        self._sessions_begun[way] += 1
        if control is not None:
            self.loop.watch(control.fileno(), READABLE, lambda _: self._on_control(client))
        self.watch_input(client)
        client.answer(HELLO.decode())
        client.flush()

    def _on_control(self, client: Client) -> None:
        if client.connect_has_died():
            client.fault = "the connect process has died"
            client.end()

    # -- clients go --------------------------------------------------------------------------------

    def begin_close(self, session: HostedSession) -> None:
        """Answer a client's close; the session ends once the answer is sent."""
        client = cast("Client", session)  # begin_session makes no other sessions
        client.answer(close_answer(client.close_id))
        self._closing.append(client)

    def session_ended(self, session: HostedSession) -> None:
        """End the session of a client that is gone without an answer to close."""
        if session.fault:
            log.info("a session failed: %s", session.fault)
        self._end_session(cast("Client", session), 1 if session.fault else 0)

    def _end_closed_sessions(self) -> None:
        closing, self._closing = self._closing, []
        for client in closing:
            if client.ended:
                continue
            if client.has_unsent:
                self._closing.append(client)
            else:
                client.ended = True
                client.abort()
                self._end_session(client, 0)

    def _end_session(self, client: Client, status: int) -> None:
        """Close a client's descriptors, and go on with its uploads."""
        self._clients.discard(client)
        for fd in {client.in_fd, client.out_fd}:
            self.loop.unwatch(fd)
            os.close(fd)
        client.in_fd = client.out_fd = -1
        if client.control is not None:
            self.loop.unwatch(client.control.fileno())
        client.tell_end(status)
        counters = client.counters
        append_session(self.store.root, counters)
        log.debug(
            "a session has ended: %d gets, %d hits, %d puts",
            counters.get_requests,
            counters.get_hits,
            counters.put_requests,
        )
        # Results of its fetches and uploads that come from now on count for the server alone.
        self.counters.add(counters)
        client.counters = self.counters
        if client.transfers is not None:
            client.transfers.counters = self.counters
            client.transfers.finish()
            client.transfers.mark_ending()
            self._uploading.append(client.transfers)
        self._acceptor.watch_listeners()
        self.restart_idle_timer()

    def _release_transfers(self) -> None:
        """Drop the Transfers of ended sessions whose uploads are finished."""
        for transfers in [*self._uploading]:
            if not transfers.pending:
                self._uploading.remove(transfers)
                transfers.release()
                if self.pool_access is not None:
                    self.pool_access.end(transfers)

    def _check_stalls(self) -> None:
        """End clients that have stalled for --client-timeout."""
        self.loop.after(self.options.client_timeout_s / MAX_STALLS, self._check_stalls)
        for client in [*self._clients]:
            if client.check_stall():
                client.fault = (
                    "the client has stopped in the middle of a request or of reading answers"
                    " (--client-timeout)"
                )
                client.end()
        self._acceptor.check_stalls(MAX_STALLS)

    # -- the end -----------------------------------------------------------------------------------

    @property
    def is_stopping(self) -> bool:
        """Whether no client is accepted any more."""
        return self._lifecycle.is_stopping

    @property
    def is_cut_off(self) -> bool:
        """Whether --stop-timeout is over, so that new uploads are refused."""
        return self._lifecycle.is_cut_off

    def on_signal(self) -> None:
        """Stop; at the second signal end at once."""
        self._signal_count += 1
        if self._signal_count > 1:
            self._lifecycle.handle(Event.SECOND_SIGNAL)
            self.status = EXIT_INTERRUPTED if self.interrupted else EXIT_TERMINATED
            self.must_end()
            return
        self.may_go_on()
        log.info(
            "stopping; %d clients may finish within %g s (--stop-timeout); a second signal ends"
            " the server at once",
            len(self._clients),
            self.options.stop_timeout_s,
        )
        self._stop(Event.FIRST_SIGNAL)

    def _stop(self, event: Event) -> None:
        """Accept no more clients, and end once those that are there have finished."""
        if not self._lifecycle.handle(event):
            return  # already stopping
        systemd.notify("STOPPING=1")
        self._acceptor.close()
        self.loop.after(self.options.stop_timeout_s, self._cut_off)

    def _cut_off(self) -> None:
        self._lifecycle.handle(Event.STOP_TIMEOUT)
        for client in [*self._clients]:
            client.fault = "the server is stopping, and --stop-timeout is over; run the build again"
            client.end()

    def _go_on_stopping(self) -> None:
        """Advance as far as clients, HTTP requests and uploads allow now."""
        if self._clients or (self._is_http_busy and not self.is_cut_off):
            return
        if not self._uploading and not self._uploads_pending:
            self._lifecycle.handle(Event.DRAINED)
            return
        self._lifecycle.handle(Event.CLIENTS_GONE)
        if self._drain_timer is None and self.options.drain_timeout_s is not None:
            self._drain_timer = self.loop.after(self.options.drain_timeout_s, self._give_up)

    def _give_up(self) -> None:
        self._lifecycle.handle(Event.DRAIN_TIMEOUT)
        log.warning(
            "%d uploads not finished within --drain-timeout; cache entries stay in the spool, and"
            " the next server or `go-cache-plugin flush` uploads them",
            self._uploads_pending,
        )

    def restart_idle_timer(self) -> None:
        """Count --idle-exit from now on, if there is no client."""
        self.loop.cancel(self._idle_timer)
        if self.options.idle_exit_s and self._is_unused:
            self._idle_timer = self.loop.after(self.options.idle_exit_s, self._on_idle)

    @property
    def _is_unused(self) -> bool:
        return not self._clients and not self._acceptor.is_busy and not self._is_http_busy

    def _on_idle(self) -> None:
        if self._is_unused and not self.is_stopping:
            log.info("stopping; no client for %g s (--idle-exit)", self.options.idle_exit_s)
            self._stop(Event.IDLE)

    def _finish(self) -> None:
        for client in self._clients:
            client.abort()
        if self.pool_access is not None:
            self.pool_access.close()
        for transfers in (*self._uploading, *(client.transfers for client in self._clients)):
            if transfers is not None:
                transfers.release()
        if self._http is not None:
            self._http.close()
        self.touch_used()
        for client in self._clients:
            self.counters.add(client.counters)
        self.print_summary()
        marker = self.take_marker()
        if marker is not None and self._lifecycle.state is not State.ABORTED:
            marker.close()

    # -- metrics -----------------------------------------------------------------------------------

    def snapshot(self) -> ServerSnapshot:
        """The state of this server now, for the HTTP process."""
        counters = Counters()
        counters.add(self.counters)
        uploads_pending = self._uploads_pending
        for client in self._clients:
            counters.add(client.counters)
            if client.transfers is not None:
                uploads_pending += client.transfers.pending
        histograms = {"local": self.hit_latency or Histogram()}
        pool_access = self.pool_access
        if pool_access is not None:
            histograms["s3"] = pool_access.latencies["FetchResult"]
            histograms["upload"] = pool_access.latencies["UploadResult"]
        return {
            "counters": counters.as_dict(),
            "histograms": {name: (one.counts, one.sum_s) for name, one in histograms.items()},
            "sessions": len(self._clients),
            "sessions_begun": self._sessions_begun,
            "uploads_pending": uploads_pending,
            "is_stopping": self.is_stopping,
            "turned_away": self._acceptor.turned_away,
            "bucket_usable": pool_access.usable if pool_access is not None else None,
            "bucket_answered": pool_access is not None and pool_access.has_answered,
            "bucket_off_s": pool_access.off_s if pool_access is not None else None,
        }
