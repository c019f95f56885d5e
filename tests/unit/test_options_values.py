"""options.py: values of options: durations, sizes, numbers, addresses and prefixes."""

import posixpath
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheplugin.errors import UsageError
from cacheplugin.options import (
    clean_prefix,
    format_of,
    load,
    parse_address,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("flag", "kind"), [("-c", "count"), ("-u", "count"), ("--debug", "mask"), ("--plugin", "port")]
)
def test_bounds_are_those_of_the_format(flag, kind):
    """The bounds that errors and help show for a whole number are those that are checked."""
    least, most = map(int, re.findall("[0-9]+", format_of(kind)))
    for right in (least, most):
        load(["serve", f"{flag}={right}"], {"HOME": "/h"})
    for wrong in (least - 1, most + 1):
        with pytest.raises(UsageError, match=re.escape(format_of(kind))):
            load(["serve", f"{flag}={wrong}"], {"HOME": "/h"})


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
        ("-1", None),
        ("1i", None),
        ("1KK", None),
        ("٣", None),
    ],
)
def test_sizes(text, count):
    """A size is a whole number with a decimal or binary unit; None: it is refused."""
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
        "-5s",
        "0x1s",
    ],
)
def test_wrong_durations(text):
    """Texts that Go refuses are refused, and so are negative durations and those over 1e9 s."""
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
