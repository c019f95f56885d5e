"""A bundle: the compressed bodies of many entries in one object, followed by an index.

::

    "GCPB" <version, u32>
    block, block, ...                 zstd frames
    index                             a zstd frame of rows (rows.py)
    <offset of the index, u64> <its length, u64> <xxh3-64 of it, u64> <version, u32> "GCPB"

A block holds one body, or several small ones one after the other, so that a range request for the
block reads any of them. Integers are little-endian. docs/bundles.rst has the format byte by byte.
This module does no network I/O.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import xxhash
import zstandard

from ...errors import Damaged
from ...store.tree import EMPTY_OUTPUT
from ...tuples import NamedTuple
from ..local_body import open_body, unreadable
from .rows import Place, Row, encode_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from .contracts import Entry

MAGIC = b"GCPB"
VERSION = 1
HEADER = struct.Struct("<4sI")
TRAILER = struct.Struct("<QQQI4s")

# Level 3 makes the standard library 5 % smaller and takes 50 % longer, while a build needs the
# cores.
LEVEL = 1
SMALL_BYTES = 32 << 10  # bodies up to this size share blocks
GROUP_BYTES = 128 << 10  # a shared block is closed once its bodies have this size
LARGE_BYTES = 8 << 20  # larger bodies are compressed and decompressed piece by piece
_PIECE_BYTES = 1 << 20
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_WINDOW_BYTES = 8 << 20  # more than LEVEL needs


class _Body(NamedTuple):
    """A body in memory, with its XXH3-64."""

    output: str
    data: bytes
    xxh3: int


class BundleEncoder:
    """Encodes one bundle, ``name``, of ``entries``.

    ``chunks`` yields the bundle's bytes. After that ``rows`` are those of the entries in it. Two
    dicts map the other outputs to the reasons: ``bad`` those whose local bodies are missing or
    wrong, ``unreadable`` those whose bodies are there and cannot be read.
    """

    def __init__(self, entries: Iterable[Entry], name: str) -> None:
        self.rows: list[Row] = []
        self.bad: dict[str, str] = {}
        self.unreadable: dict[str, str] = {}
        self._name = name
        self._entries: dict[str, list[Entry]] = {}  # by output
        for entry in entries:
            self._entries.setdefault(entry.output, []).append(entry)
        self._compress = zstandard.ZstdCompressor(level=LEVEL).compress
        self._offset = 0
        self._group: list[_Body] = []  # small bodies of the next shared block
        self._group_bytes = 0

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the bundle in pieces; raises Damaged at the end if no entry is in it."""
        yield self._emit(HEADER.pack(MAGIC, VERSION))
        for output, entries in self._entries.items():
            if output == EMPTY_OUTPUT:
                xxh3 = xxhash.xxh3_64_intdigest(b"")
                self._add(output, 0, Place(self._name, 0, 0, 0), xxh3)
            elif entries[0].size > LARGE_BYTES:
                yield from self._large_body(output)
            else:
                yield from self._body(output)
        yield from self._end_group()
        if not self.rows:
            reasons = (*self.bad.values(), *self.unreadable.values())
            raise Damaged("; ".join(reasons) or "no entries")
        index = self._compress(encode_rows(self.rows, {self._name: 0}))
        trailer = TRAILER.pack(
            self._offset, len(index), xxhash.xxh3_64_intdigest(index), VERSION, MAGIC
        )
        yield self._emit(index + trailer)

    def _emit(self, data: bytes) -> bytes:
        self._offset += len(data)
        return data

    def _add(self, output: str, size: int, place: Place, xxh3: int) -> None:
        """Add the rows of all entries of an output."""
        self.bad.pop(output, None)
        self.unreadable.pop(output, None)
        for entry in self._entries[output]:
            self.rows.append(Row(entry.action, output, size, entry.time_ns, 0, *place, xxh3))

    def _body(self, output: str) -> Iterator[bytes]:
        """Encode a body that fits into memory, after it was checked."""
        data = self._read(output)
        if data is None:
            return
        xxh3 = xxhash.xxh3_64_intdigest(data)
        if len(data) > SMALL_BYTES:
            block = self._compress(data)
            self._add(output, len(data), Place(self._name, self._offset, len(block), 0), xxh3)
            yield self._emit(block)
        else:
            self._group.append(_Body(output, data, xxh3))
            self._group_bytes += len(data)
            if self._group_bytes >= GROUP_BYTES:
                yield from self._end_group()

    def _read(self, output: str) -> bytes | None:
        """The body of an output from the first path that has it; None, and a reason, if none."""
        for entry in self._entries[output]:
            try:
                with open_body(entry.path) as file:
                    data = file.read(entry.size + 1)
            except OSError as error:
                self._note_failure(entry, error)
                continue
            if len(data) == entry.size and hashlib.sha256(data).hexdigest() == output:
                return data
            self.bad[output] = _mismatch(entry)
        return None

    def _note_failure(self, entry: Entry, error: OSError) -> None:
        if isinstance(error, _MISSING):
            self.bad[entry.output] = f"{entry.path} is missing"
        else:
            self.unreadable[entry.output] = str(unreadable(entry.path, error))

    def _end_group(self) -> Iterator[bytes]:
        if self._group:
            block = self._compress(b"".join(body.data for body in self._group))
            inner = 0
            for output, data, xxh3 in self._group:
                place = Place(self._name, self._offset, len(block), inner)
                self._add(output, len(data), place, xxh3)
                inner += len(data)
            self._group, self._group_bytes = [], 0
            yield self._emit(block)

    def _large_body(self, output: str) -> Iterator[bytes]:
        """Encode a body piece by piece, from the first path that has it.

        If what was read turns out to be wrong, no row names its block.
        """
        for entry in self._entries[output]:
            begin, size = self._offset, 0
            sha256, xxh3 = hashlib.sha256(), xxhash.xxh3_64()
            compressor = zstandard.ZstdCompressor(level=LEVEL).compressobj()
            try:
                with open_body(entry.path) as file:
                    while size <= entry.size and (data := file.read(_PIECE_BYTES)):
                        size += len(data)
                        sha256.update(data)
                        xxh3.update(data)
                        if block := compressor.compress(data):
                            yield self._emit(block)
            except OSError as error:
                self._note_failure(entry, error)
                continue
            yield self._emit(compressor.flush())
            if size == entry.size and sha256.hexdigest() == output:
                place = Place(self._name, begin, self._offset - begin, 0)
                self._add(output, size, place, xxh3.intdigest())
                return
            self.bad[output] = _mismatch(entry)


