"""front/transfers.py and front/pool_access.py: the effect of every result and every option."""

import errno
import json
import os
from types import SimpleNamespace

import pytest

from cacheplugin.front import pool_access
from cacheplugin.front.pool_access import PoolAccess
from cacheplugin.ipc import jobs
from cacheplugin.metrics import Counters, Histogram
from cacheplugin.options import Options
from cacheplugin.pool import client
from cacheplugin.store import spool
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.tree import Store
from entries import TIME, TIME_NS, action_id, output_id, put

BODY = b"what the build made"
OUT = output_id(BODY)
A = action_id("a")


class Pool:
    """A fake PoolClient that records its jobs by number; ``say`` delivers a message of the pool."""

    def __init__(self, configuration, loop, on_message) -> None:
        self.alive, self.configuration, self.say = True, configuration, on_message
        self.jobs, self.asked = {}, 0

    def _note(self, *job) -> int:
        self.jobs[len(self.jobs) + 1] = job
        return len(self.jobs)

    def begin(self, scopes):
        return self._note("begin", scopes)

    def prefetch(self, session):
        self._note("prefetch", session)

    def fetch(self, session, action):
        return self._note("fetch", session, action)

    def upload(self, session, entry, replace=False):
        return self._note("upload", session, entry.action, replace)

    def finish(self, session, used):
        return self._note("finish", session, used)

    def fetch_file(self, key, path, limit):
        return self._note("fetch_file", key, path, limit)

    def upload_file(self, key, path, replace):
        return self._note("upload_file", key, path, replace)

    def ask_status(self):
        self.asked += 1

    def abandon(self):
        """As PoolClient: unanswered jobs are lost."""
        self.alive = False
        for number in self.jobs:
            self.say(jobs.FileResult(number, jobs.LOST, 0, ""))

    def close(self):
        self.alive = False

    def kinds(self) -> list:
        return [job[0] for job in self.jobs.values()]


class Session:
    """A fake Session that records answers: {number: answer, or None for a miss}."""

    def __init__(self) -> None:
        self.outstanding, self.answers, self.flushes = 0, {}, 0

    def answer(self, text) -> None:
        self.answers[json.loads(text)["ID"]] = json.loads(text)

    def answer_miss(self, number) -> None:
        self.answers[number] = None

    def flush(self) -> None:
        self.flushes += 1


class Driver:
    """A fake Front with a PoolAccess, and the pools that it starts."""

    def __init__(self, root, monkeypatch, **options) -> None:
        self.pools, self.warnings, self.uses, self.now, self.refuses = [], [], [], 100.0, None
        monkeypatch.setattr(client, "PoolClient", self._make_pool)
        monkeypatch.setattr(pool_access.time, "monotonic", lambda: self.now)
        store = Store(str(root))
        self.cache = LocalCache(store)
        known = {"cache_dir": str(root), "bucket": "b", "layout": "objects"}
        self.front = SimpleNamespace(
            options=Options(**known | options),
            counters=Counters(),
            store=store,
            local=self.cache,
            loop=None,
            writable=True,
            lookup=store.lookup,
            note_use=lambda *use: self.uses.append(use) or True,
            stale_before=0.0,
            mark_open=lambda: None,
            warn=self.warnings.append,
        )
        self.access = PoolAccess(self.front)
        self.session = Session()

    def _make_pool(self, configuration, loop, on_message):
        if self.refuses is not None:
            raise self.refuses
        self.pools.append(Pool(configuration, loop, on_message))
        return self.pools[-1]

    def attach(self, *scopes):
        return self.access.attach(Counters(), lambda: scopes or ("s",))

    @property
    def pool(self):
        (pool,) = self.pools
        return pool

    def fetch(self, transfers, *numbers, action=A):
        for number in numbers:
            transfers.fetch(self.session, number, action)

    def result(self, number, status, **fields):
        """Deliver a FetchResult of the action A."""
        result = jobs.FetchResult(number, A, status, None, 0, 0, None, 0, "why")
        self.pool.say(result._replace(**fields))

    def put(self, transfers, name="a", body=BODY) -> None:
        path = put(self.cache, name, body)
        transfers.upload(action_id(name), output_id(body), len(body), TIME_NS, path)

    def uploaded(self, number, status=jobs.STORED, found=False, sent=19) -> None:
        self.pool.say(jobs.UploadResult(number, status, found, sent, "why"))

    def spooled(self) -> int:
        return spool.count_pending(self.front.store)


