"""front/pool_access.py and front/transfers.py with several sessions and a fake pool."""

import os
import shutil
from types import SimpleNamespace
from typing import ClassVar

import pytest

from cacheplugin.front import pool_access
from cacheplugin.front.pool_access import PoolAccess
from cacheplugin.ipc import jobs
from cacheplugin.metrics import Counters
from cacheplugin.options import Options
from cacheplugin.pool import client
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.tree import Store
from entries import action_id, output_id, put

BODY = b"what the build made"


class Pool:
    """A fake PoolClient that records its jobs; ``say`` delivers a message of the pool."""

    made: ClassVar[list] = []

    def __init__(self, _, loop, on_message) -> None:
        self.alive, self.process_id = True, os.posix_spawn(shutil.which("true"), ["true"], {})
        self.say = on_message
        self.jobs = []
        self.made.append(self)

    def _note(self, *job) -> int:
        self.jobs.append(job)
        return len(self.jobs)

    def begin(self, scopes):
        return self._note("begin", scopes)

    def fetch(self, session, action):
        return self._note("fetch", session, action)

    def upload(self, session, entry, replace=False):
        return self._note("upload", session, entry.action)

    def finish(self, session, used):
        return self._note("finish", session, used)

    def abandon(self):
        self.alive = False


class Session:
    """A fake Session that records the numbers of gets that missed."""

    def __init__(self) -> None:
        self.outstanding, self.missed = 0, []

    def answer_miss(self, number) -> None:
        self.missed.append(number)

    def flush(self) -> None:
        pass


@pytest.fixture
def front(tmp_path, monkeypatch):
    """A fake Front for PoolAccess; ``now`` is its monotonic clock."""
    monkeypatch.setattr(client, "PoolClient", Pool)
    monkeypatch.setattr(Pool, "made", [])
    front = SimpleNamespace(
        options=Options(cache_dir=str(tmp_path), bucket="b", layout="bundles"),
        counters=Counters(),
        store=Store(str(tmp_path)),
        loop=None,
        writable=True,
        now=100.0,
        mark_open=lambda: None,
        warn=lambda text: None,
    )
    monkeypatch.setattr(pool_access.time, "monotonic", lambda: front.now)
    return front


def attach(access, scope="s"):
    return access.attach(Counters(), lambda: (scope,))


def missed(number, name="a"):
    return jobs.FetchResult(number, action_id(name), jobs.MISS, None, 0, 0, None, 0, "")


def test_a_session_without_misses_starts_no_pool(front):
    """Neither attach nor finish starts one."""
    transfers = attach(PoolAccess(front))
    transfers.finish()
    assert not Pool.made and not transfers.pending


def test_results_go_to_the_session_that_asked(front):
    """Each session has its own fetch of an action, and its own counters."""
    access = PoolAccess(front)
    sessions, both = (Session(), Session()), (attach(access), attach(access, "t"))
    for session, transfers in zip(sessions, both):
        transfers.fetch(session, 1, action_id("a"))
        transfers.fetch(session, 2, action_id("a"))
    (pool,) = Pool.made
    kinds = [job[0] for job in pool.jobs]
    assert kinds == ["begin", "fetch"] * 2
    assert [session.outstanding for session in sessions] == [2, 2]
    pool.say(missed(4))
    assert [session.missed for session in sessions] == [[], [1, 2]]
    assert [session.outstanding for session in sessions] == [2, 0]
    assert both[0].counters.get_fault_miss == 0 and both[1].counters.get_fault_miss == 1


def test_an_action_missing_from_a_complete_bucket_is_a_miss_at_once(front):
    """After Expected with ``complete``, gets of other actions are answered without a fetch."""
    access, session = PoolAccess(front), Session()
    transfers = attach(access)
    transfers.fetch(session, 1, action_id("a"))
    (pool,) = Pool.made
    pool.say(jobs.Expected([action_id("a")], [], True, 1))
    transfers.fetch(session, 2, action_id("b"))
    assert session.missed == [2] and len(pool.jobs) == 2


def test_a_put_is_in_the_spool_until_it_is_uploaded(front, tmp_path):
    """The manifest counts as pending as well; release then leaves no journal."""
    access, transfers = PoolAccess(front), None
    transfers = attach(access)
    path = put(LocalCache(front.store), "a", BODY)
    transfers.upload(action_id("a"), output_id(BODY), len(BODY), 7, path)
    journals = lambda: list(tmp_path.glob("spool/*/*/journal"))  # noqa: E731
    assert len(journals()) == 1 and transfers.pending == 1
    (pool,) = Pool.made
    transfers.finish()
    assert pool.jobs[-1] == ("finish", 1, [action_id("a")]) and transfers.pending == 2
    pool.say(jobs.UploadResult(2, jobs.STORED, False, 19, ""))
    assert transfers.pending == 1
    pool.say(jobs.FinishResult(3, jobs.STORED, ""))
    assert not transfers.pending
    transfers.release()
    assert journals() == [] and not access.left_spooled and transfers.counters.put_s3_object == 1


def test_a_disabled_bucket_is_tried_again(front):
    """A session that begins after the pause starts a new pool; older sessions then use it too."""
    access, session = PoolAccess(front), Session()
    old = attach(access)
    old.fetch(session, 1, action_id("a"))
    first = Pool.made[0]
    first.say(missed(2))
    first.say(jobs.Disabled("no credentials"))
    old.fetch(session, 2, action_id("b"))
    attach(access).fetch(session, 3, action_id("c"))
    assert session.missed == [1, 2, 3] and len(Pool.made) == 1
    front.now += 61
    attach(access).fetch(session, 4, action_id("d"))
    assert session.missed == [1, 2, 3] and len(Pool.made) == 2 and not first.alive
    old.fetch(session, 5, action_id("e"))
    old.finish()
    assert first.jobs[-1][0] == "fetch"
    second = [job[0] for job in Pool.made[1].jobs]
    assert second == ["begin", "fetch", "begin", "fetch", "finish"]
    old.fetch(session, 6, action_id("f"))  # after its finish: a miss without a job
    assert session.missed[-1] == 6 and len(Pool.made[1].jobs) == 5
