"""pool/client.py: which jobs are answered, lost or sent again when the pool dies."""

import os
from types import SimpleNamespace

import pytest

from cacheplugin.ipc import channel, jobs
from cacheplugin.pool import client
from cacheplugin.pool.client import MAX_STARTS, PoolClient
from entries import action_id, output_id


class Pool:
    """A fake pool process: the other ends of the pipes of a PoolClient."""

    def __init__(self, file_actions) -> None:
        (jobs_fd, results_fd, log_fd) = (os.dup(action[1]) for action in file_actions)
        self._log_fd = log_fd
        self._jobs, self._results = channel.Receiver(jobs_fd), channel.Sender(results_fd)
        self.configuration = None

    def heard(self) -> list:
        """The jobs that were received since the last call."""
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
    """A PoolClient, its fake pools, and the messages that it passed to the front."""

    def __init__(self, monkeypatch) -> None:
        self.pools, self.messages, self.watched = [], [], {}
        monkeypatch.setattr(client, "spawn", self._spawn)
        monkeypatch.setattr(client.os, "waitpid", lambda *_: (0, 0))
        loop = SimpleNamespace(
            watch=lambda fd, _, call: self.watched.update({fd: call}),
            unwatch=lambda fd: self.watched.pop(fd, None),
        )
        self.client = PoolClient(({"bucket": "b"},), loop, self.messages.append)

    def _spawn(self, module, argument, file_actions):
        assert (module, argument) == ("cacheplugin.pool.supervisor", "")
        self.pools.append(Pool(file_actions))
        return 4711

    @property
    def pool(self):
        return self.pools[-1]

    def turn(self) -> list:
        """Let the client receive; returns the messages to the front since the last turn."""
        self.client._on_results(None)
        messages, self.messages[:] = self.messages[:], []
        return messages

    def die(self) -> list:
        """End the pool; returns the messages to the front, without the one that says so."""
        self.pool.die()
        messages = self.turn()
        if self.client.alive:
            assert messages.pop(0) == jobs.Failed("its pool process died", told=False)
        return messages

    def close(self) -> None:
        if self.client.alive:
            self.client.close()
            self.pool.die()


@pytest.fixture
def driver(monkeypatch):
    driver = Driver(monkeypatch)
    yield driver
    driver.close()


def test_files(driver):
    """Each is sent at once, with its own number, and is answered once."""
    fetch, upload = (
        driver.client.fetch_file("k", "/p", 1000),
        driver.client.upload_file("k", "/p", True),
    )
    assert driver.pool.heard() == [
        jobs.FileFetchJob(fetch, "k", "/p", 1000),
        jobs.FileUploadJob(upload, "k", "/p", True),
    ]
    assert fetch != upload and driver.client.uploads_pending == 0
    results = [
        jobs.FileResult(upload, jobs.STORED, 1, ""),
        jobs.FileResult(fetch, jobs.MISS, 0, ""),
    ]
    for result in (*results, results[0], jobs.FileResult(99, jobs.HIT, 1, "")):
        driver.pool.say(result)
    assert driver.turn() == results


def test_files_of_a_pool_that_died(driver):
    """Files are lost, fetched or uploaded; the upload of an entry is sent to the next pool."""
    session = driver.client.begin(("s",))
    entry = SimpleNamespace(
        action=action_id("a"), output=output_id(b"x"), size=1, time_ns=7, path="/x"
    )
    put = driver.client.upload(session, entry)
    files = [driver.client.fetch_file("k", "/p", 1000), driver.client.upload_file("k", "/p", False)]
    assert driver.die() == [jobs.FileResult(number, jobs.LOST, 0, "") for number in files]
    assert len(driver.pools) == 2
    again = driver.pool.heard()
    assert [type(job) for job in again] == [jobs.BeginJob, jobs.UploadJob]
    assert (again[1].number, again[1].recovered) == (put, True)
    number = driver.client.fetch_file("k", "/p", 1000)
    driver.pool.say(jobs.FileResult(number, jobs.HIT, 1, ""))
    assert driver.turn() == [jobs.FileResult(number, jobs.HIT, 1, "")]


def test_files_of_a_pool_that_died_too_often(driver):
    """The front gets Disabled first, then a LOST result for each file."""
    for _ in range(MAX_STARTS - 1):
        assert driver.die() == []
    numbers = [
        driver.client.fetch_file("k", "/p", 1000),
        driver.client.upload_file("k", "/p", True),
    ]
    disabled, *results = driver.die()
    assert isinstance(disabled, jobs.Disabled) and not driver.client.alive
    assert len(driver.pools) == MAX_STARTS
    assert results == [jobs.FileResult(number, jobs.LOST, 0, "") for number in numbers]


def test_the_callback_of_a_lost_job_may_send_another(driver):
    """The new job goes to the next pool."""
    driver.client._on_message = lambda message: (
        driver.messages.append(message)
        or (driver.client.fetch_file("k", "/again", 1000) if len(driver.messages) == 1 else None)
    )
    driver.client.fetch_file("k", "/p", 1000)
    assert len(driver.die()) == 1
    (job,) = driver.pool.heard()
    assert job.path == "/again"


def test_files_of_a_pool_that_is_abandoned(driver):
    """They are lost, and no other pool is started."""
    numbers = [
        driver.client.fetch_file("k", "/p", 1000),
        driver.client.upload_file("k", "/p", True),
    ]
    pool = driver.pool
    driver.client.abandon()
    pool.die()
    assert driver.messages == [jobs.FileResult(number, jobs.LOST, 0, "") for number in numbers]
    assert not driver.client.alive and len(driver.pools) == 1 and not driver.watched
