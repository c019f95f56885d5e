"""The module proxy over an upstream that fails, and clients, disks and processes that do."""

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

HELD_BACK = 64 << 10  # of a zip, until it was found right
SILENCE_S = 0.15  # in which what is not to come would have come


def big_module(size, **files):
    """A module whose zip has a little more than ``size`` bytes."""
    return go_module(
        "example.test/big", "v1.0.0", **{"data.bin": random.Random(size).randbytes(size), **files}
    )


BIG = big_module(1 << 20)
HUGE = big_module(8 << 20)  # more than the buffers of a connection take
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
def kept(tmp_path):
    """kept(path): the file of it in the proxy's cache directory, there or not."""

    def kept(path, cache_dir=tmp_path / "modules"):
        return Path(cache_dir) / key_of(path)

    return kept


class SlowClient:
    """Asks for a file when it is made, and reads the answer by pieces."""

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
        """So many bytes, or those before the connection's end."""
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
        """Whether nothing is there and nothing comes."""
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
    """The id of the server's HTTP process."""
    children = proc(proxy.server.pid, f"task/{proxy.server.pid}/children").split()
    (found,) = (pid for pid in map(int, children) if b"cacheplugin.web" in proc(pid, "cmdline"))
    return found


# -- slow ------------------------------------------------------------------------------------------


def test_a_zip_reaches_the_client_as_it_comes(modproxy, upstream, big):
    """But for the last 64 KiB of what is there."""
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


def test_the_last_64_kib_are_given_when_the_zip_was_found_right(modproxy, upstream, big):
    proxy = modproxy()
    upstream.hold(is_lookup)
    with SlowClient(proxy, BIG_ZIP) as client:
        client.head()
        body = client.read(len(big.zip) - HELD_BACK)
        upstream.wait_for_held(1)
        assert client.is_silent()
        upstream.release()
        assert body + client.read(HELD_BACK) == big.zip


def test_a_small_zip_is_given_when_it_was_found_right(modproxy, upstream):
    """So that what is wrong with it is an answer, and no broken connection."""
    proxy = modproxy()
    upstream.hold(is_lookup)
    with SlowClient(proxy, ZIP) as client:
        upstream.wait_for_held(1)
        upstream.wait_for_requests(1, ".zip")
        assert client.is_silent()
        upstream.release()
        assert " 200 " in client.head() and client.read(len(LEAF.zip)) == LEAF.zip


def test_an_upstream_that_hangs_holds_what_it_is_asked_for_and_nothing_else(modproxy, upstream):
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


# -- broken off ------------------------------------------------------------------------------------


def test_a_zip_that_breaks_off_is_resumed(modproxy, upstream, big, kept):
    proxy = modproxy()
    upstream.fail("cut", times=1, match=is_zip)
    answer = proxy.get(BIG_ZIP)
    assert answer.body == big.zip and not answer.is_cut
    asked = zip(upstream.requests, upstream.headers)
    ranges = [headers["Range"] for (_, path), headers in asked if path == BIG_ZIP]
    assert ranges == [None, f"bytes={len(big.zip) // 2}-"]
    assert kept(BIG_ZIP).read_bytes() == big.zip
    assert proxy.counts()["upstream_bytes"] < len(big.zip) + 10_000


def test_what_breaks_off_where_there_are_no_ranges_is_whole_all_the_same(modproxy, upstream):
    proxy = modproxy()
    upstream.fail("cut", times=1, match=lambda path: path == MOD)  # no Range is heeded here
    assert proxy.get(MOD).body == LEAF.mod
    assert upstream.count(MOD) == 2


def test_a_zip_that_goes_on_breaking_off_breaks_the_clients_connection(
    modproxy, upstream, big, kept, tmp_path
):
    """Nothing of it is kept, and the next try may be good."""
    proxy = modproxy()
    upstream.fail("cut", match=is_zip)
    answer = proxy.get(BIG_ZIP)
    assert answer.status == 200 and answer.is_cut and big.zip.startswith(answer.body)
    assert upstream.count(BIG_ZIP) == 3
    assert not kept(BIG_ZIP).exists() and not temporaries(tmp_path / "modules")
    assert proxy.counts()["upstream_error"] == 1 and proxy.counts()["get_error"] == 1
    upstream.heal()
    assert proxy.get(BIG_ZIP).body == big.zip and kept(BIG_ZIP).exists()


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1000])
def test_a_zip_that_is_another_one_after_it_broke_off_is_refused(
    modproxy, upstream, big, kept, size
):
    """Whether it has another length or not."""
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
    assert not kept(BIG_ZIP).exists() and proxy.counts()["mismatch"] == 1


