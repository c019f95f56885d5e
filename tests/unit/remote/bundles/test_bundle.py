"""remote/bundles/bundle.py and rows.py: round trips, wrong local bodies, damaged bundles."""

import errno
import io
import os
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


def encode(entries):
    """(the BundleEncoder, its bundle)."""
    encoder = BundleEncoder(entries, NAME)
    return encoder, b"".join(encoder.chunks())


def rows_of(data) -> list:
    return read_index(lambda start, length: data[start : start + length], len(data), NAME)


def body_of(data, row) -> bytes:
    """The body at a row's place, read alone; raises Damaged."""
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
    unique_by=lambda put: put[0],
)


@given(PUTS, st.lists(st.integers(1, 100_000), max_size=20))
def test_round_trip(directory, puts, amounts):
    """The index has every entry, and each body is read alone, whatever amounts are read."""
    entries = [entry(directory, body, action, time_ns) for action, body, time_ns in puts]
    encoder = BundleEncoder(entries, NAME)
    reader = ChunkReader(encoder.chunks())
    parts = [reader.read(amount) for amount in amounts]
    data = b"".join([*parts, reader.read()])
    assert reader.read(1) == b"" and reader.size == len(data)
    assert data == encode(entries)[1]
    expected = io.BytesIO(data)
    assert parts == [expected.read(amount) for amount in amounts]
    rows = rows_of(data)
    assert rows == encoder.rows and not encoder.bad
    assert {(one.action, one.output, one.size, one.time_ns) for one in rows} == {
        (action, output_id(body), len(body), time_ns) for action, body, time_ns in puts
    }
    assert len(rows) == len(puts)
    for one in rows:
        body = body_of(data, one)
        assert output_id(body) == one.output
        assert (one.bundle, one.used_s) == (NAME, 0)
        assert one.xxh3 == xxhash.xxh3_64_intdigest(body)


def test_equal_bodies_are_stored_once(directory):
    """Entries that share a body share its place."""
    body = noise(100_000)
    once = encode([entry(directory, body)])[1]
    encoder, data = encode([entry(directory, body, action_id(str(at))) for at in range(9)])
    assert len({one[5:] for one in encoder.rows}) == 1
    assert len(encoder.rows) == 9
    assert len(data) < len(once) + 9 * ROW_BYTES


def test_small_bodies_share_blocks(directory):
    """Small bodies share blocks up to GROUP_BYTES; a larger body has its own block."""
    small = [entry(directory, noise(SMALL_BYTES, seed)) for seed in range(9)]
    larger = [entry(directory, noise(SMALL_BYTES + 1, seed)) for seed in range(2)]
    encoder, _ = encode(small + larger)
    together = {}
    for one in encoder.rows:
        together.setdefault(one.offset, []).append(one.size)
    assert sorted(map(len, together.values())) == [1, 1, 1, 4, 4]
    assert max(sum(sizes) for sizes in together.values()) < GROUP_BYTES + SMALL_BYTES


