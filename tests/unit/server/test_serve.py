"""options.py: addresses, and what is given; serve.py: where it listens."""

import socket
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheplugin import options
from cacheplugin.errors import UsageError
from cacheplugin.options import is_given, parse_address
from cacheplugin.server import serve


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
    """Host and port; no host is the loopback."""
    assert parse_address(text, "--http") == address


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
def test_no_addresses(text):
    """One line that names the flag, and what is wrong with it."""
    with pytest.raises(UsageError) as caught:
        parse_address(text, "--http")
    assert str(caught.value).startswith("--http: ") and "\n" not in str(caught.value)


@given(st.one_of(st.text(), st.text(string.digits + "[]:.", max_size=12)))
def test_any_text_is_an_address_or_one_line(text):
    """Never another exception; an address has a host and a port that exists."""
    try:
        host, port = parse_address(text, "--http")
    except UsageError:
        return
    assert host and 1 <= port <= 65535


@pytest.mark.parametrize(
    ("argv", "environ", "given_"),
    [
        (["connect", "1"], {}, False),
        (["connect", "1", "--cache-dir=/x"], {}, True),
        (["--cache-dir", "/x", "connect", "1"], {}, True),
        (["-cache-dir=/x"], {"GOCACHE_DIR": ""}, True),
        ([], {"GOCACHE_DIR": "/x"}, True),
        ([], {"GOCACHE_DIR": ""}, False),
        ([], {"GOCACHE_S3_BUCKET": "b"}, False),
        (["--bucket", "--cache-dir=/x"], {}, False),
        (["--", "--cache-dir=/x"], {}, False),
    ],
)
def test_what_is_given(argv, environ, given_):
    """By a flag in any spelling, or by a variable that is not empty."""
    assert is_given("cache-dir", argv, environ) is given_


def test_flags_of_serve_are_for_serve():
    """Direct mode and connect have no use for them; their variables are for all processes."""
    home = {"HOME": "/h"}
    flags = [name for name, commands in options.COMMAND_FLAGS.items() if commands == ("serve",)]
    assert {"plugin", "http"} <= set(flags)
    for flag in flags:
        for words in ([], ["connect", "1"], ["prune"]):
            with pytest.raises(UsageError, match=f"^--{flag} is for serve$"):
                options.load([*words, f"--{flag}=1"], home)
    environ = home | {"GOCACHE_PLUGIN": "7", "GOCACHE_HTTP": ":8"}
    words, chosen = options.load(["connect", "1"], environ)
    assert words == ["connect", "1"]
    assert (chosen.plugin_port, chosen.http) == (7, ("127.0.0.1", 8))


def test_it_listens_where_it_is_told():
    """On the address, at once, and again after its end though connections of it linger."""
    with serve._listen("--http", "127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.socket() as client:
            client.connect(address)
            listener.accept()[0].close()
    with serve._listen("--http", *address) as again:
        assert again.getsockname() == address


def test_a_port_that_is_taken():
    """A clear line."""
    with serve._listen("--http", "127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=f"^--http: cannot listen on 127.0.0.1 port {port}: "):
            serve._listen("--http", "127.0.0.1", port)


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
def test_a_host_that_is_no_name(host):
    """What no resolver is asked for is a clear line as well."""
    with pytest.raises(UsageError, match="^--http: cannot listen on "):
        serve._listen("--http", host, 8080)
