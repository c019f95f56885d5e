"""Turns flags and environment variables into one immutable ``Options``, and checks them.

FLAGS is the one list of all options and their defaults. A flag beats its variable; an empty
variable counts as unset. Flags take one or two dashes, as ``--flag=value`` or ``--flag value``; a
boolean is ``--flag`` or ``--flag=true|false|1|0|t|f``.

The go command waits while this module is imported, so it imports nothing heavy. Positional words
are left to cli.py, which has docopt; the help texts are in helptext.py; the values of options that
few command lines have are parsed in option_values.py.
"""

import os

from .errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any


class Flag:
    """One option: its flag without dashes, its variable, its field of Options, and its default.

    ``variable`` is None for an option without one. ``kind`` is a key of FORMATS in
    option_values.py. ``commands`` are the only commands that take the flag; empty: every command
    takes it. A plain class, because a named tuple would cost an import.
    """

    __slots__ = ("commands", "default", "field", "kind", "name", "variable")

    def __init__(
        self,
        name: str,
        variable: "str | None",
        field: str,
        kind: str,
        default: "Any",
        commands: "tuple[str, ...]" = (),
    ) -> None:
        self.name = name
        self.variable = variable
        self.field = field
        self.kind = kind
        self.default = default
        self.commands = commands

    @property
    def spelling(self) -> str:
        """The flag with its dashes."""
        return f"--{self.name}" if len(self.name) > 1 else f"-{self.name}"


_SERVE = ("serve",)
_ENDS = ("serve", "connect")

FLAGS = (
    Flag("cache-dir", "GOCACHE_DIR", "cache_dir", "path", None),
    Flag("bucket", "GOCACHE_S3_BUCKET", "bucket", "name", ""),
    Flag("region", "GOCACHE_S3_REGION", "region", "name", ""),
    Flag("s3-endpoint-url", "GOCACHE_S3_ENDPOINT_URL", "endpoint_url", "url", ""),
    Flag("s3-path-style", "GOCACHE_S3_PATH_STYLE", "path_style", "bool", False),
    Flag("s3-profile", "GOCACHE_S3_PROFILE", "s3_profile", "name", ""),
    Flag("s3-sse", "GOCACHE_S3_SSE", "s3_sse", "sse", ""),
    Flag("s3-sse-kms-key-id", "GOCACHE_S3_SSE_KMS_KEY_ID", "s3_sse_kms_key_id", "name", ""),
    Flag("s3-requester-pays", "GOCACHE_S3_REQUESTER_PAYS", "s3_requester_pays", "bool", False),
    Flag("prefix", "GOCACHE_KEY_PREFIX", "prefix", "prefix", ""),
    Flag("min-upload-size", "GOCACHE_MIN_SIZE", "min_upload_bytes", "bytes", 0),
    Flag("upload", "GOCACHE_UPLOAD", "upload", "upload", "wait"),
    Flag("drain-timeout", "GOCACHE_DRAIN_TIMEOUT", "drain_timeout_s", "time", None),
    Flag("layout", "GOCACHE_LAYOUT", "layout", "layout", "auto"),
    Flag("scope", "GOCACHE_SCOPE", "scope", "text", ""),
    Flag("prefetch-limit", "GOCACHE_PREFETCH_LIMIT", "prefetch_limit_bytes", "size", 4 << 30),
    Flag("read-only", "GOCACHE_READ_ONLY", "read_only", "bool", False),
    Flag("expiry", "GOCACHE_EXPIRY", "expiry_s", "time", 0.0),
    Flag("max-size", "GOCACHE_MAX_SIZE", "max_size_bytes", "size", 0),
    Flag("c", "GOCACHE_CONCURRENCY", "fetches_at_once", "count", 32),
    Flag("u", "GOCACHE_S3_CONCURRENCY", "uploads_at_once", "count", 16),
    Flag("metrics", "GOCACHE_METRICS", "metrics", "bool", False),
    Flag("v", "GOCACHE_VERBOSE", "verbose", "bool", False),
    Flag("debug", "GOCACHE_DEBUG", "debug", "mask", 0),
    Flag("plugin", "GOCACHE_PLUGIN", "plugin_port", "port", 0, _SERVE),
    Flag("http", "GOCACHE_HTTP", "http", "address", None, _SERVE),
    Flag(
        "allow-other-users", "GOCACHE_ALLOW_OTHER_USERS", "allow_other_users", "bool", False, _ENDS
    ),
    Flag("client-timeout", "GOCACHE_CLIENT_TIMEOUT", "client_timeout_s", "time", 600.0, _SERVE),
    Flag("idle-exit", "GOCACHE_IDLE_EXIT", "idle_exit_s", "time", 0.0, _SERVE),
    Flag("stop-timeout", "GOCACHE_STOP_TIMEOUT", "stop_timeout_s", "time", 60.0, _SERVE),
    Flag("modproxy", "GOCACHE_MODPROXY", "modproxy", "bool", False, _SERVE),
    Flag(
        "modproxy-upstream", "GOCACHE_MODPROXY_UPSTREAM", "modproxy_upstream", "proxies", "", _SERVE
    ),
    Flag(
        "modproxy-max-age",
        "GOCACHE_MODPROXY_MAX_AGE",
        "modproxy_max_age_s",
        "time",
        60.0,
        _SERVE,
    ),
    Flag("sumdb", "GOCACHE_SUMDB", "sumdb", "databases", "sum.golang.org", _SERVE),
    Flag("nosumdb", "GOCACHE_NOSUMDB", "nosumdb", "patterns", "", _SERVE),
    Flag("min-age", None, "min_age_s", "time", 3600.0, ("prune",)),
    Flag("dry-run", None, "dry_run", "bool", False, ("prune",)),
    Flag("remote", None, "remote", "bool", False, ("prune", "stats")),
    Flag("json", None, "json", "bool", False, ("prune", "verify", "stats")),
    Flag("sha256", None, "sha256", "bool", False, ("verify",)),
    Flag("repair", None, "repair", "bool", False, ("verify",)),
    Flag("timeout", None, "timeout_s", "time", None, ("flush",)),
)

