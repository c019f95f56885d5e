"""store/record.py: a record is read back as written; anything else is not valid."""

from datetime import datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cacheplugin.store import record
from cacheplugin.store.record import MAX_TIME_NS, decode, encode, timestamp

IDS = st.binary(min_size=1, max_size=64).map(bytes.hex)
OUTPUTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
SIZES = st.integers(0, 2**63 - 1)
TIMES = st.integers(0, MAX_TIME_NS)
DIGESTS = st.integers(0, 2**64 - 1)

ACTION, OUTPUT = "ab" * 32, "cd" * 32
TIME_NS = 1_700_000_000_123_456_789
RECORD = encode(ACTION, OUTPUT, 12345, TIME_NS, 0xFEDCBA9876543210)
FIELDS = (OUTPUT, 12345, "2023-11-14T22:13:20.123456789Z", "fedcba9876543210")


@given(IDS, OUTPUTS, SIZES, TIMES, DIGESTS)
@example("ff" * 64, "ff" * 32, 2**63 - 1, MAX_TIME_NS, 2**64 - 1)
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


def planted(output=OUTPUT, size="3", time=FIELDS[2], xxh3=FIELDS[3]) -> bytes:
    """A record with these texts and a correct checksum, as another user can write one."""
    line = f"v1 {output} {size} {time} {xxh3} ".encode()
    return line + b"%08x\n" % record.crc32(line, record.crc32(ACTION.encode()))


def test_planted_record():
    """What the next test changes is all that makes its records invalid."""
    assert decode(ACTION, planted()) == (OUTPUT, 3, *FIELDS[2:])
    assert decode(ACTION, planted(time="2024-02-29T23:59:59.000000000Z")) is not None
    assert decode(ACTION, planted(time="2000-02-29T00:00:00.000000000Z")) is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"output": "../keys/id_ed25519"},
        {"output": "../" * 21 + "x"},
        {"output": '"' * 64},
        {"output": "é" * 32},
        {"output": OUTPUT[:-2]},
        {"output": OUTPUT + "00"},
        {"output": ""},
        {"output": OUTPUT[:-1] + "\n"},
        {"size": "x"},
        {"size": ""},
        {"size": "9" * 400},
        {"time": ""},
        {"time": '2023-11-14T22:13:20.123456789Z","Size":1,"x":"'},
        {"time": '2023-11-14T22:13:20.1234567","x'},
        {"time": "2023-11-14T22:13:20Z"},
        {"time": "2023-11-14t22:13:20.123456789Z"},
        {"time": "2023-13-14T22:13:20.123456789Z"},
        {"time": "2023-00-14T22:13:20.123456789Z"},
        {"time": "2023-11-31T22:13:20.123456789Z"},
        {"time": "2023-02-29T22:13:20.123456789Z"},
        {"time": "1900-02-29T22:13:20.123456789Z"},
        {"time": "2023-11-00T22:13:20.123456789Z"},
        {"time": "2023-11-14T24:13:20.123456789Z"},
        {"time": "2023-11-14T22:60:20.123456789Z"},
        {"time": "2023-11-14T22:13:60.123456789Z"},
        {"time": "\uff12023-11-14T22:13:20.123456789Z"},
        {"time": '","x":"', "xxh3": "0000-00-00T00:00:00.000000000Z" + "0" * 17},
        {"xxh3": "0" * 15},
    ],
)
def test_planted_fields(fields):
    """Ids that are none, times that do not exist and texts that would break an answer."""
    assert decode(ACTION, planted()) is not None  # its minute is known now
    assert decode(ACTION, planted(**fields)) is None


def test_decode_remembers_few_minutes():
    """The cache of minutes that exist is bounded."""
    for minute in range(3000):
        assert decode(ACTION, encode(ACTION, OUTPUT, 3, minute * 60 * 10**9, 0)) is not None
    assert len(record._minutes) <= 1001


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
