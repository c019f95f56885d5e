"""Clients that stall, send wrong offers or belong to other users, beside one that does no wrong."""

import base64
import os
import select
import signal
import socket
import subprocess
import sys
import time

import pytest

from helpers import (
    DEADLINE_S,
    NOBODY,
    action_id,
    b64,
    memory_kb,
    output_id,
    stored_bodies,
    wait_until,
)
from server_sessions import BODY, unix_name

pytest_plugins = ["server_fixtures"]

GET = b'{"ID":1,"Command":"get","ActionID":"%s"}\n\n' % b64(action_id("good")).encode()
NO_OFFER = "the first message is not an offer of connect"
OTHER_VERSION = "the client is another version of go-cache-plugin than the server"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")


@pytest.fixture
def impatient(serve):
    """A server with a short --client-timeout."""
    return serve("--client-timeout=600ms")


def test_a_client_that_resets_its_connection(serve, good, tcp):
    """With answers on their way, or at once; other clients are served."""
    server = serve()
    is_served = good(server).check
    for data in (GET * 5000, b""):
        client = tcp(server.port)
        client.send(data)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.kill()
    is_served()


# -- stalls ----------------------------------------------------------------------------------------


def test_a_client_that_stops_in_a_header_is_given_up(impatient, good, tcp, connect):
    """A connect process prints why."""
    is_served = good(impatient).check
    client, plugin = tcp(impatient.port).hello(), connect(impatient.port).hello()
    for one in (client, plugin):
        one.send(b'{"ID":1,"Comm')
    assert client.is_given_up() and plugin.wait() == 1
    assert plugin.stderr == (
        "go-cache-plugin: the client has stopped in the middle of a request or of reading answers"
        " (--client-timeout)\n"
    )
    is_served()


def test_silence_between_requests_is_not_a_stall(impatient, good, tcp, connect):
    """A compiler may run for long. One client has sent nothing yet, the other one request."""
    good(impatient)
    clients = [tcp(impatient.port).hello(), connect(impatient.port).hello()]
    clients[1].expect_hit(action_id("good"), BODY)
    other = tcp(impatient.port)
    other.send(b'{"ID":1,')
    assert other.is_given_up()
    time.sleep(0.7)  # with the wait before, twice --client-timeout
    for client in clients:
        client.expect_hit(action_id("good"), BODY)
        client.finish()


def test_a_slow_client_is_not_given_up(impatient, tcp):
    """A put may take longer than --client-timeout, if it goes on."""
    client = tcp(impatient.port).hello()
    number = client.begin_put(action_id("a"), output_id(BODY), len(BODY))
    encoded = b'"' + base64.b64encode(BODY) + b'"\n'
    for at in range(0, len(encoded), 3000):
        client.send(encoded[at : at + 3000])
        time.sleep(0.1)
    assert "DiskPath" in client.answer(number)


def rss_kb(server) -> int:
    return memory_kb(server.pid, "VmRSS")


def test_a_connect_whose_go_command_reads_no_answers(serve, good, connect):
    """The server stops reading from it, so memory does not grow, and tells it when it gives up."""
    server = serve("--client-timeout=1500ms")
    is_served = good(server).check
    plugin = connect(server.port).hello()
    before, data = rss_kb(server), GET * 1000
    os.set_blocking(plugin.process.stdin.fileno(), False)
    with pytest.raises((BlockingIOError, BrokenPipeError)):
        for _ in range(200):
            left = data
            while left:
                left = left[write_some(plugin.process.stdin.fileno(), left) :]
    is_served()
    assert rss_kb(server) - before < 30_000
    assert plugin.wait() == 1
    assert "has stopped in the middle of a request" in plugin.stderr
    is_served()


def write_some(fd, data) -> int:
    """Write what a pipe takes within half a second, or raise BlockingIOError."""
    select.select([], [fd], [], 0.5)
    return os.write(fd, data)


