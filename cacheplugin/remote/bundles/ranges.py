"""Which parts of which bundles are fetched, and in what order.

The bundles' wanted blocks are cut into ranges, neighbours together, and the ranges stand in the
order in which the first of their entries will be asked for. No I/O.
"""

from collections import deque

RANGE_BYTES = 2 << 20  # a range is closed once it has that many
GAP_BYTES = 64 << 10  # what nobody wants between two blocks is fetched along up to this length

IDLE, QUEUED, RUNNING, DONE = range(4)


class Range:
    """A part of a bundle. ``state``: one of IDLE (fetched on demand), QUEUED, RUNNING and DONE."""

    __slots__ = ("bundle", "end", "rows", "start", "state")

    def __init__(self, bundle: str, start: int) -> None:
        self.bundle = bundle
        self.start = self.end = start
        self.rows = []
        self.state = IDLE

    @property
    def length(self) -> int:
        return self.end - self.start


def cut(rows) -> list:
    """The Ranges of ``rows``, in the order of their first rows; first the rows without a body."""
    first = {}  # range: the place in ``rows`` of its first row
    places = sorted(
        (row.bundle, row.offset, row.inner, place) for place, row in enumerate(rows) if row.length
    )
    current = None
    for bundle, offset, _, place in places:
        end = offset + rows[place].length
        if (
            current is None
            or bundle != current.bundle
            or offset > current.end + GAP_BYTES
            or (offset >= current.end and max(current.length, rows[place].length) >= RANGE_BYTES)
        ):
            current = Range(bundle, offset)
        current.end = max(current.end, end)
        current.rows.append(rows[place])
        first[current] = min(first.get(current, place), place)
    found = sorted(first, key=first.get)
    empty = [row for row in rows if not row.length]
    if empty:
        found.insert(0, Range("", 0))
        found[0].rows = empty
    return found


class Queue:
    """Ranges to fetch, in order; what a get waits for goes to the front."""

    def __init__(self) -> None:
        self._ranges = deque()

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def add(self, found: Range) -> None:
        found.state = QUEUED
        self._ranges.append(found)

    def take(self, wanted: Range = None) -> Range:
        """``wanted``, wherever it stands, or the first; it is RUNNING from now on."""
        if wanted is None:
            wanted = self._ranges.popleft()
        elif wanted.state == QUEUED:
            self._ranges.remove(wanted)
        wanted.state = RUNNING
        return wanted

    def drop(self, bundle: str) -> None:
        """Let go of the ranges of a bundle that is gone."""
        ranges, self._ranges = self._ranges, deque()
        for found in ranges:
            if found.bundle == bundle:
                found.state = DONE
            else:
                self._ranges.append(found)

    def clear(self) -> None:
        for found in self._ranges:
            found.state = IDLE
        self._ranges.clear()
