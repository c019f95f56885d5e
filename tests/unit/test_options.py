"""options.py: flags and variables as REFERENCE has them, and errors that name the culprit."""

import posixpath
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheplugin import options
from cacheplugin.errors import UsageError
from cacheplugin.options import FLAGS, Options, clean_prefix, load, parse_duration

HOME = {"HOME": "/home/gopher"}

# What the reference says: flag: (variable, field, default).
REFERENCE = {
    "cache-dir": ("GOCACHE_DIR", "cache_dir", "/home/gopher/.cache/go-cache-plugin"),
    "bucket": ("GOCACHE_S3_BUCKET", "bucket", ""),
    "region": ("GOCACHE_S3_REGION", "region", ""),
    "s3-endpoint-url": ("GOCACHE_S3_ENDPOINT_URL", "endpoint_url", ""),
    "s3-path-style": ("GOCACHE_S3_PATH_STYLE", "path_style", False),
    "prefix": ("GOCACHE_KEY_PREFIX", "prefix", ""),
    "min-upload-size": ("GOCACHE_MIN_SIZE", "min_upload_bytes", 0),
    "metrics": ("GOCACHE_METRICS", "metrics", False),
    "c": ("GOCACHE_CONCURRENCY", "fetches_at_once", 32),
    "u": ("GOCACHE_S3_CONCURRENCY", "uploads_at_once", 16),
    "v": ("GOCACHE_VERBOSE", "verbose", False),
    "debug": ("GOCACHE_DEBUG", "debug", 0),
    "read-only": ("GOCACHE_READ_ONLY", "read_only", False),
    "drain-timeout": ("GOCACHE_DRAIN_TIMEOUT", "drain_timeout_s", None),
    "modproxy": ("GOCACHE_MODPROXY", "modproxy", False),
    "modproxy-upstream": ("GOCACHE_MODPROXY_UPSTREAM", "modproxy_upstream", ""),
    "modproxy-max-age": ("GOCACHE_MODPROXY_MAX_AGE", "modproxy_max_age_s", 60.0),
    "sumdb": ("GOCACHE_SUMDB", "sumdb", "sum.golang.org"),
    "nosumdb": ("GOCACHE_NOSUMDB", "nosumdb", ""),
}
MODPROXY = ["modproxy", "modproxy-upstream", "modproxy-max-age", "sumdb", "nosumdb"]

# Two values of each kind of flag, as text and as what it means.
VALUES = {
    "path": [("/x/y", "/x/y"), ("/z/../q/", "/q")],
    "text": [("one", "one"), ("two", "two")],
    "url": [("http://h:1", "http://h:1"), ("https://s", "https://s")],
    "bool": [("true", True), ("false", False)],
    "prefix": [("a//b/", "a/b"), ("/c", "/c")],
    "size": [("100", 100), ("0", 0)],
    "count": [("1", 1), ("1024", 1024)],
    "port": [("1", 1), ("65535", 65535)],
    "address": [(":80", ("127.0.0.1", 80)), ("[::1]:8080", ("::1", 8080))],
    "mask": [("1", 1), ("7", 7)],
    "duration": [("1m30s", 90.0), ("0", 0.0)],
    "amount": [("2kB", 2000), ("1GiB", 1 << 30)],
    "upload": [("off", "off"), ("wait", "wait")],
    "layout": [("bundles", "bundles"), ("both", "both")],
}
# flag: (variable, field, default, values)
TABLE = {row[0]: (row[1], row[2], row[4], VALUES[row[3]]) for row in FLAGS}
VALUED = [row[0] for row in FLAGS if row[3] != "bool"]
BOOLEANS = [row[0] for row in FLAGS if row[3] == "bool"]
VARIABLES = [row[0] for row in FLAGS if row[1]]


def command(flag) -> list:
    """The word that a flag needs beside it, where it is not for every command."""
    return list(getattr(options, "COMMAND_FLAGS", {}).get(flag, ())[:1])


def field(argv, flag, environ=HOME):
    """The value of a flag's field on a command line, and in an environment."""
    words, chosen = load([*command(flag), *argv], environ)
    assert words == command(flag)
    return getattr(chosen, TABLE[flag][1])


def error(argv, environ=HOME) -> str:
    with pytest.raises(UsageError) as caught:
        load(argv, environ)
    text = str(caught.value)
    assert text and "\n" not in text
    return text


