"""Checks the format of every module file but zips, and computes hashes as go.sum has them.

Sources: the Go modules reference; golang.org/x/mod, package sumdb/dirhash; the design of the
checksum database (go.dev/design/25530-sumdb). The module ``zips`` checks zips.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING

from ...errors import FileMismatch
from ...tuples import NamedTuple
from . import names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .names import Name

# The limits of the Go modules reference.
MAX_ZIP_BYTES = 500 << 20  # of a zip, and of the sum of its files
MAX_MOD_BYTES = 16 << 20
MAX_TEXT_BYTES = 16 << 20  # of any file that is not a zip

_LOOKUP_LINE = re.compile(r"(\S+) (\S+?)(/go\.mod)? (h1:\S+)")
_SIGNATURE = re.compile("\u2014 \\S+ \\S+".encode())


class Sums(NamedTuple):
    """The "h1:" hashes of a version's zip and go.mod; None where a hash is not known."""

    zip: str | None
    mod: str | None


def max_bytes(name: Name) -> int:
    """The largest size that is accepted for a file."""
    return MAX_ZIP_BYTES if name.kind == names.ZIP else MAX_TEXT_BYTES


def check_text(name: Name, data: bytes) -> None:
    """Check that a file that is not a zip has the format of its kind; raises FileMismatch."""
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
            raise FileMismatch("it is not a signed tree of a checksum database")
    else:
        entries, size = names.tile_size(name)
        if len(data) != size if size is not None else len(data) < entries:
            raise FileMismatch(f"{len(data)} bytes are not a tile of {entries} entries")


def check_info(data: bytes, version: str | None) -> None:
    """Check that a .info names a version, and that it is ``version`` unless that is None."""
    try:
        # Keys in any case: the go command reads this with encoding/json, which ignores case.
        found = {key.lower(): value for key, value in json.loads(data.decode()).items()}["version"]
    except (ValueError, AttributeError, LookupError, RecursionError):
        raise FileMismatch("it is not JSON with a Version") from None
    if not isinstance(found, str) or not names.is_canonical(found):
        raise FileMismatch(f"its Version is {str(found)[:100]!a}, which is not a canonical version")
    if version is not None and found != version:
        raise FileMismatch(f"its Version is {found} instead of {version}")


def check_mod(data: bytes) -> None:
    """Check that a file looks like a go.mod. Its hash tells whether it is the right one."""
    try:
        data.decode()
    except UnicodeDecodeError:
        raise FileMismatch("it is not valid UTF-8") from None
    if len(data) > MAX_MOD_BYTES:
        raise FileMismatch(f"go.mod has {len(data)} bytes; the limit is {MAX_MOD_BYTES}")
    if not re.search(rb"^[ \t]*module\b", data, re.MULTILINE):
        raise FileMismatch("it is not a go.mod: it has no module directive")


def _check_list(data: bytes) -> None:
    """Refuse what is not a list of versions, such as a login page.

    The go command skips lines that are not versions, so those are accepted here too.
    """
    try:
        data.decode()
    except UnicodeDecodeError:
        raise FileMismatch("it is not valid UTF-8") from None
    if data.lstrip()[:1] in (b"<", b"{"):
        raise FileMismatch("it is not a list of versions: it looks like HTML or JSON")


def read_lookup(data: bytes, module: str, version: str) -> Sums:
    """The hashes in a checksum database's record of a version; raises FileMismatch.

    The signature of the tree is not verified, because only clients have the database's key.
    """
    record, _, signed = data.partition(b"\n\n")
    number, _, text = record.partition(b"\n")
    try:
        lines = text.decode().splitlines()
    except UnicodeDecodeError:
        lines = []
    found = {}
    for line in lines:
        match = _LOOKUP_LINE.fullmatch(line)
        if match and match[1] == module and match[2] == version:
            found["mod" if match[3] else "zip"] = match[4]
    if not number.isdigit() or not _is_signed_tree(signed) or not found:
        raise FileMismatch("it is not a checksum database's record of that version")
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
    """The "h1:" hash of a go.mod."""
    return hash1({b"go.mod": hashlib.sha256(data).hexdigest()})


def hash1(sums: Mapping[bytes, str]) -> str:
    """dirhash.Hash1: the "h1:" hash of files, from {path: SHA-256 in hex}."""
    text = b"".join(b"%s  %s\n" % (sums[name].encode(), name) for name in sorted(sums))
    return f"h1:{base64.b64encode(hashlib.sha256(text).digest()).decode()}"
