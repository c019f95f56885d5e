"""The module proxy without a bucket: sources of files, answers, configuration."""

import json
import os
import re
import subprocess

import pytest

from goupstream import FakeUpstream
from helpers import PROGRAM, Processes, wait_until
from module_proxy import LEAF, OLD, ROOT, key_of, path_of
from modules import go_module
from server_sessions import ask, free_port

pytest_plugins = ["modproxy_fixtures"]

ZIP, MOD, INFO = (path_of(LEAF, kind) for kind in ("zip", "mod", "info"))
LIST, LATEST, BRANCH = (
    f"/example.test/base/@{name}" for name in ("v/list", "latest", "v/master.info")
)
SUMDB = "/sumdb/sum.example.test"
RECORD, TILE = f"{SUMDB}/lookup/example.test/!leaf@v1.0.0", f"{SUMDB}/tile/8/0/000.p/3"


@pytest.fixture(autouse=True)
def master(upstream):
    """The branch master of ROOT is its older version."""
    upstream.queries[(ROOT.path, "master")] = OLD.version


@pytest.fixture
def other():
    """A second upstream, which has only LEAF."""
    with FakeUpstream(LEAF) as other:
        yield other


@pytest.mark.parametrize("kind", ["info", "mod", "zip"])
def test_a_file_is_fetched_once_and_then_read_from_disk(modproxy, upstream, kind):
    proxy, path = modproxy(), path_of(LEAF, kind)
    first = proxy.get(path)
    assert first.status == 200 and first.body == getattr(LEAF, kind)
    again = proxy.get(path)
    assert again.body == first.body and "immutable" in again.headers["Cache-Control"]
    assert upstream.count(path) == 1
    assert proxy.counts()["get_local_hit"] == 1 and proxy.counts()["get_local_miss"] == 1
    upstream.close()
    assert proxy.get(path).body == first.body


def test_lists_come_from_disk_when_upstream_fails(modproxy, upstream):
    proxy = modproxy("--modproxy-max-age=0")
    assert proxy.get("/example.test/base/@v/list").text.split() == [OLD.version, ROOT.version]
    upstream.fail("503")
    assert proxy.get("/example.test/base/@v/list").text.split() == [OLD.version, ROOT.version]
    assert proxy.counts()["get_stale"] == 1
    assert proxy.get("/example.test/!leaf/@v/list").status == 502


def test_stored_files_are_served_by_the_next_server(modproxy, upstream):
    first = modproxy()
    paths = (ZIP, MOD, INFO, LIST, LATEST, BRANCH, RECORD, TILE)
    bodies = {path: first.get(path).body for path in paths}
    assert first.server.stop() == 0
    upstream.close()
    second = modproxy()
    assert {path: second.get(path).body for path in bodies} == bodies
    assert second.counts()["get_stale"] == 3


def test_with_upstream_off_only_the_disk_is_used(modproxy, upstream):
    first = modproxy()
    bodies = {path: first.get(path).body for path in (ZIP, MOD, INFO, LIST, LATEST, BRANCH, RECORD)}
    assert first.server.stop() == 0
    asked = len(upstream.requests)
    second = modproxy("--modproxy-upstream=off", "--sumdb=sum.example.test")
    assert {path: second.get(path).body for path in (ZIP, MOD, INFO, RECORD)} == {
        path: bodies[path] for path in (ZIP, MOD, INFO, RECORD)
    }
    answer = second.get(path_of(ROOT, "zip"))
    assert answer.status == 404 and "off" in answer.text
    assert len(upstream.requests) == asked


def max_age(answer) -> int:
    """The max-age, in seconds, of an answer that may change."""
    return int(re.fullmatch(r"public, max-age=(\d+)", answer.headers["Cache-Control"])[1])


# -- files that change -----------------------------------------------------------------------------


def test_latest_and_branches(modproxy):
    proxy = modproxy()
    assert json.loads(proxy.get(LATEST).body)["Version"] == ROOT.version
    assert json.loads(proxy.get(BRANCH).body)["Version"] == OLD.version
    assert proxy.get(LIST).text == f"{OLD.version}\n{ROOT.version}\n"
    assert proxy.get("/example.test/base/@v/none.info").status == 404


