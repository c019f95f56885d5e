"""Unit tests of web/modproxy/checks.py and zips.py: formats and hashes of module files."""

import io
import json
import struct
import time
import zipfile
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cacheplugin.errors import FileMismatch
from cacheplugin.web.modproxy import checks, names, zips
from cacheplugin.web.modproxy.names import parse
from checksums import ChecksumDatabase
from modules import Module, go_module, hash1, zip_bytes

MODULE = go_module(
    "example.com/Upper/a", "v1.2.0-RC.1", body="// Bulk.\n" * 99, **{"a/b/c.txt": b"\0\xff" * 500}
)
PREFIX = f"{MODULE}/"
ZIP, MOD, INFO = (parse(MODULE.url_path(f".{kind}")[1:], ()) for kind in ("zip", "mod", "info"))
SUM = "sum.example.test"
GOOD = [(PREFIX + "go.mod", b"module example.com/Upper/a\n"), (PREFIX + "a.go", b"package a\n")]


def read(data: bytes, name=ZIP):
    return zips.read_zip(io.BytesIO(data), name)


def refusal(data: bytes, name=ZIP) -> str:
    """The text of the FileMismatch for a zip; it is one printable line."""
    with pytest.raises(FileMismatch) as caught:
        read(data, name)
    text = str(caught.value)
    assert text and text.isprintable() and len(text) < 700
    return text


def with_file(*path_and_body) -> bytes:
    """A good zip with one more file in it."""
    return zip_bytes([*GOOD, path_and_body])


# -- zips and their hashes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        {"a.go": "package a\n"},
        {"go.mod": "module x\n"},
        {"B.go": "", "a.go": "", "a/z.go": "", "a-b/c.go": ""},
        {"": ""},
        {"dir/": "", "dir/a.go": "x"},
        {"a/go.mod.txt": "", "a/xgo.mod": ""},
        {"..a": "", ".b/...": ""},
        {"big": bytes(1 << 20)},
        {"a b/ü.txt": "x", "日本/語": "y"},
        {"LICENSE": "Made for tests.\n"},
    ],
    ids=[*map(str, range(10))],
)
def test_hash_and_go_mod(files):
    """The hash is that of go.sum, in any order of entries; go_mod is the module's own go.mod."""
    module = Module("example.com/Upper/a", "v1.2.0-RC.1", files)
    go_mod = module.files.get("go.mod")
    assert read(module.zip) == (module.zip_hash, go_mod)
    backwards = zip_bytes(
        [(PREFIX + name, body) for name, body in sorted(module.files.items(), reverse=True)]
    )
    assert read(backwards) == (module.zip_hash, go_mod)


def test_known_hashes():
    """The hash of a go.mod is that of a zip with this one file."""
    assert checks.hash_mod(b"") == "h1:G7mAYYxgmS0lVkHyy2hEOLQCFB0DlQFTMLWggykrydY="
    assert checks.hash_mod(MODULE.mod) == MODULE.mod_hash
    assert read(MODULE.zip) == (MODULE.zip_hash, MODULE.mod)


def test_the_form_of_a_zip_does_not_change_its_hash():
    """Compression, comments, modes, times and bytes in front of the zip do not count."""
    entries = []
    for path, body in GOOD:
        info = zipfile.ZipInfo(path, (2020, 1, 2, 3, 4, 6))
        info.compress_type, info.comment = zipfile.ZIP_STORED, b"hello"
        info.external_attr = 0o777 << 16
        entries.append((info, body))
    assert read(zip_bytes(entries)) == read(zip_bytes(GOOD)) == (hash1(GOOD), GOOD[0][1])
    with_front = b"#!/bin/sh\n" + zip_bytes(GOOD)
    assert read(with_front) == read(zip_bytes(GOOD))


