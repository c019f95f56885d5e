"""front/session.py: what a session answers when the machine has nothing left."""

import json
import os

import pytest

from cacheplugin.front.session import Session
from cacheplugin.metrics import Counters


class Front:
    """A fake Front whose writing half of the store cannot be loaded."""

    hit_latency, refreshed, plain_paths, debug = None, set(), True, 0
    stale_before = 0.0

    def __init__(self, error) -> None:
        self._error = error

    @property
    def local(self):
        raise self._error

    def lookup(self, _action):
        return None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImportError("No module named 'x'"), "No module named 'x'"),
        (MemoryError(), "no memory is left"),
        (OSError(24, "Too many open files"), "Too many open files"),
    ],
    ids=repr,
)
def test_a_put_without_the_writing_half_of_the_store(error, reason):
    """It fails alone: the next get is answered."""
    (in_fd, requests), (answers, out_fd) = os.pipe(), os.pipe()
    os.write(
        requests,
        b'{"ID":1,"Command":"put","ActionID":"qg==","OutputID":"qg==","BodySize":3}\n"YWJj"\n'
        b'{"ID":2,"Command":"get","ActionID":"qg=="}\n',
    )
    session = Session(Front(error), in_fd, out_fd, Counters())
    session.on_readable()
    put, get = map(json.loads, os.read(answers, 65536).splitlines())
    assert put == {"ID": 1, "Err": f"cannot store the output: {reason}"}
    assert get == {"ID": 2, "Miss": True}
    assert session.counters.put_errors == 1 and not session.fault
    for fd in (in_fd, requests, answers, out_fd):
        os.close(fd)
