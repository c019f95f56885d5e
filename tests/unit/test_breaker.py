"""breaker.py: when a job is admitted, with a clock that the test sets."""

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


def make_open(breaker) -> None:
    """Report failures until the breaker opens."""
    while not breaker.failed():
        pass


def test_new_breaker_admits_every_job(breaker):
    """A breaker is closed at first."""
    assert [breaker.admit() for _ in range(10)] == [CLOSED] * 10


def test_opens_after_repeated_failures(breaker):
    """FAILURES_TO_OPEN failures in a row open it; only the last of them returns True."""
    assert [breaker.failed() for _ in range(FAILURES_TO_OPEN)] == [
        *[False] * (FAILURES_TO_OPEN - 1),
        True,
    ]
    assert breaker.admit() == OPEN
    assert breaker.failed() is False


def test_success_resets_the_count(breaker):
    """Failures with a success between them do not open it."""
    for _ in range(5):
        for _ in range(FAILURES_TO_OPEN - 1):
            assert breaker.failed() is False
        assert breaker.succeeded() is False
    assert breaker.admit() == CLOSED


def test_timeouts_count_more(breaker):
    """Fewer time-outs than other failures open it, because a time-out delays a build."""
    breaker.succeeded()
    count = 1
    while not breaker.failed(timed_out=True):
        count += 1
    assert 1 < count < FAILURES_TO_OPEN


def test_timeout_before_any_success(breaker):
    """One time-out opens it if S3 has never answered."""
    assert breaker.failed(timed_out=True) is True
    assert breaker.admit() == OPEN


def test_the_time_since_it_was_closed(breaker, clock):
    """It counts from the first opening until a success, also while probes fail."""
    assert breaker.off_s is None
    make_open(breaker)
    clock.now += FIRST_PAUSE_S + 1
    assert breaker.admit() == HALF_OPEN and breaker.off_s == FIRST_PAUSE_S + 1
    breaker.failed()
    clock.now += 5
    assert breaker.off_s == FIRST_PAUSE_S + 6
    breaker.succeeded()
    assert breaker.off_s is None


def test_trip(breaker, clock):
    """trip opens a closed breaker, and does nothing to a half-open one."""
    breaker.trip()
    assert breaker.admit() == OPEN
    clock.now += FIRST_PAUSE_S
    assert breaker.admit() == HALF_OPEN
    breaker.trip()
    assert breaker.state == HALF_OPEN


def test_stays_open_for_the_pause(breaker, clock):
    """No job is admitted during the pause, and exactly one after it."""
    make_open(breaker)
    clock.now += FIRST_PAUSE_S - 0.001
    assert breaker.admit() == OPEN
    clock.now += 0.001
    assert [breaker.admit() for _ in range(3)] == [HALF_OPEN, OPEN, OPEN]


def test_probe_that_succeeds_closes(breaker, clock):
    """A probe that succeeds closes it and resets the count of failures."""
    make_open(breaker)
    clock.now += FIRST_PAUSE_S
    assert breaker.admit() == HALF_OPEN
    assert breaker.succeeded() is True
    assert breaker.admit() == CLOSED
    assert breaker.succeeded() is False
    assert breaker.failed() is False


def test_probe_that_fails_opens_for_longer(breaker, clock):
    """Each probe that fails doubles the pause up to the limit, and returns False."""
    make_open(breaker)
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


def test_jobs_under_way_when_it_opens(breaker, clock):
    """The failure of such a job does not lengthen the pause; its success closes the breaker."""
    make_open(breaker)
    assert breaker.failed() is False
    assert breaker.pause_s == FIRST_PAUSE_S
    assert breaker.succeeded() is True
    assert breaker.admit() == CLOSED


def test_other_pauses(clock):
    """The first and the longest pause can be set; doubling begins and ends there."""
    breaker = Breaker(clock, first_pause_s=5.0, longest_pause_s=18.0)
    assert breaker.pause_s == 5.0
    for _ in range(2):
        make_open(breaker)
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


def test_pauses_are_not_shared(clock, breaker):
    """The pauses of one breaker do not change those of another."""
    Breaker(clock, first_pause_s=1.0, longest_pause_s=2.0)
    make_open(breaker)
    clock.now += FIRST_PAUSE_S - 0.001
    assert (breaker.admit(), Breaker(clock).pause_s) == (OPEN, FIRST_PAUSE_S)
