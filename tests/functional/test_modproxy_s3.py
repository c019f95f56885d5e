"""The module proxy with a bucket: fetches, uploads, and buckets that fail."""

import random
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers import DEADLINE_S, temporaries, wait_until
from module_proxy import LEAF, OLD, ROOT, key_of, path_of, wait_for_count
from modules import go_module

pytest_plugins = ["modproxy_fixtures"]

ZIP, MOD, INFO = (path_of(LEAF, kind) for kind in ("zip", "mod", "info"))
RECORD = "/sumdb/sum.example.test/lookup/example.test/!leaf@v1.0.0"
LIST = "/example.test/base/@v/list"


@pytest.fixture
def machine(modproxy, fake_s3, tmp_path):
    """machine(name, *flags): a proxy with the bucket and a cache directory of that name."""

    def machine(name, *flags, **more):
        proxy = modproxy(*fake_s3.flags(), *flags, cache_dir=tmp_path / name, **more)
        proxy.cache_dir = tmp_path / name
        return proxy

    return machine


def wait_for_objects(fake_s3, *paths) -> None:
    wait_until(
        lambda: all(key_of(path) in fake_s3.objects for path in paths), f"uploads of {paths}"
    )


def stored_file(proxy, path) -> Path:
    return proxy.cache_dir / key_of(path)


def test_objects_have_upstreams_content_and_the_go_programs_keys(machine, fake_s3):
    proxy = machine("a", "--prefix=some/where")
    files = {path_of(LEAF, kind): getattr(LEAF, kind) for kind in ("info", "mod", "zip")}
    for path, body in files.items():
        assert proxy.get(path).body == body
    for path in (LIST, "/example.test/base/@latest"):
        files[path] = proxy.get(path).body
    files[RECORD] = proxy.get(RECORD).body
    wanted = {f"some/where/{key_of(path)}": body for path, body in files.items()}
    wait_until(lambda: len(fake_s3.objects) >= len(wanted), "all uploads")
    assert fake_s3.objects == wanted
    assert proxy.counts()["put_s3_bytes"] == sum(map(len, wanted.values()))


def test_a_fresh_machine_needs_no_upstream(machine, fake_s3, upstream):
    """Files, records and last good copies come from the bucket and are stored."""
    first = machine("a")
    paths = [ZIP, MOD, INFO, LIST, RECORD]
    bodies = {path: first.get(path).body for path in paths}
    wait_for_objects(fake_s3, *paths)
    upstream.close()
    asked = len(upstream.requests)
    second = machine("b")
    for path, body in bodies.items():
        answer = second.get(path)
        assert answer.status == 200 and answer.body == body
    assert second.counts()["get_fault_hit"] == len(paths) and second.counts()["get_stale"] == 1
    served = len(fake_s3.requests)
    for path in (ZIP, MOD, INFO, RECORD):
        assert second.get(path).body == bodies[path] == stored_file(second, path).read_bytes()
    assert len(fake_s3.requests) == served and len(upstream.requests) == asked
    assert second.counts()["get_s3_bytes"] == sum(map(len, bodies.values()))


def test_with_upstream_off_only_the_bucket_is_used(machine, fake_s3, upstream):
    first = machine("a")
    body = first.get(ZIP).body
    wait_for_objects(fake_s3, ZIP, RECORD)
    asked = len(upstream.requests)
    second = machine("b", "--modproxy-upstream=off", "--sumdb=sum.example.test")
    assert second.get(ZIP).body == body and second.get(RECORD).status == 200
    answer = second.get(path_of(ROOT, "zip"))
    assert answer.status == 404 and "off" in answer.text
    assert len(upstream.requests) == asked


def test_objects_are_not_fetched_from_upstream(machine, fake_s3, upstream):
    machine("a").get(ZIP)
    wait_for_objects(fake_s3, ZIP, RECORD)
    assert machine("b").get(ZIP).body == LEAF.zip
    assert upstream.count(ZIP) == 1 and upstream.count("/lookup/") == 1


def test_many_clients_request_one_object(machine, fake_s3, upstream):
    """It is fetched once."""
    machine("a").get(ZIP)
    wait_for_objects(fake_s3, ZIP, RECORD)
    second, gets = machine("b"), fake_s3.count("GET", key_of(ZIP))
    fake_s3.hold = lambda method, key: key == key_of(ZIP)
    with ThreadPoolExecutor(20) as pool:
        coming = [pool.submit(second.get, ZIP) for _ in range(20)]
        wait_for_count(second, "get_local_miss", 20)
        fake_s3.release()
        assert {one.result(DEADLINE_S).body for one in coming} == {LEAF.zip}
    assert fake_s3.count("GET", key_of(ZIP)) == gets + 1 and upstream.count(ZIP) == 1


