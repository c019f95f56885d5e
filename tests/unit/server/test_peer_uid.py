"""peer_uid.py: the user of the other end of a TCP connection, by both ways to find it."""

import errno
import os
import socket
import sys

import pytest

from cacheplugin.server import peer_uid, sock_diag

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
PAIRS = [
    (socket.AF_INET, "127.0.0.1", socket.AF_INET, "127.0.0.1"),
    (socket.AF_INET, "127.0.0.1", socket.AF_INET6, "::ffff:127.0.0.1"),
    (socket.AF_INET6, "::", socket.AF_INET, "127.0.0.1"),
    (socket.AF_INET6, "::1", socket.AF_INET6, "::1"),
]


def refused(code):
    """A stand-in for sock_diag.find on a kernel that does not answer."""

    def find(*_):
        raise OSError(code, os.strerror(code))

    return find


@pytest.fixture(params=["asked", "tables"], autouse=True)
def way(request, monkeypatch):
    """The kernel is asked for one connection, or its tables are read."""
    if request.param == "tables":
        monkeypatch.setattr(sock_diag, "find", refused(errno.EPROTONOSUPPORT))
    else:  # and nothing else works
        monkeypatch.setattr(peer_uid, "_TABLES", ())


def listen(family, host) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        listener.bind((host, 0))
    except OSError:
        listener.close()
        pytest.skip("this machine has no IPv6")
    listener.listen(1)
    return listener


@pytest.mark.parametrize("own, host, peer, to", PAIRS)
def test_the_user_of_a_connection(own, host, peer, to):
    """Each end finds the other, for IPv4 and IPv6, and for an IPv6 socket that speaks IPv4."""
    with listen(own, host) as listener, socket.socket(peer, socket.SOCK_STREAM) as client:
        client.connect((to, listener.getsockname()[1]))
        accepted, address = listener.accept()
        with accepted:
            assert peer_uid.find(address, accepted.getsockname()) == os.geteuid()
            assert peer_uid.find(client.getpeername(), client.getsockname()) == os.geteuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
@pytest.mark.parametrize("own, host, peer, to", PAIRS)
def test_the_ends_of_a_connection_belong_to_two_users(own, host, peer, to):
    """Each end finds the user of the other one, not its own."""
    with listen(own, host) as listener:
        os.seteuid(65534)
        try:
            client = socket.socket(peer, socket.SOCK_STREAM)
        finally:
            os.seteuid(0)
        with client:
            client.connect((to, listener.getsockname()[1]))
            accepted, address = listener.accept()
            with accepted:
                assert peer_uid.find(address, accepted.getsockname()) == 65534
                assert peer_uid.find(client.getpeername(), client.getsockname()) == 0


def test_a_connection_that_is_not_accepted_yet():
    """ValueError is raised: nobody has it, and some kernels list it as root's."""
    with listen(socket.AF_INET, "127.0.0.1") as listener, socket.socket() as client:
        client.connect(listener.getsockname())
        with pytest.raises(ValueError):
            peer_uid.find(client.getpeername(), client.getsockname())


def test_an_end_that_is_bound_to_an_interface():
    """It is found, as systemd can bind a server's listener to one."""
    with listen(socket.AF_INET, "127.0.0.1") as listener, socket.socket() as client:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        except OSError as error:
            pytest.skip(f"cannot bind to an interface: {error}")
        client.connect(listener.getsockname())
        with listener.accept()[0]:
            assert peer_uid.find(client.getpeername(), client.getsockname()) == os.geteuid()


def test_an_unknown_connection():
    """ValueError is raised for a client that is gone or on another machine."""
    with pytest.raises(ValueError):
        peer_uid.find(("127.0.0.1", 1), ("127.0.0.1", 2))


def test_a_socket_that_listens_is_not_the_end_of_a_connection():
    """ValueError is raised, though the kernel knows a socket with the address of that end."""
    with listen(socket.AF_INET, "127.0.0.1") as listener, pytest.raises(ValueError):
        peer_uid.find(listener.getsockname(), ("127.0.0.1", 2))
