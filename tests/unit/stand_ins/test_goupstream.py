"""Tests of the fake GOPROXY and checksum database, partly with the real go command."""

import hashlib
import http.client
import io
import json
import os
import random
import subprocess
import threading
import zipfile

import pytest

from checksums import ChecksumDatabase
from goupstream import EXTRA_BYTES, LOGIN_PAGE, PIECES, FakeUpstream
from helpers import write_module
from modules import Module, go_module, many_modules, newest, order, program, zip_bytes

SUMDB = "sum.example.test"
GO_TIMEOUT_S = 60

A = go_module("example.com/Upper/a", "v1.2.0", body="// Bulk.\n" * 99)
B = go_module("example.com/b/v2", "v2.0.1", [A])
INFO, ZIP = A.url_path(".info"), A.url_path(".zip")


@pytest.fixture
def upstream():
    with FakeUpstream(A, B) as upstream:
        yield upstream


@pytest.fixture
def ask(upstream):
    """ask(path): (status, headers, body), on one connection, opened again after a failure."""
    connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=20)

    def ask(path, method="GET", **headers):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, headers=names)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            raise

    yield ask
    connection.close()


@pytest.fixture
def in_thread():
    """in_thread(call, *args): runs it in a thread; returns a function that waits for its result."""
    threads = []

    def start(call, *args):
        results = []
        thread = threading.Thread(target=lambda: results.append(call(*args)))
        thread.start()
        threads.append(thread)

        def finish():
            thread.join(20)
            assert not thread.is_alive()
            return results[0]

        return finish

    yield start
    for thread in threads:
        thread.join(20)


# -- the go command --------------------------------------------------------------------------------


class Go:
    """The go command with its own HOME, caches and GOPROXY, in an empty directory."""

    def __init__(self, directory, go_cache, upstream, gosumdb) -> None:
        self.directory = directory / "work"
        self.directory.mkdir()
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory / "home"),
            "GOCACHE": str(go_cache),
            "GOMODCACHE": str(directory / "modcache"),
            "GOPROXY": upstream.url,
            "GOSUMDB": gosumdb,
            "GOFLAGS": "-mod=mod -modcacherw",
            "GOTOOLCHAIN": "local",
            "GOENV": "off",
            "CGO_ENABLED": "0",
        }

    def run(self, *argv):
        return subprocess.run(
            argv,
            cwd=self.directory,
            env=self.environ,
            timeout=GO_TIMEOUT_S,
            capture_output=True,
            text=True,
        )

    def download(self, modules) -> list:
        """The objects that ``go mod download -json`` prints."""
        argv = ["go", "mod", "download", "-json", *map(repr, modules)]
        text, found = self.run(*argv).stdout, []
        while text.strip():
            said, end = json.JSONDecoder().raw_decode(text)
            found.append(said)
            text = text[end:].lstrip()
        return found


@pytest.fixture(params=["direct", "through the proxy"])
def served(request, go_build_cache, tmp_path):
    """(go, upstream, checksums); the database is asked directly or through the proxy."""
    checksums = ChecksumDatabase(SUMDB)
    with FakeUpstream(checksums=checksums) as upstream:
        gosumdb = checksums.vkey
        if request.param == "direct":
            gosumdb += f" {upstream.url}/sumdb/{SUMDB}"
        yield Go(tmp_path, go_build_cache, upstream, gosumdb), upstream, checksums


def test_go_verifies_modules_in_a_large_database(served):
    go, upstream, checksums = served
    modules = many_modules(320, 7)
    upstream.add(*modules)
    checksums.add(*modules)
    said = go.download(modules)
    assert len(said) == 320
    by_name = {(one["Path"], one["Version"]): (one.get("Sum"), one.get("GoModSum")) for one in said}
    assert by_name == {(m.path, m.version): (m.zip_hash, m.mod_hash) for m in modules}, said
    assert upstream.count(f"/sumdb/{SUMDB}/lookup/") == 320
    assert upstream.count("/tile/8/0/000") == upstream.count("/tile/8/1/000.p/1") == 1
    assert upstream.count("/supported") == (len(go.environ["GOSUMDB"].split()) == 1)


