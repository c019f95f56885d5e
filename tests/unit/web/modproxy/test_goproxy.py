"""Unit tests of web/modproxy/goproxy.py: lists are parsed as the go command parses them."""

import json
import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheplugin.errors import UsageError
from cacheplugin.options import Options
from cacheplugin.web.modproxy import goproxy
from cacheplugin.web.modproxy.goproxy import (
    OFF,
    Proxy,
    is_private,
    parse_databases,
    parse_list,
    settle,
    shown,
)

A, B = "https://a.example", "https://b.example/path"


def error_of(parse, text) -> str:
    """The text of the UsageError."""
    with pytest.raises(UsageError) as caught:
        parse(text, "ORIGIN")
    line = str(caught.value)
    assert line.startswith(("ORIGIN: ", "ORIGIN names no module proxy")) and line.isprintable()
    return line


# -- proxies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "proxies"),
    [
        (A, [(A, False)]),
        (f"{A},{B}", [(A, False), (B, False)]),
        (f"{A}|{B}", [(A, True), (B, False)]),
        (f"{A}|{B},{A}", [(A, True), (B, False), (A, False)]),
        (f"{A},direct", [(A, False)]),
        (f"{A}|direct", [(A, True)]),
        (f"{A},direct,{B}", [(A, False)]),
        (f"{A},off", [(A, False), (OFF, False)]),
        ("off", [(OFF, False)]),
        (f"off,{A}", [(OFF, False)]),
        (f"{A},off,nonsense://", [(A, False), (OFF, False)]),
        (f" {A} , {B} ", [(A, False), (B, False)]),
        (f",,{A},|,{B},", [(A, False), (B, False)]),
        (f"{A}/,{B}///", [(A, False), (B, False)]),
        ("a.example", [(A, False)]),
        ("http://127.0.0.1:8081/x", [("http://127.0.0.1:8081/x", False)]),
        ("http://[::1]:80", [("http://[::1]:80", False)]),
        ("a.example:443/x", [(f"{A}:443/x", False)]),
        ("https://u:p@a.example", [("https://u:p@a.example", False)]),
        ("HTTPS://a.example", [("HTTPS://a.example", False)]),
    ],
)
def test_lists(text, proxies):
    """After "," the next proxy is asked on absence alone, after "|" on any failure."""
    assert parse_list(text, "ORIGIN") == [Proxy(*proxy) for proxy in proxies]


@pytest.mark.parametrize(
    "text", ["", ",", "|", " ", "direct", "direct,off", f"direct|{A}", " direct ", ",direct"]
)
def test_lists_without_a_proxy(text):
    """A list without a URL or ``off`` before ``direct`` is refused."""
    assert "names no module proxy" in error_of(parse_list, text)


BAD_URLS = [
    "https://",
    "https:///path",
    "ftp://a.example",
    "file:///var/mod",
    "://a",
    "https://:80",
    "https://a.example:0",
    "https://a.example:port",
    "https://a.example:99999",
    "https://a.example:-1",
    "https://[::1",
    "https://a]",
    "https://a.example?x=1",
    "https://a.example#x",
    "https://\xe9.example",
    "https://a.example/\xe9",
    "a\0b",
    "https://a.example/\x7f",
    "https://a.example/\nb",
    "javascript://a",
    "https://u:p@",
    "direct:x://y",
]


@pytest.mark.parametrize("url", BAD_URLS, ids=ascii)
def test_bad_urls(url):
    """What is not the HTTP URL of a proxy is refused, anywhere in a list."""
    for text in (url, f"{A},{url}", f"{url}|{A}"):
        assert "is not the http:// or https:// URL" in error_of(parse_list, text)
    error_of(parse_databases, f"sum.example {url}")


@pytest.mark.parametrize(
    "url", ["https://a.example https://b.example", "https://a b.example", "https://a.example/x y"]
)
def test_urls_with_spaces(url):
    """Spaces do not separate URLs."""
    error_of(parse_list, url)


SECRET = [
    "ftp://user:secret@a.example",
    "https://user:secret@",
    "https://user:secret@a.example:port",
    "https://user:secret@a.example?x",
    "https://user:secret@a.example#x",
    "https://user:secret@[::1",
    "https://secret@a.example:0",
    "https://us@er:secret@a.example:0",
    "https://user:sec%2fret@:80",
]
BROKEN_SECRET = [
    "https://user:pass/secret@a.example",
    "https://user:secret://x@a.example:0",
    "https://u:p?secret@a.example",
    "https://u:p#secret@a.example",
]


