"""The module proxy while upstreams, clients, disks and processes fail."""

import random
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers import DEADLINE_S, kill, proc, temporaries, wait_until
from module_proxy import LEAF, OLD, ROOT, key_of, path_of, wait_for_count
from modules import go_module
from server_sessions import ends

pytest_plugins = ["modproxy_fixtures"]

HELD_BACK = 64 << 10  # of a zip, until it was verified
SILENCE_S = 0.15  # long enough for data that is wrongly sent to arrive


def big_module(size, **files):
    """A module whose zip has a little more than ``size`` bytes."""
    return go_module(
        "example.test/big", "v1.0.0", **{"data.bin": random.Random(size).randbytes(size), **files}
    )


BIG = big_module(1 << 20)
HUGE = big_module(8 << 20)  # more than the buffers of a connection hold
ZIP, MOD, INFO = (path_of(LEAF, kind) for kind in ("zip", "mod", "info"))
LIST, LATEST = "/example.test/!leaf/@v/list", "/example.test/!leaf/@latest"
BIG_ZIP, BIG_MOD = path_of(BIG, "zip"), path_of(BIG, "mod")


def is_zip(path) -> bool:
    return path.endswith(".zip")


def is_lookup(path) -> bool:
    return "/lookup/" in path


@pytest.fixture
def big(upstream):
    """BIG, which upstream and its checksum database have."""
    upstream.add(BIG)
    upstream.checksums.add(BIG)
    return BIG


@pytest.fixture
def stored_file(tmp_path):
    """stored_file(path): the path of the file in the proxy's cache directory, existing or not."""

    def stored_file(path, cache_dir=tmp_path / "modules"):
        return Path(cache_dir) / key_of(path)

    return stored_file


class SlowClient:
    """Requests a file when it is created, and reads the answer in pieces."""

    def __init__(self, proxy, path, buffer_bytes=None) -> None:
        self.socket = socket.socket()
        if buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(("127.0.0.1", proxy.port))
        self.socket.sendall(f"GET /mod{path} HTTP/1.1\r\nHost: proxy\r\n\r\n".encode())
        self._left = bytearray()

    def head(self) -> str:
        while b"\r\n\r\n" not in self._left:
            self._left += self._receive()
        head, _, self._left = self._left.partition(b"\r\n\r\n")
        return head.decode()

    def read(self, size) -> bytes:
        """``size`` bytes, or fewer if the connection ends."""
        while len(self._left) < size and (data := self._receive()):
            self._left += data
        data, self._left = bytes(self._left[:size]), self._left[size:]
        return data

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(1 << 16)
        except ConnectionResetError:
            return b""

    def is_silent(self) -> bool:
        """Whether no data is there and none arrives."""
        self.socket.settimeout(SILENCE_S)
        try:
            return not self._left and not self.socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(DEADLINE_S)

    def __enter__(self) -> "SlowClient":
        return self

    def __exit__(self, *_) -> None:
        self.socket.close()


def http_process(proxy) -> int:
    """The process id of the server's HTTP process."""
    children = proc(proxy.server.pid, f"task/{proxy.server.pid}/children").split()
    (found,) = (pid for pid in map(int, children) if b"cacheplugin.web" in proc(pid, "cmdline"))
    return found


# -- slow upstreams --------------------------------------------------------------------------------