@pytest.fixture
def make(tmp_path, monkeypatch):
    return lambda **options: Driver(tmp_path / "cache", monkeypatch, **options)


@pytest.fixture
def driver(make):
    return make()


def counted(transfers) -> dict:
    """The counters that are not 0."""
    return {
        name: getattr(transfers.counters, name)
        for name in Counters.__slots__
        if getattr(transfers.counters, name)
    }


# -- gets ------------------------------------------------------------------------------------------


def test_a_hit_answers_all_waiting_gets(driver):
    """Each get by its own number; network bytes count once. The next get is a new fetch."""
    transfers = driver.attach()
    driver.fetch(transfers, 1, 2)
    assert driver.pool.kinds() == ["begin", "fetch"] and driver.session.outstanding == 2
    driver.result(2, jobs.HIT, output=OUT, size=19, time_ns=TIME_NS, path='/p/ä"b', received=12)
    assert set(driver.session.answers) == {1, 2} and driver.session.outstanding == 0
    answer = driver.session.answers[2]
    assert (answer["Size"], answer["Time"], answer["DiskPath"]) == (19, TIME, '/p/ä"b')
    assert counted(transfers) == {
        "get_fault_hit": 2,
        "get_hits": 2,
        "get_hit_bytes": 38,
        "get_fault_bytes": 12,
    }
    assert driver.session.flushes == 1
    driver.fetch(transfers, 3)
    assert driver.pool.kinds() == ["begin", "fetch", "fetch"]


@pytest.mark.parametrize(
    ("status", "counter"),
    [
        (jobs.MISS, "get_fault_miss"),
        (jobs.DAMAGED, "get_fault_damaged"),
        (jobs.SKIPPED, "get_fault_skipped"),
        (jobs.FAILED, "get_fault_error"),
        (jobs.TIMED_OUT, "get_fault_error"),
        (jobs.UNUSABLE, "get_fault_error"),
        (jobs.LOCAL, "get_fault_error"),
        (jobs.LOST, "get_fault_error"),
    ],
)
def test_a_failed_fetch_is_a_miss(driver, status, counter):
    """All waiting gets miss; the reason counts once for the fetch."""
    transfers = driver.attach()
    driver.fetch(transfers, 1, 2)
    driver.result(2, status)
    assert driver.session.answers == {1: None, 2: None} and driver.session.outstanding == 0
    assert counted(transfers) == {counter: 1}
    assert driver.access.has_answered is (status in (jobs.MISS, jobs.DAMAGED))


def test_an_arrived_entry_is_looked_up(driver):
    """ARRIVED: the worker has stored the entry, and the answer comes from the store."""
    transfers = driver.attach()
    driver.fetch(transfers, 1)
    path = put(driver.cache, "a", BODY)
    driver.result(2, jobs.ARRIVED)
    assert driver.session.answers[1]["DiskPath"] == path and not driver.uses
    assert counted(transfers) == {"get_fault_hit": 1, "get_hits": 1, "get_hit_bytes": len(BODY)}


def test_an_arrived_entry_with_an_old_mtime_is_touched(driver):
    """If its body was pruned meanwhile, the get is a miss."""
    transfers = driver.attach()
    put(driver.cache, "a", BODY)
    driver.front.stale_before = float("inf")
    driver.fetch(transfers, 1)
    driver.result(2, jobs.ARRIVED)
    assert driver.session.answers[1] and driver.uses == [(A, OUT)]
    driver.front.note_use = lambda *_: False
    driver.fetch(transfers, 2)
    driver.result(3, jobs.ARRIVED)
    assert driver.session.answers[2] is None and transfers.counters.get_fault_error == 1


def test_an_arrived_entry_that_is_gone_is_a_miss(driver):
    """It counts as one error for any number of waiting gets."""
    transfers = driver.attach()
    driver.fetch(transfers, 1, 2)
    driver.result(2, jobs.ARRIVED)
    assert driver.session.answers == {1: None, 2: None} and driver.session.outstanding == 0
    assert counted(transfers) == {"get_fault_error": 1}


def test_unexpected_results_are_ignored(driver):
    """A second result, or one with an unknown number, is neither counted nor answered."""
    transfers = driver.attach()
    driver.fetch(transfers, 1)
    for number in (99, 2, 2):
        driver.result(number, jobs.MISS)
    assert counted(transfers) == {"get_fault_miss": 1} and driver.session.answers == {1: None}


