"""Values of options: numbers, durations, sizes, addresses and prefixes, as the Go program does."""

import posixpath
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheplugin.errors import UsageError
from cacheplugin.option_values import FORMATS, parse_address, parse_duration, parse_size
from cacheplugin.options import FLAGS, clean_prefix, load

HOME = {"HOME": "/h"}

# Numbers as strconv.ParseInt with base 0 reads them, most of them from its tests.
INTEGERS = [
    ("0", 0),
    ("+0", 0),
    ("-0", 0),
    ("1", 1),
    ("+1", 1),
    ("12345", 12345),
    ("1_000", 1000),
    ("1_2_3", 123),
    ("017", 15),
    ("0_17", 15),
    ("00", 0),
    ("0o17", 15),
    ("0O17", 15),
    ("0b11", 3),
    ("0B1_1", 3),
    ("0x400", 1024),
    ("0X400", 1024),
    ("0x_4_00", 1024),
    (str(2**63 - 1), 2**63 - 1),
    ("0x7fffffffffffffff", 2**63 - 1),
    ("-1", 0),
    ("-1_000", 0),
    ("-0x400", 0),
    (str(-(2**63)), 0),
]
NO_INTEGERS = [
    *("", "-", "+", "_", "_1", "1_", "1__0", "0_", "0__7", "08", "0_8", "0o8", "0b2", "0xg", "0x"),
    *("0x_", "0b", "0o", "--1", "+-1", "1.0", "1e3", " 1", "1 ", "1,000", "٣", "²", "a", "0d1"),
    *(str(2**63), str(-(2**63) - 1), "9" * 5000),
]


def value(flag: str, text: str):
    """The value of a flag, whose name is without dashes."""
    field = next(one.field for one in FLAGS if one.name == flag)
    command = next(one.commands[:1] for one in FLAGS if one.name == flag)
    return getattr(load([*command, f"--{flag}={text}"], HOME)[1], field)


@pytest.mark.parametrize(("text", "number"), INTEGERS)
def test_integers_are_written_as_in_go(text, number):
    """A number takes a sign, a prefix for its base and underscores; below 0 counts as 0."""
    assert value("min-upload-size", text) == number


@pytest.mark.parametrize("text", NO_INTEGERS)
def test_what_go_does_not_take_for_a_number(text):
    """A text that strconv.ParseInt refuses is refused for all numbers."""
    for flag in ("min-upload-size", "c", "u", "debug", "plugin"):
        with pytest.raises(UsageError, match=re.escape(FORMATS[kind_of(flag)])):
            value(flag, text)


def kind_of(flag: str) -> str:
    return next(one.kind for one in FLAGS if one.name == flag)


@pytest.mark.parametrize(
    ("flag", "text", "number"),
    [
        *((flag, text, number) for flag, number in (("c", 32), ("u", 16)) for text in ("0", "-7")),
        *((flag, text, 1024) for flag in ("c", "u") for text in ("1024", "1025", "0x7fffffff")),
        *((flag, "0o10", 8) for flag in ("c", "u")),
        *(("debug", text, number) for text, number in (("7", 7), ("8", 0), ("9", 1), ("-1", 7))),
        *(("plugin", text, number) for text, number in (("0", 0), ("-1", 0), ("0xffff", 65535))),
    ],
)
def test_numbers_that_the_go_program_takes(flag, text, number):
    """What is out of range for the Go program's own use is no error: the nearest value counts."""
    assert value(flag, text) == number


def test_a_flag_below_one_beats_the_variable():
    """-c=0 sets the default, whatever GOCACHE_CONCURRENCY is."""
    assert load(["-c=0"], {**HOME, "GOCACHE_CONCURRENCY": "5"})[1].fetches_at_once == 32
    assert load([], {**HOME, "GOCACHE_CONCURRENCY": "-5"})[1].fetches_at_once == 32


def test_ports_end_at_65535():
    with pytest.raises(UsageError, match="--plugin: '65536' is not a port up to 65535"):
        value("plugin", "65536")


@pytest.mark.parametrize("flag", [flag.name for flag in FLAGS if flag.kind == "time"])
def test_negative_durations_are_none(flag):
    """-1h is what Go takes for a duration below 0; it means none."""
    for text in ("-1h", "-1ns", "-1h30m", "-0", "-.5s"):
        assert value(flag, text) == 0.0