def test_a_zip_is_sent_while_it_is_fetched(modproxy, upstream, big):
    """All but the last 64 KiB of what was fetched."""
    proxy = modproxy()
    upstream.fail("slow", match=is_zip)
    piece = -(-len(big.zip) // 4)
    with SlowClient(proxy, BIG_ZIP) as client:
        upstream.step()
        head = client.head()
        assert " 200 " in head and f"content-length: {len(big.zip)}\r\n" in f"{head}\r\n".lower()
        body = client.read(piece - HELD_BACK)
        for _ in range(2):
            assert client.is_silent()
            upstream.step()
            body += client.read(piece)
        assert body == big.zip[: 3 * piece - HELD_BACK] and client.is_silent()
        upstream.step()
        assert body + client.read(len(big.zip) - len(body)) == big.zip


def test_the_last_64_kib_are_sent_after_verification(modproxy, upstream, big):
    proxy = modproxy()
    upstream.hold(is_lookup)
    with SlowClient(proxy, BIG_ZIP) as client:
        client.head()
        body = client.read(len(big.zip) - HELD_BACK)
        upstream.wait_for_held(1)
        assert client.is_silent()
        upstream.release()
        assert body + client.read(HELD_BACK) == big.zip


def test_a_small_zip_is_sent_after_verification(modproxy, upstream):
    """So an error is an HTTP status instead of a cut connection."""
    proxy = modproxy()
    upstream.hold(is_lookup)
    with SlowClient(proxy, ZIP) as client:
        upstream.wait_for_held(1)
        upstream.wait_for_requests(1, ".zip")
        assert client.is_silent()
        upstream.release()
        assert " 200 " in client.head() and client.read(len(LEAF.zip)) == LEAF.zip


def test_a_hanging_upstream_delays_only_the_requested_file(modproxy, upstream):
    proxy = modproxy()
    upstream.fail("hang", times=1, match=is_zip)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(proxy.get, ZIP)
        upstream.wait_for_held(1)
        assert proxy.get(MOD).body == LEAF.mod and proxy.get(path_of(ROOT, "zip")).body == ROOT.zip
        assert not waiting.done()
        upstream.release()  # the connection ends without an answer
        answer = waiting.result(DEADLINE_S)
    assert answer.body == LEAF.zip and upstream.count(ZIP) == 2


# -- incomplete and wrong answers ------------------------------------------------------------------


def test_a_zip_that_was_cut_is_resumed(modproxy, upstream, big, stored_file):
    proxy = modproxy()
    upstream.fail("cut", times=1, match=is_zip)
    answer = proxy.get(BIG_ZIP)
    assert answer.body == big.zip and not answer.is_cut
    asked = zip(upstream.requests, upstream.headers)
    ranges = [headers["Range"] for (_, path), headers in asked if path == BIG_ZIP]
    assert ranges == [None, f"bytes={len(big.zip) // 2}-"]
    assert stored_file(BIG_ZIP).read_bytes() == big.zip
    assert proxy.counts()["upstream_bytes"] < len(big.zip) + 10_000


def test_a_file_that_was_cut_is_complete_without_ranges(modproxy, upstream):
    proxy = modproxy()
    # FakeUpstream serves ranges of zips only.
    upstream.fail("cut", times=1, match=lambda path: path == MOD)
    assert proxy.get(MOD).body == LEAF.mod
    assert upstream.count(MOD) == 2


def test_a_zip_that_is_always_cut_cuts_the_clients_connection(
    modproxy, upstream, big, stored_file, tmp_path
):
    """Nothing of it is stored, and a later request can succeed."""
    proxy = modproxy()
    upstream.fail("cut", match=is_zip)
    answer = proxy.get(BIG_ZIP)
    assert answer.status == 200 and answer.is_cut and big.zip.startswith(answer.body)
    assert upstream.count(BIG_ZIP) == 3
    assert not stored_file(BIG_ZIP).exists() and not temporaries(tmp_path / "modules")
    assert proxy.counts()["upstream_error"] == 1 and proxy.counts()["get_error"] == 1
    upstream.heal()
    assert proxy.get(BIG_ZIP).body == big.zip and stored_file(BIG_ZIP).exists()


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1000])
def test_a_zip_that_changes_between_two_tries_is_refused(
    modproxy, upstream, big, stored_file, size
):
    """Whether its length changes or not."""
    other = bytes(size - len(big.zip)) if size > len(big.zip) else bytes(len(big.zip))
    proxy = modproxy()
    upstream.fail("cut", times=1, match=is_zip)
    upstream.hold(lambda path: path == BIG_ZIP and upstream.count(BIG_ZIP) == 2)
    with ThreadPoolExecutor() as pool:
        coming = pool.submit(proxy.get, BIG_ZIP)
        upstream.wait_for_requests(2, BIG_ZIP)
        upstream.body_overrides[BIG_ZIP] = other
        upstream.release()
        answer = coming.result(DEADLINE_S)
    assert answer.is_cut and len(answer.body) <= len(big.zip) - HELD_BACK
    assert not stored_file(BIG_ZIP).exists() and proxy.counts()["mismatch"] == 1