def test_many_gets_that_wait_for_s3_are_bounded(serve, good, tcp, fake_s3):
    """The server stops reading from a client with thousands of them; all are answered later."""
    fake_s3.hold = lambda method, key: method == "GET" and action_id("slow") in key
    server = serve(*fake_s3.flags())
    is_served = good(server).check
    client = tcp(server.port).hello()
    before = rss_kb(server)
    numbers = [client.get(action_id("slow")) for _ in range(20_000)]
    is_served()
    assert rss_kb(server) - before < 30_000
    fake_s3.release()
    assert all(client.answer(number)["Miss"] for number in numbers)
    is_served()


# -- offers ----------------------------------------------------------------------------------------


@pytest.fixture
def pipe():
    """The two descriptors of a pipe."""
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass


def expect_turned_away(client, server, reason: str) -> None:
    assert client.message() == f"go-cache-plugin: turned away: {reason}\n".encode()
    assert client.message() == b"\0\1"
    assert client.message() == b""
    server.says(f"a client was turned away: {reason}")


@pytest.mark.parametrize("count", [0, 1, 3, 12])
def test_an_offer_of_another_number_of_descriptors_is_turned_away(serve, good, raw, pipe, count):
    """No descriptor of it stays open."""
    server = serve()
    is_served = good(server).check
    before = server.descriptors()
    client = raw(server.port)
    client.offer([pipe[0]] * count)
    expect_turned_away(client, server, NO_OFFER)
    wait_until(lambda: server.descriptors() <= before, "the end of its descriptors")
    is_served()


FIRST_LINES = {
    "another version": ("go-cache-plugin connect 2", OTHER_VERSION),
    "bytes": (b"\xff\xfe", NO_OFFER),
    "one line": (b"go-cache-plugin connect 1", NO_OFFER),
    "no scope": (b"go-cache-plugin connect 1\n0\n0", NO_OFFER),
    "long": (b"x" * 100_000, None),
}


@pytest.mark.parametrize("first, reason", FIRST_LINES.values(), ids=FIRST_LINES.keys())
def test_an_invalid_offer_is_turned_away(serve, good, raw, pipe, first, reason):
    server = serve()
    is_served = good(server).check
    before = server.descriptors()
    client = raw(server.port)
    client.offer(pipe, first=first)
    if reason:
        expect_turned_away(client, server, reason)
    else:
        assert client.message().startswith(b"go-cache-plugin: turned away: ")
    wait_until(lambda: server.descriptors() <= before, "the end of its descriptors")
    is_served()


def test_a_client_without_an_offer_is_given_up(impatient, good, raw):
    """After --client-timeout, or at once when it closes the connection."""
    is_served = good(impatient).check
    before = impatient.descriptors()
    silent, gone = raw(impatient.port), raw(impatient.port)
    gone.close()
    assert silent.is_silent(0.3)
    is_served()
    assert silent.message() == b""
    wait_until(lambda: impatient.descriptors() <= before, "their end")
    is_served()


def odd_descriptors(tmp_path) -> dict:
    """Files that are not pipes: {name: (path, flags to open it with)}."""
    (tmp_path / "file").write_bytes(GET)
    os.mkfifo(tmp_path / "fifo")
    return {
        "directory": (tmp_path, os.O_RDONLY),
        "null": ("/dev/null", os.O_RDWR),
        "zero": ("/dev/zero", os.O_RDWR),
        "full": ("/dev/full", os.O_RDWR),
        "file": (tmp_path / "file", os.O_RDWR),
        "path of a file": (tmp_path / "file", os.O_PATH),
        "path of a directory": (tmp_path, os.O_PATH),
        "path of a fifo": (tmp_path / "fifo", os.O_PATH),
        "fifo": (tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK),
    }


ODD = [
    "directory",
    "null",
    "zero",
    "full",
    "file",
    "path of a file",
    "path of a directory",
    "path of a fifo",
    "fifo",
]


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("name", ODD)
def test_descriptors_of_odd_kinds(serve, good, raw, tmp_path, name, late):
    """As stdin, as stdout, as both; offered at once, or while the server waits for the offer."""
    server = serve("--client-timeout=1s")
    is_served = good(server).check
    before = server.descriptors()
    odd = os.open(*odd_descriptors(tmp_path)[name])
    null = os.open(os.devnull, os.O_RDWR)
    clients = []
    for fds in ((odd, odd), (odd, null), (null, odd)):
        clients.append(raw(server.port))
        if late:
            is_served()  # by now the server waits for the offer
        clients[-1].offer(fds)
        is_served()
    os.close(odd)
    for client in clients:
        client.close()
    wait_until(lambda: server.descriptors() <= before, "the end of their descriptors")
    os.close(null)
    is_served()