@pytest.mark.parametrize("unit", [b"\0", b"ab", b"// x\n", bytes(range(256))], ids=len)
def test_files_that_fill_whole_pieces(unit):
    """Files that fill the pieces in which they are decompressed, or just more, are read right."""
    for whole in (1 << 18, 1 << 19):
        for more in (0, 1, 5, 21, 64, 150, 258, 300):
            body = (unit * (1 << 20))[: whole + more]
            assert read(zip_bytes([(PREFIX + "a", body)])) == (hash1([(PREFIX + "a", body)]), None)


def with_raw_name(name: bytes, is_utf8: bool) -> bytes:
    """A zip with one more file, whose name is these four bytes, with or without the UTF-8 flag."""
    info = zipfile.ZipInfo(PREFIX + "XXXX")
    data = bytearray(zip_bytes([*GOOD, (info, b"body")]))
    assert len(name) == 4 and data.count(b"XXXX") == 2
    for signature, offset in ((b"PK\x03\x04", 30), (b"PK\x01\x02", 46)):
        at = data.index(PREFIX.encode() + b"XXXX") - offset
        assert data[at : at + 4] == signature
        flags_at = at + (6 if offset == 30 else 8)
        flags = struct.unpack_from("<H", data, flags_at)[0]
        struct.pack_into("<H", data, flags_at, flags & ~0x800 | (0x800 if is_utf8 else 0))
        data[at + offset + len(PREFIX) : at + offset + len(PREFIX) + 4] = name
    return bytes(data)


@pytest.mark.parametrize("is_utf8", [True, False])
@pytest.mark.parametrize("name", ["üü".encode(), "a日".encode(), b"abcd"])
def test_names_are_hashed_as_bytes(name, is_utf8):
    """The UTF-8 flag does not change the hash."""
    expected = hash1([*GOOD, (PREFIX + name.decode(), b"body")])
    assert read(with_raw_name(name, is_utf8)) == (expected, GOOD[0][1])


def test_names_that_are_not_utf8():
    """They are refused with the UTF-8 flag; without it each has its own hash."""
    refusal(with_raw_name(b"\xff\xfe\xfda", True))
    names_as_bytes = b"\xff\xfe\xfda", b"\xff\xfe\xfdb", b"\x80\x81\xe1a"
    assert len({read(with_raw_name(name, False))[0] for name in names_as_bytes}) == 3


# -- zips that break the rules ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "a.go",
        "/etc/passwd",
        "../a.go",
        "",
        "example.com/Upper/a/a.go",
        "example.com/upper/a@v1.2.0-RC.1/a.go",
        "example.com/Upper/a@v1.2.0/a.go",
        "example.com/Upper/a@v1.2.0-RC.10/a.go",
        PREFIX[:-1],
        "x/" + PREFIX,
        PREFIX.replace("/", "\\") + "a.go",
        "\ufeff" + PREFIX + "a.go",
    ],
    ids=ascii,
)
def test_paths_of_another_module(path):
    """Each path must begin with the module's path and version."""
    assert "does not begin with" in refusal(with_file(path, b"x"))
    assert "does not begin with" in refusal(zip_bytes([(path, b"x"), *GOOD]))


@pytest.mark.parametrize(
    "path",
    [
        "../a.go",
        "a/../../b",
        "..",
        "a/..",
        ".",
        "./a",
        "a/./b",
        "/a",
        "//a",
        "a//b",
        "a//",
        "/",
        "a\\b",
        "..\\b",
        "a\nb",
        "a\0",
        "a\0b",
        "\0",
        "../",
        "a/../",
        "a/.",
    ],
    ids=ascii,
)
def test_paths_with_bad_elements(path):
    """Empty elements, ``.`` and ``..``, backslashes, NULs and newlines are refused."""
    filler = path.replace("\0", "\x01")  # zipfile would cut the name at NUL
    data = with_file(PREFIX + filler, b"x").replace(
        (PREFIX + filler).encode(), (PREFIX + path).encode()
    )
    assert "has an element that is not allowed" in refusal(data)


