"""breaker.py: when S3 is asked, on a clock of the test's own."""

import pytest

from cacheplugin.breaker import (
    CLOSED,
    FAILURES_TO_OPEN,
    FIRST_PAUSE_S,
    HALF_OPEN,
    LONGEST_PAUSE_S,
    OPEN,
    Breaker,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker(clock)


def open_up(breaker) -> None:
    while not breaker.failed():
        pass


def test_new_breaker_lets_everything_through(breaker):
    """Nothing has failed yet: go ahead."""
    assert [breaker.admit() for _ in range(10)] == [CLOSED] * 10


def test_opens_after_repeated_failures(breaker):
    """The last of so many failures opens it, and says so once."""
    assert [breaker.failed() for _ in range(FAILURES_TO_OPEN)] == [
        *[False] * (FAILURES_TO_OPEN - 1),
        True,
    ]
    assert breaker.admit() == OPEN
    assert breaker.failed() is False


def test_success_between_failures_counts_anew(breaker):
    """Only failures in a row open it."""
    for _ in range(5):
        for _ in range(FAILURES_TO_OPEN - 1):
            assert breaker.failed() is False
        assert breaker.succeeded() is False
    assert breaker.admit() == CLOSED


def test_timeouts_weigh_more(breaker):
    """Time-outs hold up a build, so fewer of them open it."""
    breaker.succeeded()
    count = 1
    while not breaker.failed(timed_out=True):
        count += 1
    assert 1 < count < FAILURES_TO_OPEN


def test_first_timeout_of_all_opens(breaker):
    """Where S3 never answered, one time-out says enough."""
    assert breaker.failed(timed_out=True) is True
    assert breaker.admit() == OPEN


def test_trip(breaker, clock):
    """Opened for what is known from elsewhere, it closes as ever."""
    breaker.trip()
    assert breaker.admit() == OPEN
    clock.now += FIRST_PAUSE_S
    assert breaker.admit() == HALF_OPEN
    breaker.trip()
    assert breaker.state == HALF_OPEN


def test_stays_open_for_the_pause(breaker, clock):
    """While it is open nothing is asked; then one job is, and only one."""
    open_up(breaker)
    clock.now += FIRST_PAUSE_S - 0.001
    assert breaker.admit() == OPEN
    clock.now += 0.001
    assert [breaker.admit() for _ in range(3)] == [HALF_OPEN, OPEN, OPEN]


def test_probe_that_succeeds_closes(breaker, clock):
    """S3 answers again: everything goes on, and old failures are forgotten."""
    open_up(breaker)
    clock.now += FIRST_PAUSE_S
    assert breaker.admit() == HALF_OPEN
    assert breaker.succeeded() is True
    assert breaker.admit() == CLOSED
    assert breaker.succeeded() is False
    assert breaker.failed() is False


def test_probe_that_fails_opens_for_longer(breaker, clock):
    """Each probe that fails doubles the pause, up to a limit, without a second warning."""
    open_up(breaker)
    pause = FIRST_PAUSE_S
    for _ in range(8):
        clock.now += pause
        assert breaker.admit() == HALF_OPEN
        assert breaker.failed() is False
        pause = min(2 * pause, LONGEST_PAUSE_S)
        assert breaker.pause_s == pause
        clock.now += pause - 1
        assert breaker.admit() == OPEN
        clock.now -= pause - 1
    assert pause == LONGEST_PAUSE_S
    clock.now += pause
    assert breaker.admit() == HALF_OPEN
    breaker.succeeded()
    assert breaker.pause_s == FIRST_PAUSE_S


def test_late_answers(breaker, clock):
    """A job under way when it opened does not lengthen the pause, and may close it."""
    open_up(breaker)
    assert breaker.failed() is False
    assert breaker.pause_s == FIRST_PAUSE_S
    assert breaker.succeeded() is True
    assert breaker.admit() == CLOSED


def test_pauses_of_its_own(clock):
    """Whoever waits less long for what is behind it says so; doubling begins and ends there."""
    breaker = Breaker(clock, first_pause_s=5.0, longest_pause_s=18.0)
    assert breaker.pause_s == 5.0
    for _ in range(2):
        open_up(breaker)
        for pause in (5.0, 10.0, 18.0, 18.0):
            assert breaker.pause_s == pause
            clock.now += pause - 0.001
            assert breaker.admit() == OPEN
            clock.now += 0.001
            assert breaker.admit() == HALF_OPEN
            assert breaker.failed() is False
        clock.now += 18.0
        assert breaker.admit() == HALF_OPEN and breaker.succeeded() is True
        assert breaker.pause_s == 5.0


def test_pauses_of_one_breaker_are_not_those_of_another(clock, breaker):
    """What was said to one is nothing to others."""
    Breaker(clock, first_pause_s=1.0, longest_pause_s=2.0)
    open_up(breaker)
    clock.now += FIRST_PAUSE_S - 0.001
    assert (breaker.admit(), Breaker(clock).pause_s) == (OPEN, FIRST_PAUSE_S)
