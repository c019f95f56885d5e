"""Fixtures for tests of server mode; a test module names this one in ``pytest_plugins``."""

import time

import pytest

from helpers import action_id
from server_sessions import BODY, Connect, RawUnix, Server, TcpClient, free_port, hold_unix_name

PROMPT_S = 1.0  # a client that does nothing wrong gets an answer within this time


@pytest.fixture
def serve(processes, cache_dir, tmp_path):
    """serve(*flags, …): start a Server; further arguments are those of Server.

    ``unix=False``: its Unix socket's name is taken, so that connect uses TCP. ``plugin=False``:
    without --plugin. ``ready=False``: do not wait until it serves.
    """
    servers, holders = [], []

    def serve(
        *flags,
        unix=True,
        cache_dir=cache_dir,
        environ=None,
        port=None,
        ready=True,
        plugin=True,
        **more,
    ):
        port = port or free_port()
        if not unix:
            holders.append(hold_unix_name(port))
        server = Server(
            [f"--cache-dir={cache_dir}", *([f"--plugin={port}"] if plugin else []), *flags],
            processes.environ(**environ or {}),
            tmp_path / f"stderr-serve-{len(servers)}",
            port,
            **more,
        )
        servers.append(server)
        return server.ready() if ready else server

    yield serve
    for server in servers:
        server.kill()
    for holder in holders:
        holder.close()


@pytest.fixture
def connect(processes, tmp_path):
    """connect(port, *flags, environ={}, **popen): start ``go-cache-plugin connect``."""
    plugins = []

    def connect(port, *flags, environ=None, **popen):
        plugin = Connect(
            [*flags, "connect", str(port)],
            processes.environ(**environ or {}),
            tmp_path / f"stderr-connect-{len(plugins)}",
            **popen,
        )
        plugins.append(plugin)
        return plugin

    yield connect
    for plugin in plugins:
        plugin.kill()


@pytest.fixture
def tcp():
    """tcp(port): a TcpClient."""
    clients = []

    def tcp(port, **more):
        clients.append(TcpClient(port, **more))
        return clients[-1]

    yield tcp
    for client in clients:
        client.kill()


@pytest.fixture
def raw():
    """raw(port): a RawUnix."""
    clients = []

    def raw(port):
        clients.append(RawUnix(port))
        return clients[-1]

    yield raw
    for client in clients:
        client.close()


@pytest.fixture(params=["unix", "tcp"])
def way(request):
    """How connect reaches the server."""
    return request.param


@pytest.fixture
def good(tcp):
    """good(server): a client that does nothing wrong.

    Its ``check()`` asserts that it gets a hit promptly and that the server logged no traceback.
    """

    def good(server):
        client = tcp(server.port).hello()
        client.expect_stored(action_id("good"), BODY)

        def check():
            begin = time.monotonic()
            client.expect_hit(action_id("good"), BODY)
            assert time.monotonic() - begin < PROMPT_S
            assert server.process.poll() is None
            assert "Traceback" not in server.stderr

        client.check = check
        return client

    return good
