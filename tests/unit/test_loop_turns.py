"""loop.py: what a turn waits for, and what is called in it."""

import os
import time

import pytest

from cacheplugin import loop as module
from cacheplugin.loop import READABLE, WRITABLE, Loop


class Poll:
    """In place of select.poll: nothing is ready unless a test says so, and waits take no time."""

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
        assert timeout_ms is not None, "this would wait for ever"
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
    """A Loop on a clock of the test's; ``loop.poll`` is what it waits with."""
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


def test_without_timers_it_waits_as_long_as_it_is_told(loop):
    """For ever, if it is told nothing."""
    loop.turn(5)
    loop.poll.ready = [(99, READABLE)]  # of which nobody wants to hear any more
    loop.turn()
    assert loop.poll.waited == [5, None]


def test_it_waits_for_the_first_timer_or_less(loop, clock):
    """Whichever is sooner; no timer is called before its time."""
    called = []
    for delay in (3, 1, 2):
        loop.after(delay, lambda delay=delay: called.append((delay, clock.now)))
    loop.turn(500)
    assert called == [] and loop.poll.waited == [500]
    for _ in range(3):
        loop.turn()
    assert [delay for delay, _ in called] == [1, 2, 3]
    assert all(1000 + delay <= at <= 1000 + delay + 0.01 for delay, at in called)


def test_a_cancelled_timer_is_not_waited_for_twice(loop):
    """One turn may end for nothing, then the next timer counts."""
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


def test_cancelling_what_has_called(loop):
    """Is nothing, also from within its own call."""
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
    """A busy loop keeps its time, to a turn."""
    called, handled = [], []
    loop.watch(3, READABLE, lambda _: handled.append(clock.now))
    loop.after(1, lambda: called.append(clock.now))
    for _ in range(20):
        clock.now += 0.1
        loop.poll.ready = [(3, READABLE)]
        loop.turn()
    assert len(handled) == 20 and len(called) == 1 and 1001 <= called[0] <= 1001.25


def test_a_timer_set_by_a_handler(loop, clock):
    """Counts from then on."""
    called = []
    loop.watch(3, READABLE, lambda _: loop.after(2, lambda: called.append(clock.now)))
    loop.poll.ready = [(3, READABLE)]
    loop.turn()
    loop.turn()
    assert called == [pytest.approx(1002, abs=0.01)] and loop.poll.waited[-1] <= 2001


def test_a_timer_that_fails_is_not_called_again(loop):
    """And those after it are called in the next turn."""
    called = []

    def fail():
        raise ZeroDivisionError

    loop.after(1, fail)
    loop.after(1, lambda: called.append(1))
    with pytest.raises(ZeroDivisionError):
        loop.turn()
    loop.turn(0)
    assert called == [1]


def test_handlers_end_each_other(loop):
    """Who is not watched any more is not called, though it was ready in the same turn."""
    called = []
    loop.watch(3, READABLE, lambda _: loop.unwatch(4))
    loop.watch(4, READABLE, called.append)
    loop.poll.ready = [(3, READABLE), (4, READABLE)]
    loop.turn()
    assert called == []


def test_watched_again_for_something_else(pipe):
    """The last watch counts, for events and for the handler."""
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
def test_what_is_very_far_away(pipe, seconds):
    """A time that options may give, and poll does not take, is waited for like any other."""
    out, into = pipe
    loop, called = Loop(), []
    loop.watch(out, READABLE, called.append)
    os.write(into, b"x")
    loop.turn(seconds * 1000)  # as direct mode does for --drain-timeout
    loop.after(seconds, lambda: called.append("no"))
    begin = time.monotonic()
    loop.turn()
    assert len(called) == 2 and "no" not in called and time.monotonic() - begin < 30
