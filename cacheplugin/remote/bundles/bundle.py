"""A bundle: the bodies of many entries, compressed, in one object, with an index behind them.

::

    "GCPB" <version, u32>
    block, block, ...                 zstd frames
    index                             a zstd frame of rows (index.py)
    <offset of the index, u64> <its length, u64> <xxh3-64 of it, u64> <version, u32> "GCPB"

A block holds one body, or small ones behind each other, so that each can be read alone by range.
Integers are little-endian. docs/bundles.rst has it byte by byte. No I/O on the network here.
"""

import hashlib
import struct

import xxhash
import zstandard

from ...errors import Damaged
from ...store.tree import EMPTY_OUTPUT
from .index import Row, encode_rows

MAGIC = b"GCPB"
VERSION = 1
HEADER = struct.Struct("<4sI")
TRAILER = struct.Struct("<QQQI4s")

LEVEL = 1  # 3 makes std 5 % smaller and takes half as long again, beside a build that has no core to spare
SMALL_BYTES = 32 << 10  # bodies up to this share a block
GROUP_BYTES = 128 << 10  # with others until that has this size
LARGE_BYTES = 8 << 20  # bodies over this pass through in pieces
_PIECE_BYTES = 1 << 20
_GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_WINDOW_BYTES = 8 << 20  # more than LEVEL needs


class Packer:
    """Makes one bundle of ``entries``, which have action, output, size, time_ns and path.

    ``chunks`` yields its bytes; after that ``rows`` are those of the entries that are in it, and
    ``bad`` the outputs whose bodies are gone or not what their names say, with the reason.
    """

    def __init__(self, entries, name: str) -> None:
        self.rows = []
        self.bad = {}
        self._name = name
        self._entries = {}  # output: its entries
        for entry in entries:
            self._entries.setdefault(entry.output, []).append(entry)
        self._compress = zstandard.ZstdCompressor(level=LEVEL).compress
        self._offset = 0
        self._group, self._group_bytes = [], 0  # (entry, body, xxh3) of the small ones

    def chunks(self):
        """The bytes of the bundle in pieces; raises Damaged, at the end, where nothing is in it."""
        yield self._emit(HEADER.pack(MAGIC, VERSION))
        for output, (entry, *_) in self._entries.items():
            if output == EMPTY_OUTPUT:
                self._add(output, 0, 0, 0, 0, xxhash.xxh3_64_intdigest(b""))
            elif entry.size > LARGE_BYTES:
                yield from self._large(entry)
            else:
                yield from self._whole(output)
        yield from self._end_group()
        if not self.rows:
            raise Damaged("; ".join(self.bad.values()) or "no entries")
        index = self._compress(encode_rows(self.rows, {self._name: 0}))
        trailer = TRAILER.pack(
            self._offset, len(index), xxhash.xxh3_64_intdigest(index), VERSION, MAGIC
        )
        yield self._emit(index + trailer)

    def _emit(self, data: bytes) -> bytes:
        self._offset += len(data)
        return data

    def _add(self, output, size, offset, length, inner, xxh3) -> None:
        for entry in self._entries[output]:
            self.rows.append(
                Row(
                    entry.action,
                    output,
                    size,
                    entry.time_ns,
                    0,
                    self._name,
                    offset,
                    length,
                    inner,
                    xxh3,
                )
            )

    def _whole(self, output):
        """A body that fits into memory, read and checked first."""
        body = self._read(output)
        if body is None:
            return
        xxh3 = xxhash.xxh3_64_intdigest(body)
        if len(body) > SMALL_BYTES:
            block = self._compress(body)
            self._add(output, len(body), self._offset, len(block), 0, xxh3)
            yield self._emit(block)
        else:
            self._group.append((output, body, xxh3))
            self._group_bytes += len(body)
            if self._group_bytes >= GROUP_BYTES:
                yield from self._end_group()

    def _read(self, output):
        """The body of an output, from whichever of its paths has it; else None, and it is bad."""
        for entry in self._entries[output]:
            try:
                with open(entry.path, "rb", buffering=0) as file:
                    body = file.read(entry.size + 1)
            except _GONE:
                self.bad[output] = f"{entry.path} is gone"
                continue
            if len(body) == entry.size and hashlib.sha256(body).hexdigest() == output:
                self.bad.pop(output, None)
                return body
            self.bad[output] = f"{entry.path} is not what its name says"
        return None

    def _end_group(self):
        if self._group:
            block = self._compress(b"".join(body for _, body, _ in self._group))
            inner = 0
            for output, body, xxh3 in self._group:
                self._add(output, len(body), self._offset, len(block), inner, xxh3)
                inner += len(body)
            self._group, self._group_bytes = [], 0
            yield self._emit(block)

    def _large(self, entry):
        """A body in pieces; what turns out to be wrong at its end is in no row, and so not there."""
        begin, size = self._offset, 0
        sha256, xxh3 = hashlib.sha256(), xxhash.xxh3_64()
        compressor = zstandard.ZstdCompressor(level=LEVEL).compressobj()
        try:
            with open(entry.path, "rb", buffering=0) as file:
                while size <= entry.size and (data := file.read(_PIECE_BYTES)):
                    size += len(data)
                    sha256.update(data)
                    xxh3.update(data)
                    if block := compressor.compress(data):
                        yield self._emit(block)
        except _GONE:
            self.bad[entry.output] = f"{entry.path} is gone"
            return
        yield self._emit(compressor.flush())
        if size == entry.size and sha256.hexdigest() == entry.output:
            self._add(entry.output, size, begin, self._offset - begin, 0, xxh3.intdigest())
        else:
            self.bad[entry.output] = f"{entry.path} is not what its name says"


class Stream:
    """What s3transfer takes for a file that cannot seek, over the chunks of a generator."""

    def __init__(self, chunks) -> None:
        self.size = 0  # bytes read so far
        self._chunks = chunks
        self._buffer = bytearray()

    def read(self, amount: int = -1) -> bytes:
        """``amount`` bytes, fewer only at the end; all that is left without an amount."""
        while amount < 0 or len(self._buffer) < amount:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._buffer += chunk
        data = bytes(self._buffer if amount < 0 else self._buffer[:amount])
        del self._buffer[: len(data)]
        self.size += len(data)
        return data


def inflate(block: bytes, limit: int) -> bytes:
    """What a block, or an index, holds; raises Damaged where it is none or over ``limit`` bytes."""
    try:
        size = zstandard.get_frame_parameters(block).content_size
        if size > limit:  # that of a frame without a size is
            raise Damaged(f"a block of {size} bytes")
        return zstandard.ZstdDecompressor().decompress(
            block, max_output_size=limit, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise Damaged(f"a block that is none: {error}") from error


class _Part:
    """The next ``left`` bytes of what ``read(n)`` gives, as a file."""

    def __init__(self, read, left: int) -> None:
        self._read = read
        self.left = left

    def read(self, amount: int) -> bytes:
        data = self._read(min(amount, self.left)) if self.left else b""
        self.left -= len(data)
        return data


def inflate_pieces(read, length: int):
    """The pieces of a large body, whose block are the next ``length`` bytes of ``read(n)``.

    All of these are read. Raises Damaged where they are no block; one that is cut off just ends.
    """
    part = _Part(read, length)
    inflater = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
    try:
        with inflater.stream_reader(part, closefd=False) as reader:
            while data := reader.read(_PIECE_BYTES):
                yield data
    except zstandard.ZstdError as error:
        raise Damaged(f"a block that is none: {error}") from error
    finally:
        while part.read(_PIECE_BYTES):
            pass
