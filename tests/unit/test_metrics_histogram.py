"""metrics.py: histograms, and the sum of counters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheplugin.metrics import Counters, Histogram

BOUNDS = Histogram.BOUNDS_S


def test_empty_histogram():
    """It has one bucket for each bound and one above; bounds grow; buckets are not shared."""
    first, second = Histogram(), Histogram()
    assert first.counts == [0] * (len(BOUNDS) + 1) and first.sum_s == 0
    assert list(BOUNDS) == sorted(set(BOUNDS))
    first.add(1.0)
    assert sum(second.counts) == 0


@pytest.mark.parametrize("place", range(len(BOUNDS)))
def test_bounds_are_inclusive(place):
    """An observation that equals a bound counts in the bucket of that bound, as in Prometheus."""
    histogram = Histogram()
    histogram.add(BOUNDS[place])
    histogram.add(BOUNDS[place] * 1.0001)
    assert histogram.counts[place : place + 2] == [1, 1] and sum(histogram.counts) == 2


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 50))))
def test_every_observation_counts_once(observations):
    """An observation counts ``count`` times in the first bucket whose bound it does not exceed."""
    histogram = Histogram()
    for seconds, count in observations:
        histogram.add(seconds, count)
    for place, bound in enumerate(BOUNDS):
        expected = sum(count for seconds, count in observations if seconds <= bound)
        assert sum(histogram.counts[: place + 1]) == expected
    assert sum(histogram.counts) == sum(count for _, count in observations)
    assert histogram.sum_s == pytest.approx(sum(seconds * count for seconds, count in observations))


@given(st.data())
def test_counters_add_up(data):
    """add adds every counter and drain_s, and does not change its argument."""
    names = Counters.__slots__
    numbers = st.lists(st.integers(0, 2**40), min_size=len(names), max_size=len(names))
    ours, theirs = (dict(zip(names, data.draw(numbers))) for _ in range(2))
    total, other = Counters(), Counters()
    for name in names:
        setattr(total, name, ours[name])
        setattr(other, name, theirs[name])
    total.add(other)
    assert {name: getattr(total, name) for name in names} == {
        name: ours[name] + theirs[name] for name in names
    }
    assert {name: getattr(other, name) for name in names} == theirs
