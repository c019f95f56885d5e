"""Server mode: the front of many go commands, which come through ``connect`` or plain TCP.

No client can hold the others: each gets a bounded piece of work a turn, is not read from while it
takes no answers, and is given up when it stops in the middle of a request.
"""
import errno
import logging
import os
import resource
import socket
import stat
import time
from _thread import start_new_thread

from . import handover, peers, scope, systemd, upkeep
from .errors import reason_of
from .front import Front
from .history import append_session
from .loop import READABLE
from .metrics import Counters, Histogram
from .protocol import HELLO, close_answer
from .session import Session

log = logging.getLogger(__name__)

EXIT_INTERRUPTED, EXIT_TERMINATED = 128 + 2, 128 + 15
_ACCEPTS_A_TURN = 16
_DESCRIPTORS_A_CLIENT = 4  # stdin, stdout, the socket to connect, the file of a put
_OWN_DESCRIPTORS = 64
_STALL_CHECKS = 4  # in the time that a client may stop
_CLOCK_S = 600
_UPKEEP_S = 60
_PRUNE_S = 3600
_MARKER_S = 3600


class _Client(Session):
    """A Session with what the server notes of it."""

    def __init__(self, front, fds, counters, transfers, control, wants_summary) -> None:
        super().__init__(front, *fds, counters, transfers)
        self.control = control  # the socket to connect, or None
        self.wants_summary = wants_summary
        self.stalls = 0
        self.moves_seen = -1


class _Newcomer:
    """A connect that has not made its offer yet."""

    def __init__(self, sock) -> None:
        self.sock = sock
        self.checks = 0