def test_go_builds_a_program(served):
    go, upstream, checksums = served
    modules = [*many_modules(60, 1), A, B]
    upstream.add(*modules)
    checksums.add(*modules)
    used = [*newest(modules)[-20:], B]
    write_module(go.directory, program(used))
    built = go.run("go", "build", "-o", "program", ".")
    assert built.returncode == 0, built.stderr
    assert go.run("./program").stderr.splitlines() == [f"{m.path} {m.version}" for m in used]


@pytest.mark.parametrize("kind", ["zip", "mod"])
def test_go_refuses_changed_files(served, kind):
    go, upstream, checksums = served
    upstream.add(A)
    checksums.add(A)
    changed = {**A.files, "more.go": "package a\n"} if kind == "zip" else A.files
    go_mod = A.mod + (b"\n// Changed.\n" if kind == "mod" else b"")
    upstream.add(Module(A.path, A.version, changed, go_mod=go_mod))
    [said] = go.download([A])
    assert "checksum mismatch" in said["Error"]


def test_go_refuses_a_database_with_another_key(served):
    go, upstream, checksums = served
    upstream.add(A)
    checksums.add(A)
    upstream.checksums = ChecksumDatabase(SUMDB, seed=b"x" * 32)
    upstream.checksums.add(A)
    [said] = go.download([A])
    assert "invalid signature" in said["Error"] or "no verifiable" in said["Error"], said


def test_go_detects_a_fork(served):
    go, upstream, checksums = served
    upstream.add(A, B)
    checksums.add(A)
    assert "Error" not in go.download([A])[0]
    upstream.checksums = ChecksumDatabase(SUMDB)
    upstream.checksums.add(B)
    upstream.checksums.add(go_module("example.com/c", "v1.0.0"))
    ran = go.run("go", "mod", "download", "-json", repr(B))
    assert "SECURITY ERROR" in ran.stdout + ran.stderr


def test_go_finds_versions(served):
    go, upstream, checksums = served
    versions = [
        "v1.0.0",
        "v1.10.0",
        "v1.9.0",
        "v1.11.0-rc.1",
        "v1.11.1-0.20240102030405-0123456789ab",
    ]
    modules = [go_module("example.com/c", version) for version in versions]
    upstream.add(*modules)
    checksums.add(*modules)
    upstream.queries["example.com/c", "main"] = versions[-1]
    listed = go.run("go", "list", "-m", "-versions", "example.com/c@latest")
    assert listed.stdout.split() == ["example.com/c", "v1.0.0", "v1.9.0", "v1.10.0", "v1.11.0-rc.1"]
    assert go.run("go", "list", "-m", "example.com/c@latest").stdout.split()[1] == "v1.10.0"
    assert go.run("go", "list", "-m", "example.com/c@main").stdout.split()[1] == versions[-1]


# -- modules and the database ----------------------------------------------------------------------


def test_modules_are_reproducible():
    once, again = many_modules(40, 3), many_modules(40, 3)
    assert [(repr(m), m.zip, m.mod) for m in once] == [(repr(m), m.zip, m.mod) for m in again]
    assert [m.zip for m in many_modules(40, 4)] != [m.zip for m in once]
    assert len({repr(m) for m in once}) == 40 > len({m.path for m in once})


def test_a_module_without_go_mod_gets_a_generated_one():
    assert Module("example.com/old", "v1.0.0", {"old.go": "package old\n"}).mod == (
        b"module example.com/old\n"
    )


def test_versions_sort_by_semver():
    versions = [
        "v0.9.0",
        "v1.0.0-alpha",
        "v1.0.0-alpha.1",
        "v1.0.0-beta.2",
        "v1.0.0-beta.11",
        "v1.0.0",
        "v1.0.10",
    ]
    assert sorted(random.Random(0).sample(versions, len(versions)), key=order) == versions


