"""listeners.py: TCP listeners, and the errors for addresses that cannot be used."""

import socket

import pytest

from cacheplugin.errors import UsageError
from cacheplugin.server.listeners import listen_tcp


def test_a_listener_accepts_at_once_and_its_port_can_be_reused_at_once():
    """A second listener can use the port although closed connections of the first linger."""
    with listen_tcp("--http", "127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.socket() as client:
            client.connect(address)
            listener.accept()[0].close()
    with listen_tcp("--http", *address) as again:
        assert again.getsockname() == address


def test_a_port_in_use_is_a_usage_error():
    """The error names the flag, the address and the reason."""
    with listen_tcp("--http", "127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(
            UsageError, match=rf"^--http: cannot listen on 127\.0\.0\.1 port {port}: "
        ):
            listen_tcp("--http", "127.0.0.1", port)


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
def test_an_impossible_host_name_is_a_usage_error(host):
    """socket raises UnicodeError for a name that no resolver would be asked for."""
    with pytest.raises(UsageError, match=r"^--http: cannot listen on "):
        listen_tcp("--http", host, 8080)