def test_sessions_of_one_transfers_are_answered_apart(driver):
    """A get is answered through the session that it came from."""
    transfers, other = driver.attach(), Session()
    driver.fetch(transfers, 1)
    transfers.fetch(other, 7, A)
    driver.result(2, jobs.MISS)
    assert driver.session.answers == {1: None} and other.answers == {7: None}
    assert other.outstanding == driver.session.outstanding == 0


def test_prefetch_is_for_bundles(make):
    """With the objects layout prefetch does nothing and starts no pool."""
    driver = make()
    driver.attach().prefetch()
    assert not driver.pools
    driver = make(layout="auto")
    driver.attach("x", "y").prefetch()
    assert driver.pool.jobs == {1: ("begin", ("x", "y")), 2: ("prefetch", 1)}


def test_expected_actions_belong_to_a_session(make):
    """A hit removes its action from them; an action outside a complete bucket is a miss at once."""
    driver = make(layout="bundles")
    first, second = driver.attach(), driver.attach()
    driver.fetch(first, 1)
    driver.fetch(second, 2)
    driver.pool.say(jobs.Expected([A], [action_id("b")], True, 1))
    driver.pool.say(jobs.Expected([], [], False, 77))
    assert first.expected == {A} and second.expected is None and driver.access.has_answered
    driver.fetch(first, 3, action=action_id("b"))
    driver.fetch(first, 4, action=action_id("c"))
    assert driver.session.answers == {4: None} and driver.pool.kinds().count("fetch") == 3
    put(driver.cache, "a", BODY)
    driver.result(2, jobs.ARRIVED)
    assert first.expected == set() and first.used == [A] and second.used == []


def test_the_objects_layout_has_neither_scopes_nor_used_actions(driver):
    """All sessions have the scope "", so that they share one plan."""
    transfers = driver.attach("x", "y")
    driver.fetch(transfers, 1)
    assert driver.pool.jobs[1] == ("begin", ("",)) and transfers.used is None
    transfers.finish()
    assert driver.pool.jobs[3] == ("finish", 1, None) and transfers.pending == 0


# -- the pool --------------------------------------------------------------------------------------


def test_one_pool_for_all_sessions(driver):
    """Each session begins once in the pool."""
    both = driver.attach(), driver.attach()
    for number in range(3):
        for transfers in both:
            driver.fetch(transfers, number, action=action_id(f"{number}{id(transfers)}"))
    assert driver.pool.kinds().count("begin") == 2


def test_a_pool_that_cannot_be_started(driver):
    """One warning, and misses at once; a session after the pause tries again."""
    driver.refuses = OSError(errno.EMFILE, "Too many open files")
    transfers = driver.attach()
    driver.fetch(transfers, 1, 2)
    assert driver.session.answers == {1: None, 2: None} and len(driver.warnings) == 1
    assert driver.session.outstanding == 0 and not driver.access.usable
    driver.refuses = None
    driver.fetch(driver.attach(), 3)
    assert not driver.pools
    driver.now += 61
    driver.fetch(driver.attach(), 4)
    assert driver.pool.kinds() == ["begin", "fetch"] and driver.session.outstanding == 1


@pytest.mark.parametrize("error", [ImportError("No module named 'x'"), MemoryError()], ids=repr)
def test_a_machine_without_resources(driver, error):
    """Trouble of this process gives the bucket up with one warning: gets miss, puts are spooled."""
    driver.refuses = error
    transfers = driver.attach()
    driver.fetch(transfers, 1)
    driver.put(transfers)
    assert driver.session.answers == {1: None} and driver.spooled() == 1
    (warning,) = driver.warnings
    assert warning.startswith("bucket b is not used: no memory is left; ") or "'x'" in warning


def test_scopes_that_cannot_be_found(make):
    """A session whose scopes raise for lack of memory has misses, and one warning."""

    def fail():
        raise MemoryError

    driver = make(layout="bundles")
    transfers = driver.access.attach(Counters(), fail)
    driver.fetch(transfers, 1, 2)
    assert driver.session.answers == {1: None, 2: None} and driver.session.outstanding == 0
    driver.put(transfers)
    assert len(driver.warnings) == 1 and transfers.counters.put_s3_skipped == 1