class Server(Front):
    """``listeners`` are those of serve.py, which this closes."""

    def __init__(self, options, writable: bool, listeners) -> None:
        super().__init__(options, writable)
        self.hit_latency = Histogram()
        self.sessions_begun = {"unix": 0, "tcp": 0}
        self._listeners = listeners
        self._accepting = []  # (listener, what takes its connections) while there is room
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_clients = max(1, (limit - _OWN_DESCRIPTORS) // _DESCRIPTORS_A_CLIENT)
        self._newcomers = {}  # descriptor: _Newcomer
        self._clients = set()
        self._closing = []  # clients whose answer to close is on its way
        self._ended = []  # Transfers of sessions that have ended, which still upload
        self._clock_from = time.monotonic()
        self._marker_from = self._pruned_at = None
        self._helpers = {}  # id of a process: what it is
        self._idle_timer = None
        self._web = None
        self._stopping = False
        self._hurried = False  # a second signal came
        self._drain_timer = None
        self._given_up = False  # on uploads that were not done in time
        self._done = False

    # -- the loop ----------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until a signal, or the end of clients, says so; returns the exit status."""
        self.catch_signals()
        if self.options.verbose:
            self.log_start()
        if self.uplink is not None:
            self.uplink.latencies = {"FetchResult": Histogram(), "UploadResult": Histogram()}
            self.uplink.pool()  # the first client finds it warm
        self._listen()
        if self._listeners.http is not None:
            from .weblink import WebLink

            self._web = WebLink(self, self._listeners.http)
            log.info("HTTP on %s", _address_text(self._listeners.http))
        systemd.notify("READY=1")
        self._do_upkeep()
        self._check_stalls()
        self._watch_idleness()
        while not self._done:
            self.loop.turn()
            self._after_turn()
        self._finish()
        return self.status

    def _listen(self) -> None:
        if self._listeners.tcp is not None:
            log.info("serving go commands on %s", _address_text(self._listeners.tcp))
            self._accepting.append((self._listeners.tcp, self._welcome_tcp))
        if self._listeners.unix is not None:
            log.info("serving connect on Unix socket %s", _address_text(self._listeners.unix))
            self._accepting.append((self._listeners.unix, self._welcome_unix))
        for listener, _ in self._accepting:
            listener.setblocking(False)
        self._open_doors()

    def _open_doors(self) -> None:
        """Accept connections while there is room for them."""
        is_room = len(self._clients) + len(self._newcomers) < self._most_clients
        for listener, welcome in self._accepting:
            if not is_room:
                self.loop.unwatch(listener.fileno())
            elif not self.loop.watches(listener.fileno()):
                self.loop.watch(
                    listener.fileno(), READABLE,
                    lambda _, listener=listener, welcome=welcome: self._accept(listener, welcome),
                )  # fmt: skip

    def _after_turn(self) -> None:
        if self._closing:
            closing, self._closing = self._closing, []
            for client in closing:
                if client.ended:
                    continue
                if client.waiting:
                    self._closing.append(client)
                else:
                    client.ended = True
                    self._end(client, 0)
        if self._ended:
            self._let_go_of_transfers()
        if self._stopping and not self._clients:
            self._drain()

    # -- clients come ------------------------------------------------------------------------------

    def _accept(self, listener, welcome) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    log.warning("a client has to wait: %s", reason_of(error))
                    self.loop.unwatch(listener.fileno())  # until one has ended, or for a while
                    self.loop.after(1, self._open_doors)
                    return
                continue  # it is gone again
            sock.setblocking(False)
            self.loop.cancel(self._idle_timer)
            try:
                welcome(sock, address)
            except (OSError, ValueError) as error:
                log.warning("a client was turned away: %s", reason_of(error))
                sock.close()
                self._watch_idleness()
            self._open_doors()
            if len(self._clients) + len(self._newcomers) >= self._most_clients:
                return

    def _may_come(self, uid) -> bool:
        return self.options.allow_other_users or handover.is_trusted(uid)

    def _welcome_tcp(self, sock, address) -> None:
        if not self.options.allow_other_users:
            uid = peers.uid(address, sock.getsockname())
            if uid is not None and not self._may_come(uid):
                raise ValueError(f"user {uid} is neither the server's nor root; see --allow-other-users")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fd = sock.detach()
        self._begin("tcp", (fd, fd), self._own_scopes)

    def _welcome_unix(self, sock, _) -> None:
        uid = handover.peer_uid(sock)
        if not self._may_come(uid):
            reason = f"user {uid} is neither the server's nor root; see --allow-other-users"
            _tell(sock, f"go-cache-plugin: turned away: {reason}\n", 1)
            raise ValueError(reason)
        self._newcomers[sock.fileno()] = _Newcomer(sock)
        self._take_offer(sock)

    def _take_offer(self, sock, _=None) -> None:
        """Take what connect has sent, or wait for it."""
        try:
            offer, fds = handover.receive(sock)
        except BlockingIOError:
            self.loop.watch(sock.fileno(), READABLE, lambda _: self._take_offer(sock))
            return
        except (OSError, ValueError) as error:
            log.warning("a client was turned away: %s", reason_of(error))
            _tell(sock, f"go-cache-plugin: turned away: {reason_of(error)}\n", 1)
            self._dismiss(sock)
            return
        del self._newcomers[sock.fileno()]
        uses_own = self.options.scope and not offer.is_explicit
        scopes = self._own_scopes if uses_own else lambda: offer.scopes
        fds = [_independent(fd, flags) for fd, flags in zip(fds, (os.O_RDONLY, os.O_WRONLY))]
        self._begin("unix", fds, scopes, sock, offer.wants_summary)

    def _dismiss(self, sock) -> None:
        self.loop.unwatch(sock.fileno())
        self._newcomers.pop(sock.fileno(), None)
        sock.close()
        self._open_doors()
        self._watch_idleness()

    def _own_scopes(self):
        return scope.find(self.options, os.environ)

    def _begin(self, way, fds, find_scopes, control=None, wants_summary=False) -> None:
        now = time.monotonic()
        if now - self._clock_from >= _CLOCK_S:
            self._clock_from = now
            self.renew_clock()
        counters, transfers = Counters(), None
        if self.uplink is not None:
            transfers = self.uplink.attach(counters, find_scopes)
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
            if client.control.recv(handover.MAX_BYTES):
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
        session.answer(close_answer(session.closing))
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
            _tell(client.control, text + (counters.summary() if client.wants_summary else ""), status)
            client.control.close()
        append_session(self.store.root, counters)
        log.debug("a session has ended: %d gets, %d hits, %d puts",
                  counters.get_requests, counters.get_hits, counters.put_requests)  # fmt: skip
        # What comes later is of no session that lives.
        self.counters.add(counters)
        client.counters = self.counters
        if client.transfers is not None:
            client.transfers.counters = self.counters
            client.transfers.finish()
            client.transfers.mark_ending()
            self._ended.append(client.transfers)
        self._open_doors()
        self._watch_idleness()

    def _let_go_of_transfers(self) -> None:
        """Release what is uploaded, or will not be."""
        for transfers in [*self._ended]:
            if not transfers.pending:
                self._ended.remove(transfers)
                transfers.release()
                self.uplink.end(transfers)

    def _check_stalls(self) -> None:
        """Give up clients that have stopped in the middle of something."""
        self.loop.after(self.options.client_timeout_s / _STALL_CHECKS, self._check_stalls)
        for client in [*self._clients]:
            if client.is_stalled and client.moves == client.moves_seen:
                client.stalls += 1
            else:
                client.stalls, client.moves_seen = 0, client.moves
            if client.stalls >= _STALL_CHECKS:
                client.fault = "the client has stopped in the middle of a request"
                client.end()
        for newcomer in [*self._newcomers.values()]:
            newcomer.checks += 1
            if newcomer.checks > _STALL_CHECKS:
                self._dismiss(newcomer.sock)

    # -- the end -----------------------------------------------------------------------------------

    def on_signal(self) -> None:
        if self._stopping:
            self._hurried = self._done = True
            self.status = EXIT_INTERRUPTED if self.interrupted else EXIT_TERMINATED
            return
        log.info("stopping; %d clients may finish", len(self._clients))
        self.stop()

    def stop(self) -> None:
        """Take no more clients, let those that are there finish, and end."""
        if self._stopping:
            return
        self._stopping = True
        systemd.notify("STOPPING=1")
        for listener, _ in self._accepting:
            self.loop.unwatch(listener.fileno())
            listener.close()
        self._accepting = []
        for newcomer in [*self._newcomers.values()]:
            self._dismiss(newcomer.sock)
        self.loop.after(self.options.stop_timeout_s, self._cut)
        self.loop.after(0, lambda: None)  # a turn, even if no client gives cause for one

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    def _cut(self) -> None:
        """The time of those who were to finish is over."""
        for client in [*self._clients]:
            client.fault = "the server is stopping"
            client.end()

    def _drain(self) -> None:
        """All clients are gone: end when all is uploaded."""
        if self._ended and not self._given_up:
            if self._drain_timer is None and self.options.drain_timeout_s is not None:
                self._drain_timer = self.loop.after(self.options.drain_timeout_s, self._give_up)
            return
        self._done = True

    def _give_up(self) -> None:
        self._given_up = True
        pending = sum(transfers.pending for transfers in self._ended)
        log.warning("%d uploads not finished within --drain-timeout, they stay in the spool", pending)

    def _watch_idleness(self) -> None:
        """Begin to count the time without a client, if there is none and it counts."""
        if self.options.idle_exit_s and not self._clients and not self._newcomers:
            self.loop.cancel(self._idle_timer)
            self._idle_timer = self.loop.after(self.options.idle_exit_s, self._on_idle)

    def _on_idle(self) -> None:
        if not self._clients and not self._newcomers and not self._stopping:
            log.info("stopping; no client for %g s", self.options.idle_exit_s)
            self.stop()

    def _finish(self) -> None:
        for client in [*self._clients]:
            client.abort()
        if self.uplink is not None:
            self.uplink.close()
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

    # -- upkeep ------------------------------------------------------------------------------------

    def _do_upkeep(self) -> None:
        """Every minute: what direct mode does at the end of a session."""
        self.loop.after(_UPKEEP_S, self._do_upkeep)
        self._reap()
        running = self._helpers.values()
        if self.uplink is not None and "uploader" not in running and not self._stopping:
            process_id = self.uplink.start_uploader()
            if process_id is not None:
                self._helpers[process_id] = "uploader"
        now = time.monotonic()
        prunes = self.options.expiry_s or self.options.max_size_bytes
        is_due = prunes and (self._pruned_at is None or now - self._pruned_at >= _PRUNE_S)
        if self.writable and "upkeep" not in running and (is_due or self.suspects is not None):
            self._pruned_at = now
            try:
                self._helpers[upkeep.start(self.options)] = "upkeep"
            except OSError as error:
                log.warning("no prune: %s", reason_of(error))
        self._renew_marker(now)

    def _reap(self) -> None:
        for process_id, name in [*self._helpers.items()]:
            done, status = os.waitpid(process_id, os.WNOHANG)
            if done:
                del self._helpers[process_id]
                if name == "upkeep" and status == 0 and self.suspects is not None:
                    self.suspects.lift()
                    self.suspects = None
                    self.lookup = (self._local or self.store).lookup

    def _renew_marker(self, now) -> None:
        """Have what was written until now made durable, so that no power cut makes it suspect."""
        if self._marker is None:
            self._marker_from = now
            return
        is_idle = not self._clients and not self._ended
        if is_idle or now - self._marker_from >= _MARKER_S:
            marker = self.take_marker()
            if not is_idle:
                self.mark_open()
            self._marker_from = now
            start_new_thread(marker.close, ())  # it waits for the disk

    # -- what others want to know ------------------------------------------------------------------

    def snapshot(self) -> dict:
        """Plain values for the HTTP process: counters, histograms, numbers of what there is now."""
        counters = Counters()
        for one in (self.counters, *(client.counters for client in self._clients)):
            counters.add(one)
        histograms = {"local": self.hit_latency}
        uploads = [*self._ended]
        if self.uplink is not None:
            histograms["s3"] = self.uplink.latencies["FetchResult"]
            histograms["upload"] = self.uplink.latencies["UploadResult"]
            uploads += [client.transfers for client in self._clients]
        return {
            "counters": counters.as_dict(),
            "histograms": {name: (one.counts, one.sum_s) for name, one in histograms.items()},
            "sessions": len(self._clients),
            "sessions_begun": self.sessions_begun,
            "uploads_pending": sum(transfers.pending for transfers in uploads),
            "is_stopping": self._stopping,
            "bucket_usable": self.uplink.usable if self.uplink is not None else None,
        }


def _independent(fd, flags) -> int:
    """A descriptor for what ``fd`` is open on that is non-blocking for us alone; ``fd`` is closed."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            ours = os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
            os.close(fd)
            return ours
        except OSError:
            pass  # it is another user's
    if not stat.S_ISREG(mode):
        os.set_blocking(fd, False)
    return fd


def _tell(sock, text, status) -> None:
    """Send lines for the client's stderr, then the exit status; none who listens is no trouble."""
    try:
        if text:
            sock.send(text.encode(errors="backslashreplace")[: handover.MAX_BYTES])
        sock.send(handover.end_message(status))
    except OSError:
        pass


def _address_text(listener) -> str:
    """An address as people write it."""
    name = listener.getsockname()
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
    name = name.decode() if isinstance(name, bytes) else name
    return f"@{name[1:]}" if name[:1] == "\0" else name
