"""A manifest: every action that a session used, in the order of first use, and where it lies.

::

    "GCPM" <version, u32> <xxh3-64 of what follows, u64> zstd frame of:
        <bytes of the scope, u32> <manifests superseded, u32> <bundles, u32> <rows, u32>
        scope, UTF-8
        for each manifest superseded, and then for each bundle: <length, u8> name, ASCII
        rows (index.py), whose bundle is a number in the list of bundles

Manifests are cumulative: a session carries forward what it loaded and did not use, so the manifests
that it has read are superseded by its own, and the next session need not read them. Nothing is ever
rewritten. docs/bundles.rst has the format byte by byte.
"""

import hashlib
import re
import struct
from collections import namedtuple

import xxhash
import zstandard

from ...errors import Damaged
from .bundle import inflate
from .index import MAX_ROWS, ROW_BYTES, decode_rows, encode_rows

# superseded: names of the manifests of the same scope whose rows are all in this one, or too old.
Manifest = namedtuple("Manifest", "scope superseded rows")

MAGIC = b"GCPM"
VERSION = 1
MAX_SUPERSEDED = 1000
CARRY_S = 7 * 86400  # what no session used for so long is not carried forward
CARRY_ROWS = 50_000  # and neither is what is beyond so many

_HEADER = struct.Struct("<4sIQ")
_COUNTS = struct.Struct("<IIII")
_LEVEL = 3
_MAX_BYTES = MAX_ROWS * ROW_BYTES + (1 << 20)
_LAST_MS = (1 << 48) - 1

# What new_name makes, as names of bundles (the group is the scope) and of manifests.
BUNDLE_NAME = re.compile("[0-9a-f]{12}-([0-9a-f]{16})-[0-9a-f]{8}")
MANIFEST_NAME = re.compile("[0-9a-f]{12}-[0-9a-f]{8}")


def encode(manifest: Manifest) -> bytes:
    """The bytes of a manifest."""
    bundles = {}
    for row in manifest.rows:
        bundles.setdefault(row.bundle, len(bundles))
    scope = manifest.scope.encode()
    counts = _COUNTS.pack(len(scope), len(manifest.superseded), len(bundles), len(manifest.rows))
    names = b"".join(
        bytes([len(name)]) + name.encode() for name in (*manifest.superseded, *bundles)
    )
    text = counts + scope + names + encode_rows(manifest.rows, bundles)
    frame = zstandard.ZstdCompressor(level=_LEVEL).compress(text)
    return _HEADER.pack(MAGIC, VERSION, xxhash.xxh3_64_intdigest(frame)) + frame


class NewerVersion(Damaged):
    """A manifest that a newer program wrote: nobody here knows what it names."""


def decode(data: bytes) -> Manifest:
    """The manifest in ``data``; raises Damaged, NewerVersion among it."""
    scope, superseded, bundles, rows = _parts(data)
    return Manifest(scope, superseded, decode_rows(rows, bundles))


def decode_names(data: bytes):
    """(scope, superseded, bundles) of a manifest, all but its rows; raises as ``decode`` does."""
    return _parts(data)[:3]


def _parts(data):
    if len(data) < _HEADER.size:
        raise Damaged(f"a manifest of {len(data)} bytes")
    magic, version, xxh3 = _HEADER.unpack_from(data)
    if magic != MAGIC or not version:
        raise Damaged("no manifest")
    if version > VERSION:
        raise NewerVersion(f"a manifest of version {version}")
    frame = data[_HEADER.size :]
    if xxhash.xxh3_64_intdigest(frame) != xxh3:
        raise Damaged("a manifest with a wrong checksum")
    text = inflate(frame, _MAX_BYTES)
    try:
        scope_length, *lengths, rows = _COUNTS.unpack_from(text)
        if lengths[0] > MAX_SUPERSEDED or lengths[1] > rows:
            raise Damaged("a manifest of more names than there can be")
        position = _COUNTS.size + scope_length
        scope = text[_COUNTS.size : position].decode()
        lists = []
        for count in lengths:
            names = []
            for _ in range(count):
                end = position + 1 + text[position]
                names.append(text[position + 1 : end].decode("ascii"))
                position = end
            lists.append(names)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise Damaged(f"a manifest that is cut off: {error}") from error
    if len(text) - position != rows * ROW_BYTES:
        raise Damaged("a manifest of another length than it says")
    superseded, bundles = lists
    return scope, superseded, bundles, text[position:]


def merge(lists, merged: dict = None) -> dict:
    """{action: row} of the rows of manifests, the newest first, added to ``merged`` if it is given.

    The order is that of the first, then that of what the others add. Of two rows of one action the
    one with the later put counts, and of equal ones the first.
    """
    merged = {} if merged is None else merged
    for rows in lists:
        for row in rows:
            known = merged.get(row.action)
            if known is None:
                merged[row.action] = row
                continue
            latest = row if row.time_ns > known.time_ns else known
            if latest is not known or row.used_s > known.used_s:
                merged[row.action] = latest._replace(used_s=max(row.used_s, known.used_s))
    return merged


def compose(used, known: dict, carried, now_s: int) -> list:
    """The rows of a session's manifest.

    ``used`` are the actions it used, in order; ``known`` is {action: row} of all it knows;
    ``carried`` the actions it has from manifests of its scope. ``now_s``: seconds since the epoch.
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


def scope_key(scope: str) -> str:
    """How a scope stands in keys: 16 hex digits."""
    return hashlib.sha256(scope.encode()).hexdigest()[:16]


def new_name(now_s: float, unique: str) -> str:
    """A name that sorts before those made earlier: 12 hex digits, and ``unique`` hex digits."""
    return f"{_LAST_MS - int(now_s * 1000):012x}-{unique}"
