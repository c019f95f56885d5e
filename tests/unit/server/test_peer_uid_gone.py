"""peer_uid.py: clients that have closed or half closed their end; missing tables."""

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
    """(client, connection, client's address); the client has sent a byte, then called ``end``."""
    client = socket.socket()
    client.connect(listener.getsockname())
    client.send(b"x")
    end(client)
    connection, address = listener.accept()
    return client, connection, address


def test_a_client_that_has_closed_has_no_user(listener):
    """ValueError is raised, although some kernels list its socket as root's."""
    _client, connection, address = accepted(listener, lambda client: client.close())
    with connection, pytest.raises(ValueError):
        peer_uid.find(address, connection.getsockname())


def test_a_client_that_has_shut_down_sending_has_its_user(listener):
    """It still waits for answers, so its socket is still its own."""
    client, connection, address = accepted(listener, lambda client: client.shutdown(socket.SHUT_WR))
    with client, connection:
        assert peer_uid.find(address, connection.getsockname()) == os.geteuid()


def test_both_addresses_have_to_match(listener):
    """ValueError is raised for a client's address that is not connected to the server's."""
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
def test_a_system_without_such_tables(monkeypatch, platform):
    """The result is None, and the client is accepted."""
    monkeypatch.setattr(sys, "platform", platform)
    assert peer_uid.find(("127.0.0.1", 1), ("127.0.0.1", 2)) is None


def test_tables_that_cannot_be_read(monkeypatch, tmp_path):
    """The result is None if no table can be read; one is enough to say that a client is gone."""
    monkeypatch.setattr(peer_uid, "_TABLES", (str(tmp_path / "a"), str(tmp_path / "b")))
    assert peer_uid.find(("127.0.0.1", 1), ("127.0.0.1", 2)) is None
    (tmp_path / "b").write_text("  sl  local_address rem_address   st\n")
    with pytest.raises(ValueError):
        peer_uid.find(("127.0.0.1", 1), ("127.0.0.1", 2))
