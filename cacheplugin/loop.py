"""A readiness loop over descriptors."""
import select

READABLE, WRITABLE = select.POLLIN, select.POLLOUT


class Loop:
    """Calls a handler for each descriptor that is ready. (poll: epoll refuses plain files.)"""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers = {}

    def watch(self, fd: int, events: int, handler) -> None:
        """Call ``handler(events)`` whenever ``fd`` is ready for ``events``, and no other of its."""
        self._handlers[fd] = handler
        self._poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def watches(self, fd: int) -> bool:
        return fd in self._handlers

    def turn(self, timeout_ms=None) -> bool:
        """Wait, handle what is ready; returns whether anything was. None waits without limit."""
        ready = self._poll.poll(timeout_ms)
        for fd, event in ready:
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(event)
        return bool(ready)
