"""remote/bundles/manifest.py: the format, and merging and composing of rows."""

import struct
import tracemalloc

import pytest
import xxhash
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cacheplugin.errors import Damaged
from cacheplugin.remote.bundles import manifest as format
from cacheplugin.remote.bundles.keys import new_name
from cacheplugin.remote.bundles.manifest import (
    CARRY_ROWS,
    CARRY_S,
    MAX_SUPERSEDED,
    Manifest,
    NewerVersion,
    compose,
    decode,
    decode_names,
    encode,
    merge,
)
from cacheplugin.remote.bundles.rows import Row, encode_rows
from entries import TIME_NS, action_id
from rows import empty_row, ids, names, row

NOW_S = 1_800_000_000
U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
NAMES = st.text(st.characters(max_codepoint=127), max_size=255)
ROWS = st.one_of(
    st.builds(
        Row,
        st.binary(min_size=1, max_size=64).map(bytes.hex),
        st.just("ab" * 32),
        st.integers(1, 2**64 - 1),
        U64,
        U32,
        NAMES,
        st.integers(0, 2**62 - 1),
        st.integers(1, 2**62),
        U32,
        U64,
    ),
    st.builds(empty_row, st.text(max_size=3), time_ns=U64, used_s=U32, bundle=NAMES),
)
MANIFESTS = st.builds(
    Manifest,
    st.text(st.characters(codec="utf-8"), max_size=100),
    st.lists(NAMES, max_size=9),
    st.lists(ROWS, max_size=9),
)
SAMPLE = Manifest(
    "example.com/a linux/amd64 mäin",
    ["m-2", "m-1"],
    [
        row("a"),
        empty_row("b", bundle="bundle-b"),
        row("c", bundle="bundle-b", inner=5),
    ],
)


# -- the format ------------------------------------------------------------------------------------


@given(MANIFESTS)
def test_round_trip(manifest):
    """Scope, names and rows are decoded in their order; decode_names leaves out the rows."""
    data = encode(manifest)
    assert decode(data) == manifest
    bundles = dict.fromkeys(one.bundle for one in manifest.rows)
    assert decode_names(data) == (manifest.scope, manifest.superseded, list(bundles))


@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF])
def test_any_byte_changed(change):
    """A change of any byte is detected."""
    data = encode(SAMPLE)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= change
        with pytest.raises(Damaged):
            decode(bytes(changed))


def test_any_truncation():
    """A truncated manifest, and one with an extra byte, are Damaged."""
    data = encode(SAMPLE)
    for changed in [data[:size] for size in range(len(data))] + [data + b"\0"]:
        with pytest.raises(Damaged):
            decode(changed)


def manifest_of(text, version=format.VERSION) -> bytes:
    """A manifest with this content and the right checksum."""
    frame = zstandard.ZstdCompressor().compress(text)
    header = struct.pack("<4sIQ", b"GCPM", version, xxhash.xxh3_64_intdigest(frame))
    return header + frame


@pytest.mark.parametrize("version", [0, format.VERSION + 1, 2**32 - 1])
def test_unknown_version(version):
    """An unknown version is Damaged, and a newer one raises NewerVersion."""
    assert decode(manifest_of(bytes(16))) == Manifest("", [], [])
    for read in decode, decode_names:
        with pytest.raises(Damaged) as caught:
            read(manifest_of(bytes(16), version))
        assert (caught.type is NewerVersion) == (version > format.VERSION)


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_arbitrary_bytes(noise, rest):
    """Arbitrary bytes are Damaged, and behind a right checksum they raise no other error."""
    with pytest.raises(Damaged):
        decode(noise)
    for text in noise, struct.pack("<IIII", len(noise) % 7, 1, 1, 1) + noise + rest:
        try:
            decode(manifest_of(text))
        except Damaged:
            pass


NAME_OF_ONE, ONE_ROW = b"\x08bundle-a", encode_rows([row("a")], {"bundle-a": 0})
INVALID_CONTENTS = {
    "empty": b"",
    "counts cut off": bytes(15),
    "scope cut off": struct.pack("<IIII", 9, 0, 0, 0) + b"a scope",
    "scope not UTF-8": struct.pack("<IIII", 1, 0, 0, 0) + b"\xff",
    "name cut off": struct.pack("<IIII", 0, 1, 0, 0) + b"\x09bundle-a",
    "name not ASCII": struct.pack("<IIII", 0, 1, 0, 0) + b"\x01\xff",
    "names missing": struct.pack("<IIII", 0, 2**32 - 1, 2**32 - 1, 0),
    "rows missing": struct.pack("<IIII", 0, 0, 1, 2**32 - 1) + NAME_OF_ONE + ONE_ROW,
    "row cut off": struct.pack("<IIII", 0, 0, 1, 1) + NAME_OF_ONE + ONE_ROW[:-1],
    "rows left over": struct.pack("<IIII", 0, 0, 1, 1) + NAME_OF_ONE + 2 * ONE_ROW,
    "bundle unknown": struct.pack("<IIII", 0, 0, 0, 1) + ONE_ROW,
}


