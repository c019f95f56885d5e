"""What a path under /mod/ asks for: the rules for module paths, versions and tiles, without I/O.

Sources: the Go modules reference (GOPROXY protocol, module paths), golang.org/x/mod's packages
module, semver and tlog. An upper-case letter is written ``!`` and the lower-case one.
"""

import re
from collections import namedtuple
from functools import lru_cache

from ...errors import InvalidName

# Kinds of names. Those of IMMUTABLE never change.
LIST, LATEST, QUERY = "list", "latest", "query"
INFO, MOD, ZIP = "info", "mod", "zip"
SUPPORTED, TREE, LOOKUP, TILE = "supported", "tree", "lookup", "tile"
IMMUTABLE = (INFO, MOD, ZIP, LOOKUP, TILE)

PREFIX = "/mod/"  # of a request's path, before the cache name
MAX_LENGTH = 2048  # of a path, in characters
_PARSED = 4096  # what is kept of paths and versions: the rules cost a seventh of a warm request

_MODULE_ELEMENT = re.compile(r"[a-zA-Z0-9\-_~][a-zA-Z0-9\-._~]*")
_FIRST_ELEMENT = re.compile(r"[a-z0-9][a-z0-9.\-]*")
_VERSION_TEXT = re.compile(r"[a-zA-Z0-9#$%&()+,\-.=@\[\]^_{}~ ]+")
_CANONICAL = re.compile(
    r"v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(-(0|[1-9]\d*|\d*[a-zA-Z\-][0-9a-zA-Z\-]*)(\.(0|[1-9]\d*|\d*[a-zA-Z\-][0-9a-zA-Z\-]*))*)?"
    r"(\+incompatible)?",
    re.ASCII,
)
_WINDOWS_NAMES = frozenset(
    ("con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(1, 10)))
)
_TILE = re.compile(
    r"tile/([1-9]\d?)/(0|[1-9]\d?|data)/((?:x\d{3}/)*\d{3})(?:\.p/([1-9]\d*))?", re.ASCII
)
_HASH_BYTES = 32
_USUAL_HEIGHT = 8  # of tiles, and the only one in use
_MAX_TILE_HEIGHT = 30
_MAX_TILE_LEVEL = 63


class Name(namedtuple("Name", "text kind module version database", defaults=("", "", ""))):
    """``text``: the cache name, which is the path. ``module``, ``version``: without escapes.

    A file of a checksum database has its ``database``.
    """

    __slots__ = ()

    @property
    def is_immutable(self) -> bool:
        return self.kind in IMMUTABLE

    @property
    def path_in_database(self) -> str:
        return self.text.removeprefix(f"sumdb/{self.database}/")


def parse(path: str, databases) -> Name:
    """The Name of a path after ``/mod/``; ``databases``: names of those that are served.

    Raises InvalidName.
    """
    if len(path) > MAX_LENGTH:
        raise InvalidName("the path is too long", 414)
    if path.startswith("sumdb/"):
        return _parse_database(path, databases)
    if path.endswith("/@latest"):
        return Name(path, LATEST, _module(path.removesuffix("/@latest")))
    escaped, separator, file = path.partition("/@v/")
    if not separator:
        raise InvalidName(f"{path[:200]!a} is no file of a module proxy", 404)
    module = _module(escaped)
    if file == "list":
        return Name(path, LIST, module)
    text, _, kind = file.rpartition(".")
    if kind not in (INFO, MOD, ZIP) or not text:
        raise InvalidName(f"{file[:200]!a} is no file of a version", 404)
    version = _version(text)
    if is_canonical(version):
        return Name(path, kind, module, version)
    if kind != INFO:
        raise InvalidName(f"{version} is no canonical version; its .info says which one it is", 404)
    return Name(path, QUERY, module, version)


def lookup(database: str, module: str, version: str) -> Name:
    """The Name of the record that a checksum database has of a version."""
    text = f"sumdb/{database}/lookup/{escape(module)}@{escape(version)}"
    return Name(text, LOOKUP, module, version, database)


def sibling(name: Name, kind: str) -> Name:
    """The Name of another file of the same version."""
    return name._replace(text=f"{name.text.removesuffix(name.kind)}{kind}", kind=kind)


def is_canonical(version: str) -> bool:
    """Whether a version names one version for ever, as only those have .mod and .zip."""
    return _CANONICAL.fullmatch(version) is not None


def escape(text: str) -> str:
    return re.sub("[A-Z]", lambda letter: f"!{letter[0].lower()}", text)


def unescape(text: str) -> str:
    """Undo ``escape``; raises InvalidName for what it cannot have given."""
    if re.search("[A-Z]|!(?![a-z])", text):
        raise InvalidName(
            f"{text[:200]!a}: an upper-case letter is written as ! and the lower-case one"
        )
    return re.sub("!([a-z])", lambda letter: letter[1].upper(), text)


def tile_size(name: Name):
    """(entries, bytes) of a TILE; bytes is None for a data tile."""
    height, level, _, width = _TILE.fullmatch(name.path_in_database).groups()
    entries = int(width) if width else 1 << int(height)
    return entries, None if level == "data" else entries * _HASH_BYTES


def wider_tiles(name: Name):
    """The Names of all tiles that begin with a partial tile of hashes, the smallest first.

    The log only grows: what stood in a tile stays there.
    """
    found = _TILE.fullmatch(name.path_in_database) if name.kind == TILE else None
    if found and found[4] and found[2] != "data" and int(found[1]) <= _USUAL_HEIGHT:
        whole = name.text.rpartition(".p/")[0]
        for width in range(int(found[4]) + 1, 1 << int(found[1])):
            yield name._replace(text=f"{whole}.p/{width}")
        yield name._replace(text=whole)


@lru_cache(_PARSED)
def _module(escaped: str) -> str:
    """A module's path, checked as module.CheckPath does."""
    path = unescape(escaped)
    first, *_ = elements = path.split("/")
    if not _FIRST_ELEMENT.fullmatch(first) or "." not in first:
        raise InvalidName(f"{path[:200]!a} is no module path: it begins with no domain name")
    for element in elements:
        if not _MODULE_ELEMENT.fullmatch(element):
            raise InvalidName(f"{path[:200]!a} is no module path: {element[:80]!a}")
        _check_element(element)
    if not _has_valid_major(path):
        raise InvalidName(f"{path[:200]!a} is no module path: its major version")
    return path


@lru_cache(_PARSED)
def _version(escaped: str) -> str:
    version = unescape(escaped)
    if not _VERSION_TEXT.fullmatch(version) or not version.strip("."):
        raise InvalidName(f"{version[:200]!a} is no version")
    _check_element(version)
    return version


def _check_element(element: str) -> None:
    """What no file system takes is in no path."""
    short = element.partition(".")[0]
    digits = short.rpartition("~")[2]
    if element.endswith(".") or short.lower() in _WINDOWS_NAMES:
        raise InvalidName(f"{element[:80]!a} cannot be a file's name everywhere")
    if "~" in short and digits.isdigit():
        raise InvalidName(f"{element[:80]!a} looks like a short name of Windows")


def _has_valid_major(path: str) -> bool:
    if path.startswith("gopkg.in/"):
        return re.search(r"\.v(0|[1-9]\d*(-unstable)?)$", path) is not None
    major = re.search(r"/v([0-9.]+)$", path)
    return major is None or re.fullmatch("[2-9]|[1-9][0-9]+", major[1]) is not None


def _parse_database(path: str, databases) -> Name:
    for database in sorted(databases, key=len, reverse=True):  # one's name may begin another's
        rest = path.removeprefix(f"sumdb/{database}/")
        if rest == path:
            continue
        if rest == "supported":
            return Name(path, SUPPORTED, database=database)
        if rest == "latest":
            return Name(path, TREE, database=database)
        if rest.startswith("lookup/"):
            escaped, _, version = rest.removeprefix("lookup/").rpartition("@")
            name = Name(path, LOOKUP, _module(escaped), _version(version), database)
            if is_canonical(name.version):
                return name
        elif _is_tile(rest):
            return Name(path, TILE, database=database)
        raise InvalidName(f"{rest[:200]!a} is nothing that a checksum database has", 404)
    raise InvalidName("that checksum database is not served here", 404)


def _is_tile(path: str) -> bool:
    found = _TILE.fullmatch(path)
    if found is None:
        return False
    height, level, number, width = found.groups()
    return (
        not number.startswith("x000")
        and int(height) <= _MAX_TILE_HEIGHT
        and (level == "data" or int(level) <= _MAX_TILE_LEVEL)
        and (width is None or (len(width) < 11 and int(width) < 1 << int(height)))
    )
