"""The go command's own settings that the module proxy follows: lists of proxies, of private modules.

Sources: ``go help goproxy``, ``go help module-private``. Nothing here imports aiohttp, as ``serve``
checks these settings before it starts anything.
"""
import json
import os
import subprocess
from collections import namedtuple
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from ...errors import UsageError

OFF = "off"
_GO_ENV_S = 30

# url: without a slash at its end, or OFF. falls_on_any: after a failure of any kind the next is asked;
# else only after a 404 or 410.
Proxy = namedtuple("Proxy", "url falls_on_any")


def parse_list(text: str, origin: str) -> list:
    """The Proxies of a list as GOPROXY has it, without ``direct``.

    Raises UsageError for a list with none, and for what is no HTTP URL.
    """
    found, rest = [], text
    while rest:
        cut = min((at for at in (rest.find(","), rest.find("|")) if at >= 0), default=len(rest))
        url, separator, rest = rest[:cut].strip(), rest[cut : cut + 1], rest[cut + 1 :]
        if url == "direct":
            break  # what stands behind it is never reached
        if url == OFF:
            found.append(Proxy(OFF, False))
            break
        if url:
            found.append(Proxy(_checked_url(url, origin), separator == "|"))
    if not found:
        raise UsageError(f"{origin}: {text!r} names no module proxy")
    return found


def _checked_url(url: str, origin: str) -> str:
    if "://" not in url:
        url = f"https://{url}"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or not url.isascii() or not url.isprintable():
        raise UsageError(f"{origin}: {shown(url)!r} is not the http:// or https:// URL of a module proxy")
    return url.rstrip("/")


def parse_databases(text: str, origin: str) -> dict:
    """{name: URL, or "" for its own} of a --sumdb list: ``name`` and ``name URL``; ``off`` is none.

    Raises UsageError.
    """
    found = {}
    if text.strip() == OFF:
        return found
    for entry in filter(None, map(str.strip, text.split(","))):
        name, *urls = entry.split()
        if len(urls) > 1 or "://" in name or not name.isascii() or name.strip("/") != name:
            raise UsageError(f"{origin}: {entry!r} is neither a checksum database's name nor name and URL")
        if "+" in name:
            name = name.partition("+")[0]  # with its key, as in GOSUMDB: only clients need that
        found[name] = _checked_url(urls[0], origin) if urls else ""
    return found


def urls(options) -> list:
    """All that ``options``, which are settled, would have asked: proxies and checksum databases."""
    proxies = parse_list(options.modproxy_upstream, "--modproxy-upstream")
    databases = parse_databases(options.sumdb, "--sumdb")
    return [*(proxy.url for proxy in proxies if proxy.url != OFF), *filter(None, databases.values())]


def is_private(module: str, patterns: str) -> bool:
    """Whether a module's path, or what it begins with, matches one of a list as in GOPRIVATE."""
    elements = module.split("/")
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        globs = pattern.rstrip("/").split("/")
        if len(globs) <= len(elements) and all(
            fnmatchcase(element, glob.replace("[^", "[!")) for element, glob in zip(elements, globs)
        ):
            return True
    return False


def shown(url: str) -> str:
    """A URL for a message: without a password."""
    scheme, separator, rest = url.rpartition("://")
    host = rest.partition("/")
    return f"{scheme}{separator}{''.join((host[0].rpartition('@')[2], *host[1:]))}"


def settle(options, environ) -> dict:
    """The fields of Options that the go command's settings decide where no flag or variable did.

    ``modproxy_upstream``: GOPROXY, and ``nosumdb``: GONOSUMDB or GOPRIVATE, as the environment, or the
    go command where there is one, has them. Raises UsageError.
    """
    go = {} if options.modproxy_upstream and options.nosumdb else _go_env(environ)
    upstream, origin = options.modproxy_upstream, "--modproxy-upstream"
    if not upstream:
        upstream, origin = environ.get("GOPROXY") or go.get("GOPROXY", ""), "GOPROXY"
    if not upstream:
        raise UsageError(
            "--modproxy needs --modproxy-upstream: neither GOPROXY nor a go command says what it is"
        )
    parse_list(upstream, origin)
    parse_databases(options.sumdb, "--sumdb")
    private = environ.get("GONOSUMDB") or go.get("GONOSUMDB") or environ.get("GOPRIVATE", "")
    return {"modproxy_upstream": upstream, "nosumdb": options.nosumdb or private}


def _go_env(environ) -> dict:
    """What ``go env`` says; {} where there is no go command, or it fails."""
    try:
        found = subprocess.run(
            ["go", "env", "-json", "GOPROXY", "GONOSUMDB"],
            env={**environ, "GOTOOLCHAIN": "local"},  # no other toolchain is to be fetched for this
            cwd=os.sep,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GO_ENV_S,
            check=True,
        )
        return json.loads(found.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}
