"""web/modproxy/goproxy.py: lists of proxies, databases and private modules, as go reads them."""

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


def error(parse, text) -> str:
    """The line that a user gets."""
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
    """A comma: on after an absence; a bar: after any failure; nothing behind off and direct."""
    assert parse_list(text, "ORIGIN") == [Proxy(*proxy) for proxy in proxies]


@pytest.mark.parametrize(
    "text", ["", ",", "|", " ", "direct", "direct,off", f"direct|{A}", " direct ", ",direct"]
)
def test_lists_of_nothing(text):
    """Without one that can be asked there is no proxy; direct is none."""
    assert "names no module proxy" in error(parse_list, text)


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
    """What is no HTTP URL of a proxy is refused, wherever it stands in a list."""
    for text in (url, f"{A},{url}", f"{url}|{A}"):
        assert "is not the http:// or https:// URL" in error(parse_list, text)
    error(parse_databases, f"sum.example {url}")


@pytest.mark.parametrize(
    "url", ["https://a.example https://b.example", "https://a b.example", "https://a.example/x y"]
)
def test_urls_with_spaces(url):
    """A list whose URLs are separated by spaces is not one URL."""
    error(parse_list, url)


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
    """A password that stands in a list is in no error, and in nothing that is shown."""
    for text in (url, f"{A}|{url}", f"{A},{url},{B}"):
        assert "secret" not in error(parse_list, text) and "sec%2f" not in error(parse_list, text)
    assert "secret" not in error(parse_databases, f"sum.example {url}")
    assert "secret" not in shown(url) and "user" not in shown(url)


@pytest.mark.parametrize("url", BROKEN_SECRET)
def test_passwords_that_should_have_been_escaped_are_not_shown(url):
    """They make another URL than was meant, and that is no reason to print them."""
    assert "secret" not in error(parse_list, url)


def test_credentials_of_what_is_not_reached_are_not_shown():
    """A list that begins with direct names no proxy, whatever comes behind it."""
    assert "secret" not in error(parse_list, "direct,https://user:secret@a.example")


@pytest.mark.parametrize(
    "text",
    [
        "https://user:secret@a.example",
        "sum.example https://user:secret@a.example https://b.example",
    ],
)
def test_credentials_of_a_database_are_not_shown(text):
    """Nor where it is no name and URL."""
    assert "secret" not in error(parse_databases, text)


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
    """All but what stands before the host."""
    assert shown(url) == text


@given(st.text(st.sampled_from("ab.:/@|,?# direcof[]\x00é%\\"), max_size=25))
def test_any_list_is_proxies_or_one_line(text):
    """Whatever stands in a variable, it is proxies or one clear line, never another exception."""
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
    """Names, with or without a URL or the key that GOSUMDB has; the first one is asked first."""
    found = parse_databases(text, "ORIGIN")
    assert found == databases and [*found] == [*databases]


@pytest.mark.parametrize("key", ["sum.example+0badc0de+AbC/", "sum.example+0badc0de+Ab+C//"])
def test_keys_end_in_any_letter_of_base64(key):
    """A slash is one."""
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
def test_no_databases(text):
    """A URL alone has no name, and a name does not begin or end with a slash."""
    error(parse_databases, text)


@pytest.mark.parametrize("text", ["+0badc0de+AbC", "a.b,+", "../x", "a.b?x"])
def test_names_that_no_database_has(text):
    """A name is a host, perhaps with a path: requests are made of it."""
    error(parse_databases, text)


def test_all_urls():
    """Of proxies and databases, without off and what has none."""
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
    """Globs of path.Match, against as much of a path as they have elements (go help private)."""
    assert is_private(module, patterns) is private


@pytest.mark.parametrize(
    ("patterns", "module", "private"),
    [
        ("example.com/[!a]", "example.com/b", False),
        ("example.com/[!a]", "example.com/a", True),
        (r"example.com/\a", "example.com/a", True),
    ],
)
def test_private_patterns_of_go_alone(patterns, module, private):
    """In path.Match ! is a letter as others are, and a backslash takes the next one as it is."""
    assert is_private(module, patterns) is private


# -- what nobody said ------------------------------------------------------------------------------


@pytest.fixture
def go(tmp_path):
    """Makes a go command that does what a script says; returns an environment that has it."""

    def make(script="exit 1") -> dict:
        path = tmp_path / "go"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return {"PATH": str(tmp_path)}

    return make


@pytest.fixture
def nowhere(tmp_path):
    """An environment without a go command."""
    return {"PATH": str(tmp_path)}


def says(**values) -> str:
    return f"echo '{json.dumps(values)}'"


def test_flags_say_it_all(go, tmp_path):
    """Then no go command is asked."""
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
def test_environment_without_a_go_command(nowhere, fields, environ, upstream, private):
    """Flags before variables, GONOSUMDB before GOPRIVATE; an empty variable counts as unset."""
    found = settle(Options(**fields), nowhere | environ)
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
    """It knows what go env -w wrote, and makes GONOSUMDB of GOPRIVATE; variables go before it."""
    found = settle(Options(), go(says(GOPROXY=A, GONOSUMDB="c")) | environ)
    assert found == {"modproxy_upstream": upstream, "nosumdb": private}


def test_how_the_go_command_is_asked(go, tmp_path):
    """With the environment that was given, fetching no toolchain, and outside of any module."""
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
    """It is as if there were none."""
    with pytest.raises(UsageError, match="neither GOPROXY nor 'go env GOPROXY'"):
        settle(Options(), go(script))
    assert settle(Options(), go(script) | {"GOPROXY": A}) == {"modproxy_upstream": A, "nosumdb": ""}


@pytest.mark.parametrize("script", ["echo '[]'", "echo null", "echo 1", """echo '"GOPROXY"'"""])
def test_go_commands_that_say_something_else(go, script):
    """JSON that has no settings is none."""
    assert settle(Options(), go(script) | {"GOPROXY": A}) == {"modproxy_upstream": A, "nosumdb": ""}


def test_go_command_that_hangs(nowhere, monkeypatch):
    """It is given up, and whether it is there does not matter then."""
    limits = []

    def run(*_, timeout, **__):
        limits.append(timeout)
        raise subprocess.TimeoutExpired("go", timeout)

    monkeypatch.setattr(goproxy.subprocess, "run", run)
    assert settle(Options(), nowhere | {"GOPROXY": A})["modproxy_upstream"] == A
    assert len(limits) == 1 and 0 < limits[0] <= 60


def test_nothing_says_what_upstream_is(nowhere):
    """That is an error of the command line, which names the flag."""
    for environ in ({}, {"GOPROXY": ""}):
        with pytest.raises(UsageError, match="--modproxy needs --modproxy-upstream"):
            settle(Options(), nowhere | environ)


@pytest.mark.parametrize(
    ("fields", "environ", "origin"),
    [
        ({}, {"GOPROXY": "direct"}, "GOPROXY"),
        ({}, {"GOPROXY": "ftp://x"}, "GOPROXY"),
        ({"modproxy_upstream": "direct"}, {"GOPROXY": A}, "--modproxy-upstream"),
        ({"modproxy_upstream": A, "sumdb": "https://x"}, {}, "--sumdb"),
    ],
)
def test_settings_that_cannot_be_used(nowhere, fields, environ, origin):
    """The one at fault is named, before anything starts."""
    with pytest.raises(UsageError, match=f"^{origin}[: ]"):
        settle(Options(**fields), nowhere | environ)