# -- what is said of S3 ----------------------------------------------------------------------------


def test_the_state_of_a_bucket(driver):
    """It is named at each moment of a session."""
    access, transfers = driver.access, driver.attach()
    assert access.state_text() == "bucket b: not asked" and access.awaits_first_answer
    driver.fetch(transfers, 1)
    assert access.state_text() == "bucket b: no answer yet"
    driver.pool.say(jobs.Failed("connection refused", False))
    assert access.state_text() == "bucket b: no answer, connection refused"
    assert not access.awaits_first_answer
    driver.result(2, jobs.MISS)
    assert access.state_text() == "bucket b: it answers; the last failure: connection refused"
    driver.pool.say(jobs.Disabled("access denied", True))
    assert access.state_text() == "bucket b: not used, access denied"


def test_a_failure_that_nobody_told_is_told_at_close(driver):
    """Once, with the numbers of gets and puts."""
    transfers = driver.attach()
    driver.access.warn_at_close(transfers.counters, 0)
    driver.fetch(transfers, 1)
    driver.pool.say(jobs.Failed("connection refused", False))
    driver.result(2, jobs.FAILED)
    for _ in range(2):
        driver.access.warn_at_close(transfers.counters, 0)
    assert driver.warnings == [
        "bucket b failed for 1 gets and 0 puts; the last failure: connection refused"
    ]


@pytest.mark.parametrize(
    "notice", [jobs.Failed("connection refused", True), jobs.Disabled("access denied", True)]
)
def test_a_failure_that_the_pool_has_told(driver, notice):
    """It is not told again."""
    transfers = driver.attach()
    driver.fetch(transfers, 1)
    driver.pool.say(notice)
    driver.pool.say(jobs.Failed("connection refused", False))
    driver.access.warn_at_close(transfers.counters, 1)
    assert not driver.warnings


def test_a_first_answer_that_does_not_come(driver):
    """It is told if gets wait for it, and the bucket has neither answered nor failed."""
    transfers = driver.attach()
    driver.fetch(transfers, 1)
    driver.access.warn_at_close(transfers.counters, 0)
    assert not driver.warnings
    driver.access.warn_at_close(transfers.counters, 1)
    assert driver.warnings == ["bucket b has not answered; 1 gets were still waiting"]


def test_a_pool_that_died_too_often(driver):
    """One warning; a session that ends later sends no job."""
    transfers = driver.attach()
    driver.fetch(transfers, 1)
    driver.pool.alive = False
    driver.pool.say(jobs.Disabled("its pool process keeps dying"))
    driver.result(2, jobs.LOST)
    assert driver.warnings == ["bucket b is not used: its pool process keeps dying"]
    transfers.finish()
    assert "finish" not in driver.pool.kinds() and not transfers.pending


def test_a_store_that_is_not_writable(make):
    """Workers write to the directory of the session, and do not prefetch."""
    driver = make()
    driver.front.writable = False
    driver.cache._writable = False
    driver.access.pool()
    (fields,) = driver.pool.configuration
    assert fields["cache_dir"] == driver.cache.first_store().root
    assert fields["cache_dir"] != driver.front.store.root and fields["prefetch_limit_bytes"] == 0


def test_transferred_bytes_count_for_their_session(driver):
    """Those of an ended or unknown session count for the front."""
    transfers = driver.attach()
    driver.fetch(transfers, 1)
    driver.pool.say(jobs.Transferred(5, 6, 7, 1))
    assert counted(transfers) == {"get_fault_bytes": 5, "put_s3_bytes": 6, "get_fault_damaged": 7}
    driver.pool.say(jobs.Transferred(1, 0, 0, 99))
    driver.access.end(transfers)
    driver.pool.say(jobs.Transferred(10, 0, 0, 1))
    assert driver.front.counters.get_fault_bytes == 11 and transfers.counters.get_fault_bytes == 5


def test_latencies(driver):
    """Of the kinds of results that have a histogram, from the job to its result."""
    driver.access.latencies = {"FetchResult": Histogram()}
    transfers = driver.attach()
    driver.fetch(transfers, 1)
    driver.put(transfers, "b")
    driver.now += 0.07
    driver.result(2, jobs.MISS)
    driver.uploaded(3)
    histogram = driver.access.latencies["FetchResult"]
    assert sum(histogram.counts) == 1 and histogram.sum_s == pytest.approx(0.07)


