"""pool_access.py and transfers.py: what sessions have of S3, over a pool that only notes its jobs."""

import os
import shutil
from types import SimpleNamespace

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
    """In place of a PoolClient; ``say`` has its pool say something."""

    made = []

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
    """In place of a Session: notes what it is to answer."""

    def __init__(self) -> None:
        self.outstanding, self.said = 0, []

    def answer_miss(self, number) -> None:
        self.said.append(number)

    def flush(self) -> None:
        pass


@pytest.fixture
def front(tmp_path, monkeypatch):
    """What an PoolAccess has of a front; ``now`` is its clock."""
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


def attach(link, scope="s"):
    return link.attach(Counters(), lambda: (scope,))


def missed(number, name="a"):
    return jobs.FetchResult(number, action_id(name), jobs.MISS, None, 0, 0, None, 0, "")


def test_a_session_of_hits_has_no_pool(front):
    """Neither its beginning nor its end needs one."""
    transfers = attach(PoolAccess(front))
    transfers.finish()
    assert not Pool.made and not transfers.pending


def test_results_go_to_the_session_that_asked(front):
    """One fetch an action and session; each session's counters count its own."""
    link = PoolAccess(front)
    sessions, both = (Session(), Session()), (attach(link), attach(link, "t"))
    for session, transfers in zip(sessions, both):
        transfers.fetch(session, 1, action_id("a"))
        transfers.fetch(session, 2, action_id("a"))
    (pool,) = Pool.made
    kinds = [job[0] for job in pool.jobs]
    assert kinds == ["begin", "fetch"] * 2
    assert [session.outstanding for session in sessions] == [2, 2]
    pool.say(missed(4))
    assert [session.said for session in sessions] == [[], [1, 2]]
    assert [session.outstanding for session in sessions] == [2, 0]
    assert both[0].counters.get_fault_miss == 0 and both[1].counters.get_fault_miss == 1


def test_what_bundles_do_not_have_is_a_miss_at_once(front):
    """For the session that was told so."""
    link, session = PoolAccess(front), Session()
    transfers = attach(link)
    transfers.fetch(session, 1, action_id("a"))
    (pool,) = Pool.made
    pool.say(jobs.Expected([action_id("a")], [], True, 1))
    transfers.fetch(session, 2, action_id("b"))
    assert session.said == [2] and len(pool.jobs) == 2


def test_a_put_is_in_the_spool_until_it_is_uploaded(front, tmp_path):
    """The session is pending until its manifest is written; then nothing is left."""
    link, transfers = PoolAccess(front), None
    transfers = attach(link)
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
    assert journals() == [] and not link.left_spooled and transfers.counters.put_s3_object == 1


def test_a_bucket_of_no_use_is_tried_again(front):
    """For a session that begins after the pause, with a pool of its own; not before, nor for others."""
    link, session = PoolAccess(front), Session()
    old = attach(link)
    old.fetch(session, 1, action_id("a"))
    first = Pool.made[0]
    first.say(missed(2))
    first.say(jobs.Disabled("no credentials"))
    old.fetch(session, 2, action_id("b"))
    attach(link).fetch(session, 3, action_id("c"))
    assert session.said == [1, 2, 3] and len(Pool.made) == 1
    front.now += 61
    attach(link).fetch(session, 4, action_id("d"))
    assert session.said == [1, 2, 3] and len(Pool.made) == 2 and not first.alive
    old.fetch(session, 5, action_id("e"))
    old.finish()
    assert first.jobs[-1][0] == "fetch"
    second = [job[0] for job in Pool.made[1].jobs]
    assert second == ["begin", "fetch", "begin", "fetch", "finish"]
    old.fetch(session, 6, action_id("f"))  # behind its close
    assert session.said[-1] == 6 and len(Pool.made[1].jobs) == 5