def test_flags_of_the_reference():
    """The flags of the reference are there, under their variables and with their defaults."""
    rows = {row[0]: row[1:3] for row in FLAGS}
    for flag, (variable, name, default) in REFERENCE.items():
        assert rows[flag] == (variable, name)
        assert field([], flag) == default


# -- spellings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", TABLE)
@pytest.mark.parametrize("dashes", ["-", "--"])
def test_flag_with_equals_sign(flag, dashes):
    """--flag=value and -flag=value."""
    for text, value in TABLE[flag][3]:
        assert field([f"{dashes}{flag}={text}"], flag) == value


@pytest.mark.parametrize("flag", VALUED)
@pytest.mark.parametrize("dashes", ["-", "--"])
def test_flag_and_value_as_two_words(flag, dashes):
    """--flag value and -flag value."""
    for text, value in TABLE[flag][3]:
        assert field([f"{dashes}{flag}", text], flag) == value


@pytest.mark.parametrize("flag", VARIABLES)
def test_variable(flag):
    """The variable does what the flag does; empty, it counts as unset."""
    variable, _, _, values = TABLE[flag]
    for text, value in values:
        assert field([], flag, {**HOME, variable: text}) == value
    assert field([], flag, {**HOME, variable: ""}) == field([], flag)


@pytest.mark.parametrize("flag", VARIABLES)
def test_flag_beats_variable(flag):
    """Where flag and variable are given, the flag counts."""
    variable, _, _, ((text, value), (other_text, other)) = TABLE[flag]
    assert field([f"--{flag}={text}"], flag, {**HOME, variable: other_text}) == value
    assert field([f"--{flag}={other_text}"], flag, {**HOME, variable: text}) == other


@pytest.mark.parametrize("flag", TABLE)
def test_last_of_two_counts(flag):
    """Of one flag given twice the last counts."""
    (text, value), (other_text, other) = TABLE[flag][3]
    assert field([f"--{flag}={text}", f"-{flag}={other_text}"], flag) == other
    assert field([f"--{flag}={other_text}", f"-{flag}={text}"], flag) == value


@pytest.mark.parametrize("flag", BOOLEANS)
def test_boolean_forms(flag):
    """A boolean alone is true, and takes Go's spellings of both; it never takes the next word."""
    variable, name, _, _ = TABLE[flag]
    variable = variable or "NONE"
    for text in ("1", "t", "T", "true", "TRUE", "True"):
        assert field([f"--{flag}={text}"], flag) is True
        assert field([], flag, {**HOME, variable: text}) is (variable != "NONE")
    for text in ("0", "f", "F", "false", "FALSE", "False"):
        assert field([f"-{flag}={text}"], flag, {**HOME, variable: "1"}) is False
        assert field([], flag, {**HOME, variable: text}) is False
    for dashes in ("-", "--"):
        words, chosen = load([*command(flag), f"{dashes}{flag}", "false"], HOME)
        assert (words, getattr(chosen, name)) == ([*command(flag), "false"], True)


def test_single_dash_is_no_cluster_of_short_flags():
    """-cache-dir=/x is --cache-dir, not -c; -vc is no flag at all."""
    chosen = load(["-cache-dir=/x", "-c", "3", "-v=false"], HOME)[1]
    assert (chosen.cache_dir, chosen.fetches_at_once, chosen.verbose) == ("/x", 3, False)
    for cluster in ("-vc", "-vc4", "-c4", "-u8", "-vu=8"):
        assert cluster.partition("=")[0] in error([cluster])


@pytest.mark.parametrize(
    "short",
    ["cache", "cach-dir", "buck", "b", "reg", "s3", "pre", "m", "metric", "d", "r", "read", ""],
)
def test_no_abbreviations(short):
    """The beginning of a flag's name is no flag."""
    for word in (f"--{short}=1", f"-{short}=1"):
        assert f"{word[:-2]}" in error([word])


def test_flags_before_and_after_words():
    """Flags stand before, between and after the words; after -- all are words."""
    words, chosen = load(["--bucket", "b", "help", "-v", "configure", "-c=2"], HOME)
    assert words == ["help", "configure"]
    assert (chosen.bucket, chosen.verbose, chosen.fetches_at_once) == ("b", True, 2)
    assert load(["-v", "--", "-c", "help"], HOME)[0] == ["-c", "help"]
    assert load(["-"], HOME)[0] == ["-"]


