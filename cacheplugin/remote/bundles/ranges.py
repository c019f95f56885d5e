"""Which parts of which bundles are fetched by one request each, and in what order. No I/O.

Neighbouring blocks that are wanted form one range. Ranges are in the order in which the first of
their entries will be asked for.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .rows import Row

RANGE_BYTES = 2 << 20  # a range with at least as many bytes takes no further block
GAP_BYTES = 64 << 10  # up to so many unwanted bytes between two blocks are fetched with them

IDLE, QUEUED, RUNNING, DONE = range(4)


class Range:
    """A part of a bundle, with the rows in it. ``state``: IDLE, QUEUED, RUNNING or DONE.

    An IDLE range is fetched when a get needs it. ``start`` and ``end`` are in bytes.
    """

    __slots__ = ("bundle", "end", "rows", "start", "state")

    def __init__(self, bundle: str, start: int) -> None:
        self.bundle = bundle
        self.start = self.end = start
        self.rows: list[Row] = []
        self.state = IDLE

    @property
    def length(self) -> int:
        return self.end - self.start


def ranges_of(rows: Sequence[Row]) -> list[Range]:
    """The ranges that hold ``rows``, in the order of their first rows.

    Rows without a body come first, in a range without a bundle.
    """
    first: dict[Range, int] = {}  # the position in ``rows`` of a range's first row
    blocks = sorted(
        (row.bundle, row.offset, row.inner, position)
        for position, row in enumerate(rows)
        if row.length
    )
    current = None
    for bundle, offset, _, position in blocks:
        end = offset + rows[position].length
        if (
            current is None
            or bundle != current.bundle
            or offset > current.end + GAP_BYTES
            or (offset >= current.end and max(current.length, rows[position].length) >= RANGE_BYTES)
        ):
            current = Range(bundle, offset)
        current.end = max(current.end, end)
        current.rows.append(rows[position])
        first[current] = min(first.get(current, position), position)
    found = sorted(first, key=first.__getitem__)
    empty = [row for row in rows if not row.length]
    if empty:
        found.insert(0, Range("", 0))
        found[0].rows = empty
    return found


class RangeQueue:
    """Ranges to fetch, in order. A range that a get waits for can be taken out of turn."""

    def __init__(self) -> None:
        self._ranges: deque[Range] = deque()

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def add(self, added: Range) -> None:
        added.state = QUEUED
        self._ranges.append(added)

    def take(self, wanted: Range | None = None) -> Range:
        """Set ``wanted``, which may be outside the queue, or the first range, to RUNNING."""
        if wanted is None:
            wanted = self._ranges.popleft()
        elif wanted.state == QUEUED:
            self._ranges.remove(wanted)
        wanted.state = RUNNING
        return wanted

    def drop(self, bundle: str) -> None:
        """Remove the ranges of a bundle that does not exist, and set them to DONE."""
        ranges, self._ranges = self._ranges, deque()
        for queued in ranges:
            if queued.bundle == bundle:
                queued.state = DONE
            else:
                self._ranges.append(queued)

    def clear(self) -> None:
        for queued in self._ranges:
            queued.state = IDLE
        self._ranges.clear()