@pytest.mark.parametrize("path", [LIST, LATEST, BRANCH])
def test_fresh_files_are_not_fetched_again(modproxy, upstream, path):
    proxy = modproxy("--modproxy-max-age=1h")
    first = proxy.get(path)
    upstream.add(go_module(ROOT.path, "v1.9.0"))
    upstream.queries[(ROOT.path, "master")] = ROOT.version
    for _ in range(3):
        answer = proxy.get(path)
        assert answer.body == first.body
        assert 3500 < max_age(answer) <= 3600
    assert upstream.count(path) == 1 and proxy.counts()["get_local_hit"] == 3


@pytest.mark.parametrize("path", [LIST, LATEST, BRANCH])
def test_files_are_fetched_again_after_max_age(modproxy, upstream, path):
    """With --modproxy-max-age=0, a new version is seen at once."""
    proxy = modproxy("--modproxy-max-age=0")
    first = proxy.get(path)
    assert first.headers["Cache-Control"] == "public, max-age=0"
    newer = go_module(ROOT.path, "v1.9.0")
    upstream.add(newer)
    upstream.queries[(ROOT.path, "master")] = newer.version
    second = proxy.get(path)
    assert b"v1.9.0" in second.body and b"v1.9.0" not in first.body
    assert upstream.count(path) == 2


def test_max_age_expires(modproxy, upstream):
    proxy = modproxy("--modproxy-max-age=300ms")
    proxy.get(LIST)
    wait_until(lambda: proxy.get(LIST).status == 200 and upstream.count(LIST) >= 3, "two requests")
    assert proxy.counts()["get_local_hit"] > 0


def test_absent_files_are_asked_for_once_a_minute(modproxy, upstream):
    proxy = modproxy("--modproxy-max-age=0")
    for path in (
        "/example.test/none/@v/list",
        "/example.test/none/@latest",
        "/example.test/base/@v/v9.0.0.info",
        "/example.test/base/@v/v9.0.0.zip",
    ):
        for _ in range(3):
            answer = proxy.get(path)
            assert answer.status == 404 and "not found" in answer.text
            assert 0 < max_age(answer) <= 60
        assert upstream.count(path) == 1
    assert proxy.counts()["get_absent"] == 12


def test_an_absent_file_does_not_affect_other_files_of_its_module(modproxy, upstream):
    proxy = modproxy()
    assert proxy.get("/example.test/base/@v/v1.9.0.info").status == 404
    upstream.add(go_module(ROOT.path, "v1.9.0"))
    assert proxy.get("/example.test/base/@v/v1.9.0.info").status == 404
    assert "v1.9.0" in proxy.get(LIST).text and "v1.9.0" in proxy.get(LATEST).text


# -- answers ---------------------------------------------------------------------------------------