# Flags of the Go program that this one does not have yet. They get an error of their own.
LATER_FLAGS = ("revproxy",)

BEGINNING = "GOCACHE_"  # of the names of this program's variables

# Credentials for the bucket alone. They are no options: every user can read a command line, and
# Options are written to files and printed. remote/ reads them from the environment.
SECRET_VARIABLES = (
    "GOCACHE_S3_ACCESS_KEY_ID",
    "GOCACHE_S3_SECRET_ACCESS_KEY",
    "GOCACHE_S3_SESSION_TOKEN",
)

# The bits of --debug.
DEBUG_BUILD_CACHE = 1
DEBUG_MODULE_PROXY = 2

_BY_NAME = {flag.name: flag for flag in FLAGS}
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


class Options:
    """The checked options of a process. Immutable; the fields and defaults are those of FLAGS."""

    __slots__ = tuple(flag.field for flag in FLAGS)

    cache_dir: str  # absolute
    bucket: str
    region: str
    endpoint_url: str
    path_style: bool
    s3_profile: str  # "": AWS_PROFILE or the default profile
    s3_sse: str  # "" or one of SSE_ALGORITHMS of option_values.py
    s3_sse_kms_key_id: str
    s3_requester_pays: bool
    prefix: str  # as clean_prefix returns it
    min_upload_bytes: int
    upload: str  # one of UPLOAD_MODES of option_values.py
    drain_timeout_s: "float | None"  # None: no limit
    layout: str  # one of LAYOUTS of option_values.py
    scope: str
    prefetch_limit_bytes: int
    read_only: bool
    expiry_s: float  # 0: nothing expires
    max_size_bytes: int  # 0: no limit
    fetches_at_once: int
    uploads_at_once: int
    metrics: bool
    verbose: bool
    debug: int  # a sum of DEBUG_ bits
    plugin_port: int  # 0: none
    http: "tuple[str, int] | None"  # host, port
    allow_other_users: bool
    client_timeout_s: float
    idle_exit_s: float  # 0: never
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
    timeout_s: "float | None"  # None: no limit

    def __init__(self, **fields: "Any") -> None:
        for flag in FLAGS:
            object.__setattr__(self, flag.field, fields.pop(flag.field, flag.default))
        if fields:
            raise TypeError(f"no such option: {', '.join(fields)}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("options are immutable")

    def replaced(self, **fields: "Any") -> "Options":
        """A copy with other values for ``fields``."""
        return Options(**{**self.as_dict(), **fields})

    def as_dict(self) -> "dict[str, Any]":
        """{field: value}, which ``Options(**fields)`` takes."""
        return {field: getattr(self, field) for field in self.__slots__}


def load(argv: "Sequence[str]", environ: "Mapping[str, str]") -> "tuple[list[str], Options]":
    """(positional words, Options) of a command line without its program name.

    Raises UsageError, whose text names the flag or variable that is wrong.
    """
    words, texts = split(argv)
    fields: dict[str, Any] = {}
    for flag in FLAGS:
        text = texts.get(flag.name)
        if text is not None:
            if flag.commands and (words or [""])[0] not in (*flag.commands, "help"):
                raise UsageError(f"{flag.spelling} works only with {', '.join(flag.commands)}")
            value = _parse(flag.kind, text, flag.spelling)
        elif flag.variable and environ.get(flag.variable):
            value = _parse(flag.kind, environ[flag.variable], flag.variable)
        else:
            continue
        if value is not None:
            fields[flag.field] = value
    if "cache_dir" not in fields:
        fields["cache_dir"] = _default_cache_dir(environ)
    _settle(fields)
    return words, Options(**fields)


def _settle(fields: "dict[str, Any]") -> None:
    """Apply what one option means for another. Raises UsageError if two contradict each other."""
    bucket = fields.get("bucket", "")
    if "/" in bucket or ":" in bucket:
        from .option_values import take_apart

        fields["bucket"], prefix = take_apart(bucket)
        prefix = clean_prefix(prefix)
        other = fields.get("prefix")
        if prefix and other and other != prefix:
            raise UsageError(f"--bucket={bucket} and --prefix={other} contradict each other")
        fields["prefix"] = other or prefix
    if fields.get("s3_sse_kms_key_id") and not fields.get("s3_sse", "").startswith("aws:kms"):
        if fields.get("s3_sse"):
            raise UsageError(f"--s3-sse-kms-key-id: --s3-sse={fields['s3_sse']} takes no key id")
        fields["s3_sse"] = "aws:kms"
    if fields.get("debug"):
        fields["verbose"] = True
    if fields.get("verbose"):
        fields["metrics"] = True


def unknown_variables(environ: "Mapping[str, str]") -> "list[str]":
    """The names in ``environ`` that begin as this program's variables do, but are none of them."""
    names = [name for name in environ if name.startswith(BEGINNING) and environ[name]]
    if names:
        known = {*SECRET_VARIABLES, "GOCACHE_REVPROXY", *(flag.variable for flag in FLAGS)}
        names = [name for name in names if name not in known]
    return names


def split(argv: "Sequence[str]") -> "tuple[list[str], dict[str, str]]":
    """(positional words, {flag name: text}); flags may stand before and after the words."""
    words: list[str] = []
    texts: dict[str, str] = {}
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
        flag = _BY_NAME.get(name)
        if flag is None:
            if name in LATER_FLAGS:
                raise UsageError(f"--{name} is not supported yet")
            raise UsageError(f"unknown flag {word.partition('=')[0]}; see 'go-cache-plugin help'")
        if not has_value:
            if flag.kind == "bool":
                text = "true"
            elif rest:
                text = rest.pop(0)
            else:
                raise UsageError(f"{word} needs a value")
        texts[name] = text
    return words, texts


def is_given(name: str, argv: "Sequence[str]", environ: "Mapping[str, str]") -> bool:
    """Whether a flag or its variable is set. ``argv`` must be valid: ``load`` accepts it."""
    variable = _BY_NAME[name].variable
    return name in split(argv)[1] or bool(variable and environ.get(variable))


# -- values ----------------------------------------------------------------------------------------


def _parse(kind: str, text: str, origin: str) -> "Any":
    """The value of a text; None stands for the default.

    Raises UsageError, with ``origin``, a flag or variable, in its text.
    """
    parse = _COMMON_KINDS.get(kind)
    try:
        if parse is not None:
            return parse(text)
        from .option_values import PARSERS

        return PARSERS[kind](text)
    except ValueError:
        from .option_values import FORMATS

        raise UsageError(f"{origin}: {text!r} is not {FORMATS[kind]}") from None


def _boolean(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(text)


def _path(text: str) -> str:
    """An absolute path. Only UTF-8, because the go command reads paths as JSON."""
    if not text or "\0" in text:
        raise ValueError(text)
    text.encode("utf-8")  # raises UnicodeEncodeError, which is a ValueError
    return os.path.abspath(text)


def _url(text: str) -> str:
    if text and not text.startswith(("http://", "https://")):
        raise ValueError(text)
    return text


def clean_prefix(text: str) -> str:
    """A key prefix cleaned as Go's path.Join does: ``a//b/`` is ``a/b``; a leading slash stays."""
    parts: list[str] = []
    for part in text.split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part == ".." and text.startswith("/"):
            continue
        elif part not in ("", "."):
            parts.append(part)
    return ("/" if text.startswith("/") else "") + "/".join(parts)


def key_prefix(prefix: str) -> str:
    """What every key under a prefix begins with. ``prefix`` is what ``clean_prefix`` returned."""
    return prefix if prefix in ("", "/") else f"{prefix}/"


def _default_cache_dir(environ: "Mapping[str, str]") -> str:
    base = environ.get("XDG_CACHE_HOME")
    if not base or not os.path.isabs(base):
        home = environ.get("HOME")
        if not home:
            raise UsageError("no cache directory: set --cache-dir, GOCACHE_DIR or HOME")
        base = os.path.join(home, ".cache")
    path = os.path.join(base, "go-cache-plugin")
    return str(_parse("path", path, "the default cache directory"))


# The kinds of options that most command lines have. The other kinds are in option_values.py, which
# is imported for them alone.
_COMMON_KINDS: "dict[str, Callable[[str], Any]]" = {
    "path": _path,
    "name": str,
    "text": str,
    "bool": _boolean,
    "url": _url,
    "prefix": clean_prefix,
}