def test_status(driver):
    """One PoolStatus answers all calls of ask_status; without a pool it returns False."""
    heard = []
    assert driver.access.ask_status(heard.append) is False
    driver.access.pool()
    assert driver.access.ask_status(heard.append) and driver.access.ask_status(heard.append)
    status = jobs.PoolStatus({}, {}, 3, {})
    driver.pool.say(status)
    assert heard == [status, status]
    driver.pool.say(status)
    assert len(heard) == 2


# -- puts ------------------------------------------------------------------------------------------


def test_an_upload_is_in_the_spool_until_it_is_done(driver):
    """It counts as pending until then."""
    transfers = driver.attach()
    driver.put(transfers)
    assert driver.pool.jobs[2] == ("upload", 1, A, False)
    assert transfers.pending == 1 and transfers.pending_text() == "1 uploads"
    assert driver.spooled() == 1
    driver.uploaded(2)
    assert transfers.pending == 0 and driver.spooled() == 0
    transfers.release()
    assert not driver.access.left_spooled and not driver.access.upload_failed
    assert counted(transfers) == {"put_s3_action": 1, "put_s3_object": 1, "put_s3_bytes": 19}


@pytest.mark.parametrize(
    ("status", "found", "counts", "is_kept"),
    [
        (jobs.STORED, True, {"put_s3_action": 1, "put_s3_found": 1}, False),
        (jobs.DAMAGED, False, {"put_s3_error": 1}, False),
        (jobs.SKIPPED, False, {"put_s3_skipped": 1}, True),
        (jobs.FAILED, False, {"put_s3_error": 1}, True),
        (jobs.TIMED_OUT, False, {"put_s3_error": 1}, True),
        (jobs.UNUSABLE, False, {"put_s3_error": 1}, True),
        (jobs.LOST, False, {"put_s3_error": 1}, True),
    ],
)
def test_results_of_uploads(driver, status, found, counts, is_kept):
    """None is pending after its result; entries to be tried again stay in the spool."""
    transfers = driver.attach()
    driver.put(transfers)
    driver.uploaded(2, status, found, 0)
    assert transfers.pending == 0 and counted(transfers) == counts
    assert (driver.spooled() == 1) is is_kept is driver.access.upload_failed
    transfers.release()
    assert driver.access.left_spooled is is_kept and (driver.spooled() == 1) is is_kept


@pytest.mark.parametrize(
    ("options", "counter", "spooled"),
    [
        ({"read_only": True}, "put_skip_read_only", 0),
        ({"min_upload_bytes": len(BODY) + 1}, "put_skip_small", 0),
        ({"upload": "off"}, "put_s3_skipped", 1),
    ],
)
def test_puts_that_are_not_uploaded(make, options, counter, spooled):
    """They start no pool. With --upload=off they are spooled for ``flush``."""
    driver = make(**options)
    transfers = driver.attach()
    driver.put(transfers)
    transfers.finish()
    assert not driver.pools and counted(transfers) == {counter: 1} and not transfers.pending
    assert driver.spooled() == spooled


def test_a_body_of_min_upload_size_is_uploaded(make):
    """Only smaller bodies are skipped."""
    driver = make(min_upload_bytes=len(BODY))
    driver.put(driver.attach())
    assert driver.pool.kinds() == ["begin", "upload"]


@pytest.mark.parametrize(
    ("worked", "refused", "kept"), [(False, True, 0), (True, True, 1), (False, False, 1)]
)
def test_puts_while_the_bucket_is_disabled(driver, worked, refused, kept):
    """They are spooled, unless the bucket has never answered anything but no."""
    transfers = driver.attach()
    driver.fetch(transfers, 1)
    driver.result(2, jobs.MISS if worked else jobs.FAILED)
    driver.pool.say(jobs.Disabled("access denied", refused))
    driver.put(transfers)
    assert driver.pool.kinds() == ["begin", "fetch"] and transfers.pending == 0
    assert transfers.counters.put_s3_skipped == 1 and driver.spooled() == kept


def test_puts_when_no_pool_can_be_started(driver):
    """They are spooled: the trouble is on this machine."""
    driver.refuses = OSError(errno.EAGAIN, "Resource temporarily unavailable")
    transfers = driver.attach()
    driver.put(transfers)
    driver.put(transfers, "b", b"other")
    assert driver.spooled() == 2 and len(driver.warnings) == 1


