"""The go command's own settings that the module proxy follows: lists of proxies, of private modules.

Sources: ``go help goproxy``, ``go help module-private``. Nothing here imports aiohttp, as ``serve``
checks these settings before it starts anything.
"""

import json
import os
import re
import subprocess
from collections import namedtuple
from urllib.parse import urlsplit

from ...errors import UsageError

OFF = "off"
_GO_ENV_S = 30
_DATABASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\-]*(:[0-9]+)?(/[A-Za-z0-9_~\-][A-Za-z0-9._~\-]*)*")

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
        raise UsageError(
            f"{origin} names no module proxy; direct is none, as this runs no go command"
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


def parse_databases(text: str, origin: str) -> dict:
    """{name: URL, or "" for its own} of a --sumdb list: ``name`` and ``name URL``; ``off`` is none.

    Raises UsageError.
    """
    found = {}
    if text.strip() == OFF:
        return found
    for entry in filter(None, map(str.strip, text.split(","))):
        name, *urls = entry.split()
        name = name.partition("+")[0]  # without its key, as in GOSUMDB: only clients need that
        if len(urls) > 1 or not _DATABASE.fullmatch(name):
            text = " ".join(map(shown, entry.split()))
            raise UsageError(
                f"{origin}: {text!r} is neither a checksum database's name nor name and URL"
            )
        found[name] = _checked_url(urls[0], origin) if urls else ""
    return found


def urls(options) -> list:
    """All that ``options``, which are settled, would have asked: proxies and checksum databases."""
    proxies = parse_list(options.modproxy_upstream, "--modproxy-upstream")
    databases = parse_databases(options.sumdb, "--sumdb")
    return [
        *(proxy.url for proxy in proxies if proxy.url != OFF),
        *filter(None, databases.values()),
    ]


def is_private(module: str, patterns: str) -> bool:
    """Whether a module's path, or what it begins with, matches one of a list as in GOPRIVATE."""
    elements = module.split("/")
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        globs = pattern.rstrip("/").split("/")
        if len(globs) <= len(elements) and all(map(_matches, globs, elements)):
            return True
    return False


def _matches(glob: str, element: str) -> bool:
    """As Go's path.Match, in which ``[^a]`` negates and a backslash takes the next letter as it is."""
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
    except re.error:  # what it does not take for a pattern matches nothing
        return False


def shown(url: str) -> str:
    """A URL for a message, without a password; of one that is none, what stands behind its last @."""
    scheme, separator, rest = url.rpartition("://") if url.count("://") == 1 else ("", "", url)
    host, slash, path = rest.partition("/")
    if "@" not in host and "@" in path:
        host, slash, path = rest.rpartition("@")[2], "", ""
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


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
        values = json.loads(found.stdout)
        return values if isinstance(values, dict) else {}
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}