@pytest.mark.parametrize("flag", [flag.name for flag in FLAGS if flag.kind == "size"])
def test_negative_sizes_are_none(flag):
    for text in ("-1", "-20GB", "-5GiB", "-0x10"):
        assert value(flag, text) == 0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("500", 500),
        ("500M", 500_000_000),
        ("500MB", 500_000_000),
        ("20GiB", 20 << 30),
        ("1ki", 1024),
        ("2t", None),
        ("1.5G", None),
        ("G", None),
        ("", None),
        ("+20kB", 20_000),
        ("017", 17),
        ("0x400", 1024),
        ("0xB", 11),
        ("0b11", 3),
        ("1_000", 1000),
        ("-", None),
        ("0x400K", None),
        ("--1", None),
        ("1i", None),
        ("1KK", None),
        ("٣", None),
    ],
)
def test_sizes(text, count):
    """A size is a whole number, with or without a decimal or binary unit; None: it is refused."""
    if count is None:
        with pytest.raises(ValueError):
            parse_size(text)
    else:
        assert parse_size(text) == count


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("+0", 0),
        ("0s", 0),
        ("5s", 5),
        ("30s", 30),
        ("1478s", 1478),
        ("+5s", 5),
        ("5.0s", 5),
        ("5.6s", 5.6),
        ("5.s", 5),
        (".5s", 0.5),
        ("1.004s", 1.004),
        ("100.00100s", 100.001),
        ("10ns", 1e-8),
        ("11us", 11e-6),
        ("12µs", 12e-6),
        ("12μs", 12e-6),
        ("13ms", 0.013),
        ("14s", 14),
        ("15m", 900),
        ("16h", 57600),
        ("3h30m", 12600),
        ("10.5s4m", 250.5),
        ("1h1m1s1ms1us1ns", 3661.001001001),
        ("39h9m14.425s", 140954.425),
        ("0.3333333333333333333h", 1200),
        ("24h", 86400),
        ("-5s", 0),
        ("-0.5s", 0),
        ("-1h1m", 0),
        ("876000h", 1e9),  # a hundred years; 31 are enough
        ("2562047h", 1e9),
    ],
)
def test_durations(text, seconds):
    """Durations are read as Go's time.ParseDuration reads them; the cases are from its tests."""
    assert parse_duration(text) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "-",
        "+",
        "s",
        ".",
        "-.",
        ".s",
        "+.s",
        "1d",
        "1S",
        "\x85\x85",
        "1h-1m",
        "1 s",
        " 1s",
        "1s ",
        "1hm",
        "1.2.3s",
        "1e3s",
        "++1s",
        "inf",
        "nan",
        "infs",
        "1_0s",
        "٣s",
        "99999999999h",
        "2562048h",
        "+-5s",
        "-5",
        "--5s",
        "0x1s",
    ],
)
def test_wrong_durations(text):
    """Texts that Go refuses are refused."""
    with pytest.raises(ValueError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "prefix"),
    [
        ("", ""),
        ("a", "a"),
        ("a/b", "a/b"),
        ("a//b/", "a/b"),
        ("/a", "/a"),
        ("//a", "/a"),
        ("a/.", "a"),
        ("./a", "a"),
        ("a/../b", "b"),
        ("a/..", ""),
        (".", ""),
        ("..", ".."),
        ("../../a", "../../a"),
        ("a/../..", ".."),
        ("/..", "/"),
        ("/../a", "/a"),
        ("/", "/"),
        (" a ", " a "),
        ("a...", "a..."),
    ],
)
def test_clean_prefix(text, prefix):
    """A prefix is cleaned like a path; a leading slash stays."""
    assert clean_prefix(text) == prefix


@given(st.text("ab./", max_size=12))
def test_clean_prefix_agrees_with_path_cleaning(text):
    """It equals posixpath.normpath, except that "//" becomes "/" and "." becomes ""."""
    expected = re.sub("^//+", "/", posixpath.normpath(text))
    assert clean_prefix(text) == ("" if expected == "." else expected)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":80", ("127.0.0.1", 80)),
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("localhost:65535", ("localhost", 65535)),
        ("[::1]:8080", ("::1", 8080)),
        ("[::]:80", ("::", 80)),
        ("[]:80", ("127.0.0.1", 80)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
        ("host:080", ("host", 80)),
    ],
)
def test_addresses(text, address):
    """An address is a host and a port; the default host is the loopback address."""
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "80",
        "host",
        "host:",
        ":0",
        ":65536",
        ":-1",
        ":+1",
        ":1.0",
        ": 80",
        ":80 ",
        ":٣",
        ":²",
        "::1:80",
        "::80",
        "[::1]",
        "[::1]80",
        "[::1:80",
        "::1]:80",
        "http://host:80",
        ":99999999999999999999",
        ":http",
        "host:80/",
        "[::1]:",
    ],
)
def test_wrong_addresses(text):
    """The error about a wrong address is one line that begins with the flag."""
    with pytest.raises(UsageError) as caught:
        load(["serve", f"--http={text}"], {"HOME": "/h"})
    assert str(caught.value).startswith("--http: ") and "\n" not in str(caught.value)


@given(st.one_of(st.text(), st.text(string.digits + "[]:.", max_size=12)))
def test_any_text_is_an_address_or_a_value_error(text):
    """No other exception is raised; an address has a host and a port in the valid range."""
    try:
        host, port = parse_address(text)
    except ValueError:
        return
    assert host and 1 <= port <= 65535
