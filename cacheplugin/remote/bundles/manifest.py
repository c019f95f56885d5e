"""A manifest: every action that a session used, in the order of first use, and where it lies.

::

    "GCPM" <version, u32> <xxh3-64 of what follows, u64> zstd frame of:
        <bytes of the scope, u32> <manifests superseded, u32> <bundles, u32> <rows, u32>
        scope, UTF-8
        for each manifest superseded, and then for each bundle: <length, u8> name, ASCII
        rows (rows.py), whose bundle is a number in the list of bundles

Manifests are cumulative: a session carries forward the rows that it loaded and did not use. So its
manifest supersedes the manifests that it read, and the next session need not read those. A manifest
is never changed. docs/bundles.rst has the format byte by byte.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import xxhash
import zstandard

from ...errors import Damaged
from ...tuples import NamedTuple
from .bundle import decompress
from .rows import MAX_ROWS, ROW_BYTES, Row, decode_rows, encode_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAGIC = b"GCPM"
VERSION = 1
MAX_SUPERSEDED = 1000
CARRY_S = 7 * 86400  # rows that no session used for so long are not carried forward
CARRY_ROWS = 50_000  # the most rows that are carried forward

_HEADER = struct.Struct("<4sIQ")
_COUNTS = struct.Struct("<IIII")
_LEVEL = 3
_MAX_BYTES = MAX_ROWS * ROW_BYTES + (1 << 20)


class Manifest(NamedTuple):
    """The content of a manifest.

    scope: its text; superseded: names of manifests of the same scope that need not be read any
    more, because their rows are in this one or were too old to carry forward.
    """

    scope: str
    superseded: Sequence[str]
    rows: Sequence[Row]


class Names(NamedTuple):
    """The names in a manifest: its scope's text, the manifests it supersedes, its bundles."""

    scope: str
    superseded: list[str]
    bundles: list[str]


class NewerVersion(Damaged):
    """A manifest of a version that this program does not know: its names are unknown."""


def encode(manifest: Manifest) -> bytes:
    """The bytes of a manifest."""
    bundles: dict[str, int] = {}
    for row in manifest.rows:
        bundles.setdefault(row.bundle, len(bundles))
    scope = manifest.scope.encode()
    counts = _COUNTS.pack(len(scope), len(manifest.superseded), len(bundles), len(manifest.rows))
    names = b"".join(
        bytes([len(name)]) + name.encode() for name in (*manifest.superseded, *bundles)
    )
    content = counts + scope + names + encode_rows(manifest.rows, bundles)
    frame = zstandard.ZstdCompressor(level=_LEVEL).compress(content)
    return _HEADER.pack(MAGIC, VERSION, xxhash.xxh3_64_intdigest(frame)) + frame


def decode(data: bytes) -> Manifest:
    """The manifest in ``data``; raises Damaged, or its subclass NewerVersion."""
    names, rows = _split(data)
    return Manifest(names.scope, names.superseded, decode_rows(rows, names.bundles))


def decode_names(data: bytes) -> Names:
    """The names in a manifest, without its rows; raises as ``decode`` does."""
    names, _ = _split(data)
    return names


def _split(data: bytes) -> tuple[Names, bytes]:
    """The names in a manifest, and the bytes of its rows."""
    content = _content(data)
    try:
        scope_bytes, superseded, bundles, rows = _COUNTS.unpack_from(content)
        if superseded > MAX_SUPERSEDED or bundles > rows:
            raise Damaged(
                f"a manifest claims {superseded} superseded manifests,"
                f" and {bundles} bundles for {rows} rows"
            )
        position = _COUNTS.size + scope_bytes
        scope = content[_COUNTS.size : position].decode()
        names = []
        for _ in range(superseded + bundles):
            end = position + 1 + content[position]
            names.append(content[position + 1 : end].decode("ascii"))
            position = end
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise Damaged(f"a manifest is cut off: {error}") from error
    if len(content) - position != rows * ROW_BYTES:
        raise Damaged(f"a manifest of {rows} rows has {len(content) - position} bytes of rows")
    return Names(scope, names[:superseded], names[superseded:]), content[position:]


def _content(data: bytes) -> bytes:
    """The decompressed content of a manifest whose header and checksum are right."""
    if len(data) < _HEADER.size:
        raise Damaged(f"a manifest has only {len(data)} bytes")
    magic, version, xxh3 = _HEADER.unpack_from(data)
    if magic != MAGIC or not version:
        raise Damaged("not a manifest: its first bytes are wrong")
    if version > VERSION:
        raise NewerVersion(f"a manifest has version {version}, this program knows {VERSION}")
    frame = data[_HEADER.size :]
    if xxhash.xxh3_64_intdigest(frame) != xxh3:
        raise Damaged("a manifest has a wrong checksum")
    return decompress(frame, _MAX_BYTES)


def merge(
    row_lists: Iterable[Iterable[Row]], merged: dict[str, Row] | None = None
) -> dict[str, Row]:
    """The rows of manifests, the newest manifest first, by action; added to ``merged`` if given.

    The order is that of the first list, then that of the actions that the others add. Of two rows
    of one action the one with the later put is taken, and of equal ones the first.
    """
    merged = {} if merged is None else merged
    for rows in row_lists:
        for row in rows:
            known = merged.get(row.action)
            if known is None:
                merged[row.action] = row
                continue
            latest = row if row.time_ns > known.time_ns else known
            if latest is not known or row.used_s > known.used_s:
                merged[row.action] = latest._replace(used_s=max(row.used_s, known.used_s))
    return merged


def compose(
    used: Iterable[str], known: Mapping[str, Row], carried: Iterable[str], now_s: int
) -> list[Row]:
    """The rows of a session's manifest.

    used: the actions that the session used, in order; known: all rows that it knows, by action;
    carried: the actions that it loaded from manifests of its scope; now_s: seconds since the epoch.
    """
    own = [known[action]._replace(used_s=now_s) for action in used if action in known]
    chosen = {row.action for row in own}
    rest = [
        known[action]
        for action in carried
        if action in known and action not in chosen and known[action].used_s > now_s - CARRY_S
    ]
    rest.sort(key=lambda row: -row.used_s)
    return own + rest[:CARRY_ROWS]
