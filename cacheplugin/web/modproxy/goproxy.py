"""Parses the go command's settings that the module proxy follows: GOPROXY, GONOSUMDB, GOPRIVATE.

Sources: ``go help goproxy``, ``go help module-private``. ``serve`` checks these settings before it
starts anything, so this module must not import aiohttp.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ...errors import UsageError
from ...tuples import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...options import Options

OFF = "off"
_GO_ENV_TIMEOUT_S = 30
_DATABASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-]*(:[0-9]+)?(/[A-Za-z0-9_~\-][A-Za-z0-9._~\-]*)*")


class Proxy(NamedTuple):
    """An entry of a GOPROXY list.

    url: without a trailing slash, or OFF. falls_on_any: whether the next entry is asked after any
    failure ("|" in the list); otherwise it is asked only after a 404 or 410 (",").
    """

    url: str
    falls_on_any: bool


def parse_list(text: str, origin: str) -> list[Proxy]:
    """The entries of a GOPROXY list. ``origin``: the flag or variable, for error texts.

    Parsing stops at ``direct``, because this program runs no go command, and after ``off``. Raises
    UsageError for a list without any entry before that, and for an entry that is not an HTTP URL.
    """
    found, rest = [], text
    while rest:
        cut = min((at for at in (rest.find(","), rest.find("|")) if at >= 0), default=len(rest))
        url, separator, rest = rest[:cut].strip(), rest[cut : cut + 1], rest[cut + 1 :]
        if url == "direct":
            break
        if url == OFF:
            found.append(Proxy(OFF, False))
            break
        if url:
            found.append(Proxy(_checked_url(url, origin), separator == "|"))
    if not found:
        raise UsageError(
            f"{origin} names no module proxy: list the URL of at least one before 'direct'"
        )
    return found


def _checked_url(url: str, origin: str) -> str:
    if "://" not in url:
        url = f"https://{url}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or not re.fullmatch("[!-~]+", url):
        raise UsageError(
            f"{origin}: {shown(url)!r} is not the http:// or https:// URL of a module proxy"
        )
    return url.rstrip("/")


def parse_databases(text: str, origin: str) -> dict[str, str]:
    """{name of a checksum database: its URL} of a --sumdb list.

    An entry is ``name`` (its URL is then "") or ``name URL``; the list ``off`` has no entries.
    ``origin``: the flag, for error texts. Raises UsageError.
    """
    found: dict[str, str] = {}
    if text.strip() == OFF:
        return found
    for entry in filter(None, map(str.strip, text.split(","))):
        name, *urls = entry.split()
        name = name.partition("+")[0]  # GOSUMDB may have "name+hash+key"; only clients need the key
        if len(urls) > 1 or not _DATABASE.fullmatch(name):
            text = " ".join(map(shown, entry.split()))
            raise UsageError(
                f"{origin}: {text!r} is not the name of a checksum database, or a name and a URL"
            )
        found[name] = _checked_url(urls[0], origin) if urls else ""
    return found


def urls(options: Options) -> list[str]:
    """The URLs of all proxies and checksum databases in ``options``, after ``settle``."""
    proxies = parse_list(options.modproxy_upstream, "--modproxy-upstream")
    databases = parse_databases(options.sumdb, "--sumdb")
    return [
        *(proxy.url for proxy in proxies if proxy.url != OFF),
        *filter(None, databases.values()),
    ]


def is_private(module: str, patterns: str) -> bool:
    """Whether a module path, or a prefix of it, matches one of the patterns of a GOPRIVATE list."""
    elements = module.split("/")
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        globs = pattern.rstrip("/").split("/")
        if len(globs) <= len(elements) and all(map(_matches, globs, elements)):
            return True
    return False


def _matches(glob: str, element: str) -> bool:
    """Whether a path element matches a pattern, by the rules of Go's path.Match.

    There ``[^a]`` negates, and a backslash makes the next character literal. A malformed pattern
    matches nothing.
    """
    found = []
    for stars, any_one, letters, letter in re.findall(
        r"(\*)|(\?)|(\[(?:\\.|[^\]\\])+\])|(\\?.)", glob
    ):
        if letters:
            negates = "^" if letters.startswith("[^") else ""
            inner = re.sub(r"\\(.)", r"\1", letters[1 + len(negates) : -1])
            found.append(
                "[{}{}]".format(negates, re.escape(inner).replace(r"\-", "-").replace("--", "-"))
            )
        else:
            found.append(".*" if stars else "." if any_one else re.escape(letter[-1]))
    try:
        return re.fullmatch("".join(found), element) is not None
    except re.error:
        return False


def shown(url: str) -> str:
    """A URL for a message, without user name and password.

    For text that is not a URL, everything up to the last @ is left out.
    """
    scheme, separator, rest = url.rpartition("://") if url.count("://") == 1 else ("", "", url)
    host, slash, path = rest.partition("/")
    if "@" not in host and "@" in path:
        host, slash, path = rest.rpartition("@")[2], "", ""
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def settle(options: Options, environ: Mapping[str, str]) -> dict[str, str]:
    """The fields of Options that follow the go command's settings where no flag or variable is set.

    ``modproxy_upstream`` comes from GOPROXY, ``nosumdb`` from GONOSUMDB or GOPRIVATE; the
    environment counts before ``go env``. Raises UsageError.
    """
    go = {} if options.modproxy_upstream and options.nosumdb else _go_env(environ)
    upstream, origin = options.modproxy_upstream, "--modproxy-upstream"
    if not upstream:
        upstream, origin = environ.get("GOPROXY") or go.get("GOPROXY", ""), "GOPROXY"
    if not upstream:
        raise UsageError(
            "--modproxy needs --modproxy-upstream,"
            " because neither GOPROXY nor 'go env GOPROXY' names a module proxy"
        )
    parse_list(upstream, origin)
    parse_databases(options.sumdb, "--sumdb")
    private = environ.get("GONOSUMDB") or go.get("GONOSUMDB") or environ.get("GOPRIVATE", "")
    return {"modproxy_upstream": upstream, "nosumdb": options.nosumdb or private}


def _go_env(environ: Mapping[str, str]) -> dict[str, str]:
    """GOPROXY and GONOSUMDB as ``go env`` prints them; {} without a working go command."""
    try:
        done = subprocess.run(
            ["go", "env", "-json", "GOPROXY", "GONOSUMDB"],
            env={**environ, "GOTOOLCHAIN": "local"},  # do not download another toolchain for this
            cwd=os.sep,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GO_ENV_TIMEOUT_S,
            check=True,
        )
        values = json.loads(done.stdout)
        return values if isinstance(values, dict) else {}
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}