@pytest.mark.parametrize("word", ["-h", "--h", "-help", "--help"])
def test_help_flags(word):
    """Every spelling of help is the word help; --version is version."""
    assert load([word], HOME)[0] == ["help"]
    assert load(["-version"], HOME)[0] == load(["--version"], HOME)[0] == ["version"]


def test_values_that_look_like_flags():
    """The word after a flag that takes a value is its value, whatever it begins with."""
    assert field(["--prefix", "--bucket"], "prefix") == "--bucket"
    assert field(["--prefix=a=b"], "prefix") == "a=b"


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        *((flag, text) for flag in BOOLEANS for text in ("", "yes", "2", "tRUE", " true", "on")),
        *(
            (flag, text)
            for flag in ("c", "u")
            for text in ("", "0", "-1", "1025", "1.5", "0x10", "1_0", " 1", "٣", "9" * 5000, "many")
        ),
        *(("min-upload-size", text) for text in ("", "-1", "1k", "1e3", str(2**63), "9" * 30)),
        *(("debug", text) for text in ("", "8", "-1", "true", "0x1")),
        *(("modproxy-max-age", text) for text in ("", "60", "-1m", "1 m", "1d", "never")),
        *(
            ("drain-timeout", text)
            for text in ("", "90", "-1s", "1h 30m", "1x", "s", ".s", "1.2.3s")
        ),
        *(("s3-endpoint-url", text) for text in ("localhost:9000", "ftp://h", "//h", "s3")),
        *(("cache-dir", text) for text in ("", "a\0b", "\udcff")),
    ],
)
def test_bad_values_name_the_culprit(flag, text):
    """A value that is none is one line that names its flag, or the variable it came from."""
    name = f"-{flag}" if len(flag) == 1 else f"--{flag}"
    word = command(flag)
    assert error([*word, f"{name}={text}"]).startswith(f"{name}: ")
    if flag in VALUED:
        assert error([*word, f"-{flag}", text]).startswith(f"{name}: ")
    variable = TABLE[flag][0]
    if text and variable:
        assert error([], {**HOME, variable: text}).startswith(f"{variable}: ")


@pytest.mark.parametrize("flag", VALUED)
def test_missing_value(flag):
    """A flag at the end that needs a value says so."""
    assert error([f"--{flag}"]) == f"--{flag} needs a value"
    assert error(["-v", f"-{flag}"]) == f"-{flag} needs a value"


@pytest.mark.parametrize(
    "word", ["--nope", "-nope", "--nope=1", "---v", "-x", "--Bucket=b", "--cache_dir"]
)
def test_unknown_flags(word):
    """An unknown flag is named, without its value."""
    text = error([word])
    assert text.startswith(f"unknown flag {word.partition('=')[0]};")


@pytest.mark.parametrize("flag", options.LATER_FLAGS)
def test_flags_of_later_versions(flag):
    """What the Go program has and this one not yet is refused as such, not as a typing error."""
    for argv in ([f"--{flag}=1"], [f"-{flag}", "1"], ["serve", f"--{flag}"]):
        assert error(argv) == f"--{flag} is not supported yet"


def test_one_flag_of_the_go_program_is_left():
    """The reverse proxy."""
    assert options.LATER_FLAGS == ("revproxy",)


@pytest.mark.parametrize("flag", MODPROXY)
def test_flags_of_the_module_proxy_are_for_the_server(flag):
    """Elsewhere the flag is an error, while its variable, which is there for all, is none."""
    text = TABLE[flag][3][0][0]
    for words in ([], ["connect"], ["prune"]):
        assert error([*words, f"--{flag}={text}"]) == f"--{flag} is for serve"
    assert load(["help", f"--{flag}={text}"], HOME)[0] == ["help"]
    for words in ([], ["prune"], ["serve"]):
        chosen = load(words, {**HOME, TABLE[flag][0]: text})[1]
        assert getattr(chosen, TABLE[flag][1]) == TABLE[flag][3][0][1]


