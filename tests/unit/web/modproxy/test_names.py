"""Unit tests of web/modproxy/names.py: paths are parsed as golang.org/x/mod parses them.

The lists of paths here were compared with module.UnescapePath, UnescapeVersion, CanonicalVersion
and tlog.ParseTilePath of that module.
"""

import os
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cacheplugin.errors import InvalidName
from cacheplugin.web.modproxy import names
from cacheplugin.web.modproxy.cache import key_of
from cacheplugin.web.modproxy.names import Name, parse

SUM, OTHER = "sum.golang.org", "sum.example.com/log"
DATABASES = (SUM, OTHER)


def status_of(path, databases=DATABASES) -> int:
    """The HTTP status of the InvalidName for a path."""
    with pytest.raises(InvalidName) as caught:
        parse(path, databases)
    reason = str(caught.value)
    assert reason and reason.isascii() and reason.isprintable() and len(reason) < 700
    return caught.value.status


# -- module paths ----------------------------------------------------------------------------------

MODULES = [
    "example.com",
    "example.com/a",
    "github.com/!azure/azure-sdk-for-go",
    "golang.org/x/mod",
    "a.b/c",
    "example.com/a/v2",
    "example.com/a/v10",
    "example.com/a/v123",
    "example.com/v2",
    "example.com/v",
    "example.com/v2x",
    "example.com/xv1",
    "example.com/v1/a",
    "example.com/v0.1/a",
    "example.com/a/w1",
    "example.com/_a/-b/~c",
    "example.com/a..b",
    "example.com/a~b",
    "example.com/a~1b",
    "example.com/~",
    "example.com/a.~1",
    "example.com/com",
    "example.com/com10",
    "example.com/com0",
    "example.com/conn",
    "example.com/a.con",
    "example.com/null",
    "1.2",
    "a-.b",
    "gopkg.in/yaml.v2",
    "gopkg.in/a/b.v0",
    "gopkg.in/yaml.v1-unstable",
    "gopkg.in/a.v1.v2",
    "gopkg.in/a.v10",
    "example.com/a.v0",
    "x..y/z",
    "xn--80ak6aa92e.com/a",
]
BAD_MODULES = [
    "",
    "/",
    "a",
    "a/b.c",
    "example.com/",
    "/example.com",
    "example.com//a",
    "example.com/a/",
    "-a.b/c",
    ".a.b/c",
    "a.b./c",
    "Example.com/a",
    "!example.com/a",
    "exa_mple.com/a",
    "exa~mple.com/a",
    "example.com/.",
    "example.com/..",
    "../example.com",
    "example.com/../a",
    "example.com/./a",
    "example.com/.a",
    "example.com/a.",
    "example.com/a..",
    "example.com/...",
    "example.com/A",
    "example.com/!",
    "example.com/!1",
    "example.com/!!a",
    "example.com/!A",
    "example.com/a!",
    "example.com/a!/b",
    "example.com/é",
    "example.com/!é",
    "éxample.com/a",
    "example.com/a b",
    "example.com/a+b",
    "example.com/a@b",
    "example.com/a:b",
    "example.com/a\\b",
    "example.com/a%2e",
    "example.com/a?b",
    "example.com/a#b",
    "example.com/a\0",
    "example.com/a\n",
    "example.com/\x7f",
    "example.com/\u0661",
    "example.com/a\u2028",
    "example.com/\udcff",
    "example.com/con",
    "example.com/!c!o!n",
    "example.com/nul.txt",
    "example.com/aux/a",
    "example.com/com1.a.b",
    "example.com/lpt9",
    "prn.example/a",
    "con.com/a",
    "example.com/a~1",
    "example.com/~0/a",
    "example.com/a~12.b",
    "example.com/a~b~1",
    "example.com/v0",
    "example.com/v1",
    "example.com/a/v01",
    "example.com/a/v02",
    "example.com/a/v2.0",
    "example.com/a/v1.2.3",
    "example.com/a/v2.",
    "gopkg.in/yaml",
    "gopkg.in/yaml/v2",
    "gopkg.in/yaml.v01",
    "gopkg.in/yaml.v",
    "gopkg.in/a.v1-",
    "gopkg.in/yaml.v1-stable",
    "gopkg.in/",
    "example.com/\u212aelvin",
    "file:///etc",
    "~/a.b",
    "example.com\\a",
    "C:/a.b",
    "example.com/a;b",
    "example.com/a*",
    "example.com/a'",
    "example.com/a|b",
]