IMMUTABLE = "public, max-age=31536000, immutable"
HEADERS = {
    ZIP: ("application/zip", IMMUTABLE),
    MOD: ("text/plain; charset=utf-8", IMMUTABLE),
    INFO: ("application/json", IMMUTABLE),
    LIST: ("text/plain; charset=utf-8", "public, max-age=60"),
    LATEST: ("application/json", "public, max-age=60"),
    BRANCH: ("application/json", "public, max-age=60"),
    RECORD: ("text/plain; charset=utf-8", IMMUTABLE),
    TILE: ("application/octet-stream", IMMUTABLE),
    f"{SUMDB}/latest": ("text/plain; charset=utf-8", "public, max-age=60"),
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_headers_of_each_kind_of_file(modproxy, upstream, tmp_path, method):
    """They are the same from upstream and from disk, for GET and for HEAD, which fetches too."""
    proxy = modproxy()
    for path, (content_type, cache_control) in HEADERS.items():
        cold = proxy.get(path, method)
        wait_until((tmp_path / "modules" / key_of(path)).exists, "the file in the cache")
        warm = proxy.get(path)
        for answer in (cold, warm):
            assert answer.status == 200
            assert answer.headers["Content-Type"] == content_type
            assert int(answer.headers["Content-Length"]) == len(warm.body)
        unproven = "public, max-age=60"  # for a zip that is not verified yet
        assert cold.headers["Cache-Control"] == (unproven if path == ZIP else cache_control)
        age = int(re.search("max-age=([0-9]+)", warm.headers["Cache-Control"])[1])
        assert age in (31536000, 60, 59, 58) and ("immutable" in cache_control) == (age > 60)
        assert cold.body == (warm.body if method == "GET" else b"")
        assert upstream.count(path) == 1
    assert "Content-Encoding" not in warm.headers


def test_head_of_a_zip_waits_only_for_its_length(modproxy, upstream):
    proxy = modproxy()
    upstream.fail("slow", match=lambda path: path == ZIP)
    answer = proxy.get(ZIP, "HEAD")
    assert answer.status == 200 and int(answer.headers["Content-Length"]) == len(LEAF.zip)
    for _ in range(4):
        upstream.step()
    assert proxy.get(ZIP).body == LEAF.zip and upstream.count(ZIP) == 1


def test_head_of_an_absent_file(modproxy, upstream):
    proxy = modproxy()
    assert proxy.get("/example.test/none/@v/v1.0.0.zip", "HEAD").status == 404
    upstream.fail("403")
    answer = proxy.get(ZIP, "HEAD")
    assert answer.status == 502 and answer.body == b""


@pytest.mark.parametrize("path, body", [(ZIP, LEAF.zip), (MOD, LEAF.mod), (INFO, LEAF.info)])
def test_ranges(modproxy, upstream, path, body):
    """A Range is served for a file from upstream and for one on disk."""
    proxy = modproxy()
    for _ in range(2):
        answer = proxy.get(path, Range="bytes=3-9")
        assert answer.status == 206 and answer.body == body[3:10]
        assert answer.headers["Content-Range"] == f"bytes 3-9/{len(body)}"
        assert answer.headers["Cache-Control"] == IMMUTABLE
    assert proxy.get(path, Range=f"bytes={len(body)}-").status == 416
    assert proxy.get(path).body == body and upstream.count(path) == 1


# -- lists of upstreams ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "separator, first, second, status",
    [
        (",", "404", None, 200),
        (",", "410", None, 200),
        ("|", "404", None, 200),
        (",", "403", None, 502),
        (",", "html", None, 502),
        ("|", "403", None, 200),
        ("|", "500", None, 200),
        ("|", "reset", None, 200),
        ("|", "cut", None, 200),
        (",", "404", "410", 404),
        (",", "404", "403", 502),
        ("|", "403", "404", 502),
    ],
)
def test_one_upstream_after_another(modproxy, upstream, other, separator, first, second, status):
    """By the rules of GOPROXY: after "," on absence alone, after "|" on any failure."""
    proxy = modproxy(f"--modproxy-upstream={upstream.url}{separator}{other.url}", checked=False)
    for one, fault in ((upstream, first), (other, second)):
        if fault:
            one.fail(fault)
    answer = proxy.get(MOD)
    assert answer.status == status and (status != 200 or answer.body == LEAF.mod)
    is_second_asked = separator == "|" or first in ("404", "410")
    assert other.count() == is_second_asked


def test_an_unreachable_upstream_before_another_one(modproxy, upstream, other):
    upstream.close()
    proxy = modproxy(f"--modproxy-upstream={upstream.url}|{other.url}", checked=False)
    for path in (MOD, ZIP, INFO, "/example.test/!leaf/@v/list"):
        assert proxy.get(path).status == 200
    strict = modproxy(f"--modproxy-upstream={upstream.url},{other.url}", checked=False)
    assert strict.get(path_of(LEAF, "mod")).status == 200  # it is on disk
    assert strict.get(path_of(ROOT, "mod")).status == 502 and other.count("root") == 0


@pytest.mark.parametrize("rest", ["off", "direct"])
def test_off_and_direct_end_a_list(modproxy, upstream, other, rest):
    """Entries after them are not asked."""
    proxy = modproxy(f"--modproxy-upstream={upstream.url},{rest},{other.url}", checked=False)
    upstream.fail("404")
    assert proxy.get(MOD).status == 404
    assert upstream.count() == 1 and other.count() == 0


# -- checksum databases ----------------------------------------------------------------------------