def test_a_large_zip_is_uploaded_in_parts_and_fetched(machine, fake_s3, upstream):
    """It is larger than the limit for one PUT."""
    large = go_module("example.test/large", "v1.0.0", data=random.Random(1).randbytes(9 << 20))
    upstream.add(large)
    upstream.checksums.add(large)
    path = path_of(large, "zip")
    assert machine("a").get(path).body == large.zip
    wait_for_objects(fake_s3, path)
    assert fake_s3.objects[key_of(path)] == large.zip
    upstream.fail("503", match=lambda asked: asked == path)
    assert machine("b").get(path).body == large.zip and not fake_s3.uploads


# -- buckets that fail -----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["500", "refuse", "NoSuchBucket"])
def test_clients_do_not_notice_a_failing_bucket(machine, fake_s3, fault):
    proxy = machine("a")
    fake_s3.fail(fault)
    for kind in ("info", "mod", "zip"):
        answer = proxy.get(path_of(LEAF, kind))
        assert answer.status == 200 and answer.body == getattr(LEAF, kind)
    assert proxy.get(LIST).status == 200
    wait_for_count(proxy, "get_fault_error", 3)
    wait_for_count(proxy, "put_s3_error", 3)
    assert proxy.get(path_of(OLD, "zip")).body == OLD.zip
    assert "Traceback" not in proxy.server.stderr


def test_a_read_only_bucket_is_read(machine, fake_s3, upstream):
    machine("a").get(ZIP)
    wait_for_objects(fake_s3, ZIP, RECORD)
    fake_s3.faulty = lambda method, key: method == "PUT"
    fake_s3.fail("403")
    second = machine("b")
    assert second.get(MOD).body == LEAF.mod
    wait_for_count(second, "put_s3_error")
    assert second.get(ZIP).body == LEAF.zip and upstream.count(ZIP) == 1


def test_a_zip_that_arrives_damaged_is_fetched_from_upstream(machine, fake_s3, upstream):
    paths = {path_of(module, "zip"): module.zip for module in (LEAF, ROOT, OLD)}
    first = machine("a")
    for path in paths:
        first.get(path)
    wait_for_objects(fake_s3, *paths)
    second = machine("b")
    for path, fault in zip(paths, ("truncate", "flip", "die")):
        fake_s3.faulty = lambda method, key, path=path: method == "GET" and key == key_of(path)
        fake_s3.fail(fault)
        answer = second.get(path)
        assert answer.body == paths[path] == stored_file(second, path).read_bytes(), fault
        assert not answer.is_cut and upstream.count(path) == 2
    assert second.counts()["get_fault_error"] >= 3


TAMPERED = go_module(LEAF.path, LEAF.version, body="func Evil() {}\n")
WRONG = [  # (kind of file, content of the object in place of that file of a module)
    ("zip", lambda module: b"garbage"),
    ("zip", lambda module: b""),
    ("zip", lambda module: module.zip[:-1]),
    ("zip", lambda module: go_module(module.path, module.version, body="func Evil() {}\n").zip),
    ("zip", lambda module: ROOT.zip),
    (
        "zip",
        lambda module: module.zip.replace(b"\x08\0\x08\0", b"\x08\0\x0c\0"),
    ),  # another compression method
    ("mod", lambda module: b"module x\n"),
    ("mod", lambda module: module.mod + b"\n"),
    ("mod", lambda module: b""),
    ("info", lambda module: b'{"Version":"v9.0.0"}'),
    ("info", lambda module: b"<html>"),
    ("info", lambda module: b""),
]


def test_wrong_objects_are_not_used_and_are_replaced(machine, fake_s3, upstream):
    rights = {}
    for number, (kind, wrong) in enumerate(WRONG):
        module = go_module(f"example.test/m{number}", "v1.0.0")
        upstream.add(module)
        upstream.checksums.add(module)
        rights[path_of(module, kind)] = getattr(module, kind)
        fake_s3.objects[key_of(path_of(module, kind))] = wrong(module)
    proxy = machine("a")
    for number, (path, right) in enumerate(rights.items()):
        assert proxy.get(path).body == right == stored_file(proxy, path).read_bytes(), number
        assert "is not used" in proxy.server.says(f"{path[1:]} in S3")
    wanted = {key_of(path): right for path, right in rights.items()}
    wait_until(lambda: wanted.items() <= fake_s3.objects.items(), "the right files in the bucket")
    upstream.close()
    second = machine("b")
    assert {path: second.get(path).body for path in rights} == rights


def test_a_wrong_record_in_the_bucket_is_not_used_and_is_replaced(machine, fake_s3, upstream):
    """With it, a wrong zip would be served or the right one refused."""
    good = upstream.checksums.lookup("example.test/!leaf@v1.0.0")
    fake_s3.objects[key_of(RECORD)] = upstream.checksums.lookup("example.test/base@v1.2.0")
    assert machine("a").get(ZIP).body == LEAF.zip
    wait_until(lambda: fake_s3.objects[key_of(RECORD)] == good, "the right record")