@pytest.mark.parametrize("escaped", MODULES, ids=ascii)
def test_module_paths(escaped):
    """A path that module.CheckPath accepts is accepted in every kind of request."""
    module = re.sub("!(.)", lambda found: found[1].upper(), escaped)
    assert parse(f"{escaped}/@v/list", ()) == (f"{escaped}/@v/list", "list", module, "", "")
    assert parse(f"{escaped}/@latest", ()) == (f"{escaped}/@latest", "latest", module, "", "")
    zipped = parse(f"{escaped}/@v/v1.2.3.zip", ())
    assert zipped == (f"{escaped}/@v/v1.2.3.zip", "zip", module, "v1.2.3", "")
    assert parse(f"sumdb/{SUM}/lookup/{escaped}@v1.2.3", DATABASES).module == module


@pytest.mark.parametrize("escaped", BAD_MODULES, ids=ascii)
def test_bad_module_paths(escaped):
    """A path that module.UnescapePath refuses is refused in every kind of request."""
    for file in ("@v/list", "@latest", "@v/v1.0.0.zip", "@v/v1.0.0.info"):
        assert status_of(f"{escaped}/{file}") == 400
    assert status_of(f"sumdb/{SUM}/lookup/{escaped}@v1.0.0") == 400


def test_gopkg_in_has_no_unstable_v0():
    """gopkg.in has no v0-unstable."""
    assert status_of("gopkg.in/yaml.v0-unstable/@v/list") == 400


# -- versions --------------------------------------------------------------------------------------

CANONICAL = [
    "v0.0.0",
    "v1.2.3",
    "v10.20.30",
    "v1.2.3-0",
    "v1.2.3-rc.1",
    "v1.2.3-alpha",
    "v1.2.3-a-b.c--.0a",
    "v1.2.3--",
    "v1.2.3-01a",
    "v2.0.0+incompatible",
    "v2.0.0-rc.1+incompatible",
    "v0.0.0-20191109021931-daa7c04131f5",
    "v99999999999999999999.0.0",
]
QUERIES = [
    "master",
    "latest",
    "v1",
    "v1.2",
    "v1.2.3+meta",
    "v1.2.3+incompatible.1",
    "v01.2.3",
    "v1.02.3",
    "v1.2.3-01",
    "v1.2.3-",
    "v1.2.3-a..b",
    "v1.2.3.4",
    "1.2.3",
    "V1.2.3",
    "release-branch.go1.21",
    "daa7c04131f5",
    "a b",
    " ",
    "a..b",
    ".a",
    "feature,x",
    "x@y",
    "v1.2.3-e_",
    "v1.0.0 ",
    "#1",
    "list",
    "v1.2.3.zip",
    "%2e",
    "v1.2.3-A~a",
]
BAD_VERSIONS = [
    ".",
    "..",
    "...",
    "a.",
    "v1.2.3.",
    "con",
    "nul.x",
    "COM1",
    ">=v1.2.3",
    "a*",
    "a/b",
    "a\\b",
    "a:b",
    "a'b",
    'a"b',
    "a|b",
    "a?b",
    "a`b",
    "é",
    "\0",
    "a\n",
    "\u0661",
    "\udcff",
    "/",
    "../x",
    "a;b",
    "\x7f",
]


@pytest.mark.parametrize("version", CANONICAL)
def test_canonical_versions(version):
    """They have .info, .mod and .zip, which never change."""
    assert names.is_canonical(version)
    escaped = names.escape(version)
    for kind in (names.INFO, names.MOD, names.ZIP):
        name = parse(f"example.com/a/@v/{escaped}.{kind}", ())
        assert name == (f"example.com/a/@v/{escaped}.{kind}", kind, "example.com/a", version, "")
        assert name.is_immutable
        assert names.sibling(name, names.MOD) == parse(f"example.com/a/@v/{escaped}.mod", ())
    name = parse(f"sumdb/{SUM}/lookup/example.com/a@{escaped}", DATABASES)
    assert name == names.lookup(SUM, "example.com/a", version)


