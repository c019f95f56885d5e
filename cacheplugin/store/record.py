"""The action record: one line of text that maps an action to its output.

``v1 <output id, hex> <size> <time> <xxh3-64 of the body, hex> <crc32, hex>`` and a newline. The
time is that of the put, in UTC, in the protocol's own format, so that a hit copies it unchanged.
The CRC covers the action id and then the line up to the CRC. It detects a truncated or damaged
record, and also an intact record stored under the name of another action.
"""

from binascii import crc32

TYPE_CHECKING = False
if TYPE_CHECKING:
    # output id, size in bytes, time as timestamp writes it, xxh3 as 16 hex digits. A plain tuple,
    # because a named one would make each hit slower.
    Fields = tuple[str, int, str, str]

MAX_BYTES = 512
MAX_TIME_NS = 253402300799_999999999  # the end of year 9999, the latest time RFC 3339 can express

_days: "dict[int, str]" = {}  # days since the epoch to "YYYY-MM-DD"; a cache for timestamp


def encode(action: str, output: str, size: int, time_ns: int, xxh3: int) -> bytes:
    """Return the record's bytes; ids are hex, ``xxh3`` is the 64-bit digest as an integer."""
    line = f"v1 {output} {size} {timestamp(time_ns)} {xxh3:016x} ".encode()
    return b"%b%08x\n" % (line, crc32(line, crc32(action.encode())))


def decode(action: str, data: bytes) -> "Fields | None":
    """Return (output, size, time, xxh3 in hex) of a record's bytes, or None if it is not valid."""
    line = data[:-9]
    try:
        if int(data[-9:], 16) != crc32(line, crc32(action.encode())):
            return None
        version, output, size, time, xxh3, _ = line.decode().split(" ")
        return (output, int(size), time, xxh3) if version == "v1" else None
    except ValueError:
        return None


def timestamp(time_ns: int) -> str:
    """Format nanoseconds since the epoch (at most MAX_TIME_NS) as RFC 3339, UTC, nine decimals."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    day, second = divmod(seconds, 86400)
    date = _days.get(day)
    if date is None:
        from time import gmtime

        if len(_days) > 1000:
            _days.clear()
        year, month, day_of_month, *_ = gmtime(seconds)
        date = _days[day] = f"{year:04}-{month:02}-{day_of_month:02}"
    minute, second = divmod(second, 60)
    return f"{date}T{minute // 60:02}:{minute % 60:02}:{second:02}.{nanoseconds:09}Z"