@pytest.mark.parametrize("size", [101, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_large_bodies_are_encoded_in_pieces(directory, monkeypatch, size):
    """A body above LARGE_BYTES is read and decompressed in pieces and has its own block."""
    monkeypatch.setattr(bundle, "LARGE_BYTES", 100)
    for body in noise(size), b"go" * (size // 2 + 1):
        encoder, data = encode([entry(directory, b"small"), entry(directory, body)])
        assert rows_of(data) == encoder.rows
        assert {output_id(body_of(data, one)) for one in encoder.rows} == {
            output_id(b"small"),
            output_id(body),
        }


@pytest.mark.parametrize("body", [noise(LARGE_BYTES), noise(LARGE_BYTES + 1), b"\0" * 9_000_000])
def test_bodies_of_about_large_bytes(directory, body):
    """The largest body that is held in memory, and the smallest that is not."""
    _, data = encode([entry(directory, body)])
    (one,) = rows_of(data)
    assert body_of(data, one) == body
    assert len(body) > LARGE_BYTES or one.length <= tasks._MAX_BLOCK_BYTES


# -- wrong or missing local bodies -----------------------------------------------------------------

GOOD = [b"good", b"x" * (SMALL_BYTES + 1), b""]
DAMAGE = {
    "missing": lambda path, body: path.unlink(),
    "changed": lambda path, body: path.write_bytes(b"!" + body[1:]),
    "short": lambda path, body: path.write_bytes(body[:-1]),
    "long": lambda path, body: path.write_bytes(body + b"x"),
    "empty": lambda path, body: path.write_bytes(b""),
    "a directory": lambda path, body: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("size", [10, SMALL_BYTES + 5, 300_000])
def test_wrong_local_body(tmp_path, monkeypatch, damage, size):
    """A missing or wrong body is in ``bad`` and in no row; the other bodies are not affected."""
    monkeypatch.setattr(bundle, "LARGE_BYTES", 200_000)
    bodies = [*GOOD[:1], noise(size, 1), *GOOD[1:]]
    entries = [entry(tmp_path, body) for body in bodies]
    entries.append(entries[1]._replace(action=action_id("another of the same body")))
    damage(tmp_path / entries[1].output, bodies[1])
    encoder, data = encode(entries)
    assert list(encoder.bad) == [entries[1].output]
    assert rows_of(data) == encoder.rows
    assert {body_of(data, one) for one in encoder.rows} == set(GOOD)


@pytest.mark.parametrize("large", [5, LARGE_BYTES])
@pytest.mark.parametrize("by", [-1, 1])
def test_entry_with_a_wrong_size(tmp_path, monkeypatch, large, by):
    """An entry whose body has another size is in no row."""
    monkeypatch.setattr(bundle, "LARGE_BYTES", large)
    wrong = entry(tmp_path, b"a body")
    encoder, data = encode([entry(tmp_path, b"good"), wrong._replace(size=wrong.size + by)])
    assert list(encoder.bad) == [wrong.output]
    assert [body_of(data, one) for one in rows_of(data)] == [b"good"]


def test_entries_of_one_body_with_different_sizes(tmp_path):
    """Rows have the size of the body, even if one of its entries has a wrong size."""
    right = entry(tmp_path, b"a body")
    encoder, _ = encode([right, right._replace(action=action_id("wrong"), size=7)])
    assert {one.size for one in encoder.rows} == {6}


def test_entry_of_an_empty_body_with_a_size(tmp_path):
    """A wrong entry cannot make an index that readers refuse."""
    wrong = Entry(action_id("wrong"), EMPTY_OUTPUT, 5, TIME_NS, "/nonexistent")
    encoder, data = encode([entry(tmp_path, b"good"), wrong])
    assert rows_of(data) == encoder.rows
    assert {one.size for one in encoder.rows} <= {0, 4}


@pytest.mark.parametrize("entries", [[], ["one"], ["one", "two"]])
def test_bundle_without_good_entries(entries):
    """A bundle without entries raises Damaged, with the reasons."""
    encoder = BundleEncoder(
        [Entry(action_id(one), output_id(one.encode()), 4, 1, f"/no/{one}") for one in entries],
        NAME,
    )
    with pytest.raises(Damaged, match="one is missing" if entries else "no entries"):
        list(encoder.chunks())
    assert encoder.rows == [] and len(encoder.bad) == len(entries)


def test_reader_raises_errors_of_chunks():
    """An error of the chunks is raised by ``read`` in place of an end."""
    reader = ChunkReader(BundleEncoder([], NAME).chunks())
    assert reader.read(HEADER.size) == HEADER.pack(MAGIC, VERSION)
    with pytest.raises(Damaged):
        reader.read(1)


# -- damage ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample(directory):
    """(a small bundle, its rows) with bodies in a shared block, in an own block and of no bytes."""
    bodies = [b"package main", noise(40, 1), b"y" * (SMALL_BYTES + 9), b""]
    encoder, data = encode([entry(directory, body) for body in bodies])
    return data, encoder.rows


def bad_bodies(data, rows) -> set:
    """The outputs of those rows whose bodies cannot be read or have a wrong SHA-256."""
    bad = set()
    for one in rows:
        try:
            is_right = output_id(body_of(data, one)) == one.output
        except Damaged:
            is_right = False
        if not is_right:
            bad.add(one.output)
    return bad


@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF])
def test_any_byte_changed(sample, change):
    """A change in the index is detected; one in a block damages the bodies of that block alone."""
    data, rows = sample
    end_of_blocks = max(one.offset + one.length for one in rows)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= change
        if HEADER.size <= at < end_of_blocks:
            assert rows_of(changed) == rows
            in_block = {one.output for one in rows if one.offset <= at < one.offset + one.length}
            assert bad_bodies(bytes(changed), rows) <= in_block
        else:
            with pytest.raises(Damaged):
                rows_of(bytes(changed))


def test_any_truncation(sample):
    """A truncated bundle has no index, and the bodies after its end cannot be read."""
    data, rows = sample
    for size in range(len(data)):
        with pytest.raises(Damaged):
            rows_of(data[:size])
        cut_off = {one.output for one in rows if one.offset + one.length > size}
        assert cut_off <= bad_bodies(data[:size], rows)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_bundle(data):
    """Arbitrary bytes are Damaged, with or without a right header."""
    for bytes_ in data, HEADER.pack(MAGIC, VERSION) + data:
        with pytest.raises(Damaged):
            rows_of(bytes_)


@pytest.mark.parametrize("version", [0, VERSION + 1, 2**32 - 1])
def test_unknown_version(sample, version):
    """A bundle whose header or trailer has an unknown version is Damaged."""
    data, _ = sample
    at_begin = HEADER.pack(MAGIC, version) + data[HEADER.size :]
    trailer = TRAILER.unpack(data[-TRAILER.size :])
    at_end = data[: -TRAILER.size] + TRAILER.pack(*trailer[:3], version, MAGIC)
    for changed in at_begin, at_end:
        with pytest.raises(Damaged):
            rows_of(changed)


def bundle_of(index_bytes) -> bytes:
    """A bundle without bodies, with these bytes as its index and their checksum."""
    xxh3 = xxhash.xxh3_64_intdigest(index_bytes)
    trailer = TRAILER.pack(HEADER.size, len(index_bytes), xxh3, VERSION, MAGIC)
    return HEADER.pack(MAGIC, VERSION) + index_bytes + trailer


INVALID_ROWS = {
    "action of 0 bytes": lambda data: b"\0" + data[1:],
    "action of 65 bytes": lambda data: b"\x41" + data[1:],
    "unknown bundle": lambda data: data[:117] + struct.pack("<I", 1) + data[121:],
    "end beyond 63 bits": lambda data: data[:121] + struct.pack("<QQ", 2**63 - 1, 1) + data[137:],
    "offset and length overflow": lambda data: data[:121] + b"\xff" * 16 + data[137:],
    "length 0": lambda data: data[:129] + bytes(8) + data[137:],
    "size 0": lambda data: data[:97] + bytes(8) + data[105:],
    "size and length 0": lambda data: data[:97] + bytes(8) + data[105:129] + bytes(8) + data[137:],
    "cut off": lambda data: data[:-1],
    "extra byte": lambda data: data + b"\0",
}


@pytest.mark.parametrize("change", INVALID_ROWS.values(), ids=INVALID_ROWS)
def test_invalid_row(change):
    """An index with an invalid row is Damaged."""
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
    """The empty body, and no other, has size 0 and length 0."""
    with pytest.raises(Damaged):
        decode_rows(encode_rows([bad], {"bundle-a": 0}), ["bundle-a"])


@given(st.binary(max_size=3 * ROW_BYTES))
def test_arbitrary_bytes_as_rows(data):
    """Arbitrary bytes as an index, compressed or not, are rows or Damaged."""
    for frame in data, zstandard.ZstdCompressor().compress(data):
        try:
            rows = rows_of(bundle_of(frame))
        except Damaged:
            continue
        assert len(rows) == len(data) // ROW_BYTES


def test_body_with_a_missing_path(tmp_path):
    """If one entry's body is missing, the path of another entry of the same output is used."""
    good = entry(tmp_path, b"a body")
    missing = good._replace(action=action_id("missing"), path="/nonexistent")
    encoder, _ = encode([missing, good])
    assert {one.action for one in encoder.rows} == {good.action, missing.action} and not encoder.bad


@pytest.fixture
def failing(monkeypatch):
    """Makes reads of a path fail: failing(path, error number, after so many bytes)."""
    real, faults = bundle.open_body, {}

    class Failing:
        def __init__(self, path) -> None:
            self._file = real(path)
            self._number, self._left = faults[path]

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def read(self, amount):
            data = self._file.read(min(amount, self._left))
            self._left -= len(data)
            if not self._left:
                raise OSError(self._number, "told to")
            return data

    def set_fault(path, number, after=0):
        faults[path] = (number, after)

    monkeypatch.setattr(
        bundle, "open_body", lambda path: Failing(path) if path in faults else real(path)
    )
    return set_fault


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("size", [5, SMALL_BYTES + 1, 3 * LARGE_BYTES], ids=["s", "m", "l"])
def test_unreadable_body(tmp_path, failing, number, size):
    """A body that cannot be read is named with its path; the others of the bundle are intact."""
    first, last = entry(tmp_path, noise(9, 1)), entry(tmp_path, noise(9, 2))
    sick = entry(tmp_path, noise(size))
    failing(sick.path, number, size // 2)
    encoder, data = encode([first, sick, last])
    assert encoder.rows == rows_of(data) and not encoder.bad
    assert [body_of(data, one) for one in encoder.rows] == [noise(9, 1), noise(9, 2)]
    assert encoder.unreadable == {sick.output: f"{sick.path} cannot be read: told to"}


@pytest.mark.parametrize("size", [5, 2 * LARGE_BYTES], ids=["small", "large"])
def test_unreadable_body_with_another_path(tmp_path, failing, size):
    """The path of another entry of the same output is used."""
    good = entry(tmp_path, noise(size))
    sick = good._replace(action=action_id("sick"), path=str(tmp_path / "copy"))
    (tmp_path / "copy").write_bytes(noise(size))
    failing(sick.path, errno.EIO, size // 2)
    encoder, data = encode([sick, good])
    assert {one.action for one in encoder.rows} == {good.action, sick.action}
    assert body_of(data, encoder.rows[0]) == noise(size)
    assert not encoder.unreadable and not encoder.bad


def test_pipe_in_place_of_a_body(tmp_path):
    """A pipe does not hold up the bundle."""
    good, wrong = entry(tmp_path, b"good"), entry(tmp_path, b"wrong")
    os.unlink(wrong.path)
    os.mkfifo(wrong.path)
    encoder, _ = encode([wrong, good])
    assert [one.output for one in encoder.rows] == [good.output] and list(encoder.bad)


def test_failing_open_is_not_a_bad_body(tmp_path, monkeypatch):
    """An OSError of the process is raised, because the body may be readable later."""

    def refuse(*_, **__):
        raise OSError(errno.EMFILE, "too many open files")

    one = entry(tmp_path, b"a body")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OSError, match="too many"):
        list(BundleEncoder([one], NAME).chunks())