@pytest.mark.parametrize("version", QUERIES)
def test_other_versions_have_only_an_info(version):
    """For a branch or a short version there is only a .info, which may change."""
    assert not names.is_canonical(version)
    path = f"example.com/a/@v/{names.escape(version)}"
    assert parse(f"{path}.info", ()) == (f"{path}.info", "query", "example.com/a", version, "")
    assert not parse(f"{path}.info", ()).is_immutable
    assert status_of(f"{path}.mod") == status_of(f"{path}.zip") == 404
    assert status_of(f"sumdb/{SUM}/lookup/example.com/a@{names.escape(version)}") in (400, 404)


@pytest.mark.parametrize("version", BAD_VERSIONS, ids=ascii)
def test_bad_versions(version):
    """Text that is not valid as a file name is refused."""
    assert status_of(f"example.com/a/@v/{names.escape(version)}.info") == 400
    assert status_of(f"example.com/a/@v/{names.escape(version)}.zip") == 400


@pytest.mark.parametrize("version", ["V1.2.3", "v1.0.0-RC1", "v1!", "!!", "!1", "a!.b"])
def test_badly_escaped_versions(version):
    """Upper-case letters, and ! without a lower-case letter after it, are refused."""
    assert status_of(f"example.com/a/@v/{version}.info") == 400


@pytest.mark.parametrize(
    "file",
    [
        "",
        "list/",
        "List",
        "lists",
        ".info",
        ".zip",
        "v1.0.0",
        "v1.0.0.",
        "v1.0.0.zip.sig",
        "v1.0.0.ziphash",
        "v1.0.0.INFO",
        "v1.0.0.lock",
        "v1.0.0.info/",
        "list.txt",
        "v1.0.0.info?x",
    ],
)
def test_unknown_files_of_a_version(file):
    """A file that the protocol does not have gives 404."""
    assert status_of(f"example.com/a/@v/{file}") == 404


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "example.com/a",
        "@latest",
        "@v/list",
        "example.com/a/@v",
        "example.com/a/@V/list",
        "example.com/a@v1.0.0",
        "example.com/a/@latest/",
        "cached-only/",
        "favicon.ico",
        "@v",
        "sumdb",
        "sumdb/",
        "sumdb//supported",
        "robots.txt",
    ],
)
def test_other_paths(path):
    """Paths that are not of the protocol are refused."""
    assert status_of(path) in (400, 404)


