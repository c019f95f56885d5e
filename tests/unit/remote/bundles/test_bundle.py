"""remote/bundles/bundle.py and index.py: what is packed comes back, and nothing else ever does."""

import errno
import io
import random
import struct
from collections import namedtuple

import pytest
import xxhash
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bundle_reader import read_index
from cacheplugin.errors import Damaged
from cacheplugin.remote.bundles import bundle, tasks
from cacheplugin.remote.bundles.bundle import (
    GROUP_BYTES,
    HEADER,
    LARGE_BYTES,
    MAGIC,
    SMALL_BYTES,
    TRAILER,
    VERSION,
    BundleEncoder,
    ChunkReader,
    decompress,
    decompress_pieces,
)
from cacheplugin.remote.bundles.rows import ROW_BYTES, decode_rows, encode_rows
from cacheplugin.store.tree import EMPTY_OUTPUT
from entries import TIME_NS, action_id, output_id
from rows import empty_row, row

NAME = "0123456789ab-0123456789abcdef-01234567"
Entry = namedtuple("Entry", "action output size time_ns path")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("bodies")


def entry(directory, body, action=None, time_ns=TIME_NS) -> Entry:
    """An entry of ``body``, which is written below ``directory``."""
    output = output_id(body)
    path = directory / output
    if not path.exists():
        path.write_bytes(body)
    return Entry(action or action_id(output), output, len(body), time_ns, str(path))


def noise(size, seed=0) -> bytes:
    return random.Random(seed).randbytes(size)


def pack(entries):
    """(the BundleEncoder, its bundle)"""
    packer = BundleEncoder(entries, NAME)
    return packer, b"".join(packer.chunks())


def rows_of(data) -> list:
    return read_index(lambda start, length: data[start : start + length], len(data), NAME)


def body_of(data, row) -> bytes:
    """What lies at a row's place, read alone; raises Damaged."""
    block = data[row.offset : row.offset + row.length]
    if row.size > bundle.LARGE_BYTES:
        return b"".join(decompress_pieces(io.BytesIO(block).read, row.length))
    return decompress(block, LARGE_BYTES)[row.inner : row.inner + row.size] if row.length else b""


# -- round trips -----------------------------------------------------------------------------------

SIZES = st.one_of(
    st.integers(0, 300),
    st.sampled_from(
        [0, SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, GROUP_BYTES - SMALL_BYTES, GROUP_BYTES]
    ),
)
BODIES = st.builds(
    lambda size, seed, plain: bytes([seed]) * size if plain else noise(size, seed),
    SIZES,
    st.integers(0, 3),
    st.booleans(),
)
ACTIONS = st.binary(min_size=1, max_size=64).map(bytes.hex)
PUTS = st.lists(
    st.tuples(ACTIONS, BODIES, st.integers(0, 2**63)),
    min_size=1,
    max_size=20,
    unique_by=lambda one: one[0],
)


@given(PUTS, st.lists(st.integers(1, 100_000), max_size=20))
def test_round_trip(directory, puts, amounts):
    """The index has every entry, and each is read alone; however the stream is read."""
    entries = [entry(directory, body, action, time_ns) for action, body, time_ns in puts]
    packer = BundleEncoder(entries, NAME)
    stream = ChunkReader(packer.chunks())
    parts = [stream.read(amount) for amount in amounts]
    data = b"".join([*parts, stream.read()])
    assert stream.read(1) == b"" and stream.size == len(data)
    assert data == pack(entries)[1]
    expected = io.BytesIO(data)
    assert parts == [expected.read(amount) for amount in amounts]
    rows = rows_of(data)
    assert rows == packer.rows and not packer.bad
    assert {(one.action, one.output, one.size, one.time_ns) for one in rows} == {
        (action, output_id(body), len(body), time_ns) for action, body, time_ns in puts
    }
    assert len(rows) == len(puts)
    for one in rows:
        body = body_of(data, one)
        assert output_id(body) == one.output
        assert (one.bundle, one.used_s) == (NAME, 0)
        assert one.xxh3 == xxhash.xxh3_64_intdigest(body)