@pytest.mark.parametrize("fault", ["long", "short", "empty", "html", "flip"])
def test_a_wrong_answer_is_502_and_the_next_good_one_is_served(modproxy, upstream, kept, fault):
    """A wrong length, nothing, a page of a login, a wrong byte."""
    kinds = ("zip", "mod") if fault == "flip" else ("zip", "mod", "info")
    paths = [path_of(LEAF, kind) for kind in kinds]
    proxy = modproxy()
    upstream.fail(fault, match=lambda asked: asked in paths)
    with ThreadPoolExecutor() as pool:
        for answer, path in zip(pool.map(proxy.get, paths), paths):
            assert answer.status == 502 and answer.text.strip()
            assert answer.headers["Cache-Control"] == "no-store" and not kept(path).exists()
    upstream.heal()
    for kind, path in zip(kinds, paths):
        assert proxy.get(path).body == getattr(LEAF, kind) == kept(path).read_bytes()


@pytest.mark.parametrize("fault", ["long", "short", "flip"])
def test_a_wrong_zip_that_was_begun_breaks_off(modproxy, upstream, big, kept, tmp_path, fault):
    """The client has nothing of the last 64 KiB, and no zip can be opened without them."""
    proxy = modproxy()
    upstream.fail(fault, match=is_zip)
    answer = proxy.get(BIG_ZIP)
    assert answer.is_cut and len(answer.body) <= len(big.zip) - HELD_BACK
    assert not kept(BIG_ZIP).exists()
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


def test_a_failure_that_may_pass_is_tried_again(modproxy, upstream):
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
def test_a_failure_is_502_with_what_upstream_said(modproxy, upstream, status, tries, path):
    """Not 404, as with that the go command would go on to its next proxy; and it is not remembered."""
    proxy = modproxy()
    upstream.fail(status, match=lambda asked: asked == path)
    answer = proxy.get(path)
    assert answer.status == 502 and status in answer.text and "told to fail" in answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    assert upstream.count(path) == tries and proxy.counts()["get_error"] == 1
    upstream.heal()
    assert proxy.get(path).status == 200


@pytest.mark.parametrize("status", [404, 410])
def test_what_is_not_there_is_passed_on_with_its_text(modproxy, upstream, status):
    proxy = modproxy()
    for path in (ZIP, INFO, LIST, LATEST):
        upstream.fail(str(status), match=lambda asked, path=path: asked == path)
        answer = proxy.get(path)
        assert answer.status == status and answer.text == "told to fail\n"
        assert upstream.count(path) == 1
    assert proxy.counts()["get_absent"] == 4


def test_a_404_in_the_middle_of_a_file_is_no_absence(modproxy, upstream, big):
    """The rest of a zip that broke off is gone: that is a failure, and the next try finds it."""
    proxy = modproxy()
    upstream.fail("cut", times=1, match=is_zip)
    upstream.fail("404", times=1, match=is_zip)
    assert proxy.get(BIG_ZIP).is_cut
    assert "get_absent" not in proxy.counts()
    assert proxy.get(BIG_ZIP).body == big.zip


def test_a_connection_that_is_reset_is_tried_again(modproxy, upstream):
    proxy = modproxy()
    upstream.fail("reset", times=2, match=is_zip)
    assert proxy.get(ZIP).body == LEAF.zip


def test_an_upstream_that_is_down_is_not_asked_for_each_file(modproxy, upstream):
    """After three failures it is given some time; what is here is served meanwhile."""
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


# -- what is not what it says ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "mod"])
def test_what_the_checksum_database_knows_otherwise_is_refused(modproxy, upstream, kept, kind):
    """A zip that is a good one by itself, a go.mod that says something else."""
    proxy, path = modproxy(), path_of(LEAF, kind)
    upstream.add(go_module(LEAF.path, LEAF.version, requires=[OLD], body="func Evil() {}\n"))
    answer = proxy.get(path)
    assert answer.status == 502 and "checksum database" in answer.text and "h1:" in answer.text
    assert not kept(path).exists() and proxy.counts()["mismatch"] == 1
    assert f"{path[1:]} is refused" in proxy.server.says("is refused")
    upstream.add(LEAF)
    assert proxy.get(path).body == getattr(LEAF, kind) and kept(path).exists()


