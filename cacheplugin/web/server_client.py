"""The HTTP process's side of its socket to the server. The other side: server/http_process.py."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from ..ipc import channel, jobs
from ..ipc.web_messages import (
    Answer,
    BusyNotice,
    FetchRequest,
    SnapshotRequest,
    UploadRequest,
    pack,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..ipc.web_messages import Request, Snapshot

_IDLE_AFTER_S = 1.0  # a go command pauses for less than this between two requests of one download


class Activity:
    """Counts the requests under way and tells the server when the first begins and the last ends.

    Each request is served inside ``with activity:``. The end is told _IDLE_AFTER_S late, so that a
    go command that makes many requests counts as busy throughout.
    """

    def __init__(self, server: ServerClient) -> None:
        self._server = server
        self._requests = 0
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._requests += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif self._requests == 1:
            self._server.note_busy(True)

    def __exit__(self, *_: object) -> None:
        self._requests -= 1
        if not self._requests:
            self._timer = asyncio.get_running_loop().call_later(_IDLE_AFTER_S, self._note_idle)

    def _note_idle(self) -> None:
        self._timer = None
        self._server.note_busy(False)


class ServerClient:
    """Sends requests to the server from the running event loop, and gives their answers.

    ``on_end()`` is called once the server has closed the socket.
    """

    def __init__(self, fd: int, on_end: Callable[[], None]) -> None:
        self._sender, self._receiver = channel.Sender(fd), channel.Receiver(fd)
        self._on_end = on_end
        self._numbers = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Any]] = {}  # by the number of the request
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._receive)

    async def snapshot(self, timeout_s: float) -> Snapshot:
        """The server's state now. Raises TimeoutError if the server does not answer in time."""
        try:
            snapshot: Snapshot = await asyncio.wait_for(self._request(SnapshotRequest), timeout_s)
            return snapshot
        except (asyncio.TimeoutError, OSError) as error:
            raise TimeoutError(str(error)) from None

    async def fetch_file(self, key: str, path: str, limit: int) -> jobs.FileResult:
        """Have the server write an object of at most ``limit`` bytes to the file ``path``.

        ``key`` is without the prefix.
        """
        return await self._request_file(lambda number: FetchRequest(number, key, path, limit))

    async def upload_file(self, key: str, path: str, replace: bool) -> jobs.FileResult:
        """Have the server upload a file; ``replace``: overwrite the object that the bucket has."""
        return await self._request_file(lambda number: UploadRequest(number, key, path, replace))

    def note_busy(self, is_busy: bool) -> None:
        """Tell the server whether this process serves requests now."""
        try:
            self._send(BusyNotice(0, is_busy))
        except OSError:
            pass  # the server is gone; _receive notices that

    async def _request_file(self, make: Callable[[int], Request]) -> jobs.FileResult:
        try:
            return jobs.FileResult(*await self._request(make))
        except OSError as error:  # the server is gone, so this process ends soon
            return jobs.FileResult(0, jobs.LOST, 0, str(error))

    async def _request(self, make: Callable[[int], Request]) -> Any:
        """The value of the answer to ``make(number)``; raises OSError if it cannot be sent."""
        number = next(self._numbers)
        future = self._pending[number] = self._loop.create_future()
        try:
            self._send(make(number))
            return await future
        finally:
            del self._pending[number]

    def _send(self, request: Request) -> None:
        if not self._sender.send(pack(request)):
            self._loop.add_writer(self._sender.fd, self._flush)

    def _flush(self) -> None:
        try:
            if self._sender.flush():
                self._loop.remove_writer(self._sender.fd)
        except OSError:
            self._loop.remove_writer(self._sender.fd)  # _receive notices the end of the socket

    def _receive(self) -> None:
        try:
            messages = self._receiver.receive()
        except (EOFError, OSError):
            self._on_end()
            return
        for fields in messages:
            answer = Answer(*fields)
            future = self._pending.get(answer.number)
            if future is not None and not future.done():
                future.set_result(answer.value)
