"""peers.py: a connection whose client has closed, or half closed, its end."""

import os
import socket
import sys

import pytest

from cacheplugin.server import peer_uid

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


@pytest.fixture
def listener():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        yield listener


def accepted(listener, end):
    """(client, connection, client's address) after it has sent something and ``end(client)``."""
    client = socket.socket()
    client.connect(listener.getsockname())
    client.send(b"x")
    end(client)
    connection, address = listener.accept()
    return client, connection, address


def test_a_client_that_has_closed_is_nobodys(listener):
    """Its socket is the kernel's then, which some kernels write as root's."""
    _client, connection, address = accepted(listener, lambda client: client.close())
    with connection, pytest.raises(ValueError):
        peer_uid.find(address, connection.getsockname())


def test_a_client_that_sends_no_more_is_its_users(listener):
    """It still wants answers."""
    client, connection, address = accepted(listener, lambda one: one.shutdown(socket.SHUT_WR))
    with client, connection:
        assert peer_uid.find(address, connection.getsockname()) == os.geteuid()


def test_ends_that_are_not_connected_to_each_other(listener):
    """Two sockets of ours are no connection; nor is one the other way round a client's."""
    client, connection, address = accepted(listener, lambda client: None)
    with client, connection:
        assert peer_uid.find(address, connection.getsockname()) == os.geteuid()
        with socket.socket() as stranger:
            stranger.bind(("127.0.0.1", 0))
            with pytest.raises(ValueError):
                peer_uid.find(stranger.getsockname(), connection.getsockname())
        with pytest.raises(ValueError):
            peer_uid.find((address[0], address[1] ^ 1), connection.getsockname())


@pytest.mark.parametrize("platform", ["darwin", "freebsd13"])
def test_a_system_that_does_not_tell(monkeypatch, platform):
    """Is no reason to turn anybody away."""
    monkeypatch.setattr(sys, "platform", platform)
    assert peer_uid.find(("127.0.0.1", 1), ("127.0.0.1", 2)) is None


def test_tables_that_cannot_be_read(monkeypatch, tmp_path):
    """Tell nothing; where one can, what is not in it is not there."""
    monkeypatch.setattr(peer_uid, "_TABLES", (str(tmp_path / "a"), str(tmp_path / "b")))
    assert peer_uid.find(("127.0.0.1", 1), ("127.0.0.1", 2)) is None
    (tmp_path / "b").write_text("  sl  local_address rem_address   st\n")
    with pytest.raises(ValueError):
        peer_uid.find(("127.0.0.1", 1), ("127.0.0.1", 2))
