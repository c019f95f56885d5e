"""An event loop: calls handlers for descriptors that are ready, and for timers that are due.

It uses poll, because epoll refuses regular files, which stdin and stdout can be.
"""

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READABLE, WRITABLE = select.POLLIN, select.POLLOUT
_NEVER = float("inf")
_LONGEST_WAIT_MS = (1 << 31) - 1  # poll takes a 32-bit integer


class Timer:
    """Calls ``callback()`` once, at ``when`` (monotonic seconds), unless it is cancelled before."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: "Callable[[], object]") -> None:
        self.when = when
        self.callback = callback


class Loop:
    """Watches descriptors, with one handler each, and keeps the timers."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[int], object]] = {}
        self._timers: list[Timer] = []  # a handful at most, so it is not a heap
        self._next_at = _NEVER  # when the first timer is due, or earlier

    def watch(self, fd: int, events: int, handler: "Callable[[int], object]") -> None:
        """Call ``handler(events)`` whenever ``fd`` is ready for one of ``events``.

        ``events`` is a sum of READABLE and WRITABLE. Replaces what was watched of ``fd`` before.
        """
        self._handlers[fd] = handler
        self._poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Stop watching ``fd``. No-op for a descriptor that is not watched."""
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def watches(self, fd: int) -> bool:
        """Whether ``fd`` is watched."""
        return fd in self._handlers

    def after(self, delay_s: float, callback: "Callable[[], object]") -> Timer:
        """Call ``callback()`` once, after ``delay_s`` seconds."""
        timer = Timer(time.monotonic() + delay_s, callback)
        self._timers.append(timer)
        self._next_at = min(self._next_at, timer.when)
        return timer

    def cancel(self, timer: "Timer | None") -> None:
        """Cancel a timer. No-op for None or a timer that has fired."""
        if timer in self._timers:
            self._timers.remove(timer)

    def call(self, handler: "Callable[..., object]", *arguments: object) -> None:
        """Call a handler or a timer's callback; subclasses override it to catch exceptions."""
        handler(*arguments)

    def turn(self, timeout_ms: "float | None" = None) -> None:
        """Wait for a descriptor or a timer, then call the handlers of all that are ready.

        Waits at most ``timeout_ms``; None waits without limit.
        """
        is_due = False
        if self._timers:
            left_s = self._next_at - time.monotonic()
            is_due = left_s <= 0
            left_ms = 0 if is_due else left_s * 1000 + 1
            timeout_ms = left_ms if timeout_ms is None else min(left_ms, timeout_ms)
        if timeout_ms is not None:
            timeout_ms = min(timeout_ms, _LONGEST_WAIT_MS)
        ready = self._poll.poll(timeout_ms)
        for fd, event in ready:
            handler = self._handlers.get(fd)
            if handler is not None:
                self.call(handler, event)
        # One look at the clock for each turn, before the wait: a busy loop needs no second one.
        if is_due or (self._timers and not ready):
            self._call_due()

    def _call_due(self) -> None:
        now = time.monotonic()
        for timer in [timer for timer in self._timers if timer.when <= now]:
            if timer in self._timers:  # the callback of an earlier timer may have cancelled it
                self._timers.remove(timer)
                self.call(timer.callback)
        self._next_at = min((timer.when for timer in self._timers), default=_NEVER)
