"""peer_uid.py: clients that have closed or half closed their end; kernels that do not tell."""

import errno
import os
import resource
import socket
import sys

import pytest

from cacheplugin.server import peer_uid, sock_diag

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


def no_answer(*_):
    raise OSError(errno.EPROTONOSUPPORT, "the kernel does not answer such questions")


@pytest.fixture(params=["asked", "tables"])
def way(request, monkeypatch):
    """The kernel is asked for one connection, or its tables are read."""
    if request.param == "tables":
        monkeypatch.setattr(sock_diag, "find", no_answer)


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


def test_a_client_that_has_closed_has_no_user(way, listener):
    """ValueError is raised, although some kernels list its socket as root's."""
    _client, connection, address = accepted(listener, lambda client: client.close())
    with connection, pytest.raises(ValueError):
        peer_uid.find(address, connection.getsockname())


def test_a_client_that_has_shut_down_sending_has_its_user(way, listener):
    """It still waits for answers, so its socket is still its own."""
    client, connection, address = accepted(listener, lambda client: client.shutdown(socket.SHUT_WR))
    with client, connection:
        assert peer_uid.find(address, connection.getsockname()) == os.geteuid()


def test_both_addresses_have_to_match(way, listener):
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
    """The result is None if the kernel tells in no way; one table says that a client is gone."""
    monkeypatch.setattr(sock_diag, "find", no_answer)
    monkeypatch.setattr(peer_uid, "_TABLES", (str(tmp_path / "a"), str(tmp_path / "b")))
    assert peer_uid.find(("127.0.0.1", 1), ("127.0.0.1", 2)) is None
    (tmp_path / "b").write_text("  sl  local_address rem_address   st\n")
    with pytest.raises(ValueError):
        peer_uid.find(("127.0.0.1", 1), ("127.0.0.1", 2))


def test_a_lack_of_descriptors_admits_nobody(way, listener):
    """OSError is raised: it does not mean that this system cannot tell."""
    client, connection, address = accepted(listener, lambda client: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with client, connection:
        own = connection.getsockname()
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(OSError) as raised:
                peer_uid.find(address, own)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised.value.errno == errno.EMFILE


def test_an_answer_that_is_none(monkeypatch, listener):
    """A kernel that answers something else counts as one that does not answer."""
    client, connection, address = accepted(listener, lambda client: None)
    monkeypatch.setattr(sock_diag, "_SOCK_DIAG_BY_FAMILY", 99)
    with client, connection:
        assert peer_uid.find(address, connection.getsockname()) == os.geteuid()