@pytest.mark.parametrize(
    "as_stdin, flags", [(False, os.O_PATH), (False, os.O_RDONLY), (True, os.O_PATH)]
)
def test_a_descriptor_gets_no_rights_that_it_came_without(
    serve, good, raw, tmp_path, as_stdin, flags
):
    """A FIFO that the client may not read or write is not opened by the server either."""
    server = serve()
    is_served = good(server).check
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(tmp_path / "fifo", os.O_WRONLY)
    odd = os.open(tmp_path / "fifo", flags | os.O_NONBLOCK)
    null = os.open(os.devnull, os.O_RDWR)
    os.write(writer, b'{"ID":1,')
    client = raw(server.port)
    client.offer((odd, null) if as_stdin else (null, odd))
    name, use = ("stdin", "reading") if as_stdin else ("stdout", "writing")
    expect_turned_away(client, server, f"the {name} of connect is not open for {use}")
    is_served()
    assert os.read(reader, 1000) == b'{"ID":1,'  # nobody has read it, or written more
    for fd in (reader, writer, odd, null):
        os.close(fd)


def test_both_ends_of_one_pipe(serve, good, raw, pipe):
    """The server reads its own hello line as a request; other clients are served."""
    server = serve()
    is_served = good(server).check
    client = raw(server.port)
    before = server.descriptors()
    client.offer(pipe)
    is_served()
    client.close()
    wait_until(lambda: server.descriptors() <= before, "the end of its session")
    is_served()


def test_further_messages_of_a_client_are_ignored(serve, raw):
    server = serve()
    client = raw(server.port)
    (answers, server_out), (server_in, requests) = os.pipe(), os.pipe()
    client.offer((server_in, server_out))
    assert os.read(answers, 1000).startswith(b'{"ID":0')
    before = server.descriptors()
    for _ in range(20):
        client.offer((server_in, server_out))
    os.write(requests, b'{"ID":1,"Command":"close"}\n\n')
    assert os.read(answers, 1000) == b'{"ID":1}\n'
    assert client.message() in (b"\0\0", b"")  # a reset, as unread messages cause it, may hide it
    wait_until(lambda: server.descriptors() < before, "their end")
    for fd in (answers, requests, server_in, server_out):
        os.close(fd)


# -- many clients ----------------------------------------------------------------------------------


def test_many_clients_that_come_and_go_leave_no_descriptor_open(serve, good, tcp, raw):
    server = serve()
    is_served = good(server).check
    before = server.descriptors()
    for _ in range(5):
        clients = [tcp(server.port) for _ in range(40)] + [raw(server.port) for _ in range(40)]
        is_served()
        for client in clients:
            (client.kill if hasattr(client, "kill") else client.close)()
    wait_until(lambda: server.descriptors() <= before, "their end")
    is_served()


# -- other users -----------------------------------------------------------------------------------

AS_NOBODY = """
import array, encodings.idna, os, socket, sys
from cacheplugin import options, scope
from cacheplugin.server import connect
_, chosen = options.load([], os.environ)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""


@pytest.fixture
def other_user():
    """other_user(code): a process of another user that runs the code."""
    begun = []

    def other_user(code):
        argv = [sys.executable, "-c", AS_NOBODY + code]
        begun.append(
            subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return begun[-1]

    yield other_user
    for process in begun:
        process.kill()
        process.communicate()


def output_of(process) -> str:
    """The stdout and stderr of a process, once it has ended."""
    out, err = process.communicate(timeout=DEADLINE_S)
    return out + err


BY_TCP = """
sock = socket.create_connection(("127.0.0.1", {port}))
sock.settimeout(20)
try:
    print(sock.recv(100))
except ConnectionError:
    print(b"")
"""
BY_UNIX = """
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect({name!r})
out, into = os.pipe()
rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (os.open("/dev/null", 2), into)))]
try:
    sock.sendmsg([b"go-cache-plugin connect 1\\n0\\n0\\nscope"], rights)
