"""The real program over pipes, against moto's server or a stand-in that fails as it is told to."""
import sys
import uuid
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import s3servers  # noqa: E402
from fakes3 import FakeS3  # noqa: E402
from helpers import Plugin, Processes  # noqa: E402


@pytest.fixture
def processes(tmp_path):
    """The test's processes; a test that leaves one running fails."""
    processes = Processes(tmp_path)
    yield processes
    processes.expect_none()


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def start(processes, cache_dir, tmp_path):
    """start(*flags, environ={}, **popen): the program, not yet past its hello line."""
    plugins = []

    def start(*flags, environ=None, cache_dir=cache_dir, **popen):
        plugin = Plugin(
            [f"--cache-dir={cache_dir}", *flags],
            processes.environ(**environ or {}),
            tmp_path / f"stderr-{len(plugins)}",
            **popen,
        )
        plugins.append(plugin)
        return plugin

    yield start
    for plugin in plugins:
        plugin.kill()


@pytest.fixture
def fake_s3():
    server = FakeS3()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def moto_server():
    yield from s3servers.moto()


@pytest.fixture
def bucket(moto_server):
    return s3servers.Bucket(moto_server, f"bucket-{uuid.uuid4().hex[:12]}")
