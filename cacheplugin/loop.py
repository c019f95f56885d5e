"""A readiness loop over descriptors, with timers."""
import select
import time

READABLE, WRITABLE = select.POLLIN, select.POLLOUT


class Timer:
    """Calls ``callback()`` once, at ``when`` (monotonic seconds), unless it is cancelled before."""

    __slots__ = ("when", "callback")

    def __init__(self, when, callback) -> None:
        self.when = when
        self.callback = callback


class Loop:
    """Calls a handler for each descriptor that is ready. (poll: epoll refuses plain files.)"""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers = {}
        self._timers = []  # few

    def watch(self, fd: int, events: int, handler) -> None:
        """Call ``handler(events)`` whenever ``fd`` is ready for ``events``, and no other of its."""
        self._handlers[fd] = handler
        self._poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def watches(self, fd: int) -> bool:
        return fd in self._handlers

    def after(self, delay_s: float, callback) -> Timer:
        """Have ``callback()`` called once, at the end of the first turn after so long."""
        timer = Timer(time.monotonic() + delay_s, callback)
        self._timers.append(timer)
        return timer

    def cancel(self, timer) -> None:
        """Not to call what a timer would; nothing where it is None, or has called."""
        if timer in self._timers:
            self._timers.remove(timer)

    def turn(self, timeout_ms=None) -> None:
        """Wait for a descriptor or a timer, no longer than that; handle what is ready."""
        if self._timers:
            left_ms = max(0.0, min(t.when for t in self._timers) - time.monotonic()) * 1000 + 1
            timeout_ms = left_ms if timeout_ms is None else min(left_ms, timeout_ms)
        for fd, event in self._poll.poll(timeout_ms):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(event)
        if self._timers:
            now = time.monotonic()
            for timer in [timer for timer in self._timers if timer.when <= now]:
                if timer in self._timers:  # none before it has cancelled it
                    self._timers.remove(timer)
                    timer.callback()
