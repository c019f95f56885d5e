"""store/record.py: a record is read back as written; anything else is not valid."""

from datetime import datetime, timedelta

from hypothesis import example, given
from hypothesis import strategies as st

from cacheplugin.store import record
from cacheplugin.store.record import MAX_TIME_NS, decode, encode, timestamp

IDS = st.binary(min_size=1, max_size=64).map(bytes.hex)
SIZES = st.integers(0, 2**63 - 1)
TIMES = st.integers(0, MAX_TIME_NS)
DIGESTS = st.integers(0, 2**64 - 1)

ACTION, OUTPUT = "ab" * 32, "cd" * 32
TIME_NS = 1_700_000_000_123_456_789
RECORD = encode(ACTION, OUTPUT, 12345, TIME_NS, 0xFEDCBA9876543210)
FIELDS = (OUTPUT, 12345, "2023-11-14T22:13:20.123456789Z", "fedcba9876543210")


@given(IDS, IDS, SIZES, TIMES, DIGESTS)
@example("ff" * 64, "ff" * 64, 2**63 - 1, MAX_TIME_NS, 2**64 - 1)
def test_roundtrip(action, output, size, time_ns, xxh3):
    """decode returns the fields that encode was given; the record fits in one read."""
    data = encode(action, output, size, time_ns, xxh3)
    assert len(data) <= record.MAX_BYTES
    assert decode(action, data) == (output, size, timestamp(time_ns), f"{xxh3:016x}")


def test_text():
    """A record is one line of readable text."""
    version, output, size, time, xxh3, crc = RECORD.decode().split(" ")
    assert (version, (output, int(size), time, xxh3)) == ("v1", FIELDS)
    assert len(crc) == 9 and crc.endswith("\n")


def test_any_changed_byte():
    """A record with any byte changed is not valid, or decodes to the same fields."""
    for index in range(len(RECORD)):
        for byte in set(range(256)) - {RECORD[index]}:
            found = decode(ACTION, RECORD[:index] + bytes([byte]) + RECORD[index + 1 :])
            # The CRC itself can be written in more than one way.
            assert found is None or (found == FIELDS and index >= len(RECORD) - 9)


def test_truncated_or_extended():
    """A record that is truncated anywhere, or followed by more bytes, is not valid."""
    for length in range(len(RECORD)):
        assert decode(ACTION, RECORD[:length]) is None
        assert decode(ACTION, RECORD[length:][1:]) is None
    for extra in (b"\n", b" ", b"\0", b"x", RECORD):
        assert decode(ACTION, RECORD + extra) is None
        assert decode(ACTION, extra + RECORD) is None


def test_record_of_another_action():
    """An intact record is not valid for another action."""
    assert decode(ACTION, RECORD) == FIELDS
    assert decode("ac" + ACTION[2:], RECORD) is None
    assert decode("", RECORD) is None


def test_other_version():
    """A record of another version is not valid, even with a correct checksum."""
    line = RECORD[:-9].replace(b"v1", b"v2")
    crc = record.crc32(line, record.crc32(ACTION.encode()))
    assert decode(ACTION, line + b"%08x\n" % crc) is None


@given(st.binary(max_size=600))
def test_noise_never_raises(data):
    """Arbitrary bytes are not valid and raise no exception."""
    assert decode(ACTION, data) is None


@given(TIMES)
@example(0)
@example(951782400 * 10**9)
@example(1_000_000_001)
@example(MAX_TIME_NS)
def test_timestamp_agrees_with_datetime(time_ns):
    """The text is RFC 3339 in UTC with nine decimals."""
    moment = datetime(1970, 1, 1) + timedelta(seconds=time_ns // 10**9)
    assert timestamp(time_ns) == f"{moment.isoformat()}.{time_ns % 10**9:09}Z"


def test_timestamp_remembers_few_days():
    """The cache of dates is bounded, and dates are right after it was emptied."""
    for day in range(3000):
        expected = (datetime(1970, 1, 1) + timedelta(days=day)).isoformat()
        assert timestamp(day * 86400 * 10**9) == f"{expected}.000000000Z"
    assert len(record._days) <= 1001