except OSError:
    pass
os.close(into)
try:
    text = sock.recv(1000)
except ConnectionResetError:  # the offer was not read; the message comes after the reset
    text = sock.recv(1000)
print(os.read(out, 100), text)
"""
BY_CONNECT = """
import time
def find(*_):
    time.sleep({pause_s})
    return ["scope"]
scope.find = find
sys.exit(connect.run(["{port}"], chosen))
"""


@as_root
def test_another_user_is_turned_away(serve, good, other_user):
    """By both ways; a connect process is told why. The log names the first and counts the rest."""
    server = serve()
    client = good(server)
    before = server.descriptors()
    assert output_of(other_user(BY_TCP.format(port=server.port))) == "b''\n"
    text = output_of(other_user(BY_UNIX.format(name=unix_name(server.port))))
    assert text.startswith("b'' ") and f"turned away: user {NOBODY} is neither" in text
    wait_until(lambda: server.descriptors() <= before, "their end")
    client.check()
    client.finish()
    assert server.stop() == 0
    first, rest = [line for line in server.lines if "turned away" in line]
    assert first.startswith(f"a client was turned away: user {NOBODY} is neither")
    assert rest.startswith("1 more clients were turned away since then, the last one because: user")


@as_root
def test_many_connections_of_another_user(serve, good, other_user):
    """They take one line of the log, and a count; others are served promptly beside them."""
    count = 300
    server = serve()
    client = good(server)
    process = other_user(
        f"""
for _ in range({count}):
    with socket.create_connection(("127.0.0.1", {server.port})) as sock:
        try:
            assert sock.recv(1) == b""
        except ConnectionError:
            pass
"""
    )
    while process.poll() is None:
        client.check()
    assert output_of(process) == "" and process.returncode == 0
    assert len([line for line in server.lines if "turned away" in line]) == 1
    client.finish()
    assert server.stop() == 0
    server.says(f"{count - 1} more clients were turned away since then")


@as_root
@pytest.mark.parametrize("first", ["server", "connect"])
def test_a_connect_of_another_user_is_told_why(serve, other_user, first):
    """Whether the offer arrives before the server looks at the connection, or after that."""
    server = serve()
    if first == "connect":
        server.signal(signal.SIGSTOP)
    process = other_user(BY_CONNECT.format(port=server.port, pause_s=0.5 * (first == "server")))
    if first == "connect":
        stdout = f"/proc/{process.pid}/fd/1"
        wait_until(lambda: os.readlink(stdout) == os.devnull, "the end of its offer")
        server.signal(signal.SIGCONT)
    said = output_of(process)
    server.says("a client was turned away")
    assert process.returncode == 1
    (line,) = said.splitlines()
    assert line.startswith(f"go-cache-plugin: turned away: user {NOBODY} is neither")


@as_root
def test_another_user_is_served_with_allow_other_users(serve, other_user):
    server = serve("--allow-other-users")
    assert output_of(other_user(BY_TCP.format(port=server.port))).startswith('b\'{"ID":0,')
    text = output_of(other_user(BY_UNIX.format(name=unix_name(server.port))))
    assert text.startswith('b\'{"ID":0,')


@as_root
def test_a_put_of_another_user_that_has_closed_is_refused(serve, good, other_user, cache_dir):
    """Linux lists a connection as root's once its process has closed it."""
    server = serve()
    is_served = good(server).check
    header = (
        f'{{"ID":1,"Command":"put","ActionID":"{b64(action_id("a"))}",'
        f'"OutputID":"{b64(output_id(b"evil"))}","BodySize":4}}\n\n"ZXZpbA=="\n'
    )
    server.signal(signal.SIGSTOP)
    process = other_user(
        f"""
sock = socket.create_connection(("127.0.0.1", {server.port}))
sock.sendall({header.encode()!r})
sock.close()
"""
    )
    assert output_of(process) == "" and process.returncode == 0
    server.signal(signal.SIGCONT)
    is_served()
    server.says("a client was turned away")
    assert output_id(b"evil") not in stored_bodies(cache_dir)
