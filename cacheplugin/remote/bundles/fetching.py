"""The fetching half of the plan: prefetches the working set, and serves the gets that wait for it."""

import logging
import os

from ...ipc import jobs
from ...store.locks import try_lock
from ...store.tree import unlink_quietly
from .ranges import DONE, IDLE, QUEUED, Queue, cut

log = logging.getLogger(__name__)

PREFETCHES_AT_ONCE = 8
DISK_SHARE = 2  # a prefetch takes no more than one part in so many of what the disk has free


class Fetching:
    """``plan`` is the BundlesPlan; ``catalog`` its Catalog, ``store`` the Store that workers fill.

    ``lock_name`` tells this prefetch from those of other working sets on the same store.
    """

    def __init__(self, plan, catalog, store, limit_bytes: int, lock_name: str) -> None:
        self._plan = plan
        self._catalog = catalog
        self._store = store
        self._limit_bytes = limit_bytes
        self._lock = PrefetchLock(store.root, lock_name)
        self._ranges = {}  # action: its Range, of what the store lacked
        self._all = []  # Ranges, in the order in which a prefetch takes them
        self._planned = False  # whether this session prefetches, or has done so
        self._queue = Queue()
        self._gone = set()  # bundles
        self._running = 0  # RangeJobs
        self._waiting = {}  # action: [FetchJob] of gets that wait for a Range

    def begin(self, missing) -> None:
        """The manifests are known, and ``missing`` are the actions that the store lacks."""
        self._all = cut(self._catalog.rows(missing))
        for found in self._all:
            for row in found.rows:
                self._ranges[row.action] = found
        self._prefetch()

    def _prefetch(self) -> None:
        """Queue what is within the bounds, unless another session on this store does so."""
        if self._planned or not self._all or not self._lock.take():
            return
        self._planned = True
        left, disk = self._limit_bytes, free_bytes(self._store.root) // DISK_SHARE
        for found in self._all:
            inflated = sum(row.size for row in found.rows)
            if found.state == IDLE and found.length <= left and inflated <= disk:
                left -= found.length
                disk -= inflated
                self._queue.add(found)
        self._advance()

    def coming(self) -> list:
        """The actions that came with no range yet, of those that the store lacked at the beginning."""
        return [action for action, found in self._ranges.items() if found.state != DONE]

    def stop(self) -> None:
        """Nothing more will be asked for: fetch no more than what waits or is under way."""
        self._queue.clear()
        self._lock.release()

    def get(self, job) -> bool:
        """Answer a get, now or later; False where no bundle has it."""
        if self._store.lookup(job.action) is not None:
            self._plan.report(job.failed(jobs.ARRIVED))
            return True
        row = self._catalog.row(job.action)
        if row is None:
            return False
        found = self._ranges.get(job.action)
        if found is None or found.state == DONE:  # it came, or was here, and went again
            found = self._ranges[job.action] = cut([row])[0]
        self._waiting.setdefault(job.action, []).append(job)
        if found.state in (IDLE, QUEUED):
            self._start(found)
        self._prefetch()  # perhaps the session that did so has ended
        return True

    def _advance(self) -> None:
        while self._queue and self._running < PREFETCHES_AT_ONCE:
            self._start(None)
        if not self._queue and not self._running:
            self._lock.release()

    def _start(self, wanted) -> None:
        found = self._queue.take(wanted)
        self._running += 1
        rows = [tuple(row) for row in found.rows]
        self._plan.submit(
            jobs.RangeJob,
            (found.bundle, found.start, found.length, rows),
            lambda _, result: self._arrived(found, result),
        )

    def _arrived(self, found, result) -> None:
        """A range came, or did not: answer who waits for it."""
        again = result.status in (jobs.SKIPPED, jobs.FAILED, jobs.LOST, jobs.TIMED_OUT)
        found.state = IDLE if again else DONE  # what it lacks comes when it is asked for again
        self._running -= 1
        for action in result.arrived:
            self._answer(action, jobs.ARRIVED, "")
        damaged = set(result.damaged)
        self._catalog.forget([row for row in found.rows if row.action in damaged])
        if result.gone and found.bundle not in self._gone:
            self._gone.add(found.bundle)
            self._catalog.forget_bundle(found.bundle)
            self._queue.drop(found.bundle)
        uncounted = 0
        for action in result.damaged:
            waiting = self._waiting.pop(action, ())
            for job in waiting:
                uncounted += self._plan.not_in_bundles(job, jobs.DAMAGED, result.reason)
            uncounted += not waiting
        if result.received or uncounted:
            self._plan.transferred(result.received, 0, uncounted)
        # What neither came nor is damaged failed with the rest of its range.
        status = jobs.FAILED if result.status in (jobs.HIT, jobs.DAMAGED) else result.status
        for row in found.rows:
            self._answer(row.action, status, result.reason)
        if result.status == jobs.LOCAL and self._queue:
            log.warning("prefetching stops: %s", result.reason)
            self._queue.clear()
        self._advance()

    def _answer(self, action, status, reason) -> None:
        """Answer the gets that wait for an action."""
        for job in self._waiting.pop(action, ()):
            self._plan.report(job.failed(status, reason))


class PrefetchLock:
    """Held by the one session that prefetches a working set into a store, while it lives.

    It is a file that is there only while somebody holds it.
    """

    def __init__(self, root: str, name: str) -> None:
        self._path = f"{root}/tmp/prefetch-{name}"
        self._fd = -1

    def take(self) -> bool:
        """Whether this session has it; never waits. True where the directory takes no file."""
        if self._fd >= 0:
            return True
        try:
            os.makedirs(os.path.dirname(self._path), 0o755, exist_ok=True)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            return True
        try:
            if try_lock(fd) and os.path.samestat(os.fstat(fd), os.stat(self._path)):
                self._fd = fd
                return True
        except OSError:
            pass  # somebody has it, or had it until now and has removed the file
        os.close(fd)
        return False

    def release(self) -> None:
        if self._fd >= 0:
            unlink_quietly(self._path)
            os.close(self._fd)
            self._fd = -1


def free_bytes(path: str) -> int:
    """What the file system of ``path`` has free for this user; much where that cannot be told."""
    try:
        status = os.statvfs(path)
    except OSError:
        return 1 << 62
    return status.f_bavail * status.f_frsize
