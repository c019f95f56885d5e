"""Checks module zips by the go command's rules and computes their hash.

Sources: the Go modules reference (module zip files); golang.org/x/mod, packages zip and
sumdb/dirhash; PKWARE's APPNOTE. Python's zipfile can read some damaged files that Go's archive/zip
cannot, so this module checks more than zipfile does: a zip is only stored if Go can read it too.

A FileMismatch raised here completes the sentence "module file X is refused: ...".
"""

from __future__ import annotations

import errno
import hashlib
import re
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING

from ...errors import FileMismatch
from ...tuples import NamedTuple
from .checks import MAX_MOD_BYTES, MAX_ZIP_BYTES, hash1

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO
    from zipfile import ZipInfo

    from .names import Name

_CHUNK_BYTES = 1 << 18
_IS_UTF8, _HAS_DESCRIPTOR = 0x800, 0x8  # flags of an entry
_DESCRIPTOR_SIGNATURE = b"PK\x07\x08"  # optional, in front of a data descriptor
# Local header: the lengths of name and extra field, which both follow it, are at this offset.
_LOCAL_LENGTHS, _LOCAL_LENGTHS_AT = struct.Struct("<HH"), 26
# Entry of the central directory: its fixed size, and the lengths of name, extra field and comment.
_ENTRY_BYTES = 46
_ENTRY_LENGTHS, _ENTRY_LENGTHS_AT = struct.Struct("<HHH"), 28
# End-of-central-directory record: entries, size and offset of the directory, length of the comment.
_END, _END_SIGNATURE = struct.Struct("<4s4xHHIIH"), b"PK\x05\x06"
_MAX_COMMENT_BYTES = 0xFFFF
# Its zip64 form: entries, size and offset. A locator follows it.
_END64, _END64_SIGNATURE = struct.Struct("<4s28xQQQ"), b"PK\x06\x06"
_LOCATOR64_BYTES = 20
_MAX_DIRECTORY_BYTES = 16 << 20  # about 150,000 files; zipfile needs 1 kB of memory for each
_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
# What zipfile raises for damaged files.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
)


class ZipContent(NamedTuple):
    """hash: the "h1:" hash of go.sum. go_mod: the module's go.mod, None when the zip has none."""

    hash: str
    go_mod: bytes | None


class _Directory(NamedTuple):
    """Where the central directory begins, in bytes from the start, and how many entries it has."""

    start: int
    entries: int