def test_a_zip_has_the_given_entries():
    entries = [("m@v1/a", b"1"), ("m@v1/a", b"2"), ("../up", b"3"), ("/abs", b""), ("m@v1/d/", b"")]
    with zipfile.ZipFile(io.BytesIO(zip_bytes(entries))) as archive:
        assert archive.namelist() == [name for name, _ in entries]
        assert [archive.read(info) for info in archive.infolist()] == [body for _, body in entries]


def test_tiles_hold_the_hashes_of_the_records():
    checksums = ChecksumDatabase(SUMDB)
    assert b"\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n" in checksums.latest()
    modules = [Module("example.com/m", f"v1.{minor}.0", {}) for minor in range(259)]
    checksums.add(*modules)
    data = checksums.tile("tile/8/data/000") + checksums.tile("tile/8/data/001.p/3")
    records = [record + b"\n" for record in data.split(b"\n\n")[:-1]]
    leaves = [hashlib.sha256(b"\0" + record).digest() for record in records]
    assert len(leaves) == 259
    assert checksums.tile("tile/8/0/000") == b"".join(leaves[:256])
    assert checksums.tile("tile/8/0/000.p/9") == b"".join(leaves[:9])
    assert checksums.tile("tile/8/0/001.p/3") == b"".join(leaves[256:])
    assert checksums.lookup("example.com/m@v1.7.0").startswith(b"7\n" + records[7] + b"\n")
    absent = "8/0/001 8/0/001.p/4 8/1/000 8/2/000.p/1 8/00/000 8/0/x000/000 8/0/000.p/256 7/0/000"
    assert [checksums.tile(f"tile/{path}") for path in absent.split()] == [None] * 8
    assert checksums.lookup("example.com/m@v2.0.0") is None


# -- the upstream ----------------------------------------------------------------------------------


def test_requests_are_recorded_and_answered_on_one_connection(upstream, ask):
    status, headers, body = ask(INFO, X_Test="1")
    assert (status, body, headers["Content-Type"]) == (200, A.info, "application/json")
    assert ask(A.url_path(".mod"))[2] == A.mod
    assert ask(ZIP)[2] == A.zip
    status, headers, body = ask("/example.com/none/@v/list")
    assert (status, body) == (404, b"not found: example.com/none/@v/list\n")
    assert headers["Content-Type"].startswith("text/plain")
    assert ask(INFO, "HEAD")[2] == b""
    upstream.body_overrides[INFO] = b"other"
    assert ask(INFO)[2] == b"other"
    assert upstream.requests[0] == ("GET", "/example.com/!upper/a/@v/v1.2.0.info")
    assert upstream.headers[0]["X-Test"] == "1" and len(upstream.headers) == 6
    assert upstream.count("!upper") == 5 and upstream.count() == 6


def test_ranges_of_zips(ask):
    size = len(A.zip)
    for header, start, end in (("5-", 5, size), ("5-9", 5, 10), ("-7", size - 7, size)):
        status, headers, body = ask(ZIP, Range=f"bytes={header}")
        assert (status, body) == (206, A.zip[start:end])
        assert headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
    assert ask(ZIP, Range="bytes=5-", If_Range=headers["ETag"])[0] == 206
    assert ask(ZIP, Range="bytes=5-", If_Range='"other"')[2] == A.zip
    assert ask(ZIP, Range=f"bytes={size}-")[0] == 416
    assert ask(INFO, Range="bytes=5-")[2] == A.info


@pytest.mark.parametrize("fault", ["403", "404", "410", "429", "500", "502", "503"])
def test_faults_apply_to_matching_paths_for_a_number_of_times(upstream, ask, fault):
    upstream.fail(fault, times=2, match=lambda path: path.endswith(".zip"))
    upstream.fail("empty", times=1, match=lambda path: path.endswith(".zip"))
    assert [ask(path)[0] for path in (INFO, ZIP, ZIP)] == [200, int(fault), int(fault)]
    assert [ask(ZIP)[2], ask(ZIP)[2]] == [b"", A.zip]
    upstream.fail(fault)
    assert ask(INFO)[0] == int(fault)
    upstream.heal()
    assert ask(INFO)[0] == 200