def test_long_paths():
    """Paths up to MAX_LENGTH are accepted, and long ones are parsed in linear time."""
    room = names.MAX_LENGTH - len("example.com//@v/list")
    assert parse(f"example.com/{'a' * room}/@v/list", ()).module == f"example.com/{'a' * room}"
    assert status_of(f"example.com/{'a' * (room + 1)}/@v/list") == 414
    for piece in ("a", "-", "0", "!a", "0a", "a.", "x000/", ".v1", "~1"):
        text = piece * (2000 // len(piece))
        for path in (f"{text}.info", f"v1.2.3-{text}!.zip", f"v{text}.0.0.mod"):
            try:
                parse(f"example.com/a/@v/{path}", ())
            except InvalidName:
                pass
        status_of(f"sumdb/{SUM}/tile/8/0/{text}")


# -- checksum databases ----------------------------------------------------------------------------


@pytest.mark.parametrize("database", DATABASES)
def test_files_of_a_checksum_database(database):
    """Each Name has its database; records and tiles never change, the tree does."""
    for rest, kind, immutable in (
        ("supported", names.SUPPORTED, False),
        ("latest", names.TREE, False),
        ("lookup/example.com/!a@v1.0.0-!r!c", names.LOOKUP, True),
        ("tile/8/0/001", names.TILE, True),
    ):
        name = parse(f"sumdb/{database}/{rest}", DATABASES)
        assert (name.kind, name.database, name.is_immutable) == (kind, database, immutable)
        assert (name.text, name.path_in_database) == (f"sumdb/{database}/{rest}", rest)
    name = names.lookup(database, "example.com/A", "v1.0.0-RC")
    assert (name.module, name.version) == ("example.com/A", "v1.0.0-RC")
    assert name.text == f"sumdb/{database}/lookup/example.com/!a@v1.0.0-!r!c"


@pytest.mark.parametrize(
    "path",
    [
        "sum.golang.google.cn/latest",
        "sum.golang.org.evil.com/latest",
        "sum.golang/latest",
        "/latest",
        "SUM.golang.org/latest",
        "sum.golang.org",
        "sum.golang.orglatest",
        "../sum.golang.org/latest",
    ],
)
def test_checksum_databases_that_are_not_served(path):
    """Only the databases in the list are served: this is not a proxy to any host."""
    assert status_of(f"sumdb/{path}") == 404


@pytest.mark.parametrize(
    ("rest", "status"),
    [
        ("", 404),
        ("Supported", 404),
        ("supported/", 404),
        ("latest/", 404),
        ("latest?x", 404),
        ("../latest", 404),
        ("lookup/", 400),
        ("lookup/example.com/a", 400),
        ("lookup/@v1.0.0", 400),
        ("lookup/example.com/a@", 400),
        ("lookup/example.com/a@latest", 404),
        ("lookup/example.com/a@v1.0.0/go.mod", 400),
        ("lookup/example.com/a@b@v1.0.0", 400),
        ("lookup/../a@v1.0.0", 400),
    ],
)
def test_unknown_files_of_a_checksum_database(rest, status):
    """Paths that are not a record, tile or tree are refused."""
    assert status_of(f"sumdb/{SUM}/{rest}") == status


@pytest.mark.parametrize(
    "databases", [("sum.example", "sum.example/log"), ("sum.example/log", "sum.example")]
)
def test_a_database_below_another(databases):
    """If one name begins with the other, each is found, in any order of the list."""
    assert parse("sumdb/sum.example/latest", databases).database == "sum.example"
    assert parse("sumdb/sum.example/log/latest", databases).database == "sum.example/log"


TILES = {  # path: (entries, bytes)
    "8/0/000": (256, 8192),
    "8/0/001.p/1": (1, 32),
    "8/0/999.p/255": (255, 8160),
    "1/63/000": (2, 64),
    "8/3/x123/x456/789": (256, 8192),
    "8/data/x001/000": (256, None),
    "8/data/000.p/7": (7, None),
    "30/0/000": (1 << 30, 1 << 35),
    "30/0/000.p/1073741823": ((1 << 30) - 1, ((1 << 30) - 1) * 32),
    "2/0/x999/x999/x999/999": (4, 128),
}


@pytest.mark.parametrize("tile", TILES)
def test_tiles(tile):
    """Paths are those of tlog.Tile.Path; a partial tile has fewer entries."""
    name = parse(f"sumdb/{SUM}/tile/{tile}", DATABASES)
    assert name.kind == names.TILE and names.tile_size(name) == TILES[tile]


@pytest.mark.parametrize(
    "tile",
    [
        "",
        "8",
        "8/0",
        "8/0/",
        "8/0/0",
        "8/0/00",
        "8/0/0000",
        "8/0/x000",
        "8/0/000/000",
        "8/0/1000",
        "0/0/000",
        "08/0/000",
        "31/0/000",
        "99/0/000",
        "-8/0/000",
        "8/-1/000",
        "8/00/000",
        "8/01/000",
        "8/64/000",
        "8/99/000",
        "8/DATA/000",
        "8/0/000.p",
        "8/0/000.p/",
        "8/0/000.p/0",
        "8/0/000.p/01",
        "8/0/000.p/256",
        "8/0/000.p/-1",
        "8/0/000.p/99999999999",
        "8/0/000/.p/1",
        "8/0/x1/000",
        "8/0/y001/000",
        "8/0/000/",
        "/8/0/000",
        "8/0/../000",
        "8/0/\u0661\u0661\u0661",
        "\u0668/0/000",
        "8/0/000\n",
        "8/0/000.p/1\n",
        "8/0/+00",
        "8/0/000.p/1/2",
        "8/ata/000",
        "1/0/000.p/2",
    ],
    ids=ascii,
)
def test_bad_tiles(tile):
    """Paths that tlog.ParseTilePath refuses, and impossible heights and levels, are refused."""
    assert status_of(f"sumdb/{SUM}/tile/{tile}") == 404


@pytest.mark.parametrize("tile", ["8/0/x000/000", "8/0/x000/x001/000", "8/data/x000/255"])
def test_one_tile_has_one_path(tile):
    """Leading zeros are refused, so that a tile is not stored under several names."""
    assert status_of(f"sumdb/{SUM}/tile/{tile}") == 404


# -- any path --------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        "example.com",
        "/",
        "@v",
        "/@v/",
        "@latest",
        "list",
        "v1.0.0",
        ".info",
        ".mod",
        ".zip",
        ".",
        "..",
        "!a",
        "!",
        "A",
        "sumdb/",
        SUM,
        "/latest",
        "lookup/",
        "@",
        "tile/8/0/",
        "001",
        "x001/",
        ".p/",
        "~1",
        "con",
        "%2e",
        "\0",
        "\\",
        "\n",
        "é",
        "\udcff",
        "\u2028",
        "gopkg.in",
        "-",
        "+incompatible",
        "/v2",
        " ",
    ]
)
PATHS = st.one_of(
    st.text(st.characters(), max_size=40),
    st.builds(
        "{}/@v/{}.{}".format,
        st.text(max_size=12),
        st.text(max_size=12),
        st.sampled_from(["info", "mod"]),
    ),
    st.lists(WORDS, max_size=9).map("".join),
    st.builds(
        "example.com/{}/@v/{}".format,
        st.from_regex("[a-z.~!-]{1,9}", fullmatch=True),
        st.from_regex(r"v\d\.\d\.\d(-[a-z0-9.-]{0,5})?\.(zip|mod|info)", fullmatch=True),
    ),
)


