"""acceptor.py: the time that strangers may take, and descriptors that clients hand over."""

import os
import socket
import sys
import time
from types import SimpleNamespace

import pytest

from cacheplugin.loop import Loop
from cacheplugin.options import Options
from cacheplugin.server import acceptor, peer_uid
from cacheplugin.server.acceptor import Acceptor, make_nonblocking

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


class Server:
    """What Acceptor uses of a server; ``begun``: how many sessions began."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.options = Options(cache_dir="/none")
        self.client_count = self.begun = 0
        self.own_scopes = lambda: ()
        self.restart_idle_timer = lambda: None

    def begin_session(self, _way, fds, *_) -> None:
        self.begun += 1
        os.close(fds[0])


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def listener(server):
    """A TCP listener whose clients an Acceptor of the server accepts."""
    listener = socket.create_server(("127.0.0.1", 0))
    accepting = Acceptor(server, listener, None)
    accepting.open()
    yield listener
    accepting.close()


def connect(listener, count: int) -> list:
    return [socket.create_connection(listener.getsockname()) for _ in range(count)]


def turn_for(server, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        server.loop.turn(10)


def test_a_slow_search_for_users_takes_a_part_of_the_time(server, listener, monkeypatch):
    """A kernel without a quick way is searched for each client. Sessions must go on beside that."""
    spent = SimpleNamespace(s=0.0, times=0)

    def find(*_):
        begin = time.thread_time()
        while time.thread_time() - begin < 0.01:
            pass
        spent.s += time.thread_time() - begin
        spent.times += 1
        raise ValueError("a stranger")

    monkeypatch.setattr(peer_uid, "find", find)
    clients = connect(listener, 40)
    turn_for(server, 0.5)
    assert spent.s <= 0.2 and 1 < spent.times < 20  # without a bound, 0.4 s and 40
    for client in clients:
        client.close()


def test_clients_whose_search_was_slow_are_served(server, listener, monkeypatch):
    """One after the other, all of them."""
    monkeypatch.setattr(acceptor, "_SLOW_SEARCH_S", 0.0)
    clients = connect(listener, 5)
    end = time.monotonic() + 20
    while server.begun < 5:
        assert time.monotonic() < end
        server.loop.turn(10)
    for client in clients:
        client.close()


# -- descriptors -----------------------------------------------------------------------------------


@pytest.fixture
def fifo(tmp_path):
    """fifo(flags): a descriptor of one FIFO, which has a reader and a writer."""
    os.mkfifo(tmp_path / "fifo")
    held = os.open(tmp_path / "fifo", os.O_RDWR)
    yield lambda flags: os.open(tmp_path / "fifo", flags | os.O_CLOEXEC)
    os.close(held)


@pytest.mark.parametrize("is_trusted", [True, False])
@pytest.mark.parametrize("access", [os.O_RDONLY, os.O_WRONLY])
@pytest.mark.parametrize("opened", [0, os.O_RDWR])
def test_a_pipe_is_opened_again(fifo, access, opened, is_trusted):
    """The client's open file stays blocking, and the server's has the rights it needs only."""
    fd = fifo(opened or access)
    client = os.dup(fd)
    own = make_nonblocking(fd, access, is_trusted)
    assert os.get_blocking(client) and not os.get_blocking(own)
    with pytest.raises(OSError):
        if access == os.O_RDONLY:
            os.write(own, b"x")
        else:
            os.read(own, 1)
    os.close(client)
    os.close(own)


@pytest.mark.parametrize("is_trusted", [True, False])
@pytest.mark.parametrize(
    "access, opened",
    [
        (os.O_RDONLY, os.O_WRONLY),
        (os.O_WRONLY, os.O_RDONLY),
        (os.O_RDONLY, os.O_PATH),
        (os.O_WRONLY, os.O_PATH),
    ],
)
def test_a_descriptor_without_the_right_is_refused(fifo, access, opened, is_trusted):
    """ValueError is raised, and the descriptor stays open for the caller to close."""
    fd = fifo(opened)
    with pytest.raises(ValueError, match="is not open for"):
        make_nonblocking(fd, access, is_trusted)
    os.close(fd)


def test_a_device_is_opened_again_for_trusted_users_only():
    """Which file a device such as /dev/tty is depends on the process that opens it."""
    client = os.open(os.devnull, os.O_RDWR)
    fd = os.dup(client)
    assert make_nonblocking(fd, os.O_RDONLY, False) == fd and not os.get_blocking(client)
    os.set_blocking(client, True)
    own = make_nonblocking(fd, os.O_RDONLY, True)
    assert os.get_blocking(client) and not os.get_blocking(own)
    os.close(client)
    os.close(own)