@pytest.mark.parametrize(
    "path", ["a/go.mod", "a/b/go.mod", "GO.MOD", "Go.mod", "a/Go.Mod", "vendor/x/go.mod"]
)
def test_other_go_mods_in_a_zip(path):
    """A go.mod below the root, or in upper case, is refused: it would make another module."""
    assert "go.mod" in refusal(with_file(PREFIX + path, b"module x\n"))


def test_a_duplicate_path():
    """Readers would disagree about which of the two counts."""
    assert "twice" in refusal(with_file(*GOOD[1]))
    assert "twice" in refusal(with_file(PREFIX + "a.go", b"other"))


def test_a_duplicate_path_with_and_without_the_flag():
    """The same bytes with and without the UTF-8 flag are the same path."""
    first, again = with_raw_name("üü".encode(), True), with_raw_name("üü".encode(), False)
    assert read(first) == read(again)
    plain = zipfile.ZipInfo(PREFIX + "XXXX")
    data = zip_bytes([(PREFIX + "üü", b"x"), (plain, b"x")])
    assert "twice" in refusal(data.replace(b"XXXX", "üü".encode()))


@pytest.mark.parametrize("entries", [[], [("", b"")]])
def test_zips_without_files(entries):
    """A zip without files, or with one empty path, is refused."""
    refusal(zip_bytes(entries))


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"<html>Log in</html>" * 50, bytes(1000), b"PK\x05\x06" + bytes(18)]
)
def test_files_that_are_not_zips(data):
    """Login pages, zeros and an empty archive are refused."""
    refusal(data)


def test_truncated_zips():
    """A zip that is cut anywhere is refused."""
    for length in range(len(MODULE.zip)):
        refusal(MODULE.zip[:length])


def test_every_wrong_byte_of_a_body():
    """The CRC-32 reveals each changed byte."""
    good = read(zip_bytes(GOOD))[0]
    for path, body in GOOD:
        info = zipfile.ZipInfo(path)
        stored = zip_bytes([(info, body)])
        at = stored.index(body)
        for offset in range(len(body)):
            bad = bytearray(stored)
            bad[at + offset] ^= 1
            assert "CRC" in refusal(bytes(bad))
    assert good == hash1(GOOD)


def test_a_changed_body_with_a_right_crc():
    """The zip is accepted, with another hash."""
    assert read(zip_bytes([GOOD[0], (PREFIX + "a.go", b"evil")]))[0] != hash1(GOOD)


@pytest.mark.parametrize("offset", [6, 8], ids=["local", "central"])
def test_encrypted_zips(offset):
    """An entry that the directory marks as encrypted is refused."""
    data = bytearray(zip_bytes(GOOD))
    at, signature = -1, b"PK\x03\x04" if offset == 6 else b"PK\x01\x02"
    while (at := data.find(signature, at + 1)) >= 0:
        data[at + offset] |= 1
    if offset == 8:
        assert "not a valid zip file" in refusal(bytes(data))
    else:  # the flag in the local header does not count for Go either
        assert read(bytes(data)) == read(zip_bytes(GOOD))


def compressed(method, body=b"package a\n" * 50) -> bytes:
    info = zipfile.ZipInfo(PREFIX + "a.go")
    info.compress_type = method
    return zip_bytes([(info, body)])


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["bzip2", "lzma"])
def test_compressions_that_go_cannot_read(method):
    """Go reads two methods; a few bytes of another one may decompress to gigabytes at once."""
    refusal(compressed(method))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 99])
def test_damaged_compression(method):
    """Compressed data that is damaged raises FileMismatch and nothing else."""
    body = bytes(range(256)) * 20
    data = bytearray(compressed(zipfile.ZIP_DEFLATED if method == 99 else method, body))
    if method == 99:
        for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            struct.pack_into("<H", data, data.index(signature) + offset, 99)
    start = data.index(b"a.go") + 4
    for at in range(start, start + 60):
        bad = bytearray(data)
        bad[at] ^= 0xFF
        refusal(bytes(bad))


