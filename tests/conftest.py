"""Set-up of every run: hypothesis, SIGINT, the option --long, and the turns of parallel workers."""

import fcntl
import os
import shutil
import signal
import subprocess
from contextlib import contextmanager

import pytest
from hypothesis import settings

from shared import made_once, run_directory

# The same examples on each run, no deadline.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")

# `nohup`, and `command &` in a script, start a process with SIGINT ignored. Every program that a
# test starts would inherit that, and tests that press Ctrl-C would fail.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also run the tests marked long")
    parser.addoption("--case", help="what test_one_case of tests/campaigns repeats")
    parser.addoption(
        "--soak-s", type=float, default=300, help="how long each soak test builds, in seconds"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes minutes; runs only with --long")
    config.addinivalue_line(
        "markers", "alone: measures time or loads every core; no other test runs beside it"
    )


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--long"):
        skip = pytest.mark.skip(reason="a long form: scripts/test --long runs it")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)  # those come last


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around pytest-timeout's: waiting is no part of it
def pytest_runtest_protocol(item):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with _turn(run_directory(item.config._tmp_path_factory), item.get_closest_marker("alone")):
        return (yield)


@contextmanager
def _turn(directory, alone):
    """Holds a lock of the run: shared with other tests, or exclusive for a test marked alone.

    A test marked alone keeps the gate while it waits for the tests that run, so that no further
    test starts before it.
    """
    with open(directory / "gate.lock", "w") as gate, open(directory / "tests.lock", "w") as tests:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(tests, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


@pytest.fixture(scope="session")
def go_build_cache(tmp_path_factory):
    """A GOCACHE with the runtime, for builds in which the compilation of std is not the subject.

    Every test of the run adds to the same directory, which the go command allows.
    """
    if not shutil.which("go"):
        pytest.skip("no go command")

    def make(path):
        environ = {**os.environ, "GOCACHE": str(path), "GOTOOLCHAIN": "local", "GOENV": "off"}
        command = ["go", "build", "runtime"]
        subprocess.run(command, cwd=path, env={**environ, "CGO_ENABLED": "0"}, check=True)

    return made_once(tmp_path_factory, "go-build", make)
