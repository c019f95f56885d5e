"""The module proxy under attack by clients, upstreams and buckets."""

import os
import random
import socket
import subprocess
import threading

import pytest

from helpers import DEADLINE_S, temporaries, wait_until
from module_proxy import LEAF, ROOT, key_of, path_of
from modules import go_module
from server_sessions import ends

pytest_plugins = ["modproxy_fixtures"]

ZIP, MOD, INFO = (path_of(LEAF, kind) for kind in ("zip", "mod", "info"))
LIST = "/example.test/base/@v/list"
SUMDB = "/sumdb/sum.example.test"
RECORD = f"{SUMDB}/lookup/example.test/!leaf@v1.0.0"
TILE = f"{SUMDB}/tile/8/0/000.p/3"
EVIL = go_module("example.test/Leaf", "v1.0.0", body="\nvar Evil = 1\n")
NOT_KEPT = "no-store"


def large_module(upstream, size):
    """A module with a zip of about ``size`` bytes, which upstream and its database have."""
    found = go_module(
        "example.test/large", "v1.0.0", **{"testdata/b": random.Random(1).randbytes(size)}
    )
    upstream.add(found)
    upstream.checksums.add(found)
    return found


def send(proxy, path, *lines):
    """A connection with a small receive buffer on which a request was sent."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(DEADLINE_S)
    sock.connect(("127.0.0.1", proxy.port))
    head = "".join(f"{line}\r\n" for line in (f"GET /mod{path} HTTP/1.1", "Host: x", *lines))
    sock.sendall(f"{head}\r\n".encode())
    return sock


# -- the checksum database -------------------------------------------------------------------------


def test_a_wrong_record_is_fetched_again(modproxy, upstream):
    """A hash that differs from a stored record's makes the proxy fetch the record again."""
    good = upstream.checksums.lookup("example.test/!leaf@v1.0.0")
    upstream.body_overrides[RECORD] = good.replace(LEAF.zip_hash.encode(), ROOT.zip_hash.encode())
    proxy = modproxy()
    assert proxy.get(ZIP).status == 502
    upstream.body_overrides.clear()
    assert proxy.get(ZIP).body == LEAF.zip
    assert proxy.get(RECORD).body == good


def test_a_record_damaged_on_disk_is_fetched_again(modproxy, upstream, tmp_path):
    path = tmp_path / "modules" / key_of(RECORD)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"5\nnonsense\n")
    assert modproxy().get(ZIP).body == LEAF.zip
    assert path.read_bytes() == upstream.checksums.lookup("example.test/!leaf@v1.0.0")


def test_a_damaged_tile_is_fetched_again_for_no_cache(modproxy, upstream):
    upstream.fail("flip", times=1, match=lambda path: "/tile/" in path)
    proxy, good = modproxy(), upstream.checksums.tile("tile/8/0/000.p/3")
    assert proxy.get(TILE).body == proxy.get(TILE).body != good
    assert proxy.get(TILE, **{"Cache-Control": "no-cache"}).body == good
    assert proxy.get(TILE).body == good
    proxy.get(ZIP)
    asked = upstream.count(".zip")
    proxy.get(ZIP, **{"Cache-Control": "no-cache"})  # a zip is verified, so no-cache has no effect
    assert upstream.count(".zip") == asked


@pytest.mark.parametrize("fault", ["404", "410", "503"])
def test_without_a_record_a_version_is_served_but_not_stored(modproxy, upstream, tmp_path, fault):
    """An upstream that serves a wrong zip could also claim that there is no record of it."""
    upstream.body_overrides[ZIP] = EVIL.zip
    upstream.fail(fault, match=lambda path: "/lookup/" in path)
    proxy = modproxy()
    for path, body in ((ZIP, EVIL.zip), (MOD, LEAF.mod)):
        answer = proxy.get(path)
        assert answer.body == body and "immutable" not in answer.headers["Cache-Control"]
        assert not (tmp_path / "modules" / key_of(path)).exists()
    assert proxy.get(MOD).headers["Cache-Control"] == NOT_KEPT
    assert proxy.counts()["unverified"] == 3
    upstream.heal()
    upstream.body_overrides.clear()


