"""remote/bundles/bundle.py: invalid zstd frames, and frames that decompress to too much."""

import io
import random
import struct
import tracemalloc

import pytest
import zstandard

from cacheplugin.errors import Damaged
from cacheplugin.remote.bundles.bundle import decompress, decompress_pieces


def claiming(size, content=b"\x01\x00\x00") -> bytes:
    """A zstd frame whose header says ``size`` bytes; by default it has no content."""
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size) + content


def zeros(size, content_size=True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=content_size).compress(bytes(size))


FRAMES = {
    "empty": b"",
    "claims 1 TiB": claiming(1 << 40),
    "claims the largest size": claiming(2**64 - 3),
    "claims more than it has": claiming(100),
    "over the limit": zeros(64 << 20),
    "without a size": zeros(64 << 20, content_size=False),
    "has more than it claims": claiming(100, zeros(64 << 20)[9:]),
    "two frames": zeros(10) * 2,
    "followed by bytes": zeros(10) + b"x",
    "skippable": b"\x50\x2a\x4d\x18\x04\x00\x00\x00xxxx",
    "cut off": zeros(100)[:-1],
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_invalid_frame(frame):
    """An invalid frame, or one over the limit, is Damaged and takes little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(Damaged):
            decompress(frame, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_pieces_of_an_invalid_frame():
    """An invalid block is Damaged or ends early. Bytes after it are not read."""
    good = zeros(3 << 20)
    wide = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27)
    ).compressobj()
    wide = wide.compress(bytes(1 << 20)) + wide.flush()
    for block in b"noise" * 200_000, wide, claiming(1 << 40), b"\0" + good[1:]:
        source = io.BytesIO(block + b"next")
        with pytest.raises(Damaged):
            list(decompress_pieces(source.read, len(block)))
        assert source.read() == b"next"
    source = io.BytesIO(good[:-5])
    assert sum(map(len, decompress_pieces(source.read, len(good)))) < 3 << 20


def test_pieces_take_little_memory():
    """A block that decompresses to much takes no more memory than the pieces that are read."""
    length = len(bomb := zstandard.ZstdCompressor().compress(bytes(256 << 20)))
    source = io.BytesIO(bomb)
    tracemalloc.start()
    try:
        pieces = decompress_pieces(source.read, length)
        assert next(pieces) == next(pieces) == bytes(1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_pieces_closed_early():
    """The whole block is read, and no more, however few pieces the caller takes."""
    block = zstandard.ZstdCompressor().compress(random.Random(0).randbytes(5 << 20))
    for taken in 1, 2, 5:
        source = io.BytesIO(block + b"what follows")
        pieces = decompress_pieces(source.read, len(block))
        assert len(b"".join(next(pieces) for _ in range(taken))) == taken << 20
        pieces.close()
        assert source.read() == b"what follows"