def test_reset_sends_an_rst(upstream, ask):
    upstream.fail("reset", times=1)
    with pytest.raises(ConnectionResetError) as caught:
        ask(ZIP)
    assert not isinstance(caught.value, http.client.RemoteDisconnected)  # raised after a FIN
    assert ask(ZIP)[2] == A.zip


def test_a_cut_body_can_be_resumed_by_range(upstream, ask):
    upstream.fail("cut", times=1)
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(ZIP)
    got = caught.value.partial
    assert (len(got), caught.value.expected) == (len(A.zip) // 2, len(A.zip) - len(got))
    assert got + ask(ZIP, Range=f"bytes={len(got)}-")[2] == A.zip


def test_wrong_content_lengths(upstream, ask):
    upstream.fail("long", times=1)
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(ZIP)
    assert caught.value.partial == A.zip and caught.value.expected == EXTRA_BYTES
    upstream.fail("short", times=1)
    assert ask(ZIP)[2] == A.zip[: len(A.zip) // 2]


def test_wrong_bodies(upstream, ask):
    for fault in ("flip", "html", "empty"):
        upstream.fail(fault, times=1)
    status, _, body = ask(ZIP)
    middle = len(A.zip) // 2
    assert (status, len(body)) == (200, len(A.zip))
    assert [at for at in range(len(body)) if body[at] != A.zip[at]] == [middle]
    status, headers, body = ask("/whatever")
    assert (status, body, headers.get_content_type()) == (200, LOGIN_PAGE, "text/html")
    status, headers, body = ask(ZIP)
    assert (status, body, headers["Content-Length"]) == (200, b"", "0")


def test_a_slow_body_is_sent_step_by_step(upstream, in_thread):
    upstream.fail("slow")
    connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=20)
    connection.request("GET", ZIP)
    response = connection.getresponse()  # the headers come at once
    size = -(-len(A.zip) // PIECES)
    for start in range(0, size * (PIECES - 1), size):
        upstream.step()
        assert response.read(size) == A.zip[start : start + size]
    rest = in_thread(response.read)
    upstream.release()
    assert rest() == A.zip[size * (PIECES - 1) :]
    connection.close()


def test_held_requests_are_answered_and_hanging_ones_are_not(upstream, ask, in_thread):
    upstream.hold(lambda path: path.endswith(".zip"))
    assert ask(INFO)[0] == 200
    held = in_thread(ask, ZIP)
    upstream.wait_for_held(1)
    upstream.release()
    assert held()[2] == A.zip
    assert ask(ZIP)[2] == A.zip

    upstream.fail("hang", times=1)
    hung = in_thread(pytest.raises, http.client.RemoteDisconnected, ask, INFO)
    upstream.wait_for_held(2)
    upstream.release()
    hung()
    assert ask(INFO)[2] == A.info


def test_waiting_for_requests(upstream, ask, in_thread):
    waiting = in_thread(upstream.wait_for_requests, 2, ".info")
    for path in (INFO, ZIP, INFO):
        ask(path)
    waiting()
    with pytest.raises(AssertionError, match="9 requests"):
        upstream.wait_for_requests(9, timeout_s=0.01)


def test_closed_and_open_again_on_the_same_port(upstream, ask, in_thread):
    assert ask(INFO)[0] == 200
    upstream.fail("hang", times=1)
    hung = in_thread(pytest.raises, http.client.RemoteDisconnected, ask, INFO)
    upstream.wait_for_held(1)
    upstream.close()
    hung()
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            ask(INFO)
    upstream.reopen()
    assert ask(INFO)[2] == A.info
    upstream.close()
    upstream.close()
