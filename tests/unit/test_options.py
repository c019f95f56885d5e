"""options.py: flags and variables, and errors that name what is wrong."""

import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheplugin import options
from cacheplugin.errors import UsageError
from cacheplugin.options import FLAGS, Options, load

HOME = {"HOME": "/home/gopher"}

# The options of the Go program that this one shares: flag: (variable, field, default).
GO_OPTIONS = {
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

# Two values of each kind of flag, as (text, value).
VALUES = {
    "path": [("/x/y", "/x/y"), ("/z/../q/", "/q")],
    "name": [("one", "one"), ("two", "two")],
    "text": [("a b c", "a b c"), ("-", "-")],
    "proxies": [("http://a,off", "http://a,off"), ("off", "off")],
    "databases": [("sum.a", "sum.a"), ("off", "off")],
    "patterns": [("a/*,b", "a/*,b"), ("c", "c")],
    "url": [("http://h:1", "http://h:1"), ("https://s", "https://s")],
    "bool": [("true", True), ("false", False)],
    "prefix": [("a//b/", "a/b"), ("/c", "/c")],
    "bytes": [("100", 100), ("0", 0)],
    "count": [("1", 1), ("1024", 1024)],
    "port": [("1", 1), ("65535", 65535)],
    "address": [(":80", ("127.0.0.1", 80)), ("[::1]:8080", ("::1", 8080))],
    "mask": [("1", 1), ("7", 7)],
    "time": [("1m30s", 90.0), ("0", 0.0)],
    "size": [("2kB", 2000), ("1GiB", 1 << 30)],
    "upload": [("off", "off"), ("wait", "wait")],
    "layout": [("bundles", "bundles"), ("both", "both")],
    "sse": [("AES256", "AES256"), ("aws:kms:dsse", "aws:kms:dsse")],
}
BY_NAME = {flag.name: flag for flag in FLAGS}
WITH_VALUE = [flag.name for flag in FLAGS if flag.kind != "bool"]
BOOLEANS = [flag.name for flag in FLAGS if flag.kind == "bool"]
WITH_VARIABLE = [flag.name for flag in FLAGS if flag.variable]


def values(name) -> list:
    """Two values of a flag, as (text, value)."""
    return VALUES[BY_NAME[name].kind]


def command(name) -> list:
    """A command that takes the flag, as the words of a command line; none where all do."""
    return list(BY_NAME[name].commands[:1])


def field(argv, name, environ=HOME):
    """The value of a flag's field, for a command line and an environment."""
    words, chosen = load([*command(name), *argv], environ)
    assert words == command(name)
    return getattr(chosen, BY_NAME[name].field)


def error(argv, environ=HOME) -> str:
    with pytest.raises(UsageError) as caught:
        load(argv, environ)
    text = str(caught.value)
    assert text and "\n" not in text
    return text


def test_options_of_the_go_program():
    """The flags of the Go program exist, with the same variables and defaults."""
    for name, (variable, field_name, default) in GO_OPTIONS.items():
        assert (BY_NAME[name].variable, BY_NAME[name].field) == (variable, field_name)
        assert field([], name) == default


def test_annotations_of_options_match_the_table():
    """Options is annotated with the fields of the table, and with the types of their values."""
    hints = typing.get_type_hints(Options)
    assert list(hints) == [flag.field for flag in FLAGS]
    for flag in FLAGS:
        alternatives = typing.get_args(hints[flag.field]) or (hints[flag.field],)
        types = [typing.get_origin(hint) or hint for hint in alternatives]
        assert all(type(value) in types for _, value in values(flag.name))
        if flag.name != "cache-dir":  # its default depends on the environment
            assert type(flag.default) in types
            assert (type(None) in types) == (flag.default is None)


# -- spellings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", BY_NAME)
@pytest.mark.parametrize("dashes", ["-", "--"])
def test_flag_with_equals_sign(flag, dashes):
    """--flag=value and -flag=value."""
    for text, value in values(flag):
        assert field([f"{dashes}{flag}={text}"], flag) == value


@pytest.mark.parametrize("flag", WITH_VALUE)
@pytest.mark.parametrize("dashes", ["-", "--"])
def test_flag_and_value_as_two_words(flag, dashes):
    """--flag value and -flag value."""
    for text, value in values(flag):
        assert field([f"{dashes}{flag}", text], flag) == value


@pytest.mark.parametrize("flag", WITH_VARIABLE)
def test_variable(flag):
    """A variable has the effect of its flag; an empty variable counts as unset."""
    variable = BY_NAME[flag].variable
    for text, value in values(flag):
        assert field([], flag, {**HOME, variable: text}) == value
    assert field([], flag, {**HOME, variable: ""}) == field([], flag)


@pytest.mark.parametrize("flag", WITH_VARIABLE)
def test_flag_beats_variable(flag):
    """If both flag and variable are set, the flag counts."""
    variable = BY_NAME[flag].variable
    (text, value), (other_text, other) = values(flag)
    assert field([f"--{flag}={text}"], flag, {**HOME, variable: other_text}) == value
    assert field([f"--{flag}={other_text}"], flag, {**HOME, variable: text}) == other


@pytest.mark.parametrize("flag", BY_NAME)
def test_last_of_two_counts(flag):
    """If a flag is set twice, the last one counts."""
    (text, value), (other_text, other) = values(flag)
    assert field([f"--{flag}={text}", f"-{flag}={other_text}"], flag) == other
    assert field([f"--{flag}={other_text}", f"-{flag}={text}"], flag) == value


@pytest.mark.parametrize("flag", BOOLEANS)
def test_boolean_forms(flag):
    """A boolean without value is true; with =, it takes Go's spellings of true and false.

    It never takes the next word as its value.
    """
    name, variable = BY_NAME[flag].field, BY_NAME[flag].variable or "NONE"
    for text in ("1", "t", "T", "true", "TRUE", "True"):
        assert field([f"--{flag}={text}"], flag) is True
        assert field([], flag, {**HOME, variable: text}) is (variable != "NONE")
    for text in ("0", "f", "F", "false", "FALSE", "False"):
        assert field([f"-{flag}={text}"], flag, {**HOME, variable: "1"}) is False
        assert field([], flag, {**HOME, variable: text}) is False
    for dashes in ("-", "--"):
        words, chosen = load([*command(flag), f"{dashes}{flag}", "false"], HOME)
        assert (words, getattr(chosen, name)) == ([*command(flag), "false"], True)


def test_short_flags_do_not_combine():
    """-cache-dir=/x is --cache-dir, not -c; -vc is an unknown flag."""
    chosen = load(["-cache-dir=/x", "-c", "3", "-v=false"], HOME)[1]
    assert (chosen.cache_dir, chosen.fetches_at_once, chosen.verbose) == ("/x", 3, False)
    for cluster in ("-vc", "-vc4", "-c4", "-u8", "-vu=8"):
        assert cluster.partition("=")[0] in error([cluster])


@pytest.mark.parametrize(
    "short",
    ["cache", "cach-dir", "buck", "b", "reg", "s3", "pre", "m", "metric", "d", "r", "read", ""],
)
def test_no_abbreviations(short):
    """An abbreviation of a flag is an unknown flag."""
    for word in (f"--{short}=1", f"-{short}=1"):
        assert f"{word[:-2]}" in error([word])


def test_flags_before_and_after_words():
    """Flags may stand before, between and after words; everything after -- is a word."""
    words, chosen = load(["--bucket", "b", "help", "-v", "configure", "-c=2"], HOME)
    assert words == ["help", "configure"]
    assert (chosen.bucket, chosen.verbose, chosen.fetches_at_once) == ("b", True, 2)
    assert load(["-v", "--", "-c", "help"], HOME)[0] == ["-c", "help"]
    assert load(["-"], HOME)[0] == ["-"]


@pytest.mark.parametrize("word", ["-h", "--h", "-help", "--help"])
def test_help_flags(word):
    """Every spelling of --help counts as the word help, and --version as the word version."""
    assert load([word], HOME)[0] == ["help"]
    assert load(["-version"], HOME)[0] == load(["--version"], HOME)[0] == ["version"]


def test_values_that_look_like_flags():
    """The word after a flag with a value is its value, also if it begins with a dash."""
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
            for text in ("", "-", "1.5", "0x", "1__0", "1_", " 1", "٣", "9" * 5000, "many")
        ),
        *(("min-upload-size", text) for text in ("", "08", "1k", "1e3", str(2**63), "9" * 30)),
        *(("debug", text) for text in ("", "0b2", "--1", "true")),
        *(("modproxy-max-age", text) for text in ("", "60", "-", "1 m", "1d", "never")),
        *(
            ("drain-timeout", text)
            for text in ("", "90", "-1", "1h 30m", "1x", "s", ".s", "1.2.3s")
        ),
        *(("s3-endpoint-url", text) for text in ("localhost:9000", "ftp://h", "//h", "s3")),
        *(("s3-sse", text) for text in ("aes256", "kms", "true", " AES256")),
        *(("cache-dir", text) for text in ("", "a\0b", "\udcff")),
    ],
)
def test_errors_of_values_name_flag_or_variable(flag, text):
    """The error about a wrong value is one line that begins with the flag or variable."""
    name = f"-{flag}" if len(flag) == 1 else f"--{flag}"
    word = command(flag)
    assert error([*word, f"{name}={text}"]).startswith(f"{name}: ")
    if flag in WITH_VALUE:
        assert error([*word, f"-{flag}", text]).startswith(f"{name}: ")
    variable = BY_NAME[flag].variable
    if text and variable:
        assert error([], {**HOME, variable: text}).startswith(f"{variable}: ")


