"""Unit tests of web/modproxy/expiring.py."""

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
def cache(clock):
    return ExpiringCache(clock)


def test_values_expire(cache, clock):
    """Each value expires after its own time; ``get`` says how much time is left."""
    cache.add("a", 1, 60.0)
    cache.add("b", None, 10.0)
    assert cache.get("a") == (1, 60.0) and cache.get("b") == (None, 10.0)
    clock.now += 9.75
    assert cache.get("b") == (None, 0.25)
    clock.now += 0.25
    assert cache.get("b") is None and cache.get("a") == (1, 50.0)
    clock.now += 50
    assert cache.get("a") is None
    clock.now -= 50
    assert cache.get("a") is None  # it was removed


@pytest.mark.parametrize("seconds", [0, 0.0, -1.0])
def test_a_value_without_time_left_is_not_found(cache, seconds):
    """A lifetime of 0 or less replaces the earlier value with none."""
    cache.add("a", 1, 60.0)
    cache.add("a", 2, seconds)
    assert cache.get("a") is None


def test_adding_again_replaces_value_and_lifetime(cache, clock):
    """The last value and its lifetime count."""
    cache.add("a", 1, 60.0)
    clock.now += 59
    cache.add("a", 2, 60.0)
    assert cache.get("a") == (2, 60.0)
    clock.now += 30
    cache.add("a", 3, 1.0)
    assert cache.get("a") == (3, 1.0)


def test_an_unknown_key_has_no_value(cache):
    """``get`` returns None."""
    assert cache.get("a") is None


def test_the_entry_added_first_is_dropped_first(cache, clock, monkeypatch):
    """When there are too many, the entry added first goes, expired or not; adding again counts."""
    monkeypatch.setattr(module, "_MAX_ENTRIES", 3)
    for key in "abc":
        cache.add(key, key, 60.0)
    cache.add("a", "again", 60.0)
    cache.add("d", "d", 1.0)
    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]
    clock.now += 1
    for key in "efg":
        cache.add(key, key, 60.0)
    assert [key for key in "abcdefg" if cache.get(key)] == ["e", "f", "g"]


def test_the_number_of_entries_is_bounded():
    """A scan of a million names does not fill the memory."""
    cache = ExpiringCache(lambda: 0.0)
    for number in range(module._MAX_ENTRIES + 500):
        cache.add(number, None, 60.0)
    assert len(cache._entries) == module._MAX_ENTRIES
    assert cache.get(499) is None and cache.get(500) == (None, 60.0)


SECONDS, PASSES = st.sampled_from([None, 0.5, 1.0, 3.0]), st.sampled_from([0.0, 0.5, 1.0])


@given(st.lists(st.tuples(st.sampled_from("abc"), SECONDS, PASSES)))
def test_any_steps_agree_with_a_model(steps):
    """Any sequence of steps gives the same values as a dict with expiry times."""
    clock, model = Clock(), {}
    cache = ExpiringCache(clock)
    for number, (key, seconds, passes) in enumerate(steps):
        if seconds is not None:
            cache.add(key, number, seconds)
            model[key] = (clock.now + seconds, number)
        clock.now += passes
        for one in "abc":
            end, value = model.get(one, (0.0, None))
            assert cache.get(one) == ((value, end - clock.now) if end > clock.now else None)
