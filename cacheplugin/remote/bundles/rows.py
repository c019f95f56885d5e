"""The rows of bundles and manifests: where each entry lies.

A row has 149 bytes, little-endian (docs/bundles.rst has the fields). A bundle's index and manifests
hold rows of the same format.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ...errors import Damaged
from ...store.record import MAX_TIME_NS
from ...store.tree import EMPTY_OUTPUT
from ...tuples import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ...ipc.jobs import PlainRow


class Place(NamedTuple):
    """Where a body lies.

    bundle: the bundle's name; offset, length: the body's block in the bundle; inner: where the body
    begins in the decompressed block. All in bytes.
    """

    bundle: str
    offset: int
    length: int
    inner: int


class Row(NamedTuple):
    """An entry and the place of its body.

    action, output: hex; size: bytes of the body; time_ns: time of the put; used_s: when a session
    last used it, seconds since the epoch; bundle to inner: as in Place; xxh3: XXH3-64 of the body.

    Rows cross processes as plain tuples (jobs.PlainRow), because marshal takes nothing else.
    """

    action: str
    output: str
    size: int
    time_ns: int
    used_s: int
    bundle: str
    offset: int
    length: int
    inner: int
    xxh3: int

    @property
    def place(self) -> Place:
        return Place(self.bundle, self.offset, self.length, self.inner)

    def moved_to(self, place: Place) -> Row:
        """The same entry, with its body at another place."""
        bundle, offset, length, inner = place
        return self._replace(bundle=bundle, offset=offset, length=length, inner=inner)


MAX_ROWS = 1 << 20
MAX_USED_S = (1 << 32) - 1
_ROW = struct.Struct("<B64s32sQQIIQQIQ")
ROW_BYTES = _ROW.size
_MAX_ACTION_BYTES = 64


def plain_rows(rows: Iterable[Row]) -> list[PlainRow]:
    """Rows as plain tuples, to cross processes. ``Row(*fields)`` makes rows of them again."""
    return list(map(tuple, rows))  # type: ignore[arg-type] # mypy forgets the types of fields


def encode_rows(rows: Iterable[Row], bundles: Mapping[str, int]) -> bytes:
    """The bytes of ``rows``; ``bundles`` maps names of bundles to their numbers."""
    return b"".join(
        _ROW.pack(
            len(row.action) // 2,
            bytes.fromhex(row.action),
            bytes.fromhex(row.output),
            row.size,
            row.time_ns,
            row.used_s,
            bundles[row.bundle],
            row.offset,
            row.length,
            row.inner,
            row.xxh3,
        )
        for row in rows
    )


def decode_rows(data: bytes, bundles: Sequence[str]) -> list[Row]:
    """The rows in ``data``; ``bundles`` are the names of bundles by number. Raises Damaged."""
    if len(data) % ROW_BYTES:
        raise Damaged(f"{len(data)} bytes of rows are no multiple of {ROW_BYTES}")
    rows = []
    for fields in _ROW.iter_unpack(data):
        action_bytes, action, output, size, time_ns, used_s, bundle, offset, length, inner, xxh3 = (
            fields
        )
        is_empty = size == 0
        if (
            not 0 < action_bytes <= _MAX_ACTION_BYTES
            or bundle >= len(bundles)
            or time_ns > MAX_TIME_NS
            or is_empty != (length == 0)
            or offset + length >= 1 << 63
        ):
            raise Damaged("a row has invalid fields")
        output = output.hex()
        if is_empty != (output == EMPTY_OUTPUT):
            raise Damaged("a row's size and output id contradict each other")
        action = action[:action_bytes].hex()
        place = (bundles[bundle], offset, length, inner)
        rows.append(Row(action, output, size, time_ns, used_s, *place, xxh3))
    return rows
