"""Parses paths below /mod/: the rules for module paths, versions and tiles. No I/O.

Sources: the Go modules reference (GOPROXY protocol, module paths); golang.org/x/mod, packages
module, semver and tlog. A path has ``!`` and the lower-case letter for each upper-case letter.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from ...errors import InvalidName
from ...tuples import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Kinds of files. The content of an IMMUTABLE kind never changes.
LIST, LATEST, QUERY = "list", "latest", "query"
INFO, MOD, ZIP = "info", "mod", "zip"
SUPPORTED, TREE, LOOKUP, TILE = "supported", "tree", "lookup", "tile"
IMMUTABLE = (INFO, MOD, ZIP, LOOKUP, TILE)

PREFIX = "/mod/"  # what the path of every request for a module file begins with
MAX_LENGTH = 2048  # of a path, in characters
# Checked module paths and versions that are remembered. Checking takes 1/7 of the time of a request
# for a file that is on disk.
_REMEMBERED = 4096

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
_USUAL_HEIGHT = 8  # of tiles; checksum databases use no other
_MAX_TILE_HEIGHT = 30
_MAX_TILE_LEVEL = 63


class Name(NamedTuple):
    """What a path asks for.

    text: the path below /mod/; its SHA-256 is the key on disk and in S3. kind: one of the kinds
    above. module, version: without ``!`` escapes; "" where the kind has none. database: the name of
    the checksum database that the file belongs to, "" for a file of a module.
    """

    text: str
    kind: str
    module: str = ""
    version: str = ""
    database: str = ""

    @property
    def is_immutable(self) -> bool:
        return self.kind in IMMUTABLE

    @property
    def path_in_database(self) -> str:
        return self.text.removeprefix(f"sumdb/{self.database}/")


class TileSize(NamedTuple):
    """size: in bytes; None for a data tile, whose records can have any length."""

    entries: int
    size: int | None


def parse(path: str, databases: Iterable[str]) -> Name:
    """The Name of a path below ``/mod/``. ``databases``: the checksum databases that are served.

    Raises InvalidName.
    """
    if len(path) > MAX_LENGTH:
        raise InvalidName(f"the path has {len(path)} characters; the limit is {MAX_LENGTH}", 414)
    if path.startswith("sumdb/"):
        return _parse_database_path(path, databases)
    if path.endswith("/@latest"):
        return Name(path, LATEST, _module(path.removesuffix("/@latest")))
    escaped, separator, file = path.partition("/@v/")
    if not separator:
        raise InvalidName(
            f"{path[:200]!a} is not a path of the GOPROXY protocol: it has no /@v/ or /@latest", 404
        )
    module = _module(escaped)
    if file == "list":
        return Name(path, LIST, module)
    text, _, kind = file.rpartition(".")
    if kind not in (INFO, MOD, ZIP) or not text:
        raise InvalidName(
            f"{file[:200]!a} is not a file of a version: ask for list, .info, .mod or .zip", 404
        )
    version = _version(text)
    if is_canonical(version):
        return Name(path, kind, module, version)
    if kind != INFO:
        raise InvalidName(
            f"{version} is not a canonical version: ask for its .info to learn the version", 404
        )
    return Name(path, QUERY, module, version)


def lookup(database: str, module: str, version: str) -> Name:
    """The Name of a version's record in a checksum database."""
    text = f"sumdb/{database}/lookup/{escape(module)}@{escape(version)}"
    return Name(text, LOOKUP, module, version, database)


def sibling(name: Name, kind: str) -> Name:
    """The Name of another file of the same version."""
    return name._replace(text=f"{name.text.removesuffix(name.kind)}{kind}", kind=kind)


def is_canonical(version: str) -> bool:
    """Whether a version is in canonical form. Only canonical versions have a .mod and a .zip."""
    return _CANONICAL.fullmatch(version) is not None


def escape(text: str) -> str:
    """A module path or version as it is written in a URL."""
    return re.sub("[A-Z]", lambda letter: f"!{letter[0].lower()}", text)