@pytest.mark.parametrize("fault", ["long", "short", "empty", "html", "flip"])
def test_a_wrong_answer_is_502_and_the_next_right_one_is_served(
    modproxy, upstream, stored_file, fault
):
    """Wrong lengths, an empty body, a login page, a wrong byte."""
    kinds = ("zip", "mod") if fault == "flip" else ("zip", "mod", "info")
    paths = [path_of(LEAF, kind) for kind in kinds]
    proxy = modproxy()
    upstream.fail(fault, match=lambda asked: asked in paths)
    with ThreadPoolExecutor() as pool:
        for answer, path in zip(pool.map(proxy.get, paths), paths):
            assert answer.status == 502 and answer.text.strip()
            assert answer.headers["Cache-Control"] == "no-store" and not stored_file(path).exists()
    upstream.heal()
    for kind, path in zip(kinds, paths):
        assert proxy.get(path).body == getattr(LEAF, kind) == stored_file(path).read_bytes()


@pytest.mark.parametrize("fault", ["long", "short", "flip"])
def test_a_wrong_zip_is_cut(modproxy, upstream, big, stored_file, tmp_path, fault):
    """The client does not get the last 64 KiB, without which no zip can be opened."""
    proxy = modproxy()
    upstream.fail(fault, match=is_zip)
    answer = proxy.get(BIG_ZIP)
    assert answer.is_cut and len(answer.body) <= len(big.zip) - HELD_BACK
    assert not stored_file(BIG_ZIP).exists()
    wait_until(lambda: not temporaries(tmp_path / "modules"), "the end of the temporary file")
    upstream.heal()
    assert proxy.get(BIG_ZIP).body == big.zip


@pytest.mark.parametrize("fault, path", [("html", LIST), ("cut", LATEST), ("long", LIST)])
def test_a_wrong_list_is_502(modproxy, upstream, path, fault):
    proxy = modproxy("--modproxy-max-age=0")
    upstream.fail(fault)
    assert proxy.get(path).status == 502
    upstream.heal()
    good = proxy.get(path)
    assert good.status == 200
    upstream.fail(fault)
    assert proxy.get(path).body == good.body and proxy.counts()["get_stale"] == 1


# -- errors ----------------------------------------------------------------------------------------


def test_temporary_failures_are_retried(modproxy, upstream):
    proxy = modproxy()
    for status, path in zip(("429", "500", "502", "503"), (ZIP, MOD, INFO, LIST)):
        upstream.fail(status, times=2, match=lambda asked, path=path: asked == path)
    with ThreadPoolExecutor() as pool:
        assert {answer.status for answer in pool.map(proxy.get, (ZIP, MOD, INFO, LIST))} == {200}
    assert all(upstream.count(path) == 3 for path in (ZIP, MOD, INFO, LIST))
    assert "upstream_error" not in proxy.counts()


@pytest.mark.parametrize(
    "status, tries, path", [("403", 1, ZIP), ("500", 3, INFO), ("503", 3, LIST)]
)
def test_a_failure_is_502_with_the_text_of_upstream(modproxy, upstream, status, tries, path):
    """Not 404, after which the go command would ask its next proxy. It is not remembered."""
    proxy = modproxy()
    upstream.fail(status, match=lambda asked: asked == path)
    answer = proxy.get(path)
    assert answer.status == 502 and status in answer.text and "told to fail" in answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    assert upstream.count(path) == tries and proxy.counts()["get_error"] == 1
    upstream.heal()
    assert proxy.get(path).status == 200


@pytest.mark.parametrize("status", [404, 410])
def test_404_and_410_are_passed_on_with_their_text(modproxy, upstream, status):
    proxy = modproxy()
    for path in (ZIP, INFO, LIST, LATEST):
        upstream.fail(str(status), match=lambda asked, path=path: asked == path)
        answer = proxy.get(path)
        assert answer.status == status and answer.text == "told to fail\n"
        assert upstream.count(path) == 1
    assert proxy.counts()["get_absent"] == 4


