"""The kinds of option values that few command lines have, and what the values of each kind are.

Numbers are written as in the Go program: like integer literals of Go, with a sign, a prefix for the
base (``0x400``, ``0b11``, ``0o17``, ``017``) and underscores between digits (``1_000``). A negative
size or duration means none, which is 0.
"""

from .errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

UPLOAD_MODES = ("wait", "background", "off")
LAYOUTS = ("auto", "bundles", "objects", "both")
SSE_ALGORITHMS = ("AES256", "aws:kms", "aws:kms:dsse")

_MOST_AT_ONCE = 1024
_LONGEST_S = 1e9  # sums of a time and a duration must stay valid times
_LONGEST_OF_GO_S = 2**63 / 1e9


def parse_integer(text: str) -> int:
    """A whole number of 64 bits, as Go's ``strconv.ParseInt`` with base 0 reads it.

    Raises ValueError.
    """
    digits = text[1:] if text[:1] in ("+", "-") else text
    if len(digits) > 1 and digits[0] == "0" and digits[1] in "01234567_":
        # Python refuses Go's way to write octal numbers, but not its underscores.
        digits = f"0o{digits[1:]}"
    if not digits.isascii() or not digits.replace("_", "").isalnum() or len(digits) > 100:
        raise ValueError(text)
    number = int(digits, 0)  # ValueError too if the first digit is none
    if text[0] == "-":
        number = -number
    if not -(2**63) <= number < 2**63:
        raise ValueError(text)
    return number


def parse_count(text: str) -> "int | None":
    """How many requests run at once: at most 1024; None, the default, for 0 and below."""
    number = parse_integer(text)
    return min(number, _MOST_AT_ONCE) if number > 0 else None


def parse_port(text: str) -> int:
    """A port; 0, none, for 0 and below. Raises ValueError."""
    number = parse_integer(text)
    if number > 65535:
        raise ValueError(text)
    return max(number, 0)


def parse_duration(text: str) -> float:
    """Seconds of a duration in the format of Go's time.ParseDuration; 0 for a negative one.

    Raises ValueError.
    """
    units = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
    total = 0.0
    rest = text[1:] if text[:1] in ("+", "-") else text
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
    if total > _LONGEST_OF_GO_S:
        raise ValueError(text)
    return 0.0 if text[0] == "-" else min(total, _LONGEST_S)


def parse_size(text: str) -> int:
    """Bytes of a whole number with or without a unit from K to T: 500M, 20GB, 20GiB.

    0 for a negative number. Raises ValueError.
    """
    sign = text[:1] if text[:1] in ("+", "-") else ""
    number = text[len(sign) :].rstrip("KMGTkiBb")
    unit = text[len(sign) + len(number) :].upper().removesuffix("B")
    if not (number.isascii() and number.isdigit()):
        return max(parse_integer(text), 0)  # a number of Go, such as 0x400, takes no unit
    power = ("", "K", "M", "G", "T").index(unit.removesuffix("I"))
    if len(number) > 15 or unit == "I":
        raise ValueError(text)
    size = int(number) * (1024 if unit.endswith("I") else 1000) ** power
    return 0 if sign == "-" else size


def parse_address(text: str) -> "tuple[str, int]":
    """(host, port) of ``[host]:port``; without a host it is 127.0.0.1. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host
    if not colon or (":" in host and bare == host):
        raise ValueError(text)
    if not (port.isascii() and port.isdigit() and len(port) < 20 and 1 <= int(port) <= 65535):
        raise ValueError(text)
    return bare or "127.0.0.1", int(port)


def take_apart(text: str) -> "tuple[str, str]":
    """(bucket, prefix) of ``s3://bucket/prefix`` or ``bucket/prefix``.

    Raises UsageError, which says what to write, for an ARN, another URL, and no name at all.
    """
    scheme, is_url, rest = text.rpartition("://")
    if text.startswith("arn:"):
        resource = text.split(":", 5)[-1]
        bucket, _, prefix = resource.partition("/")
        if bucket.partition(":")[0] == "accesspoint":
            instead = "the access point's alias, which ends in -s3alias"
        else:
            instead = f"--bucket={bucket}" + (f" --prefix={prefix}" if prefix else "")
        raise UsageError(f"--bucket={text}: an ARN is not a name; write {instead}")
    if is_url and scheme.lower() != "s3":
        raise UsageError(
            f"--bucket={text}: write the bucket's name alone; the service's URL belongs to"
            " --s3-endpoint-url"
        )
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise UsageError(f"--bucket={text} names no bucket; write --bucket=NAME")
    return bucket, prefix


def _one_of(text: str, words: "tuple[str, ...]") -> str:
    if text not in words:
        raise ValueError(text)
    return text


# {kind: its parser}, for the kinds that options.py does not parse itself.
PARSERS: "dict[str, Callable[[str], Any]]" = {
    "bytes": lambda text: max(parse_integer(text), 0),
    "size": parse_size,
    "count": parse_count,
    "mask": lambda text: parse_integer(text) & 7,
    "port": parse_port,
    "address": parse_address,
    "time": parse_duration,
    "upload": lambda text: _one_of(text, UPLOAD_MODES),
    "layout": lambda text: _one_of(text, LAYOUTS),
    "sse": lambda text: _one_of(text, ("", *SSE_ALGORITHMS)),
    # web/modproxy/goproxy.py parses these three, because it may also take them from go env.
    "proxies": str,
    "databases": str,
    "patterns": str,
}

# {kind: what its values look like, in words with an article}, for errors and the help.
FORMATS = {
    "path": "a path in UTF-8",
    "name": "a name",
    "text": "a text",
    "url": "an http:// or https:// URL",
    "bool": "a boolean (true, false, 1, 0, t, f)",
    "prefix": "a prefix of keys",
    "bytes": "a number of bytes",
    "size": "a size such as 500M or 20GiB",
    "count": "a whole number (0 or below: the default; above 1024: 1024)",
    "mask": "a whole number",
    "port": "a port up to 65535",
    "address": "an address such as :8080 or 127.0.0.1:8080 (port 1 to 65535)",
    "time": "a duration such as 90s or 1h30m",
    "upload": f"one of {', '.join(UPLOAD_MODES)}",
    "layout": f"one of {', '.join(LAYOUTS)}",
    "sse": f"one of {', '.join(SSE_ALGORITHMS)}",
    "proxies": "a list as in GOPROXY: URL,URL|URL,off",
    "databases": "a list of NAME or 'NAME URL', or off",
    "patterns": "a list of patterns as in GOPRIVATE",
}
