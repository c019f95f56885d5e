"""web/modproxy/recent.py: what is remembered for a while, and no more than so much of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheplugin.web.modproxy import expiring as module
from cacheplugin.web.modproxy.expiring import ExpiringCache


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def recent(clock):
    return ExpiringCache(clock)


def test_values_are_forgotten(recent, clock):
    """After their time, each after its own; how much is left is told."""
    recent.add("a", 1, 60.0)
    recent.add("b", None, 10.0)
    assert recent.get("a") == (1, 60.0) and recent.get("b") == (None, 10.0)
    clock.now += 9.75
    assert recent.get("b") == (None, 0.25)
    clock.now += 0.25
    assert recent.get("b") is None and recent.get("a") == (1, 50.0)
    clock.now += 50
    assert recent.get("a") is None
    clock.now -= 50
    assert recent.get("a") is None  # it is gone, not only old


@pytest.mark.parametrize("seconds", [0, 0.0, -1.0])
def test_no_time_at_all(recent, seconds):
    """What is old at once is not found."""
    recent.add("a", 1, 60.0)
    recent.add("a", 2, seconds)
    assert recent.get("a") is None


def test_added_again(recent, clock):
    """The last value and its time count."""
    recent.add("a", 1, 60.0)
    clock.now += 59
    recent.add("a", 2, 60.0)
    assert recent.get("a") == (2, 60.0)
    clock.now += 30
    recent.add("a", 3, 1.0)
    assert recent.get("a") == (3, 1.0)


def test_unknown(recent):
    """Nothing was said of it."""
    assert recent.get("a") is None


def test_bound(recent, clock, monkeypatch):
    """The first to be added goes first, whether it is old or not; adding again counts as new."""
    monkeypatch.setattr(module, "_MAX_ENTRIES", 3)
    for key in "abc":
        recent.add(key, key, 60.0)
    recent.add("a", "again", 60.0)
    recent.add("d", "d", 1.0)
    assert [key for key in "abcd" if recent.get(key)] == ["a", "c", "d"]
    clock.now += 1
    for key in "efg":
        recent.add(key, key, 60.0)
    assert [key for key in "abcdefg" if recent.get(key)] == ["e", "f", "g"]


def test_the_bound_is_one():
    """A scan of a million names does not fill the memory."""
    recent = ExpiringCache(lambda: 0.0)
    for number in range(module._MAX_ENTRIES + 500):
        recent.add(number, None, 60.0)
    assert len(recent._entries) == module._MAX_ENTRIES
    assert recent.get(499) is None and recent.get(500) == (None, 60.0)


SECONDS, PASSES = st.sampled_from([None, 0.5, 1.0, 3.0]), st.sampled_from([0.0, 0.5, 1.0])


@given(st.lists(st.tuples(st.sampled_from("abc"), SECONDS, PASSES)))
def test_as_a_dict_with_times(steps):
    """Whatever is added and asked for, in whatever order."""
    clock, model = Clock(), {}
    recent = ExpiringCache(clock)
    for number, (key, seconds, passes) in enumerate(steps):
        if seconds is not None:
            recent.add(key, number, seconds)
            model[key] = (clock.now + seconds, number)
        clock.now += passes
        for one in "abc":
            end, value = model.get(one, (0.0, None))
            assert recent.get(one) == ((value, end - clock.now) if end > clock.now else None)