def test_a_checksum_database(modproxy, upstream):
    proxy, database = modproxy(), upstream.checksums
    answer = proxy.get(f"{SUMDB}/supported")
    assert answer.status == 200 and answer.body == b"" and not upstream.requests
    assert proxy.get(f"{SUMDB}/latest").body == database.latest()
    assert proxy.get(RECORD).body == database.lookup("example.test/!leaf@v1.0.0")
    assert proxy.get(TILE).body == database.tile("tile/8/0/000.p/3")
    assert proxy.get(f"{SUMDB}/tile/8/data/000.p/3").body == database.tile("tile/8/data/000.p/3")
    for path in ("lookup/example.test/none@v1.0.0", "tile/8/0/007", "tile/8/0/000.p/9"):
        assert proxy.get(f"{SUMDB}/{path}").status == 404
    for path, count in ((RECORD, 1), (TILE, 1)):
        assert proxy.get(path).status == 200 and upstream.count(path) == count


def test_other_checksum_databases_are_not_served(modproxy, upstream):
    """They give 404, after which the go command asks the database itself."""
    proxy = modproxy()
    for path in ("supported", "latest", "lookup/example.test/!leaf@v1.0.0", "tile/8/0/000.p/3"):
        assert proxy.get(f"/sumdb/sum.golang.org/{path}").status == 404
    assert proxy.get("/sumdb/sum.example.test.evil.test/supported").status == 404
    assert not upstream.requests
    assert modproxy(checked=False).get(f"{SUMDB}/supported").status == 404


@pytest.mark.parametrize("with_key", [False, True])
def test_a_checksum_database_without_url_is_asked_through_the_upstream(
    modproxy, upstream, with_key
):
    name = upstream.checksums.vkey if with_key else upstream.checksums.name
    proxy = modproxy(f"--sumdb={name}")
    assert proxy.get(ZIP).body == LEAF.zip and proxy.get(MOD).body == LEAF.mod
    assert proxy.get(TILE).status == 200
    assert upstream.count(f"{SUMDB}/supported") == 1 and upstream.count(RECORD) == 1
    assert "unverified" not in proxy.counts()


def test_a_checksum_database_is_asked_through_the_upstream_that_relays_it(
    modproxy, upstream, other
):
    name = upstream.checksums.name
    proxy = modproxy(f"--modproxy-upstream={other.url},{upstream.url}", f"--sumdb={name}")
    assert proxy.get(RECORD).status == 200
    assert other.count("/supported") == upstream.count("/supported") == 1
    assert other.count("/lookup/") == 0 and upstream.count("/lookup/") == 1


def test_several_checksum_databases(modproxy, upstream):
    """They are asked in order until one has the version."""
    proxy = modproxy(
        f"--sumdb=none.example.test {upstream.url}/nothing,"
        f"{upstream.checksums.name} {upstream.url}{SUMDB}"
    )
    upstream.add(go_module(LEAF.path, LEAF.version, body="func Evil() {}\n"))
    assert proxy.get(ZIP).status == 502
    upstream.add(LEAF)
    assert proxy.get(ZIP).body == LEAF.zip
    assert proxy.get("/sumdb/none.example.test/supported").status == 200


# -- counters and logs -----------------------------------------------------------------------------

# The Go program has these counters.
NAMES = (
    "path_error",
    "get_request",
    "get_local_hit",
    "get_local_miss",
    "get_fault_hit",
    "get_fault_miss",
    "get_local_error",
    "get_fault_error",
    "get_local_bytes",
    "get_s3_bytes",
    "put_request",
    "put_local_hit",
    "put_local_error",
    "put_s3_error",
    "put_local_bytes",
    "put_s3_bytes",
)


def test_counters(modproxy):
    proxy = modproxy()
    for path in (ZIP, ZIP, INFO, "/example.test/none/@v/list", "/.."):
        proxy.get(path)
    _, _, text = ask(proxy.port, "/debug/vars")
    counts = json.loads(text)["modcache"]
    assert set(NAMES) <= set(counts)
    assert counts["get_request"] == 5 and counts["path_error"] == 1 and counts["get_absent"] == 1
    assert counts["get_local_hit"] == 1 and counts["get_local_bytes"] == len(LEAF.zip)
    assert counts["put_request"] == 3  # the database's record is the third
    assert counts["put_local_error"] == 0
    assert counts["put_local_bytes"] > len(LEAF.zip) + len(LEAF.info)
    assert counts["upstream_request"] == 4


