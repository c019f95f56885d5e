"""Flags and variables → one immutable ``Options``, checked once. All defaults live in this table.

A flag beats its variable; an empty variable counts as unset. Flags take one or two dashes, as
``--flag=value`` and ``--flag value``; a boolean is ``--flag`` or ``--flag=true|false|1|0|t|f``.
This is on the way to the go command's first answer, so it imports nothing: what a positional word
means is the business of cli.py, which has docopt.
"""

import os

from .errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

# (flag, variable or None, field of Options, kind, default)
FLAGS = (
    ("cache-dir", "GOCACHE_DIR", "cache_dir", "path", None),
    ("bucket", "GOCACHE_S3_BUCKET", "bucket", "text", ""),
    ("region", "GOCACHE_S3_REGION", "region", "text", ""),
    ("s3-endpoint-url", "GOCACHE_S3_ENDPOINT_URL", "endpoint_url", "url", ""),
    ("s3-path-style", "GOCACHE_S3_PATH_STYLE", "path_style", "bool", False),
    ("prefix", "GOCACHE_KEY_PREFIX", "prefix", "prefix", ""),
    ("min-upload-size", "GOCACHE_MIN_SIZE", "min_upload_bytes", "size", 0),
    ("upload", "GOCACHE_UPLOAD", "upload", "upload", "wait"),
    ("drain-timeout", "GOCACHE_DRAIN_TIMEOUT", "drain_timeout_s", "duration", None),
    ("layout", "GOCACHE_LAYOUT", "layout", "layout", "auto"),
    ("scope", "GOCACHE_SCOPE", "scope", "text", ""),
    ("prefetch-limit", "GOCACHE_PREFETCH_LIMIT", "prefetch_limit_bytes", "amount", 4 << 30),
    ("read-only", "GOCACHE_READ_ONLY", "read_only", "bool", False),
    ("expiry", "GOCACHE_EXPIRY", "expiry_s", "duration", 0.0),
    ("max-size", "GOCACHE_MAX_SIZE", "max_size_bytes", "amount", 0),
    ("c", "GOCACHE_CONCURRENCY", "fetches_at_once", "count", 32),
    ("u", "GOCACHE_S3_CONCURRENCY", "uploads_at_once", "count", 16),
    ("metrics", "GOCACHE_METRICS", "metrics", "bool", False),
    ("v", "GOCACHE_VERBOSE", "verbose", "bool", False),
    ("debug", "GOCACHE_DEBUG", "debug", "mask", 0),
    ("plugin", "GOCACHE_PLUGIN", "plugin_port", "port", 0),
    ("http", "GOCACHE_HTTP", "http", "address", None),
    ("allow-other-users", "GOCACHE_ALLOW_OTHER_USERS", "allow_other_users", "bool", False),
    ("client-timeout", "GOCACHE_CLIENT_TIMEOUT", "client_timeout_s", "duration", 600.0),
    ("idle-exit", "GOCACHE_IDLE_EXIT", "idle_exit_s", "duration", 0.0),
    ("stop-timeout", "GOCACHE_STOP_TIMEOUT", "stop_timeout_s", "duration", 60.0),
    ("modproxy", "GOCACHE_MODPROXY", "modproxy", "bool", False),
    ("modproxy-upstream", "GOCACHE_MODPROXY_UPSTREAM", "modproxy_upstream", "text", ""),
    ("modproxy-max-age", "GOCACHE_MODPROXY_MAX_AGE", "modproxy_max_age_s", "duration", 60.0),
    ("sumdb", "GOCACHE_SUMDB", "sumdb", "text", "sum.golang.org"),
    ("nosumdb", "GOCACHE_NOSUMDB", "nosumdb", "text", ""),
    ("min-age", None, "min_age_s", "duration", 3600.0),
    ("dry-run", None, "dry_run", "bool", False),
    ("remote", None, "remote", "bool", False),
    ("json", None, "json", "bool", False),
    ("sha256", None, "sha256", "bool", False),
    ("repair", None, "repair", "bool", False),
    ("timeout", None, "timeout_s", "duration", None),
)

# The flags that are not for every command, and the commands they are for.
COMMAND_FLAGS = {
    "plugin": ("serve",),
    "http": ("serve",),
    "allow-other-users": ("serve",),
    "client-timeout": ("serve",),
    "idle-exit": ("serve",),
    "stop-timeout": ("serve",),
    "modproxy": ("serve",),
    "modproxy-upstream": ("serve",),
    "modproxy-max-age": ("serve",),
    "sumdb": ("serve",),
    "nosumdb": ("serve",),
    "min-age": ("prune",),
    "dry-run": ("prune",),
    "remote": ("prune", "stats"),
    "json": ("prune", "verify", "stats"),
    "sha256": ("verify",),
    "repair": ("verify",),
    "timeout": ("flush",),
}