def read_zip(file: BinaryIO, name: Name) -> ZipContent:
    """Read the whole zip of a module version. ``file`` is seekable; ``name`` is a Name of kind ZIP.

    Raises FileMismatch for a zip that is damaged or breaks the rules for module zips.
    """
    try:
        directory = _read_end(file)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if _Directory(archive.start_dir, len(entries)) != directory:
                raise FileMismatch(
                    "the central directory is damaged: two readers disagree about it"
                )
            return _read_entries(file, archive, f"{name.module}@{name.version}/".encode())
    except _DAMAGE as error:
        raise FileMismatch(f"it is not a valid zip file: {error}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: a seek to a negative offset
            raise
        raise FileMismatch("the zip is damaged: an offset lies before its beginning") from None


def _read_entries(file: BinaryIO, archive: zipfile.ZipFile, prefix: bytes) -> ZipContent:
    entries: dict[bytes, ZipInfo] = {}
    for entry in archive.infolist():
        path = _raw_path(entry)
        if path in entries:
            raise FileMismatch(f"the zip has the path {path[:200]!r} twice")
        entries[path] = entry
    _check_paths(entries, prefix)
    sums, go_mod, left = {}, None, MAX_ZIP_BYTES
    for path, entry in entries.items():
        is_go_mod = path == prefix + b"go.mod"
        if is_go_mod and entry.file_size > MAX_MOD_BYTES:
            raise FileMismatch(
                f"its go.mod is too large: {entry.file_size} bytes; the limit is {MAX_MOD_BYTES}"
            )
        digest, kept = hashlib.sha256(), []
        with archive.open(entry):
            pass  # zipfile compares the entry with its local header
        for data in _body(file, entry):
            left -= len(data)
            if left < 0:
                raise FileMismatch(f"the zip holds more than {MAX_ZIP_BYTES} bytes of files")
            digest.update(data)
            if is_go_mod:
                kept.append(data)
        sums[path] = digest.hexdigest()
        if is_go_mod:
            go_mod = b"".join(kept)
    return ZipContent(hash1(sums), go_mod)


def mod_in_zip(path: str, name: Name) -> bytes | None:
    """The go.mod in the zip file ``path``, which was checked before; None when it has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"{name.module}@{name.version}/go.mod")
    except (KeyError, OSError, *_DAMAGE):
        return None


def _body(file: BinaryIO, entry: ZipInfo) -> Iterator[bytes]:
    """The uncompressed content of an entry, in pieces. Raises FileMismatch for a damaged entry."""
    shown = f"the entry {entry.filename[:200]!a}"
    if entry.compress_type not in _METHODS:
        raise FileMismatch(
            f"{shown} has compression method {entry.compress_type};"
            " the go command only reads stored and deflated entries"
        )
    file.seek(entry.header_offset + _LOCAL_LENGTHS_AT)
    file.seek(sum(_LOCAL_LENGTHS.unpack(file.read(_LOCAL_LENGTHS.size))), 1)
    size = crc = 0
    for piece in _uncompressed(file, entry, shown):
        size, crc = size + len(piece), zlib.crc32(piece, crc)
        yield piece
    if (size, crc) != (entry.file_size, entry.CRC):
        raise FileMismatch(f"{shown} is damaged: wrong size or CRC-32")
    if entry.flag_bits & _HAS_DESCRIPTOR:
        descriptor = file.read(8).removeprefix(_DESCRIPTOR_SIGNATURE)
        if descriptor[:4] != crc.to_bytes(4, "little"):
            raise FileMismatch(f"{shown} is damaged: wrong CRC-32 in its data descriptor")


def _uncompressed(file: BinaryIO, entry: ZipInfo, shown: str) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-15) if entry.compress_type == zipfile.ZIP_DEFLATED else None
    left = entry.compress_size
    while left:
        data = file.read(min(left, _CHUNK_BYTES))
        if not data:
            raise FileMismatch(f"the zip is cut off in {shown}")
        left -= len(data)
        if inflater is None:
            yield data
        else:
            yield from _inflated(inflater, data)
    if inflater is not None and (not inflater.eof or inflater.unused_data):
        raise FileMismatch(f"{shown} is damaged: its compressed data ends at another place")


def _inflated(inflater: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    """Decompress ``data`` in pieces of at most _CHUNK_BYTES, so that a zip bomb fills no memory."""
    size = _CHUNK_BYTES
    while data or size == _CHUNK_BYTES:  # after a full piece more may follow without more data
        piece = inflater.decompress(data, _CHUNK_BYTES)
        size, data = len(piece), inflater.unconsumed_tail
        yield piece


def _read_end(file: BinaryIO) -> _Directory:
    """The central directory as the end-of-central-directory record describes it.

    Raises FileMismatch when the directory does not end where that record begins, when bytes follow
    the record, or when the directory is so large that its entries would fill the memory.
    """
    length = file.seek(0, 2)
    file.seek(max(0, length - _END.size - _MAX_COMMENT_BYTES))
    tail = file.read()
    at = tail.rfind(_END_SIGNATURE, 0, len(tail) - _END.size + len(_END_SIGNATURE))
    if at < 0:
        raise FileMismatch("it is not a zip file: it has no end-of-central-directory record")
    _, _, count, size, start, comment_bytes = _END.unpack_from(tail, at)
    surplus = len(tail) - (at + _END.size + comment_bytes)
    if surplus > 0:
        raise FileMismatch(f"{surplus} bytes follow the end-of-central-directory record")
    if surplus < 0:
        raise FileMismatch("the comment of the end-of-central-directory record is cut off")
    end = length - len(tail) + at
    if 0xFFFFFFFF in (size, start) or count == 0xFFFF:
        end -= _END64.size + _LOCATOR64_BYTES
        file.seek(max(0, end))
        signature, count, size, start = _END64.unpack(file.read(_END64.size))
        if signature != _END64_SIGNATURE:
            raise FileMismatch("the zip64 end-of-central-directory record is damaged or missing")
    if size > _MAX_DIRECTORY_BYTES:
        raise FileMismatch(
            f"the zip has too many files: {size} bytes of central directory;"
            f" the limit is {_MAX_DIRECTORY_BYTES}"
        )
    if start + size > end:
        raise FileMismatch("the central directory overlaps the end-of-central-directory record")
    start = end - size  # offsets do not count bytes in front of the zip, such as a shell script
    _check_directory(file, start, size, count)
    return _Directory(start, count)


def _check_directory(file: BinaryIO, start: int, size: int, count: int) -> None:
    """Check that the entries fill the directory's ``size`` bytes and are ``count`` in number."""
    file.seek(start)
    directory, read, found = file.read(size), 0, 0
    while read < size:
        lengths = _ENTRY_LENGTHS.unpack_from(directory, read + _ENTRY_LENGTHS_AT)
        read += _ENTRY_BYTES + sum(lengths)
        found += 1
    if (read, found) != (size, count):
        raise FileMismatch(
            f"the central directory is damaged: {found} entries in {read} bytes,"
            f" where its end record says {count} in {size}"
        )


def _raw_path(entry: ZipInfo) -> bytes:
    """The path of an entry as the bytes in the zip, which are what is hashed."""
    return entry.orig_filename.encode("utf-8" if entry.flag_bits & _IS_UTF8 else "cp437")


def _check_paths(paths: Iterable[bytes], prefix: bytes) -> None:
    """Check the paths of all entries by the rules for module zips."""
    if not paths:
        raise FileMismatch("the zip has no files")
    for path in paths:
        shown = f"the path {path[:200]!r} in the zip"
        inner = path.removeprefix(prefix)
        if inner == path:
            raise FileMismatch(f"{shown} does not begin with {prefix.decode()}")
        elements = inner.removesuffix(b"/").split(b"/") if inner else []
        if not all(elements) or {b".", b".."} & set(elements) or re.search(rb"[\\\0\n]", inner):
            raise FileMismatch(f"{shown} has an element that is not allowed")
        if elements and elements[-1].lower() == b"go.mod" and inner != b"go.mod":
            raise FileMismatch(f"{shown} is a go.mod outside of the root of the module")
