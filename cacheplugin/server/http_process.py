"""The server's end of the HTTP process: starts it, answers what it asks, starts it again.

The process (web/process.py) gets the listener, which stays bound here, so that a restart keeps the
port, and a socket for messages. It ends with the server, by the end of that socket.
"""

import json
import logging
import os
import socket
import time

from ..errors import reason_of
from ..ipc import channel, jobs
from ..ipc.spawn import LISTENER_FD, spawn
from ..loop import READABLE, WRITABLE

log = logging.getLogger(__name__)

_STATUS_WAIT_S = 0.5  # for the pool's part of a snapshot
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 30.0
_GOOD_S = 60.0  # a process that lived so long was in order


class HttpProcess:
    """``server`` is the Server, of which it takes loop, options and snapshots."""

    def __init__(self, server, listener) -> None:
        self.process_id = None
        self.restarts = 0
        self._server = server
        self._listener = listener
        self._pause_s = _FIRST_PAUSE_S
        self._socket = self._sender = self._receiver = None
        self._take = {
            "snapshot": self._take_snapshot,
            "fetch": self._fetch_file,
            "upload": self._upload_file,
            "busy": self._note_busy,
        }
        self.uploads_pending = 0  # of files
        self.is_busy = False  # serving somebody who is no go command of the server's
        self._start()

    def _start(self) -> None:
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                actions = [
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                    (os.POSIX_SPAWN_DUP2, 2, 1),
                    (os.POSIX_SPAWN_DUP2, self._listener.fileno(), LISTENER_FD),
                ]
                options = json.dumps(self._server.options.as_dict())
                self.process_id = spawn("cacheplugin.web.process", options, actions)
        except OSError as error:
            log.warning("no HTTP for now: %s", reason_of(error))
            self._server.loop.after(_LONGEST_PAUSE_S, self._start)
            return
        self._started_at = time.monotonic()
        self._socket = ours
        self._sender, self._receiver = (
            channel.Sender(ours.fileno()),
            channel.Receiver(ours.fileno()),
        )
        self._server.loop.watch(ours.fileno(), READABLE, self._hear)

    def _hear(self, event) -> None:
        try:
            if event & WRITABLE:
                self._flush()
            for kind, number, *arguments in self._receiver.receive() if event & ~WRITABLE else ():
                self._take[kind](number, *arguments)
        except (EOFError, OSError):
            self._died()

    def _take_snapshot(self, number) -> None:
        """Answer with the server's numbers, and the pool's where they come in time."""
        answers = [self._answering(number)]  # as long as nothing was sent

        def send(status=None):
            if answers:
                pool = None if status is None else tuple(status)
                extra = {"pool": pool, "http_restarts": self.restarts}
                answers.pop()(self._server.snapshot() | extra)

        pool_access = self._server.pool_access
        if pool_access is None or not pool_access.ask_status(send):
            send()
        else:
            self._server.loop.after(_STATUS_WAIT_S, send)

    def _fetch_file(self, number, key, path, limit) -> None:
        answer = self._answering(number)
        self._server.pool_access.fetch_file(key, path, limit, lambda result: answer(tuple(result)))

    def _upload_file(self, number, key, path, replace) -> None:
        answer = self._answering(number)
        if self._server.is_cut:  # else a server would not end while it is asked for what is new
            answer(tuple(jobs.FileResult(0, jobs.SKIPPED, 0, "the server is stopping")))
            return

        def take(result):
            self.uploads_pending -= 1
            answer(tuple(result))

        self.uploads_pending += 1
        self._server.pool_access.upload_file(key, path, replace, take)

    def _note_busy(self, _, is_busy) -> None:
        self.is_busy = is_busy
        self._server.watch_idleness()

    def _answering(self, number):
        """What sends an answer, unless the process that asked is gone by then."""
        sender = self._sender

        def answer(value):
            if sender is self._sender and sender is not None:
                sender.queue((number, value))
                self._flush()

        return answer

    def _flush(self) -> None:
        try:
            events = READABLE if self._sender.flush() else READABLE | WRITABLE
        except OSError:
            events = READABLE  # its end is heard there
        self._server.loop.watch(self._socket.fileno(), events, self._hear)

    def _died(self) -> None:
        """Start another one, the later the more often they die."""
        self._let_go()
        self.is_busy = False
        _, status = os.waitpid(self.process_id, 0)
        if time.monotonic() - self._started_at >= _GOOD_S:
            self._pause_s = _FIRST_PAUSE_S
        log.warning(
            "the HTTP process has ended with status %d, starting another one",
            os.waitstatus_to_exitcode(status),
        )
        self.restarts += 1
        self._server.loop.after(self._pause_s, self._start)
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)

    def _let_go(self) -> None:
        self._server.loop.unwatch(self._socket.fileno())
        self._socket.close()
        self._socket = self._sender = None

    def close(self) -> None:
        """Let the process end; the listener is closed."""
        if self._socket is not None:
            self._let_go()
        self._listener.close()