UPLOAD_MODES = ("wait", "background", "off")
LAYOUTS = ("auto", "bundles", "objects", "both")

# Known to the Go program, and not built here yet: refused by name, so that nobody waits for them.
LATER_FLAGS = ("revproxy",)

DEBUG_BUILD_CACHE = 1
DEBUG_MODULE_PROXY = 2

_BY_FLAG = {row[0]: row for row in FLAGS}
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_RANGES = {"count": (1, 1024), "size": (0, 2**63 - 1), "mask": (0, 7), "port": (1, 65535)}
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


class Options:
    """What a process was asked to do; fields are those named in FLAGS.

    ``cache_dir`` is absolute. ``drain_timeout_s`` is None where close waits without limit, ``http`` is
    (host, port) or None, ``plugin_port`` 0 where none is given.
    """

    __slots__ = tuple(row[2] for row in FLAGS)

    cache_dir: str
    bucket: str
    region: str
    endpoint_url: str
    path_style: bool
    prefix: str
    min_upload_bytes: int
    upload: str
    drain_timeout_s: "float | None"
    layout: str
    scope: str
    prefetch_limit_bytes: int
    read_only: bool
    expiry_s: float
    max_size_bytes: int
    fetches_at_once: int
    uploads_at_once: int
    metrics: bool
    verbose: bool
    debug: int
    plugin_port: int
    http: "tuple[str, int] | None"
    allow_other_users: bool
    client_timeout_s: float
    idle_exit_s: float
    stop_timeout_s: float
    modproxy: bool
    modproxy_upstream: str
    modproxy_max_age_s: float
    sumdb: str
    nosumdb: str
    min_age_s: float
    dry_run: bool
    remote: bool
    json: bool
    sha256: bool
    repair: bool
    timeout_s: "float | None"

    def __init__(self, **fields: "Any") -> None:
        for _, _, field, _, default in FLAGS:
            object.__setattr__(self, field, fields.pop(field, default))
        if fields:
            raise TypeError(f"no such option: {', '.join(fields)}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("options do not change")

    def replaced(self, **fields: "Any") -> "Options":
        """A copy with other values for ``fields``."""
        return Options(**{**self.as_dict(), **fields})

    def as_dict(self) -> "dict[str, Any]":
        return {field: getattr(self, field) for field in self.__slots__}


def load(argv: "Sequence[str]", environ: "Mapping[str, str]") -> "tuple[list[str], Options]":
    """(positional words, Options) of a command line without its program name.

    Raises UsageError, with the flag or variable at fault in its text.
    """
    words, texts = split(argv)
    fields = {}
    for flag, variable, field, kind, _ in FLAGS:
        text = texts.get(flag)
        origin = f"--{flag}" if len(flag) > 1 else f"-{flag}"
        if text is None:
            text, origin = environ.get(variable) or None if variable else None, variable
        elif flag in COMMAND_FLAGS and (words or [""])[0] not in (*COMMAND_FLAGS[flag], "help"):
            raise UsageError(f"{origin} is for {', '.join(COMMAND_FLAGS[flag])}")
        if text is not None:
            fields[field] = _value(kind, text, origin)
    if "cache_dir" not in fields:
        fields["cache_dir"] = _default_cache_dir(environ)
    if fields.get("debug"):
        fields["verbose"] = True
    if fields.get("verbose"):
        fields["metrics"] = True
    return words, Options(**fields)


def split(argv: "Sequence[str]") -> "tuple[list[str], dict[str, str]]":
    """(positional words, {flag: text}); flags may stand before and after the words."""
    words, texts = [], {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            words += rest
            break
        if word[:1] != "-" or word == "-":
            words.append(word)
            continue
        name, has_value, text = word[2 if word[:2] == "--" else 1 :].partition("=")
        if name in ("h", "help", "version"):
            words.append("version" if name == "version" else "help")
            continue
        row = _BY_FLAG.get(name)
        if row is None:
            if name in LATER_FLAGS:
                raise UsageError(f"--{name} is not supported yet")
            raise UsageError(f"unknown flag {word.partition('=')[0]}; see 'go-cache-plugin help'")
        if not has_value:
            if row[3] == "bool":
                text = "true"
            elif rest:
                text = rest.pop(0)
            else:
                raise UsageError(f"{word} needs a value")
        texts[name] = text
    return words, texts


def _value(kind: str, text: str, origin: str) -> "Any":
    if kind == "bool":
        if text in _TRUE:
            return True
        if text in _FALSE:
            return False
        raise UsageError(f"{origin}: {text!r} is not a boolean (true, false, 1, 0, t, f)")
    if kind in _RANGES:
        least, most = _RANGES[kind]
        if text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most:
            return int(text)
        raise UsageError(f"{origin}: {text!r} is not a whole number from {least} to {most}")
    if kind == "duration":
        try:
            return parse_duration(text)
        except ValueError:
            raise UsageError(f"{origin}: {text!r} is not a duration such as 90s or 1h30m") from None
    if kind == "amount":
        try:
            return parse_amount(text)
        except ValueError:
            raise UsageError(f"{origin}: {text!r} is not a size such as 500M or 20GiB") from None
    if kind in ("upload", "layout"):
        words = UPLOAD_MODES if kind == "upload" else LAYOUTS
        if text not in words:
            raise UsageError(f"{origin}: {text!r} is not one of {', '.join(words)}")
        return text
    if kind == "address":
        return parse_address(text, origin)
    if kind == "url":
        if text and not text.startswith(("http://", "https://")):
            raise UsageError(f"{origin}: {text!r} is not an http:// or https:// URL")
        return text
    if kind == "path":
        return _cache_dir(text, origin)
    if kind == "prefix":
        return clean_prefix(text)
    return text


def parse_duration(text: str) -> float:
    """Seconds of a duration as Go's time.ParseDuration writes it, not negative; else ValueError."""
    units = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
    total, rest = 0.0, text.removeprefix("+")
    if not rest:
        raise ValueError(text)
    if rest == "0":
        return 0.0
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789."))
        unit = len(rest) - digits - len(rest[digits:].lstrip("hmsuµμn"))
        number, name, rest = rest[:digits], rest[digits : digits + unit], rest[digits + unit :]
        if name not in units or number in ("", "."):
            raise ValueError(text)
        total += float(number) * units[name]
    if total > 1e9:
        raise ValueError(text)
    return total


def parse_amount(text: str) -> int:
    """Bytes of a whole number with or without a unit: 500M, 20GB, 20GiB (K to T); else ValueError."""
    number = text.rstrip("KMGTkiBb")
    unit = text[len(number) :].upper().removesuffix("B")
    power = ("", "K", "M", "G", "T").index(unit.removesuffix("I"))
    if not (number.isascii() and number.isdigit()) or len(number) > 15 or unit == "I":
        raise ValueError(text)
    return int(number) * (1024 if unit.endswith("I") else 1000) ** power


def parse_address(text: str, origin: str) -> "tuple[str, int]":
    """(host, port) of ``[host]:port``; an empty host is the loopback. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host
    if not colon or (":" in host and bare == host) or not (port.isascii() and port.isdigit()):
        raise UsageError(f"{origin}: {text!r} is not an address such as :8080 or 127.0.0.1:8080")
    return bare or "127.0.0.1", _value("port", port, origin)


def is_given(flag: str, argv: "Sequence[str]", environ: "Mapping[str, str]") -> bool:
    """Whether a command line that loads, or the environment, has something to say about a flag."""
    return flag in split(argv)[1] or bool(environ.get(_BY_FLAG[flag][1]))


def clean_prefix(text: str) -> str:
    """A key prefix cleaned as Go's path.Join does: ``a//b/`` is ``a/b``; a leading slash stays."""
    parts = []
    for part in text.split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part == ".." and text.startswith("/"):
            continue
        elif part not in ("", "."):
            parts.append(part)
    return ("/" if text.startswith("/") else "") + "/".join(parts)


def key_prefix(prefix: str) -> str:
    """How the keys below a clean prefix begin."""
    return prefix if prefix in ("", "/") else f"{prefix}/"


def _default_cache_dir(environ):
    base = environ.get("XDG_CACHE_HOME")
    if not base or not os.path.isabs(base):
        home = environ.get("HOME")
        if not home:
            raise UsageError(
                "neither --cache-dir, GOCACHE_DIR nor HOME says where to keep the cache"
            )
        base = os.path.join(home, ".cache")
    return _cache_dir(os.path.join(base, "go-cache-plugin"), "the default cache directory")


def _cache_dir(text, origin):
    if not text:
        raise UsageError(f"{origin}: no path given")
    try:
        text.encode("utf-8")
        if "\0" in text:
            raise ValueError
    except ValueError:
        # The go command reads paths as JSON, which has no way to spell this one.
        raise UsageError(f"{origin}: {text!r} is not valid UTF-8") from None
    return os.path.abspath(text)
