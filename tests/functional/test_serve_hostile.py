"""Clients that misbehave, beside a client that must not notice them."""

import os
import resource
import subprocess
import sys

import pytest

from helpers import NOBODY, action_id, b64, memory_kb, output_id, temporaries, wait_until
from server_sessions import BODY, ends, unix_name

pytest_plugins = ["server_fixtures"]

MANY_GETS = 100_000

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")

# Runs as another user: connects and prints what it receives. argv: kind of socket, port.
STRANGER = """
import encodings.idna, os, socket, sys
os.setgid(65534); os.setuid(65534)
port = int(sys.argv[2])
if sys.argv[1] == "unix":
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(b"\\0go-cache-plugin-%d" % port)
else:
    sock = socket.create_connection(("127.0.0.1", port))
sock.settimeout(20)
try:
    print(sock.recv(65536))
except (ConnectionError, TimeoutError) as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 100_000,
        b"{" * 70_000,
        b'{"ID":1}\n\n',
        b"null\n",
        b"\xff\xfe",
    ],
)
def test_input_that_is_not_the_protocol(serve, good, tcp, data):
    """The client is given up once its input cannot be a request."""
    server = serve()
    client = good(server)
    bad = tcp(server.port).hello()
    bad.send(data)
    bad.process.stdin.close()
    client.check()
    assert bad.is_given_up()
    client.check()
    client.finish()


def test_a_stall_in_the_middle_of_a_body(serve, good, tcp, cache_dir):
    """The client is given up after --client-timeout, and its temporary file is removed.

    Silence between requests is not a stall.
    """
    server = serve("--client-timeout=1s")
    client, silent = good(server), tcp(server.port).hello()
    bad = tcp(server.port).hello()
    bad.begin_put(action_id("bad"), output_id(BODY), len(BODY))
    bad.send(b'"' + b64(output_id(BODY)).encode()[:40])
    wait_until(lambda: temporaries(cache_dir), "the temporary file")
    client.check()
    assert bad.is_given_up()
    assert not temporaries(cache_dir)
    silent.expect_hit(action_id("good"), BODY)
    client.check()
    client.finish()


def test_half_a_request(serve, good, tcp):
    """The client is given up after --client-timeout."""
    server = serve("--client-timeout=1s")
    client, bad = good(server), tcp(server.port).hello()
    bad.send(b'{"ID":1,"Comm')
    client.check()
    assert bad.is_given_up()
    client.check()
    client.finish()


def test_a_client_that_reads_no_answers(serve, good, tcp):
    """The server soon stops reading from it, so memory does not grow, and gives it up later."""
    server = serve("--client-timeout=2s")
    client, bad = good(server), tcp(server.port).hello()
    before = memory_kb(server.pid, "VmRSS")
    gets = b'{"ID":7,"Command":"get","ActionID":"%b"}\n\n' % b64(action_id("good")).encode()
    bad.socket.settimeout(1)
    try:
        for _ in range(MANY_GETS // 1000):
            bad.socket.sendall(gets * 1000)
    except (TimeoutError, ConnectionError):
        pass  # the server has stopped reading
    client.check()
    assert memory_kb(server.pid, "VmRSS") - before < 20_000
    wait_until(
        lambda: server.descriptors() and "stopped" in server.stderr, "the end of the session"
    )
    client.check()
    client.finish()


def test_many_gets_while_s3_does_not_answer(serve, good, tcp, fake_s3):
    """The server stops reading from a client with many gets that wait, so memory does not grow."""
    fake_s3.hold = lambda method, key: method == "GET"
    server = serve(*fake_s3.flags())
    client, bad = good(server), tcp(server.port).hello()
    before = memory_kb(server.pid, "VmRSS")
    bad.socket.settimeout(1)
    try:
        for at in range(40_000):
            bad.get(action_id(at))
    except (TimeoutError, ConnectionError):
        pass
    assert memory_kb(server.pid, "VmRSS") - before < 40_000
    client.check()
    bad.kill()
    client.check()
    fake_s3.release()
    client.finish()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_offer_with_the_wrong_number_of_descriptors(serve, good, raw, count):
    """The client is turned away with a line, and the server keeps no descriptor."""
    server = serve()
    client = good(server)
    before = server.descriptors()
    bad = raw(server.port)
    bad.offer([0] * count)
    assert b"turned away" in bad.message() and bad.message() == b"\0\1"
    client.check()
    bad.close()
    wait_until(lambda: server.descriptors() <= before, "the descriptors")
    client.finish()


def test_invalid_offers(serve, good, raw):
    """Another version, bytes that are not UTF-8, another protocol."""
    server = serve()
    client = good(server)
    for first in ("go-cache-plugin connect 99", b"\xff\xff", b"GET / HTTP/1.1"):
        bad = raw(server.port)
        bad.offer([0, 1], first)
        assert b"turned away" in bad.message()
    client.check()
    client.finish()


def test_no_offer(serve, good, raw):
    """The client is given up after --client-timeout."""
    server = serve("--client-timeout=1s")
    client, bad = good(server), raw(server.port)
    client.check()
    assert ends(bad.socket)
    client.finish()


@pytest.mark.parametrize(
    "path, flags",
    [
        ("/dev/null", os.O_RDWR),
        ("/", os.O_RDONLY),
        (__file__, os.O_RDONLY),
    ],
)
def test_descriptors_that_are_not_pipes(serve, good, raw, path, flags):
    """That session ends, and no other."""
    server = serve()
    client, bad = good(server), raw(server.port)
    fd = os.open(path, flags)
    bad.offer([fd, fd])
    os.close(fd)
    assert ends(bad.socket)
    client.check()
    client.finish()


def test_more_clients_than_descriptors(serve, tcp):
    """Further clients wait until another one ends, and are then served."""

    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))

    server = serve(preexec_fn=limit)
    clients = [tcp(server.port) for _ in range(12)]
    most = (96 - 64) // 5
    for client in clients[:most]:
        client.hello()
    assert clients[most].silent(0.2)
    for at in range(most, len(clients)):
        clients[at - most].finish()
        clients[at].hello().expect_miss(action_id("none"))
    for client in clients[-most:]:
        client.finish()
    assert server.stop() == 0


@as_root
@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize("allowed", [False, True])
def test_another_user(serve, good, kind, allowed):
    """Another user is turned away on both ways, unless --allow-other-users is given."""
    server = serve(*["--allow-other-users"] * allowed)
    client = good(server)
    stranger = subprocess.Popen(
        [sys.executable, "-c", STRANGER, kind, str(server.port)], stdout=subprocess.PIPE, text=True
    )
    if kind == "unix" and allowed:
        client.check()
        assert stranger.poll() is None  # the server waits for its offer
        stranger.kill()
        stranger.communicate()
    else:
        said, _ = stranger.communicate(timeout=30)
        if allowed:
            assert "KnownCommands" in said
        else:
            assert "KnownCommands" not in said and ("turned away" in said or kind == "tcp")
            assert f"user {NOBODY} is neither" in server.says("turned away")
    client.check()
    client.finish()


@as_root
def test_connect_offers_nothing_to_another_user(connect, tmp_path):
    """A process of another user that listens under the server's Unix name gets no descriptors."""
    port = 31_313
    code = (
        "import os, socket, sys; os.setuid(65534)\n"
        "sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        f"sock.bind({unix_name(port)!r}); sock.listen(); print(1, flush=True)\n"
        "peer, _ = sock.accept(); print(peer.recv(100), flush=True)\n"
    )
    stranger = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert stranger.stdout.readline() == "1\n"
    client = connect(port)
    assert client.wait() == 1 and f"no server on port {port}" in client.stderr
    assert stranger.communicate(timeout=20)[0] == "b''\n"
