"""The HTTP process's end of its socket to the server (weblink.py has the other)."""

import asyncio
import itertools

from ..ipc import channel, jobs

_QUIET_S = 1.0  # without a request, before a go command that makes many is taken for done


class Activity:
    """Has the server know whether requests are under way; each is for a context of this."""

    def __init__(self, link) -> None:
        self._link = link
        self._count = 0
        self._timer = None

    def __enter__(self) -> None:
        self._count += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif self._count == 1:
            self._link.note_busy(True)

    def __exit__(self, *_) -> None:
        self._count -= 1
        if not self._count:
            self._timer = asyncio.get_running_loop().call_later(_QUIET_S, self._end)

    def _end(self) -> None:
        self._timer = None
        self._link.note_busy(False)


class ServerClient:
    """Lives in the running event loop; ``on_end()`` is called when the server is gone."""

    def __init__(self, fd: int, on_end) -> None:
        self._sender, self._receiver = channel.Sender(fd), channel.Receiver(fd)
        self._on_end = on_end
        self._numbers = itertools.count(1)
        self._waiting = {}  # number of a question: future
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._hear)

    async def snapshot(self, timeout_s: float) -> dict:
        """What Server.snapshot gives, with ``pool`` (a PoolStatus as a plain tuple, or None).

        Raises TimeoutError where the server does not answer.
        """
        try:
            return await asyncio.wait_for(self._ask("snapshot"), timeout_s)
        except (asyncio.TimeoutError, OSError) as error:
            raise TimeoutError(str(error)) from None

    async def fetch_file(self, key: str, path: str, limit: int) -> jobs.FileResult:
        """Have the object of a key (behind the prefix), of at most ``limit`` bytes, written to a file."""
        return await self._ask_for_file("fetch", key, path, limit)

    async def upload_file(self, key: str, path: str, replace: bool) -> jobs.FileResult:
        """Have a file uploaded; ``replace``: the bucket may hold another one."""
        return await self._ask_for_file("upload", key, path, replace)

    def note_busy(self, is_busy: bool) -> None:
        """Tell the server whether somebody is served here."""
        try:
            self._send("busy", 0, is_busy)
        except OSError:
            pass  # it is gone, which is heard

    async def _ask_for_file(self, *question) -> jobs.FileResult:
        try:
            return jobs.FileResult(*await self._ask(*question))
        except OSError as error:  # the server is gone, and this process goes as well
            return jobs.FileResult(0, jobs.LOST, 0, str(error))

    async def _ask(self, kind, *arguments):
        """The answer to a question; raises OSError where it cannot be asked."""
        number = next(self._numbers)
        future = self._waiting[number] = self._loop.create_future()
        try:
            self._send(kind, number, *arguments)
            return await future
        finally:
            del self._waiting[number]

    def _send(self, *message) -> None:
        if not self._sender.send(message):
            self._loop.add_writer(self._sender.fd, self._flush)

    def _flush(self) -> None:
        try:
            if self._sender.flush():
                self._loop.remove_writer(self._sender.fd)
        except OSError:
            self._loop.remove_writer(self._sender.fd)  # its end is heard as well

    def _hear(self) -> None:
        try:
            messages = self._receiver.receive()
        except (EOFError, OSError):
            self._on_end()
            return
        for number, answer in messages:
            future = self._waiting.get(number)
            if future is not None and not future.done():
                future.set_result(answer)