def test_404_for_the_rest_of_a_file_is_a_failure(modproxy, upstream, big):
    """A zip was cut and its rest gives 404: the client's connection is cut."""
    proxy = modproxy()
    upstream.fail("cut", times=1, match=is_zip)
    upstream.fail("404", times=1, match=is_zip)
    assert proxy.get(BIG_ZIP).is_cut
    assert "get_absent" not in proxy.counts()
    assert proxy.get(BIG_ZIP).body == big.zip


def test_reset_connections_are_retried(modproxy, upstream):
    proxy = modproxy()
    upstream.fail("reset", times=2, match=is_zip)
    assert proxy.get(ZIP).body == LEAF.zip


def test_an_unreachable_upstream_is_not_asked_for_each_file(modproxy, upstream):
    """After three failures it is not asked for a while; files on disk are served meanwhile."""
    proxy = modproxy()
    assert proxy.get(MOD).body == LEAF.mod
    upstream.close()
    answer = proxy.get(ZIP)
    assert answer.status == 502 and upstream.url in answer.text
    tried = proxy.counts()["upstream_request"]
    for _ in range(20):
        assert proxy.get(path_of(ROOT, "zip")).status == 502
    assert proxy.counts()["upstream_request"] <= tried + 1
    assert proxy.get(MOD).body == LEAF.mod


# -- files that fail their checks ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "mod"])
def test_files_that_contradict_the_checksum_database_are_refused(
    modproxy, upstream, stored_file, kind
):
    """A valid zip, and a valid go.mod, that are not those of the version."""
    proxy, path = modproxy(), path_of(LEAF, kind)
    upstream.add(go_module(LEAF.path, LEAF.version, requires=[OLD], body="func Evil() {}\n"))
    answer = proxy.get(path)
    assert answer.status == 502 and "checksum database" in answer.text and "h1:" in answer.text
    assert not stored_file(path).exists() and proxy.counts()["mismatch"] == 1
    assert f"{path[1:]} is refused" in proxy.server.says("is refused")
    upstream.add(LEAF)
    assert proxy.get(path).body == getattr(LEAF, kind) and stored_file(path).exists()


def test_a_large_zip_that_contradicts_the_checksum_database_is_cut(
    modproxy, upstream, big, stored_file
):
    proxy = modproxy()
    evil = big_module(1 << 20, **{"evil.go": "package big\n\nfunc Evil() {}\n"})
    upstream.add(evil)
    answer = proxy.get(BIG_ZIP)
    assert answer.is_cut and evil.zip.startswith(answer.body)
    assert len(answer.body) <= len(evil.zip) - HELD_BACK and not stored_file(BIG_ZIP).exists()
    upstream.add(big)
    assert proxy.get(BIG_ZIP).body == big.zip


DAMAGE = {  # that does not change the hash: (offset in LEAF's zip, bits to flip)
    "the end of its deflated body": (30 + len(f"{LEAF}/go.mod"), 1),
    "the CRC-32 after a body": (LEAF.zip.index(b"PK\7\10") + 4, 1),
    "the length of the comment": (len(LEAF.zip) - 2, 1),
    "bzip2 for a method": (LEAF.zip.index(b"PK\1\2") + 10, 8 ^ 12),
    "LZMA for a method": (LEAF.zip.index(b"PK\1\2") + 10, 8 ^ 14),
}


def damaged(what) -> bytes:
    """LEAF's zip with the damage of that name."""
    (at, bits), data = DAMAGE[what], bytearray(LEAF.zip)
    data[at] ^= bits
    return bytes(data)


@pytest.mark.parametrize("what", DAMAGE)
def test_a_zip_that_go_cannot_read_is_refused(modproxy, upstream, stored_file, what):
    proxy = modproxy()
    upstream.body_overrides[ZIP] = damaged(what)
    answer = proxy.get(ZIP)
    assert answer.status == 502 and "is refused" in answer.text
    assert not stored_file(ZIP).exists()
    upstream.body_overrides.clear()
    assert proxy.get(ZIP).body == LEAF.zip and stored_file(ZIP).exists()