def test_with_upstream_off_nothing_unverified_is_stored(modproxy, fake_s3, tmp_path):
    fake_s3.objects[key_of(ZIP)] = EVIL.zip
    flags = (*fake_s3.flags(), "--sumdb=sum.example.test")
    proxy = modproxy(*flags, "--modproxy-upstream=off")
    assert proxy.get(ZIP).body == EVIL.zip
    assert not (tmp_path / "modules" / key_of(ZIP)).exists()
    assert proxy.server.stop() == 0
    assert modproxy(*fake_s3.flags()).get(ZIP).body == LEAF.zip


def test_a_failure_does_not_decide_where_the_database_is(modproxy, upstream):
    """Only if all proxies answer that they do not relay it is the database asked itself."""
    upstream.fail("503", times=3, match=lambda path: path.endswith("/supported"))
    other = f"{upstream.url}|{upstream.url}/none"
    proxy = modproxy(f"--modproxy-upstream={other}", "--sumdb=sum.example.test")
    proxy.get(RECORD)
    assert proxy.get(RECORD).body == upstream.checksums.lookup("example.test/!leaf@v1.0.0")


def test_no_database_learns_the_names_of_private_modules(modproxy, upstream):
    proxy = modproxy("--nosumdb=corp.test")
    assert proxy.get(f"{SUMDB}/lookup/corp.test/secret@v1.0.0").status == 404
    assert not upstream.requests


# -- the bucket ------------------------------------------------------------------------------------


def test_a_failing_bucket_is_not_an_absent_file(modproxy, fake_s3, tmp_path):
    filled = modproxy(*fake_s3.flags(), cache_dir=tmp_path / "filled")
    assert filled.get(INFO).status == 200
    wait_until(lambda: key_of(INFO) in fake_s3.objects, "the upload")
    proxy = modproxy(*fake_s3.flags(), "--modproxy-upstream=off", cache_dir=tmp_path / "fresh")
    fake_s3.fail("503")
    answer = proxy.get(INFO)
    assert answer.status == 502 and "S3 could not be asked" in answer.text
    fake_s3.fail(None)
    assert proxy.get(INFO).body == LEAF.info


def test_too_large_objects_are_not_fetched(modproxy, fake_s3):
    fake_s3.objects[key_of(INFO)] = bytes(17 << 20)
    proxy = modproxy(*fake_s3.flags())
    assert proxy.get(INFO).body == LEAF.info
    wait_until(lambda: fake_s3.objects[key_of(INFO)] == LEAF.info, "the right file")


# -- upstreams -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "version, asked",
    [
        ("a%23b", "a%23b"),
        ("%253fx=y", "%253fx=y"),
        ("v1%2525", "v1%2525"),
        ("a b", "a%20b"),
        ("%252e%252e%252fx", "%252e%252e%252fx"),
    ],
)
def test_special_characters_are_percent_encoded(modproxy, upstream, version, asked):
    """As the go command does it: upstream gets exactly the path that was requested."""
    path = f"/example.test/!leaf/@v/{version.replace(' ', '%20')}.info"
    assert modproxy().get(path).status == 404
    assert upstream.requests == [("GET", f"/example.test/!leaf/@v/{asked}.info")]


def test_a_list_that_was_cut_is_fetched_from_its_beginning(modproxy, upstream):
    """It may have changed meanwhile, so no Range is requested."""
    upstream.fail("cut", times=1)
    proxy = modproxy()
    assert proxy.get(LIST).text.split() == ["v1.1.0", "v1.2.0"]
    assert not any("Range" in headers for headers in upstream.headers)


def test_paths_and_upstreams_cannot_forge_log_lines(modproxy, upstream):
    upstream.fail("503")
    proxy = modproxy("-v")
    answer = proxy.get("/example.test/!leaf/@v/x%0a2026%1b[31m.info")
    assert answer.status == 400
    proxy.get(LIST)
    assert all("\x1b" not in line for line in proxy.server.stderr.splitlines())


def test_a_loop_is_detected_in_a_second_via_header(modproxy, upstream):
    proxy = modproxy()
    proxy.get(INFO)
    own = upstream.headers[-1]["Via"]
    with send(proxy, MOD, "Via: 1.1 squid", f"Via: {own}") as sock:
        assert sock.recv(100).startswith(b"HTTP/1.1 508 ")
    assert upstream.count(MOD) == 0


