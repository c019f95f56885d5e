"""Whether a module file is what it should be, if it is no zip: formats, hashes, database records.

Sources: the Go modules reference, golang.org/x/mod's package sumdb/dirhash, the design of the checksum
database (go.dev/design/25530-sumdb). ``zips`` has the rules for zips.
"""

import base64
import hashlib
import json
import re
from collections import namedtuple

from ...errors import FileMismatch
from . import names

MAX_ZIP_BYTES = 500 << 20  # of the zip, and of all that is in it
MAX_MOD_BYTES = 16 << 20
MAX_TEXT_BYTES = 16 << 20  # of anything else

_LOOKUP_LINE = re.compile(r"(\S+) (\S+?)(/go\.mod)? (h1:\S+)")
_SIGNATURE = re.compile("\u2014 \\S+ \\S+".encode())

# Hashes as go.sum has them, or None where it is not known.
Sums = namedtuple("Sums", "zip mod")


def max_bytes(name) -> int:
    return MAX_ZIP_BYTES if name.kind == names.ZIP else MAX_TEXT_BYTES


def check_text(name, data: bytes) -> None:
    """Check any file but a zip by what its Name says it is; raises FileMismatch."""
    if name.kind in (names.INFO, names.QUERY, names.LATEST):
        check_info(data, name.version if name.kind == names.INFO else None)
    elif name.kind == names.MOD:
        check_mod(data)
    elif name.kind == names.LIST:
        _check_list(data)
    elif name.kind == names.LOOKUP:
        read_lookup(data, name.module, name.version)
    elif name.kind == names.TREE:
        if not _is_signed_tree(data):
            raise FileMismatch("it is no signed tree of a checksum database")
    else:
        entries, size = names.tile_size(name)
        if len(data) != size if size is not None else len(data) < entries:
            raise FileMismatch(f"a tile of {entries} entries has {len(data)} bytes")


def check_info(data: bytes, version) -> None:
    """Check that a .info names a version: this one, unless it is None."""
    try:  # encoding/json, with which the go command reads it, does not mind the case of keys
        found = {key.lower(): value for key, value in json.loads(data.decode()).items()}["version"]
    except (ValueError, AttributeError, LookupError, RecursionError):
        raise FileMismatch("it is no JSON with a version") from None
    if not isinstance(found, str) or not names.is_canonical(found):
        raise FileMismatch(f"its version is {str(found)[:100]!a}")
    if version is not None and found != version:
        raise FileMismatch(f"its version is {found}")


def check_mod(data: bytes) -> None:
    """Check that it may be a go.mod; whether it is the right one, its hash says."""
    try:
        data.decode()
    except UnicodeDecodeError:
        raise FileMismatch("it is not UTF-8") from None
    if len(data) > MAX_MOD_BYTES or not re.search(rb"^[ \t]*module\b", data, re.MULTILINE):
        raise FileMismatch("it is no go.mod")


def _check_list(data: bytes) -> None:
    """The go command passes over lines that are no versions, but a page of a login is no list."""
    try:
        data.decode()
    except UnicodeDecodeError:
        raise FileMismatch("it is not UTF-8") from None
    if data.lstrip()[:1] in (b"<", b"{"):
        raise FileMismatch("it is no list of versions")


def read_lookup(data: bytes, module: str, version: str) -> Sums:
    """The Sums in a checksum database's record of a version; raises FileMismatch."""
    record, _, signed = data.partition(b"\n\n")
    number, _, text = record.partition(b"\n")
    try:
        lines = text.decode().splitlines()
    except UnicodeDecodeError:
        lines = []
    found = {}
    for line in lines:
        parts = _LOOKUP_LINE.fullmatch(line)
        if parts and parts[1] == module and parts[2] == version:
            found["mod" if parts[3] else "zip"] = parts[4]
    if not number.isdigit() or not _is_signed_tree(signed) or not found:
        raise FileMismatch("it is no record of that version in a checksum database")
    return Sums(found.get("zip"), found.get("mod"))


def _is_signed_tree(data: bytes) -> bool:
    text, _, signatures = data.removesuffix(b"\n").rpartition(b"\n\n")
    title, *lines = text.split(b"\n")
    return (
        title == b"go.sum database tree"
        and len(lines) >= 2
        and lines[0].isdigit()
        and all(_SIGNATURE.fullmatch(line) for line in signatures.split(b"\n"))
    )


def hash_mod(data: bytes) -> str:
    """The hash of a go.mod as go.sum has it."""
    return hash1({b"go.mod": hashlib.sha256(data).hexdigest()})


def hash1(sums: dict) -> str:
    """Hash1 of dirhash: of SHA-256 sums in hex, by name."""
    text = b"".join(b"%s  %s\n" % (sums[name].encode(), name) for name in sorted(sums))
    return f"h1:{base64.b64encode(hashlib.sha256(text).digest()).decode()}"
