"""The HTTP process's end of its socket to the server (weblink.py has the other)."""
import asyncio
import itertools

from .. import channel


class ServerLink:
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
        number = next(self._numbers)
        self._waiting[number] = self._loop.create_future()
        try:
            self._sender.send(("snapshot", number))  # small: the socket takes it
            return await asyncio.wait_for(self._waiting[number], timeout_s)
        except (asyncio.TimeoutError, OSError) as error:
            raise TimeoutError(str(error)) from None
        finally:
            del self._waiting[number]

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
