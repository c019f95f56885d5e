"""pool/uploader.py and commands/flush.py: what is said of uploads that fail."""

import errno

import pytest

from cacheplugin.commands import flush
from cacheplugin.ipc import jobs
from cacheplugin.options import Options
from cacheplugin.pool import uploader
from cacheplugin.store import spool
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.tree import Store
from entries import TIME_NS, action_id, output_id, put

WHERE = "entries for bucket b remain in"


class Pool:
    """A fake PoolClient; answers each upload with ``results`` by action, after ``notices``."""

    notices, results, error = (), {}, None

    def __init__(self, _, __, on_message, before_log) -> None:
        if self.error is not None:
            raise self.error
        self.alive, self.uploads_pending, self._number = True, 0, 0
        self._on_message = on_message
        self._jobs = []

    def begin(self, _scopes) -> int:
        return 1

    def upload(self, _session, entry, recovered) -> int:
        self._number += 1
        self._jobs.append((self._number, entry.action))
        return self._number

    def finish(self, _session, _used) -> None:
        for notice in self.notices:
            self._on_message(notice)
        for number, action in self._jobs:
            status, reason = self.results.get(action, (jobs.STORED, ""))
            self._on_message(jobs.UploadResult(number, status, reason=reason))
        self._jobs.clear()

    def close(self) -> None:
        pass


@pytest.fixture
def pool(monkeypatch):
    """The class of the pool, whose ``notices``, ``results`` and ``error`` a test sets."""
    monkeypatch.setattr(uploader, "PoolClient", Pool)
    for name, value in (("notices", ()), ("results", {}), ("error", None)):
        monkeypatch.setattr(Pool, name, value)
    return Pool


@pytest.fixture
def run(tmp_path, capfd):
    """Spool two entries and flush; returns (status, number that remains, lines on stderr)."""
    options = Options(cache_dir=str(tmp_path), bucket="b", layout="objects")
    store = Store(str(tmp_path))
    session = spool.SpoolSession.create(store, options, "")
    for name in ("a", "b"):
        path = put(LocalCache(store), name, name.encode())
        session.add(action_id(name), output_id(name.encode()), 1, TIME_NS, path)
    session.release()

    def run():
        status = flush.run(options)
        captured = capfd.readouterr()
        lines = [line.partition("go-cache-plugin: ")[2] for line in captured.err.splitlines()]
        assert not lines or WHERE in lines[-1]
        return status, int(captured.out.split()[-2]), lines[:-1]

    return run


def test_nothing_is_said_of_success(pool, run):
    assert run() == (0, 0, [])


def test_a_body_that_cannot_be_read(pool, run):
    """The pool names it at each flush; it remains, and the other entry is uploaded."""
    pool.results = {action_id("a"): (jobs.LOCAL, "permission denied")}
    for _ in range(2):
        assert run() == (1, 1, [])
    pool.results = {}
    assert run() == (0, 0, [])


def test_the_last_failure_is_said(pool, run):
    pool.results = dict.fromkeys(map(action_id, "ab"), (jobs.FAILED, "503"))
    pool.notices = [jobs.Failed("500", False), jobs.Failed("503", False)]
    assert run() == (1, 2, ["the last upload failed: 503"])


@pytest.mark.parametrize(
    "notice", [jobs.Failed("503", True), jobs.Disabled("access denied", refused=True)]
)
def test_a_failure_that_the_pool_has_logged_is_not_said_again(pool, run, notice):
    pool.results = dict.fromkeys(map(action_id, "ab"), (jobs.SKIPPED, "S3 is turned off"))
    pool.notices = [notice, jobs.Failed("503", False)]
    assert run() == (1, 2, [])


def test_a_pool_that_cannot_be_started(pool, run):
    """The entries remain, with the reason."""
    pool.error = OSError(errno.EAGAIN, "Resource temporarily unavailable")
    reason = "resource temporarily unavailable; see ulimit -a"
    assert run() == (1, 2, [f"the last upload failed: {reason}"])
