"""The action record: one line of text that says which output an action has.

``v1 <output id, hex> <size> <unix nanoseconds> <xxh3-64 of the body, hex> <crc32, hex>`` and a
newline. The CRC runs over the action's id and then the line up to the CRC, so that a torn or
garbled record, and a whole one under another action's name, are both told from a good one.
"""
from binascii import crc32

MAX_BYTES = 512
MAX_TIME_NS = 253402300799_999999999  # the last instant of year 9999, the last RFC 3339 can say


def encode(action: str, output: str, size: int, time_ns: int, xxh3: int) -> bytes:
    """The record's bytes; ids are hex, ``xxh3`` is the 64-bit digest as an integer."""
    line = b"v1 %b %d %d %016x " % (output.encode(), size, time_ns, xxh3)
    return b"%b%08x\n" % (line, crc32(line, crc32(action.encode())))


def decode(action: str, data: bytes):
    """(output, size, time_ns, xxh3 as 16 hex digits), or None where ``data`` is no good record."""
    line, crc = data[:-9], data[-9:]
    if crc != b"%08x\n" % crc32(line, crc32(action.encode())):
        return None
    try:
        version, output, size, time_ns, xxh3, _ = line.decode().split(" ")
        if version != "v1":
            return None
        return output, int(size), int(time_ns), xxh3
    except ValueError:
        return None
