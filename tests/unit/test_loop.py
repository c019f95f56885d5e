"""loop.py: timers and descriptors, with real clock and poll."""

import os
import time

from cacheplugin.loop import READABLE, Loop


def test_timers_in_their_order():
    """Each timer is called once; a turn waits only until the next timer is due."""
    loop, called = Loop(), []
    loop.after(0.02, lambda: called.append("late"))
    loop.after(0, lambda: called.append("at once"))
    begin = time.monotonic()
    loop.turn(60_000)
    assert called == ["at once"]
    loop.turn(60_000)
    assert called == ["at once", "late"] and time.monotonic() - begin < 30
    loop.turn(0)
    assert called == ["at once", "late"]


def test_a_cancelled_timer_is_not_called():
    """A timer is not called after cancel, also if both are due in the same turn."""
    loop, called = Loop(), []
    loop.after(0, lambda: loop.cancel(second))
    second = loop.after(0, lambda: called.append("no"))
    loop.turn(0)
    loop.turn(0)
    loop.cancel(second)
    loop.cancel(None)
    assert called == []


def test_a_timer_may_set_another():
    """A timer that is set by a timer is called in a later turn."""
    loop, called = Loop(), []

    def again():
        called.append(len(called))
        loop.after(0, again)

    loop.after(0, again)
    for _ in range(3):
        loop.turn(60_000)
    assert called == [0, 1, 2]


def test_descriptors():
    """A handler is called when its descriptor is ready, and not after unwatch."""
    out, into = os.pipe()
    loop, called = Loop(), []
    loop.watch(out, READABLE, called.append)
    assert loop.watches(out)
    loop.turn(0)
    assert called == []
    os.write(into, b"x")
    loop.turn(60_000)
    loop.unwatch(out)
    loop.turn(0)
    assert len(called) == 1 and not loop.watches(out)
    loop.unwatch(out)
    os.close(out)
    os.close(into)