@pytest.mark.parametrize("url", SECRET)
def test_credentials_are_not_shown(url):
    """Error texts and shown URLs have no password."""
    for text in (url, f"{A}|{url}", f"{A},{url},{B}"):
        line = error_of(parse_list, text)
        assert "secret" not in line and "sec%2f" not in line
    assert "secret" not in error_of(parse_databases, f"sum.example {url}")
    assert "secret" not in shown(url) and "user" not in shown(url)


@pytest.mark.parametrize("url", BROKEN_SECRET)
def test_unescaped_passwords_are_not_shown(url):
    """A password with / or @ makes another URL than was meant; it is not shown either."""
    assert "secret" not in error_of(parse_list, url)


def test_credentials_after_direct_are_not_shown():
    """Nor is the password of an entry after ``direct``."""
    assert "secret" not in error_of(parse_list, "direct,https://user:secret@a.example")


@pytest.mark.parametrize(
    "text",
    [
        "https://user:secret@a.example",
        "sum.example https://user:secret@a.example https://b.example",
    ],
)
def test_credentials_of_a_database_are_not_shown(text):
    """Nor the password in a bad entry of --sumdb."""
    assert "secret" not in error_of(parse_databases, text)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://u:p@h:1/x/y@z", "https://h:1/x/y@z"),
        ("https://h/x", "https://h/x"),
        ("u:p@h/x", "h/x"),
        ("h", "h"),
    ],
)
def test_shown(url, text):
    """Only user name and password are left out."""
    assert shown(url) == text


@given(st.text(st.sampled_from("ab.:/@|,?# direcof[]\x00é%\\"), max_size=25))
def test_any_list_is_parsed_or_refused(text):
    """Any text gives proxies, or a UsageError of one line."""
    for parse in (parse_list, parse_databases):
        try:
            found = parse(text, "ORIGIN")
        except UsageError as problem:
            assert str(problem).startswith("ORIGIN") and "\n" not in str(problem)
        else:
            assert isinstance(found, dict) or (
                found and not any(proxy.url.endswith("/") for proxy in found)
            )


# -- checksum databases ----------------------------------------------------------------------------

KEY = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"


@pytest.mark.parametrize(
    ("text", "databases"),
    [
        ("", {}),
        (" ", {}),
        ("off", {}),
        (" off ", {}),
        (",", {}),
        ("sum.golang.org", {"sum.golang.org": ""}),
        (f"sum.golang.org {A}/", {"sum.golang.org": A}),
        (f"  a.b   {A} ,c.d", {"a.b": A, "c.d": ""}),
        (KEY, {"sum.golang.org": ""}),
        (f"{KEY} {A},a.b", {"sum.golang.org": A, "a.b": ""}),
        ("sum.example/log", {"sum.example/log": ""}),
        (f"a.b,a.b {A}", {"a.b": A}),
        ("a.b proxy.example/sumdb/a.b", {"a.b": "https://proxy.example/sumdb/a.b"}),
    ],
)
def test_databases(text, databases):
    """A name, with or without a URL or a key as in GOSUMDB; the order is kept."""
    found = parse_databases(text, "ORIGIN")
    assert found == databases and [*found] == [*databases]


@pytest.mark.parametrize("key", ["sum.example+0badc0de+AbC/", "sum.example+0badc0de+Ab+C//"])
def test_keys_with_any_letter_of_base64(key):
    """A key may contain a slash."""
    assert parse_databases(key, "ORIGIN") == {"sum.example": ""}


@pytest.mark.parametrize(
    "text",
    [
        A,
        f"a.b {A} {B}",
        f"a.b {A} x",
        "/a.b",
        "a.b/",
        "/",
        "\xe9.example",
        f"x,{A}",
        "a.b https://",
    ],
)
def test_bad_databases(text):
    """A URL without a name, and a name with a slash at either end, are refused."""
    error_of(parse_databases, text)


@pytest.mark.parametrize("text", ["+0badc0de+AbC", "a.b,+", "../x", "a.b?x"])
def test_bad_names_of_databases(text):
    """A name is a host name, perhaps with a path."""
    error_of(parse_databases, text)