@pytest.mark.parametrize("checked", [True, False])
def test_a_zip_of_another_module_is_refused(modproxy, upstream, stored_file, checked):
    proxy = modproxy(checked=checked)
    upstream.body_overrides[ZIP] = ROOT.zip
    assert proxy.get(ZIP).status == 502 and not stored_file(ZIP).exists()


@pytest.mark.parametrize("checked", [True, False])
def test_an_info_of_another_version_is_refused(modproxy, upstream, stored_file, checked):
    proxy = modproxy(checked=checked)
    upstream.body_overrides[INFO] = b'{"Version":"v1.0.1","Time":"2024-01-02T03:04:05Z"}'
    answer = proxy.get(INFO)
    assert answer.status == 502 and "v1.0.1" in answer.text and not stored_file(INFO).exists()
    upstream.body_overrides.clear()
    assert proxy.get(INFO).body == LEAF.info


@pytest.mark.parametrize("order", [("mod", "zip"), ("zip", "mod")])
def test_without_a_checksum_database_zip_and_mod_must_agree(modproxy, upstream, stored_file, order):
    """Either may be wrong, so both are fetched again."""
    first, second = (path_of(LEAF, kind) for kind in order)
    proxy = modproxy(checked=False)
    upstream.body_overrides[MOD] = b"module example.test/Leaf\n\ngo 1.22\n"
    assert proxy.get(first).status == 200
    answer = proxy.get(second)
    assert answer.status == 502 and "differ" in answer.text
    assert not stored_file(first).exists() and not stored_file(second).exists()
    upstream.body_overrides.clear()
    assert proxy.get(second).body == getattr(LEAF, order[1])
    assert proxy.get(first).body == getattr(LEAF, order[0])


def test_a_wrong_unverified_mod_is_replaced_when_the_zip_is_verified(
    modproxy, upstream, stored_file
):
    wrong = upstream.body_overrides[MOD] = b"module example.test/Leaf\n\ngo 1.22\n"
    proxy = modproxy(checked=False)
    assert proxy.get(MOD).body == wrong and stored_file(MOD).exists()
    proxy.server.stop()
    upstream.body_overrides.clear()
    proxy = modproxy()
    assert proxy.get(ZIP).body == LEAF.zip
    assert proxy.get(MOD).body == LEAF.mod


@pytest.mark.parametrize("fault", ["503", "html", "cut"])
def test_unverified_files_are_served_but_not_stored(modproxy, upstream, stored_file, fault):
    proxy = modproxy()
    upstream.fail(fault, match=is_lookup)
    assert proxy.get(ZIP).body == LEAF.zip and not stored_file(ZIP).exists()
    assert proxy.get(MOD).body == LEAF.mod and not stored_file(MOD).exists()
    assert proxy.counts()["unverified"] == 2
    upstream.heal()
    assert proxy.get(ZIP).body == LEAF.zip and stored_file(ZIP).exists()
    assert upstream.count(ZIP) == 2


def test_an_unreachable_checksum_database(modproxy, upstream, stored_file):
    """The same when the database has a URL of its own."""
    proxy = modproxy(f"--sumdb={upstream.checksums.name} http://127.0.0.1:9")
    assert proxy.get(ZIP).body == LEAF.zip and not stored_file(ZIP).exists()
    assert proxy.get("/sumdb/sum.example.test/latest").status == 502


@pytest.mark.parametrize("patterns", ["example.test/Leaf", "*.test/L*", "x.test,example.test/Leaf"])
def test_no_database_is_asked_for_private_modules(modproxy, upstream, stored_file, patterns):
    proxy = modproxy(f"--nosumdb={patterns}")
    for kind in ("info", "mod", "zip"):
        assert proxy.get(path_of(LEAF, kind)).status == 200
    assert upstream.count("sumdb") == 0 and stored_file(ZIP).exists()
    assert proxy.get(path_of(ROOT, "zip")).status == 200
    assert upstream.count("/lookup/example.test/base@v1.2.0") == upstream.count("sumdb") == 1


