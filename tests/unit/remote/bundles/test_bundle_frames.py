"""remote/bundles/bundle.py: zstd frames that lie, break or decompress to too much."""

import io
import random
import struct
import tracemalloc

import pytest
import zstandard

from cacheplugin.errors import Damaged
from cacheplugin.remote.bundles.bundle import decompress, decompress_pieces


def claiming(size, content=b"\x01\x00\x00") -> bytes:
    """A zstd frame that says it has ``size`` bytes; by default it has none."""
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size) + content


def zeros(size, content_size=True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=content_size).compress(bytes(size))


FRAMES = {
    "nothing": b"",
    "claims much": claiming(1 << 40),
    "claims all": claiming(2**64 - 3),
    "claims more than it has": claiming(100),
    "is over the limit": zeros(64 << 20),
    "does not say its size": zeros(64 << 20, content_size=False),
    "has more than it claims": claiming(100, zeros(64 << 20)[9:]),
    "two frames": zeros(10) * 2,
    "followed by bytes": zeros(10) + b"x",
    "skippable": b"\x50\x2a\x4d\x18\x04\x00\x00\x00xxxx",
    "cut off": zeros(100)[:-1],
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_frame_that_is_not_to_be_inflated(frame):
    """A frame that lies, is over the limit or is none is Damaged, and takes little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(Damaged):
            decompress(frame, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_pieces_of_what_is_no_frame():
    """Pieces of a wrong block are Damaged, or end early; what follows the block is not touched."""
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


def test_pieces_are_small():
    """What inflates to much comes in pieces, whoever reads no more needs no more memory."""
    length = len(bomb := zstandard.ZstdCompressor().compress(bytes(256 << 20)))
    source = io.BytesIO(bomb)
    tracemalloc.start()
    try:
        pieces = decompress_pieces(source.read, length)
        assert next(pieces) == next(pieces) == bytes(1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_pieces_that_nobody_takes():
    """A block is read to its end, and no further, however few of its pieces are taken."""
    block = zstandard.ZstdCompressor().compress(random.Random(0).randbytes(5 << 20))
    for taken in 1, 2, 5:
        source = io.BytesIO(block + b"what follows")
        pieces = decompress_pieces(source.read, len(block))
        assert len(b"".join(next(pieces) for _ in range(taken))) == taken << 20
        pieces.close()
        assert source.read() == b"what follows"