# -- zips that are too large -----------------------------------------------------------------------


def test_limits():
    """The limits are those of the Go modules reference."""
    assert (checks.MAX_ZIP_BYTES, checks.MAX_MOD_BYTES) == (500 << 20, 16 << 20)
    assert checks.max_bytes(ZIP) == 500 << 20
    assert checks.max_bytes(MOD) == checks.max_bytes(INFO) == 16 << 20


def test_the_sizes_of_all_files_count(monkeypatch):
    """Files up to the limit are accepted; one more byte is refused."""
    total = sum(len(body) for _, body in GOOD)
    monkeypatch.setattr(zips, "MAX_ZIP_BYTES", total)
    assert read(zip_bytes(GOOD))[0] == hash1(GOOD)
    monkeypatch.setattr(zips, "MAX_ZIP_BYTES", total - 1)
    assert "holds more" in refusal(zip_bytes(GOOD))


def test_zip_bombs(monkeypatch):
    """Decompression stops early, also when many files share the same compressed bytes."""
    monkeypatch.setattr(zips, "MAX_ZIP_BYTES", 1 << 20)
    sizes, decompress = [], zlib.decompressobj

    class Counting:
        def __init__(self, *arguments) -> None:
            self._inner = decompress(*arguments)

        def decompress(self, *arguments):
            data = self._inner.decompress(*arguments)
            sizes.append(len(data))
            return data

        def __getattr__(self, name):
            return getattr(self._inner, name)

    monkeypatch.setattr(zipfile.zlib, "decompressobj", Counting)
    assert "holds more" in refusal(with_file(PREFIX + "bomb", bytes(50 << 20)))
    assert 0 < sum(sizes) < 4 << 20
    sizes.clear()
    many = [(f"{PREFIX}{number}", bytes(1 << 16)) for number in range(40)]
    assert "holds more" in refusal(zip_bytes(many))
    assert sum(sizes) < 4 << 20


def test_a_go_mod_that_is_too_large(monkeypatch):
    """Its size is limited, because it is kept in memory."""
    size = len(GOOD[0][1])
    monkeypatch.setattr(zips, "MAX_MOD_BYTES", size)
    assert read(zip_bytes(GOOD))[1] == GOOD[0][1]
    monkeypatch.setattr(zips, "MAX_MOD_BYTES", size - 1)
    assert "go.mod is too large" in refusal(zip_bytes(GOOD))


@pytest.mark.parametrize("size", [0, 1, 2**31, 2**32 - 2])
def test_wrong_sizes_in_the_directory(size):
    """A file with more or fewer bytes than the directory says is refused."""
    data = bytearray(zip_bytes(GOOD))
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, size)
    refusal(bytes(data))


@pytest.mark.parametrize("field", [12, 16], ids=["size", "offset"])
@pytest.mark.parametrize("value", [0, 1, 500, 2**31, 2**32 - 2])
def test_wrong_place_of_the_directory(tmp_path, field, value):
    """A wrong size or offset of the directory is refused, also when the zip is read from disk."""
    data = bytearray(zip_bytes(GOOD))
    end = data.index(b"PK\x05\x06")
    struct.pack_into("<I", data, end + field, value)
    check_refused(tmp_path, bytes(data))


@pytest.mark.parametrize("offset", [1, 500, 2**31, 2**32 - 2])
def test_wrong_offsets_of_entries(tmp_path, offset):
    """An entry with a wrong offset is refused."""
    data = bytearray(zip_bytes(GOOD))
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 42, offset)
    check_refused(tmp_path, bytes(data))


def test_entries_before_the_beginning(tmp_path):
    """A negative offset is refused; reading from disk it raises OSError first."""
    data = bytearray(zip_bytes(GOOD))
    end = data.index(b"PK\x05\x06")
    (offset,) = struct.unpack_from("<I", data, end + 16)
    struct.pack_into("<I", data, end + 16, offset + 100)
    check_refused(tmp_path, bytes(data))