def test_wrong_objects_are_not_served_when_upstream_fails(machine, fake_s3, upstream):
    proxy = machine("a")
    fake_s3.objects[key_of(ZIP)] = TAMPERED.zip
    upstream.fail("503", match=lambda path: path == ZIP)
    answer = proxy.get(ZIP)
    assert answer.status == 502 and not stored_file(proxy, ZIP).exists()
    assert not temporaries(proxy.cache_dir)
    assert fake_s3.objects[key_of(ZIP)] == TAMPERED.zip


def test_files_tampered_with_upstream_are_not_uploaded(machine, fake_s3, upstream):
    proxy = machine("a")
    upstream.add(TAMPERED)
    assert proxy.get(ZIP).status == 502
    assert proxy.get(INFO).status == 200
    assert proxy.server.stop() == 0  # it finishes all uploads first
    assert set(fake_s3.objects) == {key_of(INFO), key_of(RECORD)}


def test_unverified_files_are_not_uploaded(machine, fake_s3, upstream):
    proxy = machine("a")
    upstream.fail("403", match=lambda path: "/lookup/" in path)
    assert proxy.get(ZIP).body == LEAF.zip
    assert proxy.get(INFO).status == 200
    assert proxy.server.stop() == 0
    assert set(fake_s3.objects) == {key_of(INFO)}


# -- uploads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--upload=off", "--read-only"])
def test_nothing_is_uploaded_with_these_flags(machine, fake_s3, flag):
    """But the bucket is read."""
    fake_s3.objects[key_of(INFO)] = LEAF.info
    proxy = machine("a", flag)
    for path in (INFO, ZIP, LIST):
        assert proxy.get(path).status == 200
    assert proxy.counts()["get_fault_hit"] == 1
    assert proxy.server.stop() == 0
    assert fake_s3.count("PUT") == fake_s3.count("POST") == 0
    assert list(fake_s3.objects) == [key_of(INFO)]


def test_a_server_that_stops_finishes_its_uploads(machine, fake_s3):
    proxy = machine("a")
    fake_s3.hold = lambda method, key: method == "PUT"
    assert proxy.get(ZIP).body == LEAF.zip
    wait_until(lambda: fake_s3.held == 2, "both uploads")
    proxy.server.signal(signal.SIGTERM)
    proxy.server.says("stopping")
    assert not fake_s3.objects and proxy.server.process.poll() is None
    fake_s3.release()
    assert proxy.server.wait() == 0
    assert fake_s3.objects[key_of(ZIP)] == LEAF.zip and key_of(RECORD) in fake_s3.objects


def test_a_server_that_stops_at_once_uploads_what_it_served(machine, fake_s3):
    proxy = machine("a")
    paths = [
        path_of(module, kind) for module in (LEAF, ROOT, OLD) for kind in ("info", "mod", "zip")
    ]
    for path in paths:
        assert proxy.get(path).status == 200
    assert proxy.server.stop() == 0
    assert {key_of(path) for path in paths} <= set(fake_s3.objects)


def test_a_server_that_stops_waits_no_longer_than_drain_timeout(machine, fake_s3):
    proxy = machine("a", "--drain-timeout=200ms")
    fake_s3.hold = lambda method, key: method == "PUT"
    assert proxy.get(INFO).body == LEAF.info
    wait_until(lambda: fake_s3.held, "the upload")
    assert proxy.server.stop() in (0, 1)
    assert "1 uploads not finished" in proxy.server.stderr


def test_a_changed_list_is_uploaded_again(machine, fake_s3, upstream):
    proxy = machine("a", "--modproxy-max-age=0")
    assert proxy.get(LIST).text == "v1.1.0\nv1.2.0\n"
    wait_for_objects(fake_s3, LIST)
    assert proxy.get(LIST).text == "v1.1.0\nv1.2.0\n"
    newer = go_module(ROOT.path, "v1.3.0")
    upstream.add(newer)
    assert proxy.get(LIST).text == "v1.1.0\nv1.2.0\nv1.3.0\n"
    wait_until(lambda: fake_s3.objects[key_of(LIST)].endswith(b"v1.3.0\n"), "the newer list")
    assert proxy.server.stop() == 0
    assert fake_s3.count("PUT", key_of(LIST)) == 2


def test_existing_objects_are_not_replaced(machine, fake_s3):
    """Two machines fetch and upload a file at once: the second upload changes nothing."""
    first = machine("a")
    fake_s3.hold = lambda method, key: method == "GET" and key == key_of(INFO)
    with ThreadPoolExecutor() as pool:
        coming = [pool.submit(one.get, INFO) for one in (first, machine("b"))]
        wait_until(lambda: fake_s3.held == 2, "both")
        fake_s3.release()
        assert [one.result(DEADLINE_S).body for one in coming] == [LEAF.info] * 2
    wait_for_objects(fake_s3, INFO)
    assert first.get(INFO).body == LEAF.info and fake_s3.objects[key_of(INFO)] == LEAF.info
