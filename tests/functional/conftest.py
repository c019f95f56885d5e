"""Fixtures: the real program over pipes, with moto or a fake S3 server that fails on demand."""

import re
import subprocess
import uuid

import pytest

import s3servers
from fakes3 import FakeS3
from helpers import PROGRAM, Plugin, Processes


@pytest.fixture
def processes(tmp_path):
    """The processes of the test, which fails if one of them is left running."""
    processes = Processes(tmp_path)
    yield processes
    processes.expect_none()


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def start(processes, cache_dir, tmp_path):
    """start(*flags, environ={}, **popen): a Plugin that has just been started."""
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


@pytest.fixture
def machine(start, fake_s3, tmp_path):
    """machine(name, *flags): a session with the layout bundles, on the cache directory ``name``."""

    def machine(name, *flags, layout="bundles", **more):
        flags = [*fake_s3.flags(layout=layout), "--scope=ours", "--metrics", *flags]
        return start(*flags, cache_dir=tmp_path / name, **more).hello()

    return machine


@pytest.fixture
def begin_flush_of(processes, tmp_path):
    """begin_flush_of(name, *flags, **environ): start flush on the cache directory ``name``."""
    begun = []

    def begin(name, *flags, **environ):
        begun.append(
            subprocess.Popen(
                [PROGRAM, "flush", f"--cache-dir={tmp_path / name}", *flags],
                env=processes.environ(**environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture
def flush_of(begin_flush_of):
    """flush_of(name, *flags): run flush and return (exit status, uploaded, remaining)."""

    def flush_of(name, *flags):
        process = begin_flush_of(name, *flags)
        out, _ = process.communicate(timeout=60)
        uploaded, _, remain = re.findall(r"[0-9]+(?= entries| dropped| remain)", out)
        return process.returncode, int(uploaded), int(remain)

    return flush_of


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(name): the root of a new file system of 1 MiB."""
    mounted = []

    def small_disk(name):
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", str(path)],
            capture_output=True,
        )
        if done.returncode:
            pytest.skip(f"cannot mount a tmpfs: {done.stderr.decode().strip()}")
        mounted.append(path)
        return path

    yield small_disk
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def full_disk(small_disk):
    return small_disk("disk")