@given(PATHS)
@example("example.com/!a/@v/v1.0.0-!r!c.1.info")
@example(f"sumdb/{SUM}/lookup/example.com/!a@v1.0.0")
@example(f"sumdb/{SUM}/tile/8/data/x001/000.p/3")
def test_any_path_is_safe_or_refused(path):
    """Elements are safe in file names and URLs; only InvalidName is raised."""
    try:
        name = parse(path, DATABASES)
    except InvalidName as error:
        assert error.status in (400, 404, 414)
        assert str(error).isascii() and str(error).isprintable()
        return
    assert isinstance(name, Name) and name.text == path and path.isascii()
    for element in path.split("/"):
        assert element and element.strip(".") and not element.endswith(".")
        assert not re.search(r"[A-Z\\\0-\x1f\x7f:*?\"<>|]", element)
    assert names.escape(name.module) in path and names.escape(name.version) in path
    assert not path.startswith("/") and os.path.normpath(path) == path
    key = key_of(name.text)
    assert re.fullmatch(r"module/([0-9a-f]{2})/\1[0-9a-f]{62}", key)


@given(st.text(st.characters(exclude_characters="!"), max_size=30))
@example("github.com/Azure/ÀZ")
def test_escape_round_trip(text):
    """Unescaping undoes escaping, which leaves no upper-case letter of ASCII."""
    escaped = names.escape(text)
    assert not re.search("[A-Z]", escaped) and names.unescape(escaped) == text


@given(st.text("aZ!1é/", max_size=12))
def test_unescape_accepts_one_spelling(text):
    """Only the output of ``escape`` is accepted, so no two paths are the same module."""
    try:
        plain = names.unescape(text)
    except InvalidName:
        assert re.search("[A-Z]|!(?![a-z])", text)
    else:
        assert names.escape(plain) == text and "!" not in plain


def test_keys():
    """Keys are those of the Go program: module/, two digits, and the SHA-256 of the name."""
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert key_of("x") == f"module/2d/{digest}"
