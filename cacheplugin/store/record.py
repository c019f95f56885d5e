"""The action record: one line of text that says which output an action has.

``v1 <output id, hex> <size> <time> <xxh3-64 of the body, hex> <crc32, hex>`` and a newline. The time
is that of the put, in UTC, as the protocol spells it, so that a hit copies it. The CRC runs over
the action's id and then the line up to the CRC, so that a torn or garbled record, and a whole one
under another action's name, are both told from a good one.
"""

from binascii import crc32

MAX_BYTES = 512
MAX_TIME_NS = 253402300799_999999999  # the last instant of year 9999, the last RFC 3339 can say

_days = {}  # day since the epoch: its date, for timestamp


def encode(action: str, output: str, size: int, time_ns: int, xxh3: int) -> bytes:
    """The record's bytes; ids are hex, ``xxh3`` is the 64-bit digest as an integer."""
    line = f"v1 {output} {size} {timestamp(time_ns)} {xxh3:016x} ".encode()
    return b"%b%08x\n" % (line, crc32(line, crc32(action.encode())))


def decode(action: str, data: bytes):
    """(output, size, time as ``timestamp`` gives it, xxh3 as 16 hex digits); None for no good record."""
    line = data[:-9]
    try:
        if int(data[-9:], 16) != crc32(line, crc32(action.encode())):
            return None
        version, output, size, time, xxh3, _ = line.decode().split(" ")
        return (output, int(size), time, xxh3) if version == "v1" else None
    except ValueError:
        return None


def timestamp(time_ns: int) -> str:
    """RFC 3339, UTC, nine digits of fraction, of nanoseconds since the epoch up to MAX_TIME_NS."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    day, second = divmod(seconds, 86400)
    date = _days.get(day)
    if date is None:
        from time import gmtime

        if len(_days) > 1000:
            _days.clear()
        date = _days[day] = "%04d-%02d-%02d" % gmtime(seconds)[:3]
    minute, second = divmod(second, 60)
    return f"{date}T{minute // 60:02}:{minute % 60:02}:{second:02}.{nanoseconds:09}Z"
