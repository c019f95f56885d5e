"""Modules' zips: whether the go command will take one for what it should be, and its hash.

Sources: the Go modules reference (module zip files), golang.org/x/mod's packages zip and
sumdb/dirhash, PKWARE's APPNOTE. zipfile finds its way through a damaged file where Go's archive/zip does
not; what only one of the two can read is not kept.
"""

import errno
import hashlib
import re
import struct
import zipfile
import zlib

from ...errors import FileMismatch
from .checks import MAX_MOD_BYTES, MAX_ZIP_BYTES, hash1

_CHUNK_BYTES = 1 << 18
_IS_UTF8, _HAS_DESCRIPTOR = 0x800, 0x8  # flags of an entry
_LOCAL_LENGTHS = struct.Struct("<HH")  # of name and extra field, at 26 of a local header
_LENGTHS = struct.Struct("<HHH")  # the same and of the comment, at 28 of an entry of the directory
_END, _END64 = struct.Struct("<4s4xHHIIH"), struct.Struct("<4s28xQQQ")
_LOCATOR64_BYTES = 20
_MAX_COMMENT = 0xFFFF
_MAX_DIRECTORY_BYTES = 16 << 20  # 150,000 files or so; each costs zipfile a kilobyte
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


def read_zip(file, name) -> tuple:
    """(its hash as go.sum has it, the go.mod in it or None) of a module's zip, read whole.

    ``file`` is a seekable binary one, ``name`` its Name. Raises FileMismatch where it breaks the
    rules for module zips, or is damaged.
    """
    prefix = f"{name.module}@{name.version}/".encode()
    sums, go_mod, left = {}, None, MAX_ZIP_BYTES
    try:
        start, count = _check_end(file)
        with zipfile.ZipFile(file) as archive:
            if (archive.start_dir, len(archive.infolist())) != (start, count):
                raise FileMismatch("its directory is damaged")
            entries = {_raw_path(entry): entry for entry in archive.infolist()}
            if len(entries) < len(archive.infolist()):
                raise FileMismatch("a path is in it twice")
            _check_paths(entries, prefix)
            for path, entry in entries.items():
                keeps = path == prefix + b"go.mod"
                if keeps and entry.file_size > MAX_MOD_BYTES:
                    raise FileMismatch("its go.mod is too large")
                digest, kept = hashlib.sha256(), []
                with archive.open(entry):
                    pass  # which compares it with its local header
                for data in _body(file, entry):
                    left -= len(data)
                    if left < 0:
                        raise FileMismatch("it holds more than a module may")
                    digest.update(data)
                    if keeps:
                        kept.append(data)
                sums[path] = digest.hexdigest()
                if keeps:
                    go_mod = b"".join(kept)
    except _DAMAGE as error:
        raise FileMismatch(f"it is no zip file: {error}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file's beginning
            raise
        raise FileMismatch("it is no zip file: it points outside of itself") from None
    return hash1(sums), go_mod


def mod_in_zip(path: str, name):
    """The go.mod in a module's zip that is right, or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"{name.module}@{name.version}/go.mod")
    except (KeyError, OSError, *_DAMAGE):
        return None


def _body(file, entry):
    """The bytes of an entry, in pieces."""
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FileMismatch("it has a compression that the go command does not know")
    file.seek(entry.header_offset + 26)
    file.seek(sum(_LOCAL_LENGTHS.unpack(file.read(_LOCAL_LENGTHS.size))), 1)
    inflater = zlib.decompressobj(-15) if entry.compress_type == zipfile.ZIP_DEFLATED else None
    left, size, crc = entry.compress_size, 0, 0
    while left:
        data = file.read(min(left, _CHUNK_BYTES))
        if not data:
            raise FileMismatch("it is cut off")
        left -= len(data)
        for piece in _inflated(inflater, data) if inflater else (data,):
            size, crc = size + len(piece), zlib.crc32(piece, crc)
            yield piece
    if inflater and (not inflater.eof or inflater.unused_data):
        raise FileMismatch("the end of a file in it is not where it should be")
    if (size, crc) != (entry.file_size, entry.CRC):
        raise FileMismatch("a file in it has another size or CRC")
    if entry.flag_bits & _HAS_DESCRIPTOR:
        behind = file.read(8).removeprefix(b"PK\x07\x08")[:4]
        if behind != crc.to_bytes(4, "little"):
            raise FileMismatch("the checksum behind a file in it is another one")


def _inflated(inflater, data):
    """What compressed data gives, in pieces that are no bomb."""
    size = _CHUNK_BYTES
    while data or size == _CHUNK_BYTES:  # after a full piece there may be more, without more data
        piece = inflater.decompress(data, _CHUNK_BYTES)
        size, data = len(piece), inflater.unconsumed_tail
        yield piece


def _check_end(file) -> tuple:
    """(where the directory begins, how many entries it has), as the file's end has it.

    Raises FileMismatch where the directory does not end where the end's record begins, and that with the
    file, or where it is so large that its entries would fill the memory.
    """
    length = file.seek(0, 2)
    file.seek(max(0, length - _END.size - _MAX_COMMENT))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06", 0, len(tail) - _END.size + 4)
    if at < 0:
        raise FileMismatch("it is no zip file: it has no end")
    _, _, count, size, start, comment_length = _END.unpack_from(tail, at)
    if at + _END.size + comment_length != len(tail):
        raise FileMismatch("it does not end where its end is")
    end = length - len(tail) + at
    if 0xFFFFFFFF in (size, start) or count == 0xFFFF:
        end -= _END64.size + _LOCATOR64_BYTES
        file.seek(max(0, end))
        mark, count, size, start = _END64.unpack(file.read(_END64.size))
        if mark != b"PK\x06\x06":
            raise FileMismatch("its end is damaged")
    if size > _MAX_DIRECTORY_BYTES:
        raise FileMismatch("it has too many files")
    if start + size > end:
        raise FileMismatch("its directory is not where it should be")
    start = end - size  # what stands before the zip does not count
    file.seek(start)
    directory, read, found = file.read(size), 0, 0
    while read < size:
        read += 46 + sum(_LENGTHS.unpack_from(directory, read + 28))
        found += 1
    if (read, found) != (size, count):
        raise FileMismatch("its directory is damaged")
    return start, count


def _raw_path(entry) -> bytes:
    """A path as it stands in the zip, which is what is hashed."""
    return entry.orig_filename.encode("utf-8" if entry.flag_bits & _IS_UTF8 else "cp437")


def _check_paths(paths, prefix: bytes) -> None:
    """Check all paths in a zip by the rules for module zips."""
    if not paths:
        raise FileMismatch("there is nothing in it")
    for path in paths:
        inner = path.removeprefix(prefix)
        if inner == path:
            raise FileMismatch(
                f"a path in it does not begin with {prefix.decode()}: {path[:200]!r}"
            )
        elements = inner.removesuffix(b"/").split(b"/") if inner else []
        if not all(elements) or {b".", b".."} & set(elements) or re.search(rb"[\\\0\n]", inner):
            raise FileMismatch(f"a path in it leads elsewhere: {path[:200]!r}")
        if elements and elements[-1].lower() == b"go.mod" and inner != b"go.mod":
            raise FileMismatch(f"a go.mod in it is not its own: {path[:200]!r}")
