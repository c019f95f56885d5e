"""poollink.py: what is answered and what is sent again when the pool dies; files among it."""

import os
from types import SimpleNamespace

import pytest

from cacheplugin.ipc import channel, jobs
from cacheplugin.pool import client
from cacheplugin.pool.client import MAX_STARTS, PoolClient
from entries import action_id, output_id


class Pool:
    """The other end of a PoolClient's pipes, in place of a process."""

    def __init__(self, file_actions) -> None:
        (jobs_fd, results_fd, log_fd) = (os.dup(action[1]) for action in file_actions)
        self._log_fd = log_fd
        self._jobs, self._results = channel.Receiver(jobs_fd), channel.Sender(results_fd)
        self.configuration = None

    def heard(self) -> list:
        """The jobs that came."""
        messages = self._jobs.receive()
        if self.configuration is None and messages:
            self.configuration = messages.pop(0)
        return [jobs.unpack(message) for message in messages]

    def say(self, message) -> None:
        self._results.send(jobs.pack(message))

    def die(self) -> None:
        for fd in (self._jobs.fd, self._results.fd, self._log_fd):
            os.close(fd)


class Driver:
    """A PoolClient, its pools, and what it says to the front."""

    def __init__(self, monkeypatch) -> None:
        self.pools, self.messages, self.watched = [], [], {}
        monkeypatch.setattr(client, "spawn", self._spawn)
        monkeypatch.setattr(client.os, "waitpid", lambda *_: (0, 0))
        loop = SimpleNamespace(
            watch=lambda fd, _, call: self.watched.update({fd: call}),
            unwatch=lambda fd: self.watched.pop(fd, None),
        )
        self.link = PoolClient(({"bucket": "b"},), loop, self.messages.append)

    def _spawn(self, module, argument, file_actions):
        assert (module, argument) == ("cacheplugin.pool.supervisor", "")
        self.pools.append(Pool(file_actions))
        return 4711

    @property
    def pool(self):
        return self.pools[-1]

    def turn(self) -> list:
        """Have the link hear; returns what it said to the front since the last turn."""
        self.link._on_results(None)
        messages, self.messages[:] = self.messages[:], []
        return messages

    def die(self) -> list:
        self.pool.die()
        return self.turn()

    def close(self) -> None:
        if self.link.alive:
            self.link.close()
            self.pool.die()


@pytest.fixture
def driver(monkeypatch):
    driver = Driver(monkeypatch)
    yield driver
    driver.close()


def test_files(driver):
    """Each is a job of its own number, sent at once, and answered once."""
    fetch, upload = (
        driver.link.fetch_file("k", "/p", 1000),
        driver.link.upload_file("k", "/p", True),
    )
    assert driver.pool.heard() == [
        jobs.FileFetchJob(fetch, "k", "/p", 1000),
        jobs.FileUploadJob(upload, "k", "/p", True),
    ]
    assert fetch != upload and driver.link.uploads_pending == 0
    results = [
        jobs.FileResult(upload, jobs.STORED, 1, ""),
        jobs.FileResult(fetch, jobs.MISS, 0, ""),
    ]
    for result in (*results, results[0], jobs.FileResult(99, jobs.HIT, 1, "")):
        driver.pool.say(result)
    assert driver.turn() == results


def test_files_of_a_pool_that_died(driver):
    """They are lost both ways, while an entry's upload goes to the next pool; new ones go there."""
    session = driver.link.begin(("s",))
    entry = SimpleNamespace(
        action=action_id("a"), output=output_id(b"x"), size=1, time_ns=7, path="/x"
    )
    put = driver.link.upload(session, entry)
    files = [driver.link.fetch_file("k", "/p", 1000), driver.link.upload_file("k", "/p", False)]
    assert driver.die() == [jobs.FileResult(number, jobs.LOST, 0, "") for number in files]
    assert len(driver.pools) == 2
    again = driver.pool.heard()
    assert [type(job) for job in again] == [jobs.BeginJob, jobs.UploadJob]
    assert again[1].number == put
    number = driver.link.fetch_file("k", "/p", 1000)
    driver.pool.say(jobs.FileResult(number, jobs.HIT, 1, ""))
    assert driver.turn() == [jobs.FileResult(number, jobs.HIT, 1, "")]


def test_files_of_a_pool_that_died_for_good(driver):
    """First it is said that the bucket is of no use, then each is lost."""
    for _ in range(MAX_STARTS - 1):
        assert driver.die() == []
    numbers = [driver.link.fetch_file("k", "/p", 1000), driver.link.upload_file("k", "/p", True)]
    disabled, *results = driver.die()
    assert isinstance(disabled, jobs.Disabled) and not driver.link.alive
    assert len(driver.pools) == MAX_STARTS
    assert results == [jobs.FileResult(number, jobs.LOST, 0, "") for number in numbers]


def test_who_hears_that_it_is_lost_may_ask_again(driver):
    """At once: that goes to the next pool, and is not lost with the first."""
    driver.link._on_message = lambda message: (
        driver.messages.append(message)
        or (driver.link.fetch_file("k", "/again", 1000) if len(driver.messages) == 1 else None)
    )
    driver.link.fetch_file("k", "/p", 1000)
    assert len(driver.die()) == 1
    (job,) = driver.pool.heard()
    assert job.path == "/again"


def test_files_of_a_pool_that_is_abandoned(driver):
    """As those of one that died, but for the next pool."""
    numbers = [driver.link.fetch_file("k", "/p", 1000), driver.link.upload_file("k", "/p", True)]
    pool = driver.pool
    driver.link.abandon()
    pool.die()
    assert driver.messages == [jobs.FileResult(number, jobs.LOST, 0, "") for number in numbers]
    assert not driver.link.alive and len(driver.pools) == 1 and not driver.watched
