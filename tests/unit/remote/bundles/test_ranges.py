"""remote/bundles/ranges.py: which rows one request fetches, and in what order."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheplugin.remote.bundles.ranges import (
    GAP_BYTES,
    IDLE,
    QUEUED,
    RANGE_BYTES,
    RUNNING,
    RangeQueue,
    ranges_of,
)
from rows import empty_row, ids, names, row

# (gap before the block, its length, bodies in it) of the blocks of a bundle
BLOCKS = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, GAP_BYTES, GAP_BYTES + 1]),
        st.sampled_from([1, 1000, RANGE_BYTES // 3, RANGE_BYTES - 1, RANGE_BYTES, 5 * RANGE_BYTES]),
        st.integers(1, 3),
    ),
    max_size=12,
)


@st.composite
def wanted_rows(draw) -> list:
    """Rows of up to three bundles, and some without a body, in any order."""
    rows = [empty_row(f"empty {at}") for at in range(draw(st.integers(0, 2)))]
    for bundle in "abc"[: draw(st.integers(1, 3))]:
        position = 8
        for at, (gap, length, bodies) in enumerate(draw(BLOCKS)):
            position += gap
            rows += [
                row(f"{bundle} {at} {body}", position, length, bundle=bundle, inner=body)
                for body in range(bodies)
            ]
            position += length
    return draw(st.permutations(rows))


def blocks_of(found) -> list:
    """The (offset, length) of the blocks in a range, each once."""
    return list(dict.fromkeys((one.offset, one.length) for one in found.rows))


@given(wanted_rows())
def test_every_row_is_in_one_range(rows):
    """Each row is in exactly one range, and a range ends where its rows end."""
    ranges = ranges_of(rows)
    assert sorted(one for found in ranges for one in found.rows) == sorted(rows)
    for found in ranges:
        assert found.rows and found.state == IDLE
        if found.bundle:
            assert {one.bundle for one in found.rows} == {found.bundle}
            assert found.start == min(one.offset for one in found.rows)
            assert found.start + found.length == max(one.offset + one.length for one in found.rows)
            places = [(one.offset, one.inner) for one in found.rows]
            assert places == sorted(places)


@given(wanted_rows())
def test_gaps_and_lengths(rows):
    """A range ends at a gap above GAP_BYTES or once it has RANGE_BYTES, and nowhere else."""
    by_bundle = {}
    for found in ranges_of(rows):
        by_bundle.setdefault(found.bundle, []).append(found)
        blocks = blocks_of(found)
        for (offset, length), (next_offset, _) in itertools.pairwise(blocks):
            assert next_offset - (offset + length) <= GAP_BYTES
            assert offset + length - found.start < RANGE_BYTES
    by_bundle.pop("", None)
    for ranges in by_bundle.values():
        ranges.sort(key=lambda found: found.start)
        for before, after in itertools.pairwise(ranges):
            assert (
                after.start - before.end > GAP_BYTES
                or before.length >= RANGE_BYTES
                # A get of a small entry does not wait for a large one too.
                or after.rows[0].length >= RANGE_BYTES
            )


@given(wanted_rows())
def test_order_is_that_of_first_use(rows):
    """Ranges are in the order of their first rows; rows without a body come first."""
    ranges = ranges_of(rows)
    assert [found.bundle for found in ranges].count("") == any(not one.length for one in rows)
    if ranges and not ranges[0].bundle:
        assert ranges[0].length == 0
        assert all(not one.length for one in ranges.pop(0).rows)
    first_uses = [min(rows.index(one) for one in found.rows) for found in ranges]
    assert first_uses == sorted(first_uses)


def test_no_rows():
    assert ranges_of([]) == []


def test_overlapping_blocks():
    """Blocks that overlap, in an invalid manifest, are in one range that holds both."""
    (found,) = ranges_of([row("a", 8, 3 * RANGE_BYTES), row("b", RANGE_BYTES + 100, 10)])
    assert (found.start, found.length) == (8, 3 * RANGE_BYTES)
    assert names(found.rows) == ids("ab")


# -- the queue -------------------------------------------------------------------------------------


@pytest.fixture
def ranges():
    return ranges_of([row(name, at * 10 * GAP_BYTES) for at, name in enumerate("abcd")])


def test_queue_order(ranges):
    """Ranges are taken in the order in which they were added, and are RUNNING then."""
    queue = RangeQueue()
    assert not queue
    for found in ranges:
        queue.add(found)
        assert queue and found.state == QUEUED
    assert [queue.take() for _ in ranges] == ranges
    assert not queue and {found.state for found in ranges} == {RUNNING}


def test_queue_take_wanted(ranges):
    """A wanted range is taken out of turn; the others stay in their order."""
    queue = RangeQueue()
    for found in ranges:
        queue.add(found)
    assert queue.take(ranges[2]) is ranges[2]
    assert ranges[2].state == RUNNING
    assert [queue.take() for _ in range(3)] == [ranges[0], ranges[1], ranges[3]]
    assert not queue


def test_queue_take_of_another_range(ranges):
    """A wanted range outside the queue is RUNNING; the queue is not changed."""
    queue = RangeQueue()
    queue.add(ranges[0])
    assert queue.take(ranges[1]) is ranges[1]
    assert ranges[1].state == RUNNING
    assert queue.take() is ranges[0]


def test_queue_clear(ranges):
    """Queued ranges are IDLE again and can be taken as wanted; RUNNING ones go on."""
    queue = RangeQueue()
    for found in ranges:
        queue.add(found)
    queue.take()
    queue.clear()
    assert not queue
    assert [found.state for found in ranges[:3]] == [RUNNING, IDLE, IDLE]
    assert queue.take(ranges[2]) is ranges[2]