def test_of_a_large_zip_that_the_checksum_database_knows_otherwise_the_end_is_missing(
    modproxy, upstream, big, kept
):
    proxy = modproxy()
    evil = big_module(1 << 20, **{"evil.go": "package big\n\nfunc Evil() {}\n"})
    upstream.add(evil)
    answer = proxy.get(BIG_ZIP)
    assert answer.is_cut and evil.zip.startswith(answer.body)
    assert len(answer.body) <= len(evil.zip) - HELD_BACK and not kept(BIG_ZIP).exists()
    upstream.add(big)
    assert proxy.get(BIG_ZIP).body == big.zip


DAMAGE = {  # that the hash does not show: (byte of LEAF's zip, bits that are wrong in it)
    "the end of its deflated body": (30 + len(f"{LEAF}/go.mod"), 1),
    "the sums behind a body": (LEAF.zip.index(b"PK\7\10") + 4, 1),
    "the length of the comment": (len(LEAF.zip) - 2, 1),
    "bzip2 for a method": (LEAF.zip.index(b"PK\1\2") + 10, 8 ^ 12),
    "LZMA for a method": (LEAF.zip.index(b"PK\1\2") + 10, 8 ^ 14),
}


def damaged(what) -> bytes:
    """LEAF's zip with something wrong in it that is in DAMAGE."""
    (at, bits), data = DAMAGE[what], bytearray(LEAF.zip)
    data[at] ^= bits
    return bytes(data)


@pytest.mark.parametrize("what", DAMAGE)
def test_a_zip_that_the_go_command_would_not_open_is_refused(modproxy, upstream, kept, what):
    proxy = modproxy()
    upstream.body_overrides[ZIP] = damaged(what)
    answer = proxy.get(ZIP)
    assert answer.status == 502 and "is refused" in answer.text
    assert not kept(ZIP).exists()
    upstream.body_overrides.clear()
    assert proxy.get(ZIP).body == LEAF.zip and kept(ZIP).exists()


@pytest.mark.parametrize("checked", [True, False])
def test_a_zip_of_another_module_is_refused(modproxy, upstream, kept, checked):
    proxy = modproxy(checked=checked)
    upstream.body_overrides[ZIP] = ROOT.zip
    assert proxy.get(ZIP).status == 502 and not kept(ZIP).exists()


@pytest.mark.parametrize("checked", [True, False])
def test_an_info_of_another_version_is_refused(modproxy, upstream, kept, checked):
    proxy = modproxy(checked=checked)
    upstream.body_overrides[INFO] = b'{"Version":"v1.0.1","Time":"2024-01-02T03:04:05Z"}'
    answer = proxy.get(INFO)
    assert answer.status == 502 and "v1.0.1" in answer.text and not kept(INFO).exists()
    upstream.body_overrides.clear()
    assert proxy.get(INFO).body == LEAF.info


@pytest.mark.parametrize("order", [("mod", "zip"), ("zip", "mod")])
def test_without_a_checksum_database_a_zip_and_its_mod_have_to_agree(
    modproxy, upstream, kept, order
):
    """Which of them is wrong, nobody knows: both are asked for again."""
    first, second = (path_of(LEAF, kind) for kind in order)
    proxy = modproxy(checked=False)
    upstream.body_overrides[MOD] = b"module example.test/Leaf\n\ngo 1.22\n"
    assert proxy.get(first).status == 200
    answer = proxy.get(second)
    assert answer.status == 502 and "differ" in answer.text
    assert not kept(first).exists() and not kept(second).exists()
    upstream.body_overrides.clear()
    assert proxy.get(second).body == getattr(LEAF, order[1])
    assert proxy.get(first).body == getattr(LEAF, order[0])


def test_a_wrong_mod_that_was_kept_unchecked_goes_when_the_zip_is_proven(modproxy, upstream, kept):
    wrong = upstream.body_overrides[MOD] = b"module example.test/Leaf\n\ngo 1.22\n"
    proxy = modproxy(checked=False)
    assert proxy.get(MOD).body == wrong and kept(MOD).exists()
    proxy.server.stop()
    upstream.body_overrides.clear()
    proxy = modproxy()
    assert proxy.get(ZIP).body == LEAF.zip
    assert proxy.get(MOD).body == LEAF.mod