def _mismatch(entry: Entry) -> str:
    return f"{entry.path} does not have the size and SHA-256 of output {entry.output}"


class ChunkReader:
    """A body (see body_reader.Body) of the chunks of an iterator, for s3transfer."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.size = 0  # bytes read so far
        self._chunks = chunks
        self._buffer = bytearray()

    def read(self, amount: int = -1) -> bytes:
        """``amount`` bytes, fewer only at the end; a negative amount reads all that is left."""
        while amount < 0 or len(self._buffer) < amount:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._buffer += chunk
        data = bytes(self._buffer if amount < 0 else self._buffer[:amount])
        del self._buffer[: len(data)]
        self.size += len(data)
        return data


def decompress(block: bytes, limit: int) -> bytes:
    """The content of a block or index; raises Damaged if it is none or has over ``limit`` bytes."""
    try:
        size = zstandard.get_frame_parameters(block).content_size
        if size > limit:  # zstandard gives a huge size for a frame that does not say its size
            raise Damaged(f"a block has {size} bytes decompressed, more than the {limit} allowed")
        return zstandard.ZstdDecompressor().decompress(
            block, max_output_size=limit, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise Damaged(f"a block cannot be decompressed: {error}") from error


class _Part:
    """A file of the next ``left`` bytes that ``read(n)`` gives."""

    def __init__(self, read: Callable[[int], bytes], left: int) -> None:
        self._read = read
        self.left = left

    def read(self, amount: int) -> bytes:
        data = self._read(min(amount, self.left)) if self.left else b""
        self.left -= len(data)
        return data


def decompress_pieces(read: Callable[[int], bytes], length: int) -> Generator[bytes, None, None]:
    """The content, in pieces, of the block in the next ``length`` bytes that ``read(n)`` gives.

    All of these bytes are read, also if the caller closes the generator early. Raises Damaged if
    they are no block. Ends early, without an error, if the block is cut off.
    """
    part = _Part(read, length)
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
    try:
        with decompressor.stream_reader(
            part,  # type: ignore[arg-type] # of a file, only read() is used
            closefd=False,
        ) as reader:
            while data := reader.read(_PIECE_BYTES):
                yield data
    except zstandard.ZstdError as error:
        raise Damaged(f"a block cannot be decompressed: {error}") from error
    finally:
        while part.read(_PIECE_BYTES):
            pass
