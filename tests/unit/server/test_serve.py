"""serve.py: where it listens."""

import socket

import pytest

from cacheplugin.errors import UsageError
from cacheplugin.server import serve


def test_it_listens_where_it_is_told():
    """On the address, at once, and again after its end though connections of it linger."""
    with serve._listen("--http", "127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.socket() as client:
            client.connect(address)
            listener.accept()[0].close()
    with serve._listen("--http", *address) as again:
        assert again.getsockname() == address


def test_a_port_that_is_taken():
    """A clear line."""
    with serve._listen("--http", "127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=f"^--http: cannot listen on 127.0.0.1 port {port}: "):
            serve._listen("--http", "127.0.0.1", port)


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
def test_a_host_that_is_no_name(host):
    """What no resolver is asked for is a clear line as well."""
    with pytest.raises(UsageError, match="^--http: cannot listen on "):
        serve._listen("--http", host, 8080)