@pytest.mark.parametrize("fault", ["503", "html", "cut"])
def test_what_the_checksum_database_cannot_prove_now_is_served_and_not_kept(
    modproxy, upstream, kept, fault
):
    proxy = modproxy()
    upstream.fail(fault, match=is_lookup)
    assert proxy.get(ZIP).body == LEAF.zip and not kept(ZIP).exists()
    assert proxy.get(MOD).body == LEAF.mod and not kept(MOD).exists()
    assert proxy.counts()["unverified"] == 2
    upstream.heal()
    assert proxy.get(ZIP).body == LEAF.zip and kept(ZIP).exists()
    assert upstream.count(ZIP) == 2


def test_a_checksum_database_that_is_down_by_itself(modproxy, upstream, kept):
    """The same where nothing listens there."""
    proxy = modproxy(f"--sumdb={upstream.checksums.name} http://127.0.0.1:9")
    assert proxy.get(ZIP).body == LEAF.zip and not kept(ZIP).exists()
    assert proxy.get("/sumdb/sum.example.test/latest").status == 502


@pytest.mark.parametrize("patterns", ["example.test/Leaf", "*.test/L*", "x.test,example.test/Leaf"])
def test_of_private_modules_nobody_else_is_told(modproxy, upstream, kept, patterns):
    proxy = modproxy(f"--nosumdb={patterns}")
    for kind in ("info", "mod", "zip"):
        assert proxy.get(path_of(LEAF, kind)).status == 200
    assert upstream.count("sumdb") == 0 and kept(ZIP).exists()
    assert proxy.get(path_of(ROOT, "zip")).status == 200
    assert upstream.count("/lookup/example.test/base@v1.2.0") == upstream.count("sumdb") == 1


@pytest.mark.parametrize("variable", ["GONOSUMDB", "GOPRIVATE"])
def test_private_modules_are_those_of_the_go_command(modproxy, upstream, variable):
    proxy = modproxy(environ={variable: "example.test/Leaf"})
    assert proxy.get(ZIP).status == 200 and upstream.count("sumdb") == 0


# -- clients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path, body", [(BIG_ZIP, BIG.zip), (BIG_MOD, BIG.mod)])
def test_many_clients_ask_for_one_cold_file_at_once(modproxy, upstream, big, path, body):
    """Upstream is asked once."""
    proxy = modproxy()
    upstream.hold(lambda asked: asked == path)
    with ThreadPoolExecutor(50) as pool:
        coming = [pool.submit(proxy.get, path) for _ in range(50)]
        wait_for_count(proxy, "get_local_miss", 50)
        upstream.release()
        answers = [one.result(DEADLINE_S) for one in coming]
    assert all(answer.body == body and not answer.is_cut for answer in answers)
    assert upstream.count(path) == 1 and upstream.count("/lookup/") == 1


def test_many_clients_hear_of_one_failure(modproxy, upstream):
    proxy = modproxy()
    upstream.hold(is_zip)
    upstream.fail("403", match=is_zip)
    with ThreadPoolExecutor(20) as pool:
        coming = [pool.submit(proxy.get, ZIP) for _ in range(20)]
        wait_for_count(proxy, "get_local_miss", 20)
        upstream.release()
        assert {one.result(DEADLINE_S).status for one in coming} == {502}
    assert upstream.count(ZIP) == 1


def test_a_client_that_goes_away_does_not_spoil_the_file(modproxy, upstream, big, kept):
    """It comes to its end for whoever asks next, and one that came later misses nothing."""
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
    assert kept(BIG_ZIP).read_bytes() == big.zip
    assert upstream.count(BIG_ZIP) == 1


def test_a_file_is_kept_though_its_only_client_went_away(modproxy, upstream, big, kept):
    proxy = modproxy()
    upstream.fail("slow", match=is_zip)
    with SlowClient(proxy, BIG_ZIP) as client:
        upstream.step()
        client.head()
    for _ in range(3):
        upstream.step()
    wait_until(lambda: kept(BIG_ZIP).exists(), "the file")
    assert proxy.get(BIG_ZIP).body == big.zip and upstream.count(BIG_ZIP) == 1
    assert "Traceback" not in proxy.server.stderr


def test_a_client_that_reads_slowly_holds_nobody(modproxy, upstream):
    """Neither those who ask for the same file, nor the file."""
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