def check_refused(tmp_path, data) -> None:
    """Check that a zip is refused, read from memory and from disk."""
    refusal(data)
    path = tmp_path / "zip"
    path.write_bytes(data)
    with open(path, "rb") as file, pytest.raises(FileMismatch):
        zips.read_zip(file, ZIP)


def test_the_file_is_read_from_its_beginning(tmp_path):
    """The file's position does not matter, and the file stays open."""
    path = tmp_path / "zip"
    path.write_bytes(MODULE.zip)
    with open(path, "rb") as file:
        file.seek(77)
        assert zips.read_zip(file, ZIP)[0] == MODULE.zip_hash
        file.seek(0)
        assert file.read() == MODULE.zip


SMALL = zip_bytes(GOOD)


@given(
    st.lists(
        st.tuples(st.integers(0, len(SMALL) - 1), st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])),
        min_size=1,
        max_size=4,
    )
)
@example([(SMALL.index(b"PK\x05\x06") + 16 + at, 0xFF) for at in range(3)])
@example([(SMALL.index(b"PK\x05\x06") + 12 + at, 0xFF) for at in range(3)])
@example([(SMALL.index(b"PK\x01\x02") + 10, 12)])
@example([(SMALL.index(b"PK\x01\x02") + 10, 14)])
def test_any_damage(tmp_path_factory, changes):
    """A zip with any changed bytes raises FileMismatch, or has a hash and no other go.mod."""
    data = bytearray(SMALL)
    for at, value in changes:
        data[at] = value
    path = tmp_path_factory.getbasetemp() / "damaged.zip"
    path.write_bytes(data)
    with open(path, "rb") as file:
        try:
            found = zips.read_zip(file, ZIP)
        except FileMismatch:
            return
    assert found[0].startswith("h1:") and found[1] in (None, GOOD[0][1])


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data):
    """Random bytes are refused, alone and after half a zip."""
    refusal(data)
    refusal(SMALL[: len(SMALL) // 2] + data)


# -- the go.mod in a stored zip --------------------------------------------------------------------


def test_mod_in_zip(tmp_path):
    """The module's go.mod; None without one, and for a file that is not a zip."""
    path = tmp_path / "zip"
    path.write_bytes(MODULE.zip)
    assert zips.mod_in_zip(str(path), ZIP) == MODULE.mod
    assert zips.mod_in_zip(str(tmp_path / "none"), ZIP) is None
    path.write_bytes(zip_bytes(GOOD[1:]))
    assert zips.mod_in_zip(str(path), ZIP) is None
    path.write_bytes(b"no zip")
    assert zips.mod_in_zip(str(path), ZIP) is None


def test_mod_in_a_damaged_zip(tmp_path):
    """None, wherever the damage is."""
    path = tmp_path / "zip"
    at = SMALL.index(b"go.mod") + len("go.mod")
    for offset in range(20):
        data = bytearray(SMALL)
        data[at + offset] ^= 0xFF
        path.write_bytes(data)
        assert zips.mod_in_zip(str(path), ZIP) is None


# -- info ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        MODULE.info,
        b'{"Version":"v1.2.0-RC.1"}',
        b' {"Origin":{"VCS":"git"},"Version":"v1.2.0-RC.1","Time":null}\n',
        '{"Version":"v1.2.0-RC.1","x":"\u00e9"}'.encode(),
        b'{"Version":"x","Version":"v1.2.0-RC.1"}',
    ],
)
def test_infos(data):
    """JSON with the version that was asked for is accepted; other fields are ignored."""
    checks.check_info(data, MODULE.version)
    checks.check_text(INFO, data)
    for path in ("example.com/a/@latest", "example.com/a/@v/master.info"):
        checks.check_text(parse(path, ()), data)