def test_all_urls():
    """The URLs of proxies and databases, without ``off`` and databases without a URL."""
    options = Options(modproxy_upstream=f"{A}|{B},off", sumdb="x.y http://h:1/,z.y")
    assert goproxy.urls(options) == [A, B, "http://h:1"]
    assert goproxy.urls(Options(modproxy_upstream="off", sumdb="off")) == []


# -- private modules -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "module", "private"),
    [
        ("*.corp.example.com,rsc.io/private", "git.corp.example.com/xyzzy", True),
        ("*.corp.example.com,rsc.io/private", "rsc.io/private", True),
        ("*.corp.example.com,rsc.io/private", "rsc.io/private/quux", True),
        ("*.corp.example.com,rsc.io/private", "rsc.io/privately", False),
        ("*.corp.example.com,rsc.io/private", "corp.example.com/x", False),
        ("*.corp.example.com,rsc.io/private", "rsc.io", False),
        ("", "example.com", False),
        (",,", "example.com/a", False),
        ("/", "example.com/a", False),
        ("*", "example.com/a", True),
        ("*/*", "example.com", False),
        ("*/*", "example.com/a/b", True),
        ("example.com/", "example.com/a", True),
        ("example.com", "example.com", True),
        ("example.com", "example.comx/a", False),
        ("example.com", "xexample.com/a", False),
        ("EXAMPLE.com", "example.com", False),
        ("example.com/a?c", "example.com/abc/d", True),
        ("example.com/a?c", "example.com/ac", False),
        ("example.com/[ab]", "example.com/b", True),
        ("example.com/[ab]", "example.com/c", False),
        ("example.com/[^ab]", "example.com/c", True),
        ("example.com/[^ab]", "example.com/a", False),
        ("example.com/[a-c]x", "example.com/bx", True),
        ("example*a", "example.com/a", False),
        ("example.com/*/c", "example.com/a/b/c", False),
        ("example.com/[", "example.com/a", False),
        ("[,example.com", "example.com/a", True),
        ("github.com/Azure", "github.com/azure/x", False),
        ("none", "example.com/a", False),
    ],
)
def test_private_modules(patterns, module, private):
    """Globs of path.Match, which may match the first elements of a path (go help private)."""
    assert is_private(module, patterns) is private


@pytest.mark.parametrize(
    ("patterns", "module", "private"),
    [
        ("example.com/[!a]", "example.com/b", False),
        ("example.com/[!a]", "example.com/a", True),
        (r"example.com/\a", "example.com/a", True),
    ],
)
def test_private_patterns_that_differ_from_fnmatch(patterns, module, private):
    """In path.Match ``!`` is literal, and a backslash makes the next character literal."""
    assert is_private(module, patterns) is private


# -- settings of the go command --------------------------------------------------------------------


@pytest.fixture
def go(tmp_path):
    """go(script): an environment whose go command runs that shell script."""

    def make(script="exit 1") -> dict:
        path = tmp_path / "go"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return {"PATH": str(tmp_path)}

    return make


@pytest.fixture
def without_go(tmp_path):
    """An environment without a go command."""
    return {"PATH": str(tmp_path)}


def says(**values) -> str:
    return f"echo '{json.dumps(values)}'"


def test_flags_are_enough(go, tmp_path):
    """The go command is not run when both flags are set."""
    environ = go(f"echo x > {tmp_path}/ran; {says(GOPROXY=B, GONOSUMDB='b')}") | {
        "GOPROXY": B,
        "GONOSUMDB": "b",
    }
    options = Options(modproxy_upstream=A, nosumdb="a")
    assert settle(options, environ) == {"modproxy_upstream": A, "nosumdb": "a"}
    assert not os.path.exists(f"{tmp_path}/ran")


