"""The rows of indexes and manifests: which entry lies where in which bundle.

A row has 149 bytes, little-endian (docs/bundles.rst has them one by one). The same rows stand in
the index of a bundle and in manifests.
"""

import struct
from collections import namedtuple

from ...errors import Damaged
from ...store.record import MAX_TIME_NS
from ...store.tree import EMPTY_OUTPUT

# action and output are hex, size is that of the body in bytes, time_ns the time of the put. used_s:
# when a session last used it, seconds since the epoch. bundle: the bundle's name; the block of the
# body lies there at offset, in length bytes, and the body begins at inner in what that inflates to.
Row = namedtuple("Row", "action output size time_ns used_s bundle offset length inner xxh3")

MAX_ROWS = 1 << 20
MAX_USED_S = (1 << 32) - 1
_ROW = struct.Struct("<B64s32sQQIIQQIQ")
ROW_BYTES = _ROW.size
_MAX_ACTION_BYTES = 64


def place_of(row) -> tuple:
    """Where the body of a Row lies: bundle, offset, length, inner."""
    return row[5:9]


def encode_rows(rows, bundles: dict) -> bytes:
    """The bytes of ``rows``; ``bundles`` is {bundle name: its number}."""
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


def decode_rows(data: bytes, bundles: list) -> list:
    """The rows in ``data``; ``bundles`` are the names by number. Raises Damaged."""
    if len(data) % ROW_BYTES:
        raise Damaged(f"{len(data)} bytes of rows")
    rows = []
    for fields in _ROW.iter_unpack(data):
        length, action, output, size, time_ns, used_s, bundle, *where, xxh3 = fields
        empty = size == 0
        if (
            not 0 < length <= _MAX_ACTION_BYTES
            or bundle >= len(bundles)
            or time_ns > MAX_TIME_NS
            or empty != (where[1] == 0)
            or where[0] + where[1] >= 1 << 63
        ):
            raise Damaged("a row that cannot be")
        output = output.hex()
        if empty != (output == EMPTY_OUTPUT):
            raise Damaged("a row of an empty body under another's name")
        action = action[:length].hex()
        rows.append(Row(action, output, size, time_ns, used_s, bundles[bundle], *where, xxh3))
    return rows