@pytest.mark.parametrize("flag", WITH_VALUE)
def test_missing_value(flag):
    """A flag that needs a value, as the last word, is an error that names it."""
    assert error([f"--{flag}"]) == f"--{flag} needs a value"
    assert error(["-v", f"-{flag}"]) == f"-{flag} needs a value"


@pytest.mark.parametrize(
    "word", ["--nope", "-nope", "--nope=1", "---v", "-x", "--Bucket=b", "--cache_dir"]
)
def test_unknown_flags(word):
    """The error about an unknown flag names it without its value."""
    text = error([word])
    assert text.startswith(f"unknown flag {word.partition('=')[0]};")


@pytest.mark.parametrize("flag", options.LATER_FLAGS)
def test_flags_of_later_versions(flag):
    """A flag that only the Go program has gets an error of its own, not "unknown flag"."""
    for argv in ([f"--{flag}=1"], [f"-{flag}", "1"], ["serve", f"--{flag}"]):
        assert error(argv) == f"--{flag} is not supported yet"


def test_only_the_reverse_proxy_is_missing():
    assert options.LATER_FLAGS == ("revproxy",)


def test_lists_of_the_module_proxy_are_not_parsed():
    """Options keep the text of a list as it is; an empty flag beats its variable too."""
    for flag in ("modproxy-upstream", "sumdb", "nosumdb"):
        assert field([f"--{flag}= a,b|c "], flag) == " a,b|c "
        assert field([f"--{flag}="], flag, {**HOME, BY_NAME[flag].variable: "x"}) == ""
    assert field(["--modproxy-max-age=0"], "modproxy-max-age") == 0.0


