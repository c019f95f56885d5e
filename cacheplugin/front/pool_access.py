"""The front's way to S3, which all its sessions share: the pool, and what comes back from it.

It is made where there is a bucket, and it never waits: the pool (poollink.py) does the work, and
what comes back is heard in the front's loop. What a session has of it is its Transfers.
"""

import os
import time

_RETRY_S = 60  # a bucket that was of no use is tried again after so long, for a session that begins


class PoolAccess:
    """``front`` is the Front, whose counters, store and loop it shares."""

    def __init__(self, front) -> None:
        self.front = front
        self.usable = True  # False while the bucket is of no use
        self.has_worked = False  # it answered once; what comes after is worth keeping for it
        self.damaged = set()  # outputs that are wrong in the bucket
        self.upload_failed = False
        self.left_some = False  # whether a session left something in the spool
        self.latencies = {}  # name of a kind of result: a metrics.Histogram of seconds, if wanted
        self._ask_status = []  # what takes the PoolStatus that is due
        self._options = front.options
        self._pool = None
        self._ending = []  # ids of pools that were let go of
        self._retry_at = 0.0
        self._transfers = {}  # number of a session: its Transfers
        self._expected = {}  # number of a job: what takes its result

    @property
    def waits(self) -> bool:
        """Whether close waits for uploads."""
        return self._options.upload == "wait"

    @property
    def lingers(self) -> bool:
        """Whether a bundle that was begun goes on without the go command.

        (Single objects are left to an uploader.)
        """
        return self._options.upload == "background" and self._options.layout != "objects"

    @property
    def uploads_wanted(self) -> bool:
        return self._options.upload != "off" and not self._options.read_only

    def attach(self, counters, find_scopes):
        """The Transfers of a session that begins; see there."""
        from .transfers import Transfers

        self._try_again()
        return Transfers(self, counters, find_scopes)

    def _try_again(self) -> None:
        """Take a bucket that was of no use for usable, once its time is over."""
        if not self.usable and time.monotonic() >= self._retry_at:
            if self._pool is not None and self._pool.alive:
                self._pool.abandon()
                self._ending.append(self._pool.process_id)
            self._pool, self.usable = None, True
            self._ending = [one for one in self._ending if os.waitpid(one, os.WNOHANG) == (0, 0)]

    def fetch_file(self, key: str, path: str, limit: int, take) -> None:
        """Have an object of at most ``limit`` bytes written to a file.

        ``take(FileResult)`` is called, maybe at once.
        """
        self._ask_for_file(take, lambda pool: pool.fetch_file(key, path, limit))

    def upload_file(self, key: str, path: str, replace: bool, take) -> None:
        """Have a file uploaded, and ``take(FileResult)`` called, maybe at once."""
        self._ask_for_file(take, lambda pool: pool.upload_file(key, path, replace))

    def _ask_for_file(self, take, send) -> None:
        from ..ipc import jobs

        self._try_again()
        pool = self.pool()
        if pool is None:
            take(jobs.FileResult(0, jobs.SKIPPED, 0, "the bucket is not used"))
        else:
            self.expect(send(pool), take)

    def pool(self):
        """The PoolClient, which is started where there is none; None where the bucket is of no use."""
        if self.usable and self._pool is None:
            from ..pool.client import PoolClient

            front, fields = self.front, self._options.as_dict()
            try:
                if not front.writable:
                    fields["cache_dir"] = front.local.first_store().root
                    fields["prefetch_limit_bytes"] = 0  # the pool does not know what is here
                self._pool = PoolClient((fields,), front.loop, self._on_message)
            except OSError as error:
                self._give_up()
                front.warn(f"bucket {self._options.bucket} is not used: {error.strerror}")
        return self._pool if self.usable else None

    def begin(self, transfers) -> int:
        """Tell the pool of a session; returns the number by which it is known there."""
        self.front.mark_open()
        number = self._pool.begin(transfers.scopes)
        self._transfers[number] = transfers
        return number

    def end(self, transfers) -> None:
        """Nothing more comes for these Transfers."""
        self._transfers = {key: one for key, one in self._transfers.items() if one is not transfers}

    def expect(self, number: int, take) -> None:
        """Have ``take(result)`` called with the result of a job."""
        self._expected[number] = (take, time.monotonic())

    def _on_message(self, message) -> None:
        from ..ipc import jobs

        if isinstance(message, jobs.Transferred):
            transfers = self._transfers.get(message.session)
            counters = self.front.counters if transfers is None else transfers.counters
            counters.get_fault_bytes += message.received
            counters.put_s3_bytes += message.sent
            counters.get_fault_damaged += message.damaged
        elif isinstance(message, jobs.Expected):
            self.has_worked = True
            if message.session in self._transfers:
                self._transfers[message.session].learn(message)
        elif isinstance(message, jobs.PoolStatus):
            asked, self._ask_status = self._ask_status, []
            for take in asked:
                take(message)
        elif isinstance(message, jobs.Disabled):
            self._give_up()
            if not self._pool.alive:
                self.front.warn(f"bucket {self._options.bucket} is not used: {message.reason}")
        else:
            if isinstance(message, jobs.FetchResult):
                self.has_worked |= message.status in (jobs.HIT, jobs.MISS, jobs.DAMAGED)
            elif isinstance(message, (jobs.UploadResult, jobs.FileResult)):
                self.has_worked |= message.status in (jobs.HIT, jobs.MISS, jobs.STORED)
            take, begun_s = self._expected.pop(message.number, (None, 0))
            if take is not None:
                if type(message).__name__ in self.latencies:
                    self.latencies[type(message).__name__].add(time.monotonic() - begun_s)
                take(message)

    def _give_up(self) -> None:
        self.usable = False
        self._retry_at = time.monotonic() + _RETRY_S

    def start_uploader(self):
        """Start an uploader for what dead sessions left in the spool, if there is any.

        Returns its process id, None where none was started.
        """
        if self.usable and self.uploads_wanted:
            try:
                if os.path.isdir(f"{self.front.store.root}/spool"):
                    from ..pool import uploader

                    return uploader.start_detached(self._options)
            except OSError:
                pass  # a later session tries again
        return None

    def ask_status(self, take) -> bool:
        """Have ``take(PoolStatus)`` called soon; False where there is no pool."""
        if self._pool is None or not self._pool.alive:
            return False
        self._ask_status.append(take)
        self._pool.ask_status()
        return True

    def close(self) -> None:
        """Let go of the pool."""
        if self._pool is not None:
            self._pool.close()