@pytest.mark.parametrize("text", INVALID_CONTENTS.values(), ids=INVALID_CONTENTS)
def test_invalid_content(text):
    """A content that contradicts itself is Damaged, even with a right checksum."""
    good = struct.pack("<IIII", 0, 0, 1, 1) + NAME_OF_ONE + ONE_ROW
    assert decode(manifest_of(good)).rows == [row("a")]
    with pytest.raises(Damaged):
        decode(manifest_of(text))


def peak_bytes_of_refusing(data) -> int:
    """The most memory that decoding of a Damaged manifest takes."""
    tracemalloc.start()
    try:
        with pytest.raises(Damaged):
            decode(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_content_over_the_limit():
    """A small object that decompresses to more than a manifest may have takes little memory."""
    assert peak_bytes_of_refusing(manifest_of(bytes(format._MAX_BYTES + 1))) < 1 << 20


def test_too_many_names():
    """Too many names are refused before they are decoded into memory."""
    text_bytes = 1 << 17
    for counts in (0, text_bytes, 0, 0), (0, 0, text_bytes, 0):
        text = struct.pack("<IIII", *counts) + bytes(text_bytes - 1)
        peak_bytes = peak_bytes_of_refusing(manifest_of(text))
        assert peak_bytes < 3 * text_bytes


# -- merge -----------------------------------------------------------------------------------------


def merged(*lists) -> dict:
    return merge(lists)


def test_merge_keeps_the_order_of_the_newest():
    """The actions of the newest manifest come first, then those that each older one adds."""
    found = merged(
        [row("c"), row("a")],
        [row("d"), row("a", time_ns=TIME_NS + 1), row("b")],
        [row("e"), row("b"), row("c")],
    )
    assert list(found) == ids("cadbe")


def test_merge_takes_the_latest_put():
    """The row with the later put is taken, and of equal ones the newest manifest's row."""
    late, early = row("a", time_ns=TIME_NS + 1), row("a", bundle="bundle-b")
    assert merged([early], [late])[action_id("a")] == late
    assert merged([late], [early])[action_id("a")] == late
    equal = row("a", bundle="bundle-c")
    assert merged([early], [equal], [equal])[action_id("a")] == early


@pytest.mark.parametrize("late_first", [False, True])
@pytest.mark.parametrize("late_used_s", [3, 5])
def test_merge_takes_the_latest_use(late_first, late_used_s):
    """The latest time of use is taken, from any row of the action."""
    rows = [row("a", used_s=4), row("a", time_ns=TIME_NS + 1, used_s=late_used_s)]
    found = merged(*([one] for one in sorted(rows, reverse=late_first)))[action_id("a")]
    assert found == rows[1]._replace(used_s=max(4, late_used_s))


# -- compose ---------------------------------------------------------------------------------------


def known(*rows) -> dict:
    return {one.action: one for one in rows}


def test_compose_begins_with_used_actions():
    """Used actions come first, in the order of first use, with the session's time of use."""
    rows = known(row("a"), row("b", used_s=NOW_S - 9), row("c"), row("d", used_s=NOW_S - 1))
    found = compose(ids("cxb"), rows, ids("dcb"), NOW_S)
    assert names(found) == ids("cbd")
    assert [one.used_s for one in found] == [NOW_S, NOW_S, NOW_S - 1]


def test_compose_carries_recently_used_rows():
    """Rows of other sessions follow, the last used first, unless unused for CARRY_S."""
    young, middle, limit, old = (
        row(name, used_s=NOW_S - age) for name, age in zip("abcd", (5, 100, CARRY_S - 1, CARRY_S))
    )
    rows = known(old, middle, young, limit)
    assert compose([], rows, rows, NOW_S) == [young, middle, limit]
    assert compose([], rows, ids("bxd"), NOW_S) == [middle]
    assert names(compose(ids("d"), rows, rows, NOW_S)) == ids("dabc")


def test_compose_carries_at_most_carry_rows(monkeypatch):
    """The least recently used rows are left out; rows that the session used are not."""
    monkeypatch.setattr(format, "CARRY_ROWS", 2)
    rows = known(*(row(name, used_s=NOW_S - age) for age, name in enumerate("abcdef")))
    assert names(compose(ids("def"), rows, rows, NOW_S)) == ids("defab")
    assert CARRY_ROWS + len(rows) < format.MAX_ROWS


def test_max_superseded_names():
    """A manifest can have MAX_SUPERSEDED superseded names."""
    superseded = [new_name(at, "0" * 8) for at in range(MAX_SUPERSEDED)]
    manifest = Manifest("scope", superseded, [row("a")])
    assert decode(encode(manifest)) == manifest