def test_other_caches_must_not_keep_a_last_good_copy(modproxy, upstream):
    proxy = modproxy("--modproxy-max-age=0")
    proxy.get(LIST)
    upstream.fail("503")
    assert proxy.get(LIST).headers["Cache-Control"] == "no-cache"


def test_the_log_names_an_upstream_that_fails(modproxy, upstream):
    upstream.fail("403")
    proxy = modproxy(checked=False)
    for path in (INFO, MOD, LIST):
        assert proxy.get(path).status == 502
    (line,) = (line for line in proxy.server.lines if "HTTP status 403" in line)
    assert proxy.counts()["upstream_error"] == 3 and INFO in line


# -- clients, disks, shutdown ----------------------------------------------------------------------


def test_the_newest_list_is_used_after_the_disk_was_full(modproxy, upstream, full_disk):
    proxy = modproxy("--modproxy-max-age=0", cache_dir=full_disk)
    proxy.get(LIST)
    with open(full_disk / "filler", "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))
    newer = go_module("example.test/base", "v1.9.0")
    upstream.add(newer)
    assert proxy.get(LIST).text.split()[-1] == newer.version
    upstream.close()
    assert proxy.get(LIST).text.split()[-1] == newer.version
    upstream.reopen()
    os.unlink(full_disk / "filler")
    newest = go_module("example.test/base", "v1.10.0")
    upstream.add(newest)
    wait_until(lambda: proxy.get(LIST).text.split()[-1] == newest.version, "the upstream's list")
    upstream.close()
    assert proxy.get(LIST).text.split()[-1] == newest.version


@pytest.mark.alone  # the other client must read 12 MiB without a pause of a second
def test_a_client_that_does_not_read_is_disconnected(modproxy, upstream):
    large = large_module(upstream, 12 << 20)
    proxy = modproxy("--client-timeout=1s", "--idle-exit=1s")
    proxy.get(path_of(large, "zip"))
    with send(proxy, path_of(large, "zip")) as sock:
        proxy.server.process.wait(DEADLINE_S)
        assert ends(sock)


def test_a_stopped_server_leaves_no_temporary_file(modproxy, upstream, tmp_path):
    large = large_module(upstream, 1 << 20)
    proxy = modproxy("--stop-timeout=100ms")
    upstream.fail("slow", match=lambda path: path.endswith(".zip"))
    with send(proxy, path_of(large, "zip")) as sock:
        upstream.step()
        upstream.step()
        assert sock.recv(10)
        assert temporaries(tmp_path / "modules")
        assert proxy.server.stop() == 0
        wait_until(lambda: not temporaries(tmp_path / "modules"), "no temporary file")
    upstream.release()


def test_a_server_stops_while_clients_request_new_files(modproxy, upstream, fake_s3):
    modules = [go_module(f"example.test/k{number}", "v1.0.0") for number in range(3000)]
    upstream.add(*modules)
    proxy = modproxy(*fake_s3.flags(), "--stop-timeout=500ms", checked=False)
    ended = threading.Event()

    def load(part):
        for module in part:
            if ended.is_set():
                return
            try:
                proxy.get(path_of(module, "info"))
            except OSError:
                return

    threads = [threading.Thread(target=load, args=(modules[at::4],)) for at in range(4)]
    for thread in threads:
        thread.start()
    upstream.wait_for_requests(20)
    proxy.server.signal(15)
    try:
        assert proxy.server.process.wait(10) == 0
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_the_log_names_upstreams_databases_and_private_modules(modproxy, upstream, tmp_path):
    line = modproxy("--nosumdb=corp.test").server.says("modules from")
    assert upstream.url in line and "corp.test" in line and "sum.example.test" in line


def test_gocache_revproxy_is_refused(modproxy):
    proxy = modproxy(environ={"GOCACHE_REVPROXY": "x.test"}, ready=False)
    assert proxy.server.wait() == 2
    assert "GOCACHE_REVPROXY" in proxy.server.stderr


def test_old_temporary_files_are_removed(modproxy, tmp_path):
    directory = tmp_path / "modules" / "tmp"
    directory.mkdir(parents=True)
    for name, age in (("1-old", 7200), ("1-young", 60)):
        (directory / name).write_bytes(b"x")
        subprocess.run(["touch", "-d", f"-{age} seconds", str(directory / name)], check=True)
    modproxy()
    wait_until(
        lambda: [path.name for path in directory.iterdir()] == ["1-young"], "the old one gone"
    )
