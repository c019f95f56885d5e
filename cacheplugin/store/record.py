"""The action record: one line of text that maps an action to its output.

``v1 <output id, hex> <size> <time> <xxh3-64 of the body, hex> <crc32, hex>`` and a newline. The
time is that of the put, in UTC, in the protocol's own format, so that a hit copies it unchanged.
The CRC covers the action id and then the line up to the CRC. It detects a truncated or damaged
record, and also an intact record stored under the name of another action.
"""

from binascii import a2b_hex, crc32

TYPE_CHECKING = False
if TYPE_CHECKING:
    # output id, size in bytes, time as timestamp writes it, xxh3 as 16 hex digits. A plain tuple,
    # because a named one would make each hit slower.
    Fields = tuple[str, int, str, str]

MAX_BYTES = 512
MAX_TIME_NS = 253402300799_999999999  # the end of year 9999, the latest time RFC 3339 can express

_TIME_FORM = b"0000-00-00T00:00:00.000000000Z"
_DIGIT_AS_0 = bytes(48 if byte in b"0123456789" else byte for byte in range(256))
_DAYS_OF_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

_minutes: "set[str]" = set()  # "YYYY-MM-DDTHH:MM:" of times that exist; a cache for decode
_days: "dict[int, str]" = {}  # days since the epoch to "YYYY-MM-DD"; a cache for timestamp


def encode(action: str, output: str, size: int, time_ns: int, xxh3: int) -> bytes:
    """Return the record's bytes; ids are hex, ``xxh3`` is the 64-bit digest as an integer."""
    line = f"v1 {output} {size} {timestamp(time_ns)} {xxh3:016x} ".encode()
    return b"%b%08x\n" % (line, crc32(line, crc32(action.encode())))


def decode(action: str, data: bytes) -> "Fields | None":
    """Return (output, size, time, xxh3 in hex) of a record's bytes, or None if it is not valid.

    In a shared directory another user may have written a record with a correct CRC. So the output
    must be an id, because it becomes a path, and the time must exist, because it is answered as it
    is. (Upper-case hex is harmless: the store has no file of such a name.)
    """
    line = data[:-9]
    try:
        if int(data[-9:], 16) != crc32(line, crc32(action.encode())):
            return None
        version, output, size, time, xxh3, _ = line.decode().split(" ")
        a2b_hex(output)
        number = int(size)
    except ValueError:
        return None
    if (
        version == "v1"
        and 0 <= number < 1 << 63
        and len(output) == 64
        and len(time) == 30
        and len(xxh3) == 16
        and line[-48:-18].translate(_DIGIT_AS_0) == _TIME_FORM  # the bytes of the time
        and (time[:17] in _minutes or _exists(time))
        and time[17] < "6"
    ):
        return output, number, time, xxh3
    return None


def _exists(time: str) -> bool:
    """Return whether date, hour and minute of a time exist; its form has been checked."""
    year, month, day = int(time[:4]), int(time[5:7]), int(time[8:10])
    if not 1 <= month <= 12 or not 1 <= day <= _DAYS_OF_MONTH[month - 1]:
        return False
    if month == 2 and day == 29 and (year % 4 or (year % 100 == 0 and year % 400)):
        return False
    if time[11:13] > "23" or time[14:16] > "59":
        return False
    if len(_minutes) > 1000:
        _minutes.clear()
    _minutes.add(time[:17])
    return True


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