@pytest.mark.parametrize("variable", ["GONOSUMDB", "GOPRIVATE"])
def test_private_modules_are_those_of_the_go_command(modproxy, upstream, variable):
    proxy = modproxy(environ={variable: "example.test/Leaf"})
    assert proxy.get(ZIP).status == 200 and upstream.count("sumdb") == 0


# -- clients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path, body", [(BIG_ZIP, BIG.zip), (BIG_MOD, BIG.mod)])
def test_many_clients_request_one_new_file_at_once(modproxy, upstream, big, path, body):
    """Upstream gets one request."""
    proxy = modproxy()
    upstream.hold(lambda asked: asked == path)
    with ThreadPoolExecutor(50) as pool:
        coming = [pool.submit(proxy.get, path) for _ in range(50)]
        wait_for_count(proxy, "get_local_miss", 50)
        upstream.release()
        answers = [one.result(DEADLINE_S) for one in coming]
    assert all(answer.body == body and not answer.is_cut for answer in answers)
    assert upstream.count(path) == 1 and upstream.count("/lookup/") == 1


def test_many_clients_get_the_same_failure(modproxy, upstream):
    proxy = modproxy()
    upstream.hold(is_zip)
    upstream.fail("403", match=is_zip)
    with ThreadPoolExecutor(20) as pool:
        coming = [pool.submit(proxy.get, ZIP) for _ in range(20)]
        wait_for_count(proxy, "get_local_miss", 20)
        upstream.release()
        assert {one.result(DEADLINE_S).status for one in coming} == {502}
    assert upstream.count(ZIP) == 1


def test_a_client_that_disconnects_does_not_end_the_download(modproxy, upstream, big, stored_file):
    """A client that came later gets the whole file, and it is stored."""
    proxy = modproxy()
    upstream.fail("slow", times=1, match=is_zip)
    with SlowClient(proxy, BIG_ZIP) as first:
        upstream.step()
        first.head()
        first.read(1000)
        with SlowClient(proxy, BIG_ZIP) as second:
            second.head()
            first.socket.close()
            for _ in range(3):
                upstream.step()
            assert second.read(len(big.zip)) == big.zip
    assert stored_file(BIG_ZIP).read_bytes() == big.zip
    assert upstream.count(BIG_ZIP) == 1


def test_a_file_is_stored_although_its_only_client_disconnected(
    modproxy, upstream, big, stored_file
):
    proxy = modproxy()
    upstream.fail("slow", match=is_zip)
    with SlowClient(proxy, BIG_ZIP) as client:
        upstream.step()
        client.head()
    for _ in range(3):
        upstream.step()
    wait_until(lambda: stored_file(BIG_ZIP).exists(), "the file")
    assert proxy.get(BIG_ZIP).body == big.zip and upstream.count(BIG_ZIP) == 1
    assert "Traceback" not in proxy.server.stderr


def test_a_slow_client_delays_no_other_client(modproxy, upstream):
    """Neither for the same file nor for another one."""
    upstream.add(HUGE)
    upstream.checksums.add(HUGE)
    proxy = modproxy()
    with SlowClient(proxy, BIG_ZIP, buffer_bytes=1 << 16) as slow:
        slow.head()
        assert proxy.get(BIG_ZIP).body == HUGE.zip
        assert proxy.get(ZIP).body == LEAF.zip
        assert slow.read(len(HUGE.zip)) == HUGE.zip
    assert upstream.count(BIG_ZIP) == 1


# -- processes -------------------------------------------------------------------------------------


def test_the_http_process_is_killed_during_a_download(modproxy, upstream, big, stored_file):
    """A new one serves on the same port, and the incomplete file is not stored."""
    proxy = modproxy()
    upstream.fail("slow", times=1, match=is_zip)
    with SlowClient(proxy, BIG_ZIP) as client:
        upstream.step()
        client.head()
        client.read(1000)
        kill(http_process(proxy))
        assert ends(client.socket)
    assert not stored_file(BIG_ZIP).exists()
    proxy.server.says("the HTTP process has ended")
    assert proxy.get(BIG_ZIP).body == big.zip and stored_file(BIG_ZIP).read_bytes() == big.zip


