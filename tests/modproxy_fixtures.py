"""Fixtures for tests of the module proxy. A test module names this one in ``pytest_plugins``."""

import pytest

from checksums import ChecksumDatabase
from goupstream import FakeUpstream
from helpers import Processes
from module_proxy import LEAF, OLD, ROOT, ModProxy
from server_sessions import Server, free_port


@pytest.fixture
def database():
    """A ChecksumDatabase with all modules of ``upstream``."""
    found = ChecksumDatabase()
    found.add(LEAF, ROOT, OLD)
    return found


@pytest.fixture
def upstream(database):
    """A FakeUpstream with LEAF, ROOT, OLD and their checksums."""
    with FakeUpstream(LEAF, ROOT, OLD, checksums=database) as upstream:
        yield upstream


@pytest.fixture
def modproxy(tmp_path, upstream):
    """modproxy(*flags, cache_dir=…, checked=True, environ={}, ready=True): a ModProxy.

    Its upstream is ``upstream``. ``checked=False``: without a checksum database.
    ``ready=False``: do not wait until it listens.
    """
    processes, servers = Processes(tmp_path), []

    def modproxy(*flags, cache_dir=tmp_path / "modules", checked=True, environ=None, ready=True):
        port = free_port()
        database = upstream.checksums
        server = Server(
            [
                f"--cache-dir={cache_dir}",
                f"--http=127.0.0.1:{port}",
                "--modproxy",
                f"--modproxy-upstream={upstream.url}",
                f"--sumdb={database.name} {upstream.url}/sumdb/{database.name}"
                if checked
                else "--sumdb=off",
                *flags,
            ],
            processes.environ(**environ or {}),
            tmp_path / f"stderr-modproxy-{len(servers)}",
            0,
        )
        servers.append(server)
        if ready:
            server.says("HTTP on")
        return ModProxy(server, port)

    yield modproxy
    for server in servers:
        server.kill()
    processes.expect_none()