def unescape(text: str) -> str:
    """Undo ``escape``. Raises InvalidName for text that ``escape`` cannot have returned."""
    if re.search("[A-Z]|!(?![a-z])", text):
        raise InvalidName(
            f"{text[:200]!a}: write an upper-case letter as ! and its lower-case form"
        )
    return re.sub("!([a-z])", lambda letter: letter[1].upper(), text)


def tile_size(name: Name) -> TileSize:
    """The size of a Name of kind TILE."""
    match = _TILE.fullmatch(name.path_in_database)
    if match is None:
        raise ValueError(f"{name.text} is not a tile")
    height, level, _, width = match.groups()
    entries = int(width) if width else 1 << int(height)
    return TileSize(entries, None if level == "data" else entries * _HASH_BYTES)


def wider_tiles(name: Name) -> Iterator[Name]:
    """The Names of the tiles that begin with a partial tile of hashes, the smallest first.

    They begin with the same bytes, because a log only ever grows. Yields nothing for other files.
    """
    match = _TILE.fullmatch(name.path_in_database) if name.kind == TILE else None
    if match and match[4] and match[2] != "data" and int(match[1]) <= _USUAL_HEIGHT:
        whole = name.text.rpartition(".p/")[0]
        for width in range(int(match[4]) + 1, 1 << int(match[1])):
            yield name._replace(text=f"{whole}.p/{width}")
        yield name._replace(text=whole)


@lru_cache(_REMEMBERED)
def _module(escaped: str) -> str:
    """The unescaped module path. Applies the rules of module.CheckPath; raises InvalidName."""
    path = unescape(escaped)
    shown = f"{path[:200]!a}"
    first, *_ = elements = path.split("/")
    if not _FIRST_ELEMENT.fullmatch(first) or "." not in first:
        raise InvalidName(f"{shown} is not a module path: it does not begin with a domain name")
    for element in elements:
        if not _MODULE_ELEMENT.fullmatch(element):
            raise InvalidName(
                f"{shown} is not a module path: the element {element[:80]!a} is not allowed"
            )
        _check_element(element)
    if not _has_valid_major(path):
        raise InvalidName(f"{shown} is not a module path: its major version suffix is not valid")
    return path


@lru_cache(_REMEMBERED)
def _version(escaped: str) -> str:
    version = unescape(escaped)
    if not _VERSION_TEXT.fullmatch(version) or not version.strip("."):
        raise InvalidName(f"{version[:200]!a} is not a version")
    _check_element(version)
    return version


def _check_element(element: str) -> None:
    """Refuse an element that some file system does not accept as a file name."""
    short = element.partition(".")[0]
    digits = short.rpartition("~")[2]
    if element.endswith(".") or short.lower() in _WINDOWS_NAMES:
        raise InvalidName(f"{element[:80]!a} is not a valid file name on every system")
    if "~" in short and digits.isdigit():
        raise InvalidName(f"{element[:80]!a} looks like a short file name of Windows")


def _has_valid_major(path: str) -> bool:
    if path.startswith("gopkg.in/"):
        return re.search(r"\.v(0|[1-9]\d*(-unstable)?)$", path) is not None
    major = re.search(r"/v([0-9.]+)$", path)
    return major is None or re.fullmatch("[2-9]|[1-9][0-9]+", major[1]) is not None


def _parse_database_path(path: str, databases: Iterable[str]) -> Name:
    # Longest first, because the name of one database may begin with the name of another.
    for database in sorted(databases, key=len, reverse=True):
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
        raise InvalidName(f"{rest[:200]!a} is not a record, tile or tree of {database}", 404)
    raise InvalidName("this server does not serve that checksum database; see --sumdb", 404)


def _is_tile(path: str) -> bool:
    match = _TILE.fullmatch(path)
    if match is None:
        return False
    height, level, number, width = match.groups()
    return (
        not number.startswith("x000")
        and int(height) <= _MAX_TILE_HEIGHT
        and (level == "data" or int(level) <= _MAX_TILE_LEVEL)
        and (width is None or (len(width) < 11 and int(width) < 1 << int(height)))
    )