def test_equal_bodies_lie_there_once(directory):
    """Entries of one body share its place, which is written once."""
    body = noise(100_000)
    once = pack([entry(directory, body)])[1]
    packer, data = pack([entry(directory, body, action_id(str(at))) for at in range(9)])
    assert len({one[5:] for one in packer.rows}) == 1
    assert len(packer.rows) == 9
    assert len(data) < len(once) + 9 * ROW_BYTES


def test_small_bodies_share_blocks(directory):
    """Small bodies lie behind each other up to a bound; each other one has a block of its own."""
    small = [entry(directory, noise(SMALL_BYTES, seed)) for seed in range(9)]
    larger = [entry(directory, noise(SMALL_BYTES + 1, seed)) for seed in range(2)]
    packer, _ = pack(small + larger)
    together = {}
    for one in packer.rows:
        together.setdefault(one.offset, []).append(one.size)
    assert sorted(map(len, together.values())) == [1, 1, 1, 4, 4]
    assert max(sum(sizes) for sizes in together.values()) < GROUP_BYTES + SMALL_BYTES


@pytest.mark.parametrize("size", [101, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_large_bodies_pass_in_pieces(directory, monkeypatch, size):
    """A body over the bound for memory is read and inflated in pieces, alone in its block."""
    monkeypatch.setattr(bundle, "LARGE_BYTES", 100)
    for body in noise(size), b"go" * (size // 2 + 1):
        packer, data = pack([entry(directory, b"small"), entry(directory, body)])
        assert rows_of(data) == packer.rows
        assert {output_id(body_of(data, one)) for one in packer.rows} == {
            output_id(b"small"),
            output_id(body),
        }


@pytest.mark.parametrize("body", [noise(LARGE_BYTES), noise(LARGE_BYTES + 1), b"\0" * 9_000_000])
def test_bodies_at_the_bound_for_memory(directory, body):
    """The largest body that is held in memory, and the smallest that is not."""
    _, data = pack([entry(directory, body)])
    (one,) = rows_of(data)
    assert body_of(data, one) == body
    assert len(body) > LARGE_BYTES or one.length <= tasks._MAX_BLOCK_BYTES


# -- bodies that are not what their names say ------------------------------------------------------

GOOD = [b"good", b"x" * (SMALL_BYTES + 1), b""]
SPOILT = {
    "gone": lambda path, body: path.unlink(),
    "changed": lambda path, body: path.write_bytes(b"!" + body[1:]),
    "short": lambda path, body: path.write_bytes(body[:-1]),
    "long": lambda path, body: path.write_bytes(body + b"x"),
    "empty": lambda path, body: path.write_bytes(b""),
    "a directory": lambda path, body: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("size", [10, SMALL_BYTES + 5, 300_000])
def test_spoilt_body(tmp_path, monkeypatch, spoil, size):
    """A body that is gone or wrong is told of and in no row; what is beside it comes out whole."""
    monkeypatch.setattr(bundle, "LARGE_BYTES", 200_000)
    bodies = [*GOOD[:1], noise(size, 1), *GOOD[1:]]
    entries = [entry(tmp_path, body) for body in bodies]
    entries.append(entries[1]._replace(action=action_id("another of the same body")))
    spoil(tmp_path / entries[1].output, bodies[1])
    packer, data = pack(entries)
    assert list(packer.bad) == [entries[1].output]
    assert rows_of(data) == packer.rows
    assert {body_of(data, one) for one in packer.rows} == set(GOOD)


@pytest.mark.parametrize("large", [5, LARGE_BYTES])
@pytest.mark.parametrize("by", [-1, 1])
def test_body_of_another_size_than_its_entry_says(tmp_path, monkeypatch, large, by):
    """The size in a row is that of the body, or there is no row."""
    monkeypatch.setattr(bundle, "LARGE_BYTES", large)
    wrong = entry(tmp_path, b"a body")
    packer, data = pack([entry(tmp_path, b"good"), wrong._replace(size=wrong.size + by)])
    assert list(packer.bad) == [wrong.output]
    assert [body_of(data, one) for one in rows_of(data)] == [b"good"]


def test_entries_that_differ_about_the_size_of_a_body(tmp_path):
    """A row has the size of the body, whatever one of its entries says beside one that is right."""
    right = entry(tmp_path, b"a body")
    packer, _ = pack([right, right._replace(action=action_id("wrong"), size=7)])
    assert {one.size for one in packer.rows} == {6}


def test_entry_of_an_empty_body_with_a_size(tmp_path):
    """No entry makes an index, or a manifest, that nobody can read."""
    wrong = Entry(action_id("wrong"), EMPTY_OUTPUT, 5, TIME_NS, "/nonexistent")
    packer, data = pack([entry(tmp_path, b"good"), wrong])
    assert rows_of(data) == packer.rows
    assert {one.size for one in packer.rows} <= {0, 4}


@pytest.mark.parametrize("entries", [[], ["gone"], ["gone", "gone too"]])
def test_nothing_good_at_all(entries):
    """A bundle that would be empty is none; the error names what was wrong."""
    packer = BundleEncoder(
        [Entry(action_id(one), output_id(one.encode()), 4, 1, f"/no/{one}") for one in entries],
        NAME,
    )
    with pytest.raises(Damaged, match="gone" if entries else "no entries"):
        list(packer.chunks())
    assert packer.rows == [] and len(packer.bad) == len(entries)


def test_what_a_chunk_raises_comes_out():
    """Who reads the stream of a bundle without entries meets the error in place of an end."""
    stream = ChunkReader(BundleEncoder([], NAME).chunks())
    assert stream.read(HEADER.size) == HEADER.pack(MAGIC, VERSION)
    with pytest.raises(Damaged):
        stream.read(1)


# -- damage ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample(directory):
    """(a small bundle, its rows) with bodies in a group, alone and of no bytes."""
    bodies = [b"package main", noise(40, 1), b"y" * (SMALL_BYTES + 9), b""]
    packer, data = pack([entry(directory, body) for body in bodies])
    return data, packer.rows


def bad_bodies(data, rows) -> set:
    """The outputs of those rows whose bodies are not there as their names say."""
    bad = set()
    for one in rows:
        try:
            whole = output_id(body_of(data, one)) == one.output
        except Damaged:
            whole = False
        if not whole:
            bad.add(one.output)
    return bad


@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF])
def test_any_byte_changed(sample, change):
    """A change in the index is found by it; one in a block harms nothing but that block."""
    data, rows = sample
    end_of_blocks = max(one.offset + one.length for one in rows)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= change
        if HEADER.size <= at < end_of_blocks:
            assert rows_of(changed) == rows
            here = {one.output for one in rows if one.offset <= at < one.offset + one.length}
            assert bad_bodies(bytes(changed), rows) <= here
        else:
            with pytest.raises(Damaged):
                rows_of(bytes(changed))


def test_any_truncation(sample):
    """A bundle that is cut off anywhere has no index, and its last body is not whole."""
    data, rows = sample
    for size in range(len(data)):
        with pytest.raises(Damaged):
            rows_of(data[:size])
        gone = {one.output for one in rows if one.offset + one.length > size}
        assert gone <= bad_bodies(data[:size], rows)


@given(st.binary(max_size=300))
def test_noise_is_no_bundle(data):
    """Arbitrary bytes are Damaged, with or without a good header."""
    for bytes_ in data, HEADER.pack(MAGIC, VERSION) + data:
        with pytest.raises(Damaged):
            rows_of(bytes_)


@pytest.mark.parametrize("version", [0, VERSION + 1, 2**32 - 1])
def test_another_version(sample, version):
    """Another version is not guessed at, whichever end tells of it."""
    data, _ = sample
    at_begin = HEADER.pack(MAGIC, version) + data[HEADER.size :]
    trailer = TRAILER.unpack(data[-TRAILER.size :])
    at_end = data[: -TRAILER.size] + TRAILER.pack(*trailer[:3], version, MAGIC)
    for changed in at_begin, at_end:
        with pytest.raises(Damaged):
            rows_of(changed)


def bundle_of(index_bytes) -> bytes:
    """A bundle without bodies, with an index of these bytes and the right checksum over it."""
    xxh3 = xxhash.xxh3_64_intdigest(index_bytes)
    trailer = TRAILER.pack(HEADER.size, len(index_bytes), xxh3, VERSION, MAGIC)
    return HEADER.pack(MAGIC, VERSION) + index_bytes + trailer


HOSTILE = {
    "no action": lambda data: b"\0" + data[1:],
    "long action": lambda data: b"\x41" + data[1:],
    "bundle out of range": lambda data: data[:117] + struct.pack("<I", 1) + data[121:],
    "end beyond 63 bits": lambda data: data[:121] + struct.pack("<QQ", 2**63 - 1, 1) + data[137:],
    "offset and length overflow": lambda data: data[:121] + b"\xff" * 16 + data[137:],
    "no length": lambda data: data[:129] + bytes(8) + data[137:],
    "no size": lambda data: data[:97] + bytes(8) + data[105:],
    "neither": lambda data: data[:97] + bytes(8) + data[105:129] + bytes(8) + data[137:],
    "cut off": lambda data: data[:-1],
    "one byte more": lambda data: data + b"\0",
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_row(change):
    """A row that cannot be makes the index Damaged, in whatever place it stands."""
    good = encode_rows([row("a")], {"bundle-a": 0})
    compress = zstandard.ZstdCompressor().compress
    assert len(rows_of(bundle_of(compress(good + good)))) == 2
    for data in change(good), good + change(good):
        with pytest.raises(Damaged):
            rows_of(bundle_of(compress(data)))


@pytest.mark.parametrize(
    "bad",
    [
        empty_row("a", size=5),
        empty_row("a", length=5),
        empty_row("a", output="ab" * 32),
        row("a", output=EMPTY_OUTPUT),
    ],
)
def test_row_of_a_wrong_empty_body(bad):
    """Nothing but the empty body has no size and no place, and it has neither."""
    with pytest.raises(Damaged):
        decode_rows(encode_rows([bad], {"bundle-a": 0}), ["bundle-a"])


@given(st.binary(max_size=3 * ROW_BYTES))
def test_noise_as_rows(data):
    """Arbitrary bytes in place of an index, and inside of one, are rows or Damaged."""
    for frame in data, zstandard.ZstdCompressor().compress(data):
        try:
            rows = rows_of(bundle_of(frame))
        except Damaged:
            continue
        assert len(rows) == len(data) // ROW_BYTES


def test_another_path_of_a_body(tmp_path):
    """Where one entry's body is gone, that of another entry with the same output serves both."""
    good = entry(tmp_path, b"a body")
    lost = good._replace(action=action_id("lost"), path="/nonexistent")
    packer, _ = pack([lost, good])
    assert {one.action for one in packer.rows} == {good.action, lost.action} and not packer.bad


def test_a_disk_that_gives_nothing_now_is_no_bad_body(tmp_path, monkeypatch):
    """The same body may be read later: the error comes out, and nothing is dropped."""

    def refuse(*_, **__):
        raise OSError(errno.EMFILE, "too many open files")

    one = entry(tmp_path, b"a body")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OSError, match="too many"):
        list(BundleEncoder([one], NAME).chunks())