@pytest.mark.parametrize(
    ("fields", "environ", "upstream", "private"),
    [
        ({}, {"GOPROXY": A}, A, ""),
        ({"modproxy_upstream": A}, {"GOPROXY": B}, A, ""),
        ({"modproxy_upstream": "off"}, {}, "off", ""),
        ({}, {"GOPROXY": "off"}, "off", ""),
        ({}, {"GOPROXY": A, "GONOSUMDB": "n", "GOPRIVATE": "p"}, A, "n"),
        ({}, {"GOPROXY": A, "GOPRIVATE": "p"}, A, "p"),
        ({}, {"GOPROXY": A, "GONOSUMDB": "", "GOPRIVATE": "p"}, A, "p"),
        ({"nosumdb": "f"}, {"GOPROXY": A, "GONOSUMDB": "n"}, A, "f"),
        ({}, {"GOPROXY": f"{A}|direct"}, f"{A}|direct", ""),
    ],
)
def test_environment_without_a_go_command(without_go, fields, environ, upstream, private):
    """Flags beat variables, GONOSUMDB beats GOPRIVATE; an empty variable counts as unset."""
    found = settle(Options(**fields), without_go | environ)
    assert found == {"modproxy_upstream": upstream, "nosumdb": private}


@pytest.mark.parametrize(
    ("environ", "upstream", "private"),
    [
        ({}, A, "c"),
        ({"GOPROXY": B}, B, "c"),
        ({"GONOSUMDB": "n"}, A, "n"),
        ({"GOPRIVATE": "p"}, A, "c"),
        ({"GOPROXY": ""}, A, "c"),
    ],
)
def test_go_command(go, environ, upstream, private):
    """The output of ``go env`` is used, unless a variable is set."""
    found = settle(Options(), go(says(GOPROXY=A, GONOSUMDB="c")) | environ)
    assert found == {"modproxy_upstream": upstream, "nosumdb": private}


def test_how_the_go_command_is_run(go, tmp_path):
    """With the given environment, the local toolchain, and outside of any module."""
    script = f'echo "$*|$GOTOOLCHAIN|$MARK|$PWD" > {tmp_path}/asked; {says(GOPROXY=A)}'
    assert settle(Options(), go(script) | {"MARK": "x"})["modproxy_upstream"] == A
    asked = (tmp_path / "asked").read_text().strip()
    assert asked == "env -json GOPROXY GONOSUMDB|local|x|/"


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        f"{says(GOPROXY=B)}; exit 1",
        "echo no JSON",
        "exit 0",
        "echo '{'",
        "echo '{}'",
        "kill -9 $$",
        r"printf '\377'",
    ],
)
def test_go_commands_that_fail(go, script):
    """They count as no go command."""
    with pytest.raises(UsageError, match="neither GOPROXY nor 'go env GOPROXY'"):
        settle(Options(), go(script))
    assert settle(Options(), go(script) | {"GOPROXY": A}) == {"modproxy_upstream": A, "nosumdb": ""}


@pytest.mark.parametrize("script", ["echo '[]'", "echo null", "echo 1", """echo '"GOPROXY"'"""])
def test_go_commands_with_other_output(go, script):
    """JSON without the settings counts as no settings."""
    assert settle(Options(), go(script) | {"GOPROXY": A}) == {"modproxy_upstream": A, "nosumdb": ""}


def test_a_go_command_that_hangs(without_go, monkeypatch):
    """It is ended after a time-out, and counts as no go command."""
    limits = []

    def run(*_, timeout, **__):
        limits.append(timeout)
        raise subprocess.TimeoutExpired("go", timeout)

    monkeypatch.setattr(goproxy.subprocess, "run", run)
    assert settle(Options(), without_go | {"GOPROXY": A})["modproxy_upstream"] == A
    assert len(limits) == 1 and 0 < limits[0] <= 60


def test_no_upstream_at_all(without_go):
    """A UsageError names the flag."""
    for environ in ({}, {"GOPROXY": ""}):
        with pytest.raises(UsageError, match="--modproxy needs --modproxy-upstream"):
            settle(Options(), without_go | environ)


@pytest.mark.parametrize(
    ("fields", "environ", "origin"),
    [
        ({}, {"GOPROXY": "direct"}, "GOPROXY"),
        ({}, {"GOPROXY": "ftp://x"}, "GOPROXY"),
        ({"modproxy_upstream": "direct"}, {"GOPROXY": A}, "--modproxy-upstream"),
        ({"modproxy_upstream": A, "sumdb": "https://x"}, {}, "--sumdb"),
    ],
)
def test_settings_that_are_not_valid(without_go, fields, environ, origin):
    """The error names the flag or variable at fault."""
    with pytest.raises(UsageError, match=f"^{origin}[: ]"):
        settle(Options(**fields), without_go | environ)