@given(
    st.lists(
        st.one_of(
            st.text(st.characters(exclude_categories=["C", "Z"]), max_size=8),
            st.sampled_from(
                [f"--{flag}" for flag in BY_NAME] + ["-c=", "-v=1", "--", "-", "--=", "help"]
            ),
        ),
        max_size=5,
    )
)
def test_any_command_line_is_options_or_one_line(argv):
    """Any command line gives options or a UsageError of one line, never another exception."""
    try:
        words, chosen = load(argv, HOME)
    except UsageError as problem:
        assert str(problem) and "\n" not in str(problem)
    else:
        assert isinstance(chosen, Options) and set(words) <= {*argv, "help", "version"}


# -- options that depend on others -----------------------------------------------------------------


@pytest.mark.parametrize("flag", ["plugin", "http", "modproxy", "revproxy", "sumdb", "expiry"])
def test_flags_of_the_go_program_are_known(flag):
    """Every flag of the Go program is supported, or has the error "not supported yet"."""
    assert flag in BY_NAME or flag in options.LATER_FLAGS


def test_debug_implies_verbose_and_verbose_implies_metrics():
    """-v implies --metrics, and --debug with another value than 0 implies -v."""
    for argv in (["--debug=1"], ["--debug=4", "-v=false", "--metrics=false"]):
        chosen = load(argv, HOME)[1]
        assert chosen.verbose and chosen.metrics
    assert field(["-v"], "metrics") is True
    chosen = load(["--debug=0", "--metrics"], HOME)[1]
    assert chosen.metrics and not chosen.verbose


def test_default_cache_directory():
    """The default is below XDG_CACHE_HOME if that is absolute, else below ~/.cache.

    Without HOME it is an error that names HOME.
    """
    default = "go-cache-plugin"
    assert field([], "cache-dir", {"XDG_CACHE_HOME": "/xdg", **HOME}) == f"/xdg/{default}"
    for relative in ("", "cache", "./cache"):
        environ = {"XDG_CACHE_HOME": relative, **HOME}
        assert field([], "cache-dir", environ) == f"/home/gopher/.cache/{default}"
    assert "HOME" in error([], {})
    assert field(["--cache-dir=/x"], "cache-dir", {}) == "/x"


def test_cache_directory_is_absolute(monkeypatch, tmp_path):
    """A relative directory is relative to the working directory at the start."""
    monkeypatch.chdir(tmp_path)
    assert field(["--cache-dir", "a/../b"], "cache-dir") == f"{tmp_path}/b"


def test_empty_texts():
    """An empty text sets the default, and beats the variable."""
    for flag in ("bucket", "region", "s3-endpoint-url", "prefix"):
        variable, default = BY_NAME[flag].variable, BY_NAME[flag].default
        text = values(flag)[0][0]
        assert field([f"--{flag}="], flag, {**HOME, variable: text}) == default


def test_options_are_immutable():
    """Options cannot be changed, take only known fields, and can be rebuilt from as_dict."""
    chosen = load(["--bucket=b", "-v"], HOME)[1]
    with pytest.raises(AttributeError):
        chosen.bucket = "c"
    with pytest.raises(TypeError, match="nonsense"):
        Options(nonsense=1)
    assert Options(**chosen.as_dict()).as_dict() == chosen.as_dict()
    assert set(chosen.as_dict()) == {flag.field for flag in FLAGS}