def test_texts_of_the_module_proxy_are_taken_as_they_stand():
    """Lists are for the module proxy to read; an empty one beats its variable too."""
    for flag in ("modproxy-upstream", "sumdb", "nosumdb"):
        assert field([f"--{flag}= a,b|c "], flag) == " a,b|c "
        assert field([f"--{flag}="], flag, {**HOME, TABLE[flag][0]: "x"}) == ""
    assert field(["--modproxy-max-age=0"], "modproxy-max-age") == 0.0


@given(
    st.lists(
        st.one_of(
            st.text(st.characters(exclude_categories=["C", "Z"]), max_size=8),
            st.sampled_from(
                [f"--{flag}" for flag in TABLE] + ["-c=", "-v=1", "--", "-", "--=", "help"]
            ),
        ),
        max_size=5,
    )
)
def test_any_command_line_is_options_or_one_line(argv):
    """Whatever is typed, it is options or one clear line, never another exception."""
    try:
        words, chosen = load(argv, HOME)
    except UsageError as problem:
        assert str(problem) and "\n" not in str(problem)
    else:
        assert isinstance(chosen, Options) and set(words) <= {*argv, "help", "version"}


# -- what follows from what ------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["plugin", "http", "modproxy", "revproxy", "sumdb", "expiry"])
def test_flags_of_the_go_program_are_known(flag):
    """Every flag of the Go program is one of ours, or is refused by its name."""
    assert flag in TABLE or flag in options.LATER_FLAGS


def test_debug_implies_verbose_and_verbose_implies_metrics():
    """-v implies --metrics; a non-zero --debug implies -v."""
    for argv in (["--debug=1"], ["--debug=4", "-v=false", "--metrics=false"]):
        chosen = load(argv, HOME)[1]
        assert chosen.verbose and chosen.metrics
    assert field(["-v"], "metrics") is True
    chosen = load(["--debug=0", "--metrics"], HOME)[1]
    assert chosen.metrics and not chosen.verbose


def test_default_cache_directory():
    """XDG_CACHE_HOME, where it is absolute, then ~/.cache; without either, a clear line."""
    default = "go-cache-plugin"
    assert field([], "cache-dir", {"XDG_CACHE_HOME": "/xdg", **HOME}) == f"/xdg/{default}"
    for relative in ("", "cache", "./cache"):
        environ = {"XDG_CACHE_HOME": relative, **HOME}
        assert field([], "cache-dir", environ) == f"/home/gopher/.cache/{default}"
    assert "HOME" in error([], {})
    assert field(["--cache-dir=/x"], "cache-dir", {}) == "/x"


def test_cache_directory_is_absolute(monkeypatch, tmp_path):
    """A relative directory is meant from where the program was started."""
    monkeypatch.chdir(tmp_path)
    assert field(["--cache-dir", "a/../b"], "cache-dir") == f"{tmp_path}/b"


def test_empty_texts():
    """An empty flag of a text says nothing, and beats its variable."""
    for flag in ("bucket", "region", "s3-endpoint-url", "prefix"):
        variable, _, default, ((text, _), _) = TABLE[flag]
        assert field([f"--{flag}="], flag, {**HOME, variable: text}) == default


def test_options_do_not_change():
    """Options are immutable, take only known fields, and can be rebuilt from their dict."""
    chosen = load(["--bucket=b", "-v"], HOME)[1]
    with pytest.raises(AttributeError):
        chosen.bucket = "c"
    with pytest.raises(TypeError, match="nonsense"):
        Options(nonsense=1)
    assert Options(**chosen.as_dict()).as_dict() == chosen.as_dict()
    assert set(chosen.as_dict()) == {row[2] for row in FLAGS}


# -- durations and prefixes as Go has them ---------------------------------------------------------


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
    """Durations as time.ParseDuration reads them (the cases are those of its documentation)."""
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
def test_no_durations(text):
    """What Go refuses is refused, and so is less than nothing or more than a lifetime."""
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
    """A prefix is cleaned as a path; a leading slash stays."""
    assert clean_prefix(text) == prefix


@given(st.text("ab./", max_size=12))
def test_clean_prefix_agrees_with_path_cleaning(text):
    """The same as Python's own path cleaning, but for its two leading slashes and its dot."""
    expected = re.sub("^//+", "/", posixpath.normpath(text))
    assert clean_prefix(text) == ("" if expected == "." else expected)
