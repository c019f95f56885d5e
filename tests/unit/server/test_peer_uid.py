"""peer_uid.py: the user of the client's end of a TCP connection."""

import os
import socket
import sys

import pytest

from cacheplugin.server import peer_uid

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


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


@pytest.mark.parametrize(
    "own, host, peer, to",
    [
        (socket.AF_INET, "127.0.0.1", socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET, "127.0.0.1", socket.AF_INET6, "::ffff:127.0.0.1"),
        (socket.AF_INET6, "::", socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET6, "::1", socket.AF_INET6, "::1"),
    ],
)
def test_the_user_of_a_connection(own, host, peer, to):
    """It is found for IPv4 and IPv6, and for an IPv6 socket that speaks IPv4."""
    with listen(own, host) as listener, socket.socket(peer, socket.SOCK_STREAM) as client:
        client.connect((to, listener.getsockname()[1]))
        accepted, address = listener.accept()
        with accepted:
            assert peer_uid.find(address, accepted.getsockname()) == os.geteuid()


def test_an_unknown_connection():
    """ValueError is raised for a client that is gone or on another machine."""
    with pytest.raises(ValueError):
        peer_uid.find(("127.0.0.1", 1), ("127.0.0.1", 2))