BAD_INFOS = [
    b"",
    b"null",
    b"{}",
    b"[]",
    b'["Version"]',
    b'"Version"',
    b"1",
    b"<html>",
    b'{"Version":1}',
    b'{"Version":null}',
    b'{"Version":["v1.2.0-RC.1"]}',
    b'{"Version":""}',
    b'{"Version":"master"}',
    b'{"Version":"v1"}',
    b'{"versions":"v1.2.0-RC.1"}',
    b'{"Version":"v1.2.0-RC.1"',
    b'{"Version":"v1.2.0-RC.1"}}',
    b'{"Version":"v1.2.0-RC.1\\n"}',
    b'{"Version":"v1.2.0+meta"}',
    b'{"Version":"\\ud800"}',
    b"\xff",
    b"\xff\xfe{\0",
    b'{"Version":"\xff"}',
    b"[" * 100_000,
    b'{"Version":' * 100_000,
    b'{"Version":' + b"9" * 5000 + b"}",
    b"NaN",
    b'{"Version":NaN}',
    b"\xef\xbb\xbf{}",
    b"not found: v1.2.0-RC.1",
]


@pytest.mark.parametrize("data", BAD_INFOS, ids=lambda data: ascii(data[:30]))
def test_bad_infos(data):
    """What is not JSON or has no canonical version is refused."""
    for version in (MODULE.version, None):
        with pytest.raises(FileMismatch) as caught:
            checks.check_info(data, version)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_deeply_nested_infos():
    """Nesting around the recursion limit raises FileMismatch and nothing else."""
    for depth in range(900, 1000):
        with pytest.raises(FileMismatch):
            checks.check_info(b'{"Version":' + b"[" * depth + b"]" * depth + b"}", None)


def test_info_of_another_version():
    """It is refused for a .info of a version, and accepted for a query."""
    other = b'{"Version":"v1.2.1"}'
    checks.check_info(other, None)
    with pytest.raises(FileMismatch, match=r"v1\.2\.1"):
        checks.check_info(other, MODULE.version)
    with pytest.raises(FileMismatch):
        checks.check_text(INFO, other)


# -- mod, list -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        MODULE.mod,
        b"module x",
        b"// c\n\nmodule x\n",
        b"  module\tx\n",
        b"module (\n\tx\n)\n",
        b"\r\nmodule x\r\n",
        b'module "x"',
        "// é\nmodule x\n".encode(),
        b"go 1.21\nmodule x",
        b"\n\n \t module x",
    ],
)
def test_mods(data):
    """A file with a module directive is accepted."""
    checks.check_text(MOD, data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"go 1.21\n",
        b"<html>module x</html>",
        b"not found: module x",
        b"modules x",
        b"// module x",
        b"module x\xff",
        b"PK\x03\x04",
        b"xmodule y",
        "\ufeff".encode() + b"x",
        b"\x00module x",
    ],
)
def test_bad_mods(data):
    """HTML, binaries and files without a module directive are refused."""
    with pytest.raises(FileMismatch):
        checks.check_text(MOD, data)


def test_mods_that_are_too_large(monkeypatch):
    """The limit is MAX_MOD_BYTES."""
    monkeypatch.setattr(checks, "MAX_MOD_BYTES", len(MODULE.mod))
    checks.check_mod(MODULE.mod)
    with pytest.raises(FileMismatch):
        checks.check_mod(MODULE.mod + b"\n")


@pytest.mark.parametrize("piece", [b"\n", b" ", b"\t\r\n", b"\n ", b"module", b"// module x\n"])
def test_checking_mods_takes_linear_time(piece):
    """Other requests wait while a .mod is checked."""
    data = piece * (40_000 // len(piece))
    begun = time.process_time()
    with pytest.raises(FileMismatch):
        checks.check_mod(data)
    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"v1.0.0\n", b"v1.0.0\nv1.1.0", b"nonsense\nv1.0.0\n", "é\n".encode()]
)
def test_lists(data):
    """An empty list, and lines that are not versions, are accepted: the go command skips those."""
    checks.check_text(parse("example.com/a/@v/list", ()), data)


