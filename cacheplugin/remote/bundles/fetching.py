"""The half of the plan for gets: prefetches the working set and serves gets from it."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from ...ipc import jobs
from ...store.locks import NoLocks, try_lock
from ...store.tree import unlink_quietly
from .ranges import DONE, IDLE, QUEUED, Range, RangeQueue, ranges_of
from .rows import plain_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ...store.tree import Store
    from .catalog import Catalog
    from .contracts import Host

log = logging.getLogger(__name__)

PREFETCHES_AT_ONCE = 8
DISK_SHARE = 2  # a prefetch takes at most 1/DISK_SHARE of the free disk space
_UNKNOWN_FREE_BYTES = 1 << 62


class Fetching:
    """Fetches ranges of bundles into ``store``, those of a prefetch and those that gets wait for.

    ``limit_bytes``: the most bytes a prefetch takes from the bucket. ``lock_name``: a name for the
    working set, unique in the store, because one session at a time prefetches it.
    """

    def __init__(
        self, host: Host, catalog: Catalog, store: Store, limit_bytes: int, lock_name: str
    ) -> None:
        self._host = host
        self._catalog = catalog
        self._store = store
        self._limit_bytes = limit_bytes
        self._lock = PrefetchLock(store.root, lock_name)
        self._ranges: dict[str, Range] = {}  # by action, of what the store lacked
        self._all: list[Range] = []  # in the order of a prefetch
        self._has_planned = False  # whether this session prefetches or has done so
        self._queue = RangeQueue()
        self._absent: set[str] = set()  # bundles that do not exist
        self._running = 0  # RangeJobs
        self._waiting: dict[str, list[jobs.FetchJob]] = {}  # gets that wait for a range, by action

    def begin(self, missing: Iterable[str]) -> None:
        """Begin with a loaded catalog; ``missing`` are the actions that the store lacks."""
        self._all = ranges_of(self._catalog.rows(missing))
        for needed in self._all:
            for row in needed.rows:
                self._ranges[row.action] = needed
        self._prefetch()

    def _prefetch(self) -> None:
        """Queue the ranges within the limits, unless another session prefetches into the store."""
        if self._has_planned or not self._all or not self._lock.take():
            return
        self._has_planned = True
        left, disk = self._limit_bytes, free_bytes(self._store.root) // DISK_SHARE
        for needed in self._all:
            on_disk = sum(row.size for row in needed.rows)
            if needed.state == IDLE and needed.length <= left and on_disk <= disk:
                left -= needed.length
                disk -= on_disk
                self._queue.add(needed)
        self._advance()

    def coming(self) -> list[str]:
        """The actions that the store lacked at the beginning and whose range is not done."""
        return [action for action, needed in self._ranges.items() if needed.state != DONE]

    def stop(self) -> None:
        """End the prefetch: fetch only what gets wait for or what is under way."""
        self._queue.clear()
        self._lock.release()

    def get(self, job: jobs.FetchJob) -> bool:
        """Answer a get, now or later; returns False if no bundle has the entry."""
        if self._store.lookup(job.action) is not None:
            self._host.report(job.failed(jobs.ARRIVED))
            return True
        row = self._catalog.row(job.action)
        if row is None:
            return False
        needed = self._ranges.get(job.action)
        if needed is None or needed.state == DONE:  # the entry was in the store and is no more
            needed = self._ranges[job.action] = ranges_of([row])[0]
        self._waiting.setdefault(job.action, []).append(job)
        if needed.state in (IDLE, QUEUED):
            self._start(needed)
        self._prefetch()  # the session that held the lock may have ended
        return True

    def _advance(self) -> None:
        while self._queue and self._running < PREFETCHES_AT_ONCE:
            self._start(None)
        if not self._queue and not self._running:
            self._lock.release()

    def _start(self, wanted: Range | None) -> None:
        """Fetch ``wanted``, or the first range of the queue."""
        started = self._queue.take(wanted)
        self._running += 1
        number = self._host.next_number()
        self._host.submit(
            jobs.RangeJob(
                number, started.bundle, started.start, started.length, plain_rows(started.rows)
            ),
            lambda result: self._fetched(started, result),
        )

    def _fetched(self, fetched: Range, result: jobs.RangeResult) -> None:
        """Answer the gets that wait for a range that was fetched, or could not be fetched."""
        can_retry = result.status in (jobs.SKIPPED, jobs.FAILED, jobs.LOST, jobs.TIMED_OUT)
        fetched.state = IDLE if can_retry else DONE
        self._running -= 1
        for action in result.arrived:
            self._answer(action, jobs.ARRIVED, "")
        damaged = set(result.damaged)
        self._catalog.forget([row for row in fetched.rows if row.action in damaged])
        if result.gone and fetched.bundle not in self._absent:
            self._absent.add(fetched.bundle)
            self._catalog.forget_bundle(fetched.bundle)
            self._queue.drop(fetched.bundle)
        uncounted = 0  # damaged entries that no answer to a get counts
        for action in result.damaged:
            waiting = self._waiting.pop(action, [])
            for job in waiting:
                uncounted += self._host.not_in_bundles(job, jobs.DAMAGED, result.reason)
            uncounted += not waiting
        if result.received or uncounted:
            self._host.transferred(result.received, 0, uncounted)
        # Entries that neither arrived nor are damaged failed with the rest of their range.
        status = jobs.FAILED if result.status in (jobs.HIT, jobs.DAMAGED) else result.status
        for row in fetched.rows:
            self._answer(row.action, status, result.reason)
        if result.status == jobs.LOCAL and self._queue:
            log.warning(
                "prefetching stops, as the local store cannot be written: %s", result.reason
            )
            self._queue.clear()
        self._advance()

    def _answer(self, action: str, status: str, reason: str) -> None:
        """Answer the gets that wait for an action."""
        for job in self._waiting.pop(action, ()):
            self._host.report(job.failed(status, reason))


class PrefetchLock:
    """Lets one living session at a time prefetch a working set into the store at ``root``.

    The lock is a file that exists only while a session holds it.
    """

    def __init__(self, root: str, name: str) -> None:
        self._path = os.path.join(root, "tmp", f"prefetch-{name}")
        self._fd = -1

    def take(self) -> bool:
        """Whether this session holds the lock now. Does not wait.

        Also returns True if the lock file cannot be created or the file system has no locks:
        prefetching twice is better than never.
        """
        if self._fd >= 0:
            return True
        try:
            os.makedirs(os.path.dirname(self._path), 0o755, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(self._path, flags, 0o644)
        except OSError:
            return True
        try:
            # The file at the path is another one if the last holder removed its file meanwhile.
            if try_lock(fd) and os.path.samestat(os.fstat(fd), os.stat(self._path)):
                self._fd = fd
                return True
        except NoLocks:
            os.close(fd)
            return True
        except OSError:
            pass  # the last holder has just removed the file
        os.close(fd)
        return False

    def release(self) -> None:
        if self._fd >= 0:
            unlink_quietly(self._path)
            os.close(self._fd)
            self._fd = -1


def free_bytes(path: str) -> int:
    """Bytes that this user can write to the file system of ``path``; 2**62 if that is unknown."""
    try:
        status = os.statvfs(path)
    except OSError:
        return _UNKNOWN_FREE_BYTES
    return status.f_bavail * status.f_frsize