def test_the_http_process_is_killed_in_the_middle_of_a_download(modproxy, upstream, big, kept):
    """Another one serves, on the same port, and half a file is none."""
    proxy = modproxy()
    upstream.fail("slow", times=1, match=is_zip)
    with SlowClient(proxy, BIG_ZIP) as client:
        upstream.step()
        client.head()
        client.read(1000)
        kill(http_process(proxy))
        assert ends(client.socket)
    assert not kept(BIG_ZIP).exists()
    proxy.server.says("the HTTP process has ended")
    assert proxy.get(BIG_ZIP).body == big.zip and kept(BIG_ZIP).read_bytes() == big.zip


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


def test_a_server_that_stops_waits_for_no_upstream_for_ever(modproxy, upstream, big, kept):
    """After --stop-timeout it ends, and half a file is none."""
    proxy = modproxy("--stop-timeout=300ms")
    upstream.fail("slow", times=1, match=is_zip)
    with SlowClient(proxy, BIG_ZIP) as client:
        upstream.step()
        client.head()
        assert proxy.server.stop(signal.SIGTERM) == 0
        assert ends(client.socket)
    assert not kept(BIG_ZIP).exists()
    assert "Traceback" not in proxy.server.stderr


# -- disks -----------------------------------------------------------------------------------------


def test_what_a_full_disk_does_not_take_is_served_from_elsewhere(
    modproxy, upstream, big, kept, full_disk, tmp_path
):
    proxy = modproxy(cache_dir=full_disk / "cache")
    assert proxy.get(BIG_ZIP).body == big.zip and proxy.get(ZIP).body == LEAF.zip
    assert not kept(BIG_ZIP, full_disk / "cache").exists()
    assert kept(ZIP, full_disk / "cache").read_bytes() == LEAF.zip
    assert not temporaries(full_disk / "cache")
    assert proxy.get(BIG_ZIP).body == big.zip and upstream.count(BIG_ZIP) == 1


def test_where_no_disk_takes_a_file_the_client_is_told(modproxy, upstream, big, small_disk):
    """By the end of its connection where the answer was begun, by 500 where it was not."""
    disk, temporary = small_disk("disk"), small_disk("elsewhere")
    proxy = modproxy(cache_dir=disk / "cache", environ={"TMPDIR": str(temporary)})
    assert proxy.get(BIG_ZIP).is_cut
    answer = proxy.get(BIG_ZIP, Range="bytes=0-9")
    assert answer.status == 500 and "no space left on device" in answer.text
    assert proxy.get(ZIP).body == LEAF.zip  # there is room for this one
    assert not [path for path in temporary.rglob("*") if path.is_file()]
    assert not temporaries(disk / "cache")
    assert "Traceback" not in proxy.server.stderr


def test_a_cache_directory_that_cannot_be_written_is_read(
    modproxy, upstream, kept, small_disk, tmp_path
):
    disk = small_disk("disk")
    proxy = modproxy(cache_dir=disk)
    assert proxy.get(MOD).body == LEAF.mod
    proxy.server.stop()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    proxy = modproxy("--read-only", cache_dir=disk)
    assert proxy.get(MOD).body == LEAF.mod and upstream.count(MOD) == 1
    for _ in range(2):
        assert proxy.get(ZIP).body == LEAF.zip
    assert upstream.count(ZIP) == 1  # kept in the temporary directory
    assert "Traceback" not in proxy.server.stderr


def test_what_finds_its_place_taken_is_kept_elsewhere(modproxy, upstream, tmp_path):
    """Where a file is in the way of the directory."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "module").write_text("in the way")
    proxy = modproxy()
    for _ in range(2):
        for kind in ("zip", "mod", "info"):
            assert proxy.get(path_of(LEAF, kind)).body == getattr(LEAF, kind)
        assert proxy.get("/example.test/!leaf/@v/list").text == "v1.0.0\n"
    assert len(upstream.requests) == 5  # with the checksum database's
    assert not temporaries(tmp_path / "modules") and "Traceback" not in proxy.server.stderr


def test_the_cache_directory_goes_away(modproxy, upstream, tmp_path, kept):
    """Somebody removes it: it is made again."""
    proxy = modproxy()
    assert proxy.get(ZIP).body == LEAF.zip
    (tmp_path / "modules").rename(tmp_path / "gone")
    assert proxy.get(ZIP).body == LEAF.zip and kept(ZIP).exists()