def test_a_damaged_output_is_replaced(driver):
    """By the next put of that output, in any session."""
    first, second = driver.attach(), driver.attach()
    driver.fetch(first, 1)
    driver.result(2, jobs.DAMAGED, output=OUT)
    driver.put(second)
    driver.put(second, "b", b"other")
    assert [job[3] for job in driver.pool.jobs.values() if job[0] == "upload"] == [True, False]


def test_a_spool_that_cannot_be_written(driver, monkeypatch):
    """The entry is uploaded, and counts as pending, without a place in the spool."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spool.SpoolSession, "create", full)
    transfers = driver.attach()
    driver.put(transfers)
    assert driver.pool.kinds() == ["begin", "upload"] and transfers.pending == 1
    driver.uploaded(2)
    transfers.release()
    assert not transfers.pending and not driver.access.left_spooled


def test_each_session_has_its_own_spool(driver):
    """An upload that failed in one session is left by that session only."""
    first, second = driver.attach(), driver.attach()
    driver.put(first)
    driver.put(second, "b", b"other")
    driver.uploaded(4)
    second.release()
    assert not driver.access.left_spooled and first.pending == 1 and driver.spooled() == 1
    driver.uploaded(2, jobs.FAILED)
    first.release()
    assert driver.access.left_spooled and driver.spooled() == 1


def test_results_after_the_release_of_the_spool(driver):
    """They are counted; the entry stays in the spool."""
    transfers = driver.attach()
    driver.put(transfers)
    transfers.release()
    driver.uploaded(2)
    assert transfers.pending == 0 and transfers.counters.put_s3_object == 1
    assert driver.access.left_spooled


# -- the end ---------------------------------------------------------------------------------------


def test_the_manifest_is_pending_too(make):
    """Its actions are those of gets and puts, each once, in the order of first use."""
    driver = make(layout="bundles")
    transfers = driver.attach()
    transfers.used += [action_id("x"), A, action_id("x")]
    driver.put(transfers)
    transfers.finish()
    number = max(driver.pool.jobs)
    assert driver.pool.jobs[number] == ("finish", 1, [action_id("x"), A])
    driver.uploaded(2)
    assert transfers.pending == 1 and transfers.pending_text() == "the manifest"
    transfers.mark_ending()
    (fd,) = spool.ending_journals(driver.front.store.root)
    os.close(fd)
    driver.pool.say(jobs.FinishResult(number, jobs.FAILED, "why"))
    assert transfers.pending == 0
    transfers.release()
    assert spool.session_directories(driver.front.store.root) == []


@pytest.mark.parametrize("options", [{"upload": "off"}, {"read_only": True}])
def test_a_session_that_writes_nothing(make, options):
    """The pool gets a FinishJob; nothing is pending, and nothing is marked as ending."""
    driver = make(layout="bundles", **options)
    transfers = driver.attach()
    driver.fetch(transfers, 1)
    transfers.finish()
    assert driver.pool.jobs[3] == ("finish", 1, None) and transfers.pending == 0
    transfers.mark_ending()
    assert not os.path.exists(f"{driver.front.store.root}/spool")


def test_when_an_uploader_is_started(make, monkeypatch):
    """Only if uploads are wanted, the bucket is usable and there is a spool."""
    from cacheplugin.pool import uploader

    monkeypatch.setattr(uploader, "start_detached", lambda options: 4711)
    driver = make()
    assert driver.access.start_uploader() is None
    transfers = driver.attach()
    driver.put(transfers)
    assert driver.access.start_uploader() == 4711
    driver.pool.say(jobs.Disabled("access denied"))
    assert driver.access.start_uploader() is None
    for options in ({"upload": "off"}, {"read_only": True}):
        assert make(**options).access.start_uploader() is None


# -- files outside the store -----------------------------------------------------------------------


def ask_for_files(driver) -> list:
    """Fetch one file and upload one; returns the list to which results will be added."""
    results = []
    driver.access.fetch_file("module/ab/abcd", "/cache/tmp/1", 1000, results.append)
    driver.access.upload_file("module/ab/abcd", "/cache/module/ab/abcd", True, results.append)
    return results


def test_files_need_no_session(driver):
    """They start the pool; each callback gets its result, once."""
    results = ask_for_files(driver)
    assert driver.pool.jobs == {
        1: ("fetch_file", "module/ab/abcd", "/cache/tmp/1", 1000),
        2: ("upload_file", "module/ab/abcd", "/cache/module/ab/abcd", True),
    }
    assert results == [] and not driver.access.has_answered
    uploaded, fetched = jobs.FileResult(2, jobs.STORED, 5, ""), jobs.FileResult(1, jobs.HIT, 9, "")
    for result in (uploaded, fetched, fetched, jobs.FileResult(99, jobs.HIT, 1, "")):
        driver.pool.say(result)
    assert results == [uploaded, fetched]
    assert counted(driver.attach()) == {}


@pytest.mark.parametrize(
    ("status", "worked"),
    [
        (jobs.HIT, True),
        (jobs.MISS, True),
        (jobs.STORED, True),
        (jobs.FAILED, False),
        (jobs.TIMED_OUT, False),
        (jobs.SKIPPED, False),
        (jobs.LOST, False),
        (jobs.LOCAL, False),
        (jobs.UNUSABLE, False),
    ],
)
def test_results_of_files_show_whether_the_bucket_answers(driver, status, worked):
    """A failure is passed to the callback only; there is no warning."""
    results = ask_for_files(driver)
    for number in (1, 2):
        driver.pool.say(jobs.FileResult(number, status, 0, "why"))
    assert [result.status for result in results] == [status] * 2
    assert driver.access.has_answered is worked and not driver.warnings and driver.access.usable


def test_latencies_of_files(driver):
    """They are measured if there is a histogram for FileResult."""
    driver.access.latencies = {"FileResult": Histogram()}
    ask_for_files(driver)
    driver.now += 5
    driver.pool.say(jobs.FileResult(1, jobs.HIT, 1, ""))
    assert driver.access.latencies["FileResult"].sum_s == 5


def test_files_while_the_bucket_is_disabled(driver):
    """Each is answered at once, without a job; after the pause a new pool is started."""
    results = ask_for_files(driver)
    driver.pool.say(jobs.Disabled("access denied"))
    for number in (1, 2):
        driver.pool.say(jobs.FileResult(number, jobs.SKIPPED, 0, "access denied"))
    driver.now += 59
    skipped = ask_for_files(driver)
    assert [result.status for result in skipped] == [jobs.SKIPPED] * 2
    assert all(result.reason and result.size == 0 for result in skipped)
    assert len(driver.pool.jobs) == 2
    driver.pool.alive = False
    driver.now += 2
    later = ask_for_files(driver)
    _, new = driver.pools
    assert new.kinds() == ["fetch_file", "upload_file"] and later == [] and driver.access.usable
    new.say(jobs.FileResult(1, jobs.HIT, 3, ""))
    assert [result.status for result in later] == [jobs.HIT] and len(results) == 2


def test_files_when_no_pool_can_be_started(driver):
    """One warning for each attempt to start it, and a result for each file."""
    driver.refuses = OSError(errno.EMFILE, "Too many open files")
    assert [result.status for result in ask_for_files(driver)] == [jobs.SKIPPED] * 2
    assert len(driver.warnings) == 1
    driver.refuses = None
    driver.now += 61
    assert ask_for_files(driver) == [] and driver.pool.kinds() == ["fetch_file", "upload_file"]


def test_files_of_a_pool_that_dies(driver):
    """Their result is LOST; a new job may be sent at once."""
    results = ask_for_files(driver)
    for number in (1, 2):
        driver.pool.say(jobs.FileResult(number, jobs.LOST, 0, ""))
    assert [result.status for result in results] == [jobs.LOST] * 2
    again = []
    driver.access.fetch_file("k", "/p", 1000, again.append)
    assert driver.pool.jobs[3] == ("fetch_file", "k", "/p", 1000) and again == []


def test_files_of_a_pool_that_is_abandoned(driver, monkeypatch):
    """A pool that is disabled and hangs is abandoned after the pause; its files are LOST."""
    monkeypatch.setattr(pool_access.os, "waitpid", lambda *_: (0, 0))
    results = ask_for_files(driver)
    driver.pool.process_id = 4711
    driver.pool.say(jobs.Disabled("access denied"))
    assert results == []
    driver.now += 61
    later = ask_for_files(driver)
    assert [result.status for result in results] == [jobs.LOST] * 2 and later == []
    assert [pool.alive for pool in driver.pools] == [False, True]