@pytest.mark.parametrize(
    "data", [b"<!DOCTYPE html>", b" \n<html>", b'{"error":1}', b"\xff", b"v1.0.0\n\x80"]
)
def test_bad_lists(data):
    """Login pages and other formats are refused."""
    with pytest.raises(FileMismatch):
        checks.check_text(parse("example.com/a/@v/list", ()), data)


# -- the checksum database -------------------------------------------------------------------------

LOOKUP = names.lookup(SUM, MODULE.path, MODULE.version)
TREE = parse(f"sumdb/{SUM}/latest", (SUM,))


@pytest.fixture(scope="module")
def database():
    database = ChecksumDatabase(SUM)
    database.add(go_module("example.com/b", "v1.0.0"), MODULE)
    return database


@pytest.fixture(scope="module")
def record(database):
    return database.lookup(f"{MODULE.escaped}@{MODULE.escaped_version}")


def test_lookup(record):
    """The record's hashes of the zip and the go.mod."""
    assert checks.read_lookup(record, MODULE.path, MODULE.version) == (
        MODULE.zip_hash,
        MODULE.mod_hash,
    )
    checks.check_text(LOOKUP, record)


def test_lookup_with_one_hash_or_more_lines(record):
    """A version may have no zip hash; unknown lines are skipped."""
    lines = record.split(b"\n")
    assert MODULE.zip_hash.encode() in lines[1] and b"/go.mod " in lines[2]
    only_mod = b"\n".join([lines[0], *lines[2:]])
    assert checks.read_lookup(only_mod, MODULE.path, MODULE.version) == (None, MODULE.mod_hash)
    only_zip = b"\n".join([*lines[:2], *lines[3:]])
    assert checks.read_lookup(only_zip, MODULE.path, MODULE.version) == (MODULE.zip_hash, None)
    other = lines[1].replace(b"h1:", b"h2:")
    more = b"\n".join([lines[0], other, b"example.com/b v1.0.0 h1:x", *lines[1:]])
    assert checks.read_lookup(more, MODULE.path, MODULE.version) == (
        MODULE.zip_hash,
        MODULE.mod_hash,
    )


def bad_lookups(record) -> dict:
    """Records that are not valid, by what is wrong with them."""
    lines = record.split(b"\n")
    head, signed = record.split(b"\n\n", 1)
    return {
        "empty": b"",
        "page": b"<html></html>",
        "no number": b"\n".join(lines[1:]),
        "number": b"x" + record,
        "negative": b"-" + record,
        "hashes": b"\n".join([lines[0], *lines[3:]]),
        "no tree": head + b"\n\n",
        "no blank line": head + b"\n" + signed,
        "unsigned": record[: record.index("—".encode())],
        "h2": record.replace(b"h1:", b"h2:"),
        "not UTF-8": record.replace(b"h1:", b"h1:\xff"),
        "title": record.replace(b"database tree", b"database bush"),
        "size": signed.join([head + b"\n\n", b""]).replace(b"tree\n2", b"tree\nx"),
        "signature": record.replace("—".encode(), b"-"),
        "truncated": record[:-1].rpartition(b" ")[0],
    }


def test_bad_lookups(record):
    """Each of them is refused."""
    for what, data in bad_lookups(record).items():
        assert data != record, what
        with pytest.raises(FileMismatch):
            checks.read_lookup(data, MODULE.path, MODULE.version)
            pytest.fail(what)


