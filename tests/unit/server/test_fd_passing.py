"""fd_passing.py: the messages of connect and server; a refused message leaks no descriptor."""

import array
import os
import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheplugin.server import fd_passing
from cacheplugin.server.fd_passing import Offer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
FIRST = b"go-cache-plugin connect 1"


@pytest.fixture
def pair():
    """Two connected sockets: the client's and the server's."""
    client, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.setblocking(False)
    yield client, server
    client.close()
    server.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def fields(offer) -> tuple:
    return offer.wants_summary, offer.is_explicit, tuple(offer.scopes)


def test_an_offer_with_its_descriptors(pair):
    """The server gets descriptors of the same pipe, which its children do not inherit."""
    client, server = pair
    reader, writer = os.pipe()
    scopes = ["example.com/a linux/amd64 main", "é"]
    fd_passing.send_offer(client, Offer(True, False, scopes), (reader, writer))
    offer, (received_reader, received_writer) = fd_passing.receive_offer(server)
    assert fields(offer) == (True, False, tuple(scopes))
    assert not os.get_inheritable(received_reader)
    os.write(received_writer, b"x")
    assert os.read(reader, 1) == b"x"
    for fd in (reader, writer, received_reader, received_writer):
        os.close(fd)


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n")),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
    st.booleans(),
)
def test_an_offer_arrives_unchanged(scopes, summary, explicit):
    """Whatever the scopes are."""
    client, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with client, server:
        fd_passing.send_offer(client, Offer(summary, explicit, scopes), (0, 1))
        offer, fds = fd_passing.receive_offer(server)
        for fd in fds:
            os.close(fd)
    assert fields(offer) == (summary, explicit, tuple(scopes))


@pytest.mark.parametrize(
    "data, count",
    [
        (FIRST + b"\n0\n0\nscope", 0),
        (FIRST + b"\n0\n0\nscope", 1),
        (FIRST + b"\n0\n0\nscope", 3),
        (FIRST + b"\n0\n0\nscope", 40),
        (FIRST + b"\n0\n0", 2),
        (FIRST, 2),
        (b"go-cache-plugin connect 2\n0\n0\nscope", 2),
        (FIRST + b"\n0\n0\n\xff", 2),
        (FIRST + b"\n0\n0\n" + b"x" * fd_passing.MAX_BYTES, 2),
        (b"\0", 2),
    ],
)
def test_an_invalid_offer_is_refused(pair, data, count):
    """ValueError is raised, and no descriptor stays open."""
    client, server = pair
    rights = (
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * count))] if count else []
    )
    before = open_descriptors()
    client.sendmsg([data], rights)
    with pytest.raises(ValueError):
        fd_passing.receive_offer(server)
    assert open_descriptors() == before


def test_no_message_yet_and_a_closed_connection(pair):
    """Without a message BlockingIOError is raised, at the end of the connection ValueError."""
    client, server = pair
    with pytest.raises(BlockingIOError):
        fd_passing.receive_offer(server)
    client.close()
    with pytest.raises(ValueError):
        fd_passing.receive_offer(server)


def test_the_end_of_a_session(pair):
    """The text comes first, then the exit status; a client that is gone causes no error."""
    client, server = pair
    fd_passing.send_end(server, "one\n", 3)
    assert client.recv(100) == b"one\n" and client.recv(100) == b"\0\x03"
    client.close()
    fd_passing.send_end(server, "two\n", 0)


def test_the_trusted_users(pair):
    """The peer's user is the one of this process. It and root are trusted, and no other user."""
    client, _ = pair
    assert fd_passing.peer_uid(client) == os.geteuid()
    assert fd_passing.is_trusted(os.geteuid()) and fd_passing.is_trusted(0)
    assert not fd_passing.is_trusted(os.geteuid() + 12345)
