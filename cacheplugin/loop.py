"""A readiness loop over descriptors, with timers."""

import select
import time

READABLE, WRITABLE = select.POLLIN, select.POLLOUT
_NEVER = float("inf")
_MOST_MS = (1 << 31) - 1  # that poll takes


class Timer:
    """Calls ``callback()`` once, at ``when`` (monotonic seconds), unless it is cancelled before."""

    __slots__ = ("callback", "when")

    def __init__(self, when, callback) -> None:
        self.when = when
        self.callback = callback


class Loop:
    """Calls a handler for each descriptor that is ready. (poll: epoll refuses plain files.)"""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers = {}
        self._timers = []  # few
        self._next_at = _NEVER  # when the first is due, or earlier

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
        """Have ``callback()`` called once, in the first turn that ends after so long."""
        timer = Timer(time.monotonic() + delay_s, callback)
        self._timers.append(timer)
        self._next_at = min(self._next_at, timer.when)
        return timer

    def cancel(self, timer) -> None:
        """Not to call what a timer would; nothing where it is None, or has called."""
        if timer in self._timers:
            self._timers.remove(timer)

    def call(self, handler, *arguments) -> None:
        """How handlers and timers are called."""
        handler(*arguments)

    def turn(self, timeout_ms=None) -> None:
        """Wait for a descriptor or a timer, no longer than that; handle what is ready."""
        is_due = False
        if self._timers:
            left_s = self._next_at - time.monotonic()
            is_due = left_s <= 0
            left_ms = 0 if is_due else left_s * 1000 + 1
            timeout_ms = left_ms if timeout_ms is None else min(left_ms, timeout_ms)
        if timeout_ms is not None:
            timeout_ms = min(timeout_ms, _MOST_MS)
        ready = self._poll.poll(timeout_ms)
        for fd, event in ready:
            handler = self._handlers.get(fd)
            if handler is not None:
                self.call(handler, event)
        # A busy loop looks at the clock once a turn, before it waits.
        if is_due or (self._timers and not ready):
            self._call_due()

    def _call_due(self) -> None:
        now = time.monotonic()
        for timer in [timer for timer in self._timers if timer.when <= now]:
            if timer in self._timers:  # none before it has cancelled it
                self._timers.remove(timer)
                self.call(timer.callback)
        self._next_at = min((timer.when for timer in self._timers), default=_NEVER)