@pytest.mark.parametrize(
    ("module", "version"),
    [
        ("example.com/upper/a", MODULE.version),
        (MODULE.path, "v1.2.0"),
        (MODULE.path, "v1.2.0-RC.10"),
        (MODULE.path + "/v2", MODULE.version),
        ("example.com/b", "v1.0.0"),
        (MODULE.path, MODULE.version + "/go.mod"),
    ],
)
def test_lookup_of_another_version(record, module, version):
    """A record of another module or version is refused."""
    with pytest.raises(FileMismatch):
        checks.read_lookup(record, module, version)


def test_trees(database):
    """Trees with one signature or several are accepted."""
    latest = database.latest()
    checks.check_text(TREE, latest)
    checks.check_text(TREE, latest + "— other.example AbCd\n".encode())
    checks.check_text(TREE, latest.replace(b"\n\n", b"\nmore of the future\n\n"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("go.sum", "go.mod"),
        ("tree\n2", "tree\n-2"),
        ("tree\n2", "tree\n"),
        ("\n\n", "\n"),
        ("—", "--"),
        ("tree\n2\n", "tree\n"),
        (f"— {SUM} ", "— "),
        ("go.sum database", "x\ngo.sum database"),
    ],
)
def test_bad_trees(database, old, new):
    """Each of them is refused, and so is an unsigned tree."""
    latest = database.latest().decode()
    assert old in latest
    for text in (
        latest.replace(old, new, 1),
        latest.partition("\n\n")[0],
        latest.partition("—")[0],
    ):
        with pytest.raises(FileMismatch):
            checks.check_text(TREE, text.encode())


def test_tiles(database):
    """A tile of hashes has 32 bytes for each entry, a data tile at least one byte for each."""
    for path in ("tile/8/0/000.p/2", "tile/8/data/000.p/2"):
        name, data = parse(f"sumdb/{SUM}/{path}", (SUM,)), database.tile(path)
        checks.check_text(name, data)
        short = data[:-1] if "data" not in path else data[:1]
        for bad in (short, b""):
            with pytest.raises(FileMismatch):
                checks.check_text(name, bad)
    for bad in (bytes(65), bytes(32), bytes(1 << 20)):
        with pytest.raises(FileMismatch):
            checks.check_text(parse(f"sumdb/{SUM}/tile/8/0/000.p/2", (SUM,)), bad)
    checks.check_text(parse(f"sumdb/{SUM}/tile/8/0/000", (SUM,)), bytes(8192))


# -- any bytes -------------------------------------------------------------------------------------

TEXTS = [
    MOD,
    INFO,
    LOOKUP,
    TREE,
    *(
        parse(path, (SUM,))
        for path in (
            "example.com/a/@v/list",
            "example.com/a/@latest",
            "example.com/a/@v/master.info",
            f"sumdb/{SUM}/tile/8/0/000.p/1",
            f"sumdb/{SUM}/tile/8/data/000",
            f"sumdb/{SUM}/tile/30/0/000",
        )
    ),
]
PIECES = st.sampled_from(
    [
        b"\n\n",
        b"\n",
        b"go.sum database tree\n",
        b"2\n",
        b"\xe2\x80\x94 a b",
        b"\xff",
        b'{"Version":',
        b'"v1.0.0"',
        b"}",
        b"[",
        b"module x",
        b"\0",
        b"1",
        b"example.com/Upper/a v1.2.0-RC.1 h1:x",
        b"<",
        b" ",
        b"\xe2\x80",
    ]
)
BYTES = st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=12).map(b"".join))
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["Version", "x"]), inner, max_size=2)
    ),
    max_leaves=6,
)


@given(st.sampled_from(TEXTS), BYTES)
def test_any_bytes_are_accepted_or_refused(name, data):
    """Only FileMismatch is raised, and its text is one line."""
    try:
        checks.check_text(name, data)
    except FileMismatch as error:
        assert str(error).isprintable() and len(str(error)) < 500


@given(VALUES)
def test_any_json_without_version_is_refused(value):
    """JSON is accepted only if it has a Version."""
    with pytest.raises(FileMismatch):
        checks.check_info(json.dumps(value).encode(), None)