def test_a_server_that_stops_lets_a_download_finish(modproxy, upstream, big):
    proxy = modproxy()
    upstream.fail("slow", times=1, match=is_zip)
    with SlowClient(proxy, BIG_ZIP) as client:
        upstream.step()
        client.head()
        proxy.server.signal(signal.SIGTERM)
        proxy.server.says("stopping")
        for _ in range(3):
            upstream.step()
        assert client.read(len(big.zip)) == big.zip
    assert proxy.server.wait() == 0


def test_a_server_that_stops_does_not_wait_for_a_hanging_upstream(
    modproxy, upstream, big, stored_file
):
    """It ends after --stop-timeout, and the incomplete file is not stored."""
    proxy = modproxy("--stop-timeout=300ms")
    upstream.fail("slow", times=1, match=is_zip)
    with SlowClient(proxy, BIG_ZIP) as client:
        upstream.step()
        client.head()
        assert proxy.server.stop(signal.SIGTERM) == 0
        assert ends(client.socket)
    assert not stored_file(BIG_ZIP).exists()
    assert "Traceback" not in proxy.server.stderr


# -- disks -----------------------------------------------------------------------------------------


def test_a_full_disk_does_not_keep_files_from_being_served(
    modproxy, upstream, big, stored_file, full_disk, tmp_path
):
    proxy = modproxy(cache_dir=full_disk / "cache")
    assert proxy.get(BIG_ZIP).body == big.zip and proxy.get(ZIP).body == LEAF.zip
    assert not stored_file(BIG_ZIP, full_disk / "cache").exists()
    assert stored_file(ZIP, full_disk / "cache").read_bytes() == LEAF.zip
    assert not temporaries(full_disk / "cache")
    assert proxy.get(BIG_ZIP).body == big.zip and upstream.count(BIG_ZIP) == 1


def test_clients_get_an_error_when_no_disk_has_space(modproxy, upstream, big, small_disk):
    """Their connection is cut if the answer was begun; otherwise the status is 500."""
    disk, temporary = small_disk("disk"), small_disk("elsewhere")
    proxy = modproxy(cache_dir=disk / "cache", environ={"TMPDIR": str(temporary)})
    assert proxy.get(BIG_ZIP).is_cut
    answer = proxy.get(BIG_ZIP, Range="bytes=0-9")
    assert answer.status == 500 and "no space left on device" in answer.text
    assert proxy.get(ZIP).body == LEAF.zip  # a small file still fits
    assert not [path for path in temporary.rglob("*") if path.is_file()]
    assert not temporaries(disk / "cache")
    assert "Traceback" not in proxy.server.stderr


def test_a_read_only_cache_directory_is_read(modproxy, upstream, stored_file, small_disk, tmp_path):
    disk = small_disk("disk")
    proxy = modproxy(cache_dir=disk)
    assert proxy.get(MOD).body == LEAF.mod
    proxy.server.stop()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    proxy = modproxy("--read-only", cache_dir=disk)
    assert proxy.get(MOD).body == LEAF.mod and upstream.count(MOD) == 1
    for _ in range(2):
        assert proxy.get(ZIP).body == LEAF.zip
    assert upstream.count(ZIP) == 1  # stored in the temporary directory
    assert "Traceback" not in proxy.server.stderr


def test_a_file_in_the_place_of_the_module_directory(modproxy, upstream, tmp_path):
    """Files are stored in the session store instead."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "module").write_text("in the way")
    proxy = modproxy()
    for _ in range(2):
        for kind in ("zip", "mod", "info"):
            assert proxy.get(path_of(LEAF, kind)).body == getattr(LEAF, kind)
        assert proxy.get("/example.test/!leaf/@v/list").text == "v1.0.0\n"
    assert len(upstream.requests) == 5  # two of them for records of the checksum database
    assert not temporaries(tmp_path / "modules") and "Traceback" not in proxy.server.stderr


def test_the_cache_directory_is_removed(modproxy, upstream, tmp_path, stored_file):
    """It is created again."""
    proxy = modproxy()
    assert proxy.get(ZIP).body == LEAF.zip
    (tmp_path / "modules").rename(tmp_path / "gone")
    assert proxy.get(ZIP).body == LEAF.zip and stored_file(ZIP).exists()
