"""The server's side of the HTTP process: starts it, answers its requests, restarts it when it dies.

The process (web/process.py) inherits the listener, which stays open here as well, so that a restart
keeps the port, and a socket for the messages of ipc/web_messages.py. The process ends when the
server closes that socket or dies.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from typing import TYPE_CHECKING

from ..errors import reason_of
from ..ipc import channel, jobs
from ..ipc.spawn import LISTENER_FD, spawn
from ..ipc.web_messages import (
    Answer,
    BusyNotice,
    FetchRequest,
    SnapshotRequest,
    UploadRequest,
    unpack,
)
from ..loop import READABLE, WRITABLE

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..front.pool_access import PoolAccess
    from ..ipc.web_messages import Request, Snapshot
    from .contracts import HttpProcessServer

log = logging.getLogger(__name__)

_STATUS_WAIT_S = 0.5  # the longest wait for the pool's part of a snapshot
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 30.0  # before a restart; doubled each time
_HEALTHY_S = 60.0  # a process that lived so long resets the pause


class _Connection:
    """A running HTTP process and the server's end of the socket to it."""

    def __init__(self, process_id: int, sock: socket.socket) -> None:
        self.process_id = process_id
        self.started_at = time.monotonic()
        self.sock = sock
        self.sender = channel.Sender(sock.fileno())
        self.receiver = channel.Receiver(sock.fileno())


class HttpProcess:
    """Keeps an HTTP process running on ``listener``, which ``close`` closes.

    ``uploads_pending``: module files that are being uploaded. ``is_busy``: the process serves
    requests now. ``restarts``: how often the process died.
    """

    def __init__(self, server: HttpProcessServer, listener: socket.socket) -> None:
        self.restarts = 0
        self.uploads_pending = 0
        self.is_busy = False
        self._server = server
        self._listener = listener
        self._pause_s = _FIRST_PAUSE_S
        self._connection: _Connection | None = None  # None between two processes
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
                process_id = spawn("cacheplugin.web.process", options, actions)
        except OSError as error:
            log.warning(
                "cannot start the HTTP process: %s; trying again in %g s",
                reason_of(error),
                _LONGEST_PAUSE_S,
            )
            self._server.loop.after(_LONGEST_PAUSE_S, self._start)
            return
        connection = self._connection = _Connection(process_id, ours)
        self._watch(connection, READABLE)

    def _watch(self, connection: _Connection, events: int) -> None:
        self._server.loop.watch(
            connection.sock.fileno(), events, lambda event: self._on_ready(connection, event)
        )

    def _on_ready(self, connection: _Connection, event: int) -> None:
        try:
            if event & WRITABLE:
                self._flush(connection)
            if event & ~WRITABLE:
                for fields in connection.receiver.receive():
                    self._handle(connection, unpack(fields))
        except (EOFError, OSError):
            self._on_death(connection)

    def _handle(self, connection: _Connection, request: Request) -> None:
        if isinstance(request, BusyNotice):
            self.is_busy = request.is_busy
            self._server.restart_idle_timer()
            return

        def answer(value: Any) -> None:
            if connection is self._connection:  # else the process that asked has died
                connection.sender.queue(tuple(Answer(request.number, value)))
                self._flush(connection)

        pool_access = self._server.pool_access
        if isinstance(request, SnapshotRequest):
            self._send_snapshot(pool_access, answer)
        elif pool_access is None:
            answer(tuple(jobs.FileResult(0, jobs.SKIPPED, 0, "the server has no bucket")))
        elif isinstance(request, FetchRequest):
            pool_access.fetch_file(
                request.key, request.path, request.limit, lambda result: answer(tuple(result))
            )
        else:
            self._upload_file(pool_access, request, answer)

    def _send_snapshot(
        self, pool_access: PoolAccess | None, answer: Callable[[Snapshot], None]
    ) -> None:
        """Answer with the server's state, and the pool's if that comes within _STATUS_WAIT_S."""
        is_answered = False

        def send(status: jobs.PoolStatus | None = None) -> None:
            nonlocal is_answered
            if not is_answered:
                is_answered = True
                answer(
                    {
                        **self._server.snapshot(),
                        "pool": None if status is None else tuple(status),
                        "http_restarts": self.restarts,
                    }
                )

        if pool_access is None or not pool_access.ask_status(send):
            send()
        else:
            self._server.loop.after(_STATUS_WAIT_S, send)

    def _upload_file(
        self, pool_access: PoolAccess, request: UploadRequest, answer: Callable[[Any], None]
    ) -> None:
        if self._server.is_cut_off:  # else new module files would keep a stopping server alive
            answer(tuple(jobs.FileResult(0, jobs.SKIPPED, 0, "the server is stopping")))
            return

        def take(result: jobs.FileResult) -> None:
            self.uploads_pending -= 1
            answer(tuple(result))

        self.uploads_pending += 1
        pool_access.upload_file(request.key, request.path, request.replace, take)

    def _flush(self, connection: _Connection) -> None:
        try:
            events = READABLE if connection.sender.flush() else READABLE | WRITABLE
        except OSError:
            events = READABLE  # reading notices the end of the process
        self._watch(connection, events)

    def _on_death(self, connection: _Connection) -> None:
        """Start another process after a pause that doubles with each early death."""
        self._disconnect(connection)
        self.is_busy = False
        _, status = os.waitpid(connection.process_id, 0)
        if time.monotonic() - connection.started_at >= _HEALTHY_S:
            self._pause_s = _FIRST_PAUSE_S
        log.warning(
            "the HTTP process has ended with status %d; starting another one in %g s",
            os.waitstatus_to_exitcode(status),
            self._pause_s,
        )
        self.restarts += 1
        self._server.loop.after(self._pause_s, self._start)
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)

    def _disconnect(self, connection: _Connection) -> None:
        self._server.loop.unwatch(connection.sock.fileno())
        connection.sock.close()
        self._connection = None

    def close(self) -> None:
        """Close the socket, which ends the process, and the listener."""
        if self._connection is not None:
            self._disconnect(self._connection)
        self._listener.close()