def test_debug_2_shows_each_request(modproxy):
    proxy = modproxy("--debug=2")
    proxy.get(MOD)
    proxy.get("/example.test/none/@v/list", "HEAD")
    assert proxy.server.says(f"GET /mod{MOD}").endswith(
        f"GET /mod{MOD} for 127.0.0.1: 200, {len(LEAF.mod)} bytes"
    )
    assert proxy.server.says("HEAD /mod").partition(" for ")[2].startswith("127.0.0.1: 404, ")


def test_debug_1_does_not(modproxy):
    proxy = modproxy("--debug=1")
    proxy.get(MOD)
    assert proxy.server.stop() == 0
    assert "/mod/" not in proxy.server.stderr


# -- configuration ---------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path):
    """refused(*flags, environ={}): the error line of ``serve --modproxy``, which exits with 2."""
    processes = Processes(tmp_path)

    def refused(*flags, environ=None):
        argv = [PROGRAM, "--modproxy", f"--cache-dir={tmp_path / 'refused'}", *flags, "serve"]
        done = subprocess.run(
            argv, env=processes.environ(**environ or {}), capture_output=True, text=True, timeout=4
        )
        assert done.returncode == 2 and done.stdout == ""
        (line,) = done.stderr.splitlines()
        return line

    yield refused
    processes.expect_none()


HTTP = "--http=127.0.0.1:9"  # flags are checked before the server listens


def test_bad_upstreams(refused):
    for upstream, word in (
        ("direct", "names no module proxy"),
        (",", "names no module proxy"),
        ("direct,off", "names no module proxy"),
        ("file:///tmp/x", "file:///tmp/x"),
        ("ftp://example.test", "ftp://"),
        ("http://", "http://"),
        ("http://x:99999", "99999"),
        ("http://exa mple.test/", "exa mple"),
        ("http://example.test/?x", "?x"),
        ("http://example.test,file:///x", "file:///x"),
        ("https://user:hidden@:80", "https://"),
    ):
        line = refused(HTTP, f"--modproxy-upstream={upstream}")
        assert "--modproxy-upstream" in line and word in line and "hidden" not in line, upstream


def test_bad_checksum_databases(refused):
    for sumdb in ("https://sum.golang.org", "a b c", "sum.golang.org file:///x", "sum.golang.org/"):
        line = refused(HTTP, "--modproxy-upstream=off", f"--sumdb={sumdb}")
        assert "--sumdb" in line, sumdb


def test_modproxy_needs_http(refused):
    line = refused("--modproxy-upstream=off")
    assert "--modproxy" in line and "--http" in line


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.0.0.2"])
def test_the_server_refuses_itself_as_upstream(refused, host):
    port = free_port()
    for flags in (
        [f"--modproxy-upstream=https://example.test,http://{host}:{port}/mod", "--sumdb=off"],
        ["--modproxy-upstream=off", f"--sumdb=sum.example.test http://{host}:{port}/mod/sumdb/x"],
    ):
        assert "this server itself" in refused(f"--http=:{port}", *flags)


def test_no_goproxy_and_no_go_command(refused, tmp_path):
    line = refused(HTTP, environ={"PATH": str(tmp_path)})
    assert "--modproxy-upstream" in line and "GOPROXY" in line


def test_goproxy_of_the_environment(modproxy, upstream, other, refused):
    proxy = modproxy(
        "--modproxy-upstream=", environ={"GOPROXY": f"{other.url},direct"}, checked=False
    )
    assert proxy.get(MOD).body == LEAF.mod and other.count() == 1 and not upstream.requests
    line = refused(HTTP, environ={"GOPROXY": "direct"})
    assert "GOPROXY" in line and "direct" in line


def test_goproxy_of_the_go_command(modproxy, upstream, tmp_path):
    """GOPROXY and GONOSUMDB as ``go env -w`` would have stored them."""
    settings = {"GOPROXY": f"{upstream.url},direct", "GONOSUMDB": "example.test/Leaf"}
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    go.write_text(f"#!/bin/sh\necho '{json.dumps(settings)}'\n")
    go.chmod(0o755)
    path = f"{go.parent}:{os.environ['PATH']}"
    proxy = modproxy("--modproxy-upstream=", environ={"PATH": path})
    assert proxy.get(ZIP).body == LEAF.zip
    assert upstream.count("sumdb") == 0
    assert proxy.get(path_of(ROOT, "zip")).body == ROOT.zip and upstream.count("/lookup/") == 1
