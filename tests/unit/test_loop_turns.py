"""loop.py: how long a turn waits and what it calls, with a clock and a poll of the test."""

import os
import time

import pytest

from cacheplugin import loop as module
from cacheplugin.loop import READABLE, WRITABLE, Loop


class Poll:
    """Stands for select.poll. Returns ``ready`` once; otherwise it moves the clock by the wait."""

    def __init__(self, clock) -> None:
        self._clock = clock
        self.waited, self.ready = [], []

    def register(self, *_) -> None:
        pass

    unregister = register

    def poll(self, timeout_ms=None):
        self.waited.append(timeout_ms)
        if self.ready:
            ready, self.ready = self.ready, []
            return ready
        assert timeout_ms is not None, "this would wait without limit"
        self._clock.now += timeout_ms / 1000
        return []


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def loop(clock, monkeypatch):
    """A Loop with the clock above; ``loop.poll`` is its Poll."""
    poll = Poll(clock)
    monkeypatch.setattr(module.select, "poll", lambda: poll)
    loop = Loop()
    loop.poll = poll
    return loop


@pytest.fixture
def pipe():
    fds = os.pipe()
    yield fds
    for fd in fds:
        os.close(fd)


def test_wait_without_timers(loop):
    """Without timers a turn waits for its time-out, and without limit if it has none."""
    loop.turn(5)
    loop.poll.ready = [(99, READABLE)]  # a descriptor that is not watched
    loop.turn()
    assert loop.poll.waited == [5, None]


def test_wait_with_timers(loop, clock):
    """A turn waits for its time-out or the first timer; no timer is called before it is due."""
    called = []
    for delay in (3, 1, 2):
        loop.after(delay, lambda delay=delay: called.append((delay, clock.now)))
    loop.turn(500)
    assert called == [] and loop.poll.waited == [500]
    for _ in range(3):
        loop.turn()
    assert [delay for delay, _ in called] == [1, 2, 3]
    assert all(1000 + delay <= at <= 1000 + delay + 0.01 for delay, at in called)


def test_wait_after_cancel(loop):
    """At most one turn ends when a cancelled timer would have been due."""
    called = []
    first = loop.after(1, lambda: called.append("no"))
    loop.after(60, lambda: called.append("yes"))
    loop.cancel(first)
    loop.cancel(first)
    loop.turn()
    loop.turn()
    assert called == ["yes"] and loop.poll.waited[1] > 58_000
    loop.turn(7)
    assert loop.poll.waited[-1] == 7


def test_cancel_of_a_timer_that_has_fired(loop):
    """It is a no-op, also in the timer's own callback."""
    called = []

    def callback():
        called.append(1)
        loop.cancel(timer)

    timer = loop.after(1, callback)
    loop.turn()
    loop.cancel(timer)
    loop.turn(0)
    assert called == [1]


def test_timers_are_called_while_descriptors_are_always_ready(loop, clock):
    """A timer is called at most one turn late in a loop that never waits."""
    called, handled = [], []
    loop.watch(3, READABLE, lambda _: handled.append(clock.now))
    loop.after(1, lambda: called.append(clock.now))
    for _ in range(20):
        clock.now += 0.1
        loop.poll.ready = [(3, READABLE)]
        loop.turn()
    assert len(handled) == 20 and len(called) == 1 and 1001 <= called[0] <= 1001.25


def test_a_timer_set_by_a_handler(loop, clock):
    """Its delay begins when the handler sets it."""
    called = []
    loop.watch(3, READABLE, lambda _: loop.after(2, lambda: called.append(clock.now)))
    loop.poll.ready = [(3, READABLE)]
    loop.turn()
    loop.turn()
    assert called == [pytest.approx(1002, abs=0.01)] and loop.poll.waited[-1] <= 2001


def test_a_timer_that_raises(loop):
    """It is not called again; timers after it are called in the next turn."""
    called = []

    def fail():
        raise ZeroDivisionError

    loop.after(1, fail)
    loop.after(1, lambda: called.append(1))
    with pytest.raises(ZeroDivisionError):
        loop.turn()
    loop.turn(0)
    assert called == [1]


def test_handler_that_unwatches_another(loop):
    """A handler is not called after unwatch, also if both are ready in the same turn."""
    called = []
    loop.watch(3, READABLE, lambda _: loop.unwatch(4))
    loop.watch(4, READABLE, called.append)
    loop.poll.ready = [(3, READABLE), (4, READABLE)]
    loop.turn()
    assert called == []


def test_watch_twice(pipe):
    """The last call of watch sets the events and the handler."""
    out, into = pipe
    loop, called = Loop(), []
    loop.watch(into, READABLE, lambda _: called.append("no"))
    loop.watch(into, WRITABLE, lambda events: called.append(events & WRITABLE))
    loop.turn(60_000)
    assert called == [WRITABLE]
    loop.watch(out, READABLE, lambda _: called.append("read"))
    loop.watch(into, READABLE, called.append)
    loop.turn(0)
    assert called == [WRITABLE]


@pytest.mark.parametrize("seconds", [86400 * 30, 1e9])
def test_very_long_waits(pipe, seconds):
    """Delays that options allow, but that are too long for poll, work like shorter ones."""
    out, into = pipe
    loop, called = Loop(), []
    loop.watch(out, READABLE, called.append)
    os.write(into, b"x")
    loop.turn(seconds * 1000)  # as direct mode does for --drain-timeout
    loop.after(seconds, lambda: called.append("no"))
    begin = time.monotonic()
    loop.turn()
    assert len(called) == 2 and "no" not in called and time.monotonic() - begin < 30
