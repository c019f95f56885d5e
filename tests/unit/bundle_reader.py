"""Reads the index of a bundle, as docs/bundles.rst describes it. The program itself does not."""

import xxhash

from cacheplugin.errors import Damaged
from cacheplugin.remote.bundles.bundle import HEADER, MAGIC, TRAILER, VERSION, decompress
from cacheplugin.remote.bundles.rows import MAX_ROWS, ROW_BYTES, decode_rows


def read_index(read_range, size: int, name: str) -> list:
    """The rows of the bundle ``name`` of ``size`` bytes from its own index; raises Damaged.

    ``read_range(start, length)`` returns bytes of the bundle.
    """
    if size < HEADER.size + TRAILER.size:
        raise Damaged(f"a bundle has only {size} bytes")
    check_header(read_range(0, HEADER.size))
    trailer = read_range(size - TRAILER.size, TRAILER.size)
    offset, length, xxh3, version, magic = TRAILER.unpack(trailer)
    if (
        magic != MAGIC
        or version != VERSION
        or offset + length + TRAILER.size != size
        or length > MAX_ROWS * ROW_BYTES
    ):
        raise Damaged("a bundle has an invalid trailer or an unknown version")
    index = read_range(offset, length)
    if xxhash.xxh3_64_intdigest(index) != xxh3:
        raise Damaged("the index of a bundle has a wrong checksum")
    return decode_rows(decompress(index, MAX_ROWS * ROW_BYTES), [name])


def check_header(data: bytes) -> None:
    """Raise Damaged unless ``data`` is the header of a bundle of this version."""
    if data != HEADER.pack(MAGIC, VERSION):
        raise Damaged("a bundle has an invalid header or an unknown version")
