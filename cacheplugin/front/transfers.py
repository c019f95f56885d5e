"""What one session has to do with S3: gets that wait for a fetch, puts that are to be uploaded.

It outlives its session until everything is uploaded. A session of local hits needs neither the pool
nor ipc.jobs, so these are imported late.
"""

from ..errors import LOCAL_TROUBLE
from ..store.record import timestamp
from .protocol import hit_answer, json_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..ipc import jobs
    from ..metrics import Counters
    from ..pool.client import PoolClient
    from ..store.spool import Entry, SpoolSession
    from .contracts import TransferHost, WaitingSession


class _WaitingGet:
    """A get that waits for a fetch: ``number`` is its request id."""

    def __init__(self, session: "WaitingSession", number: int) -> None:
        self.session, self.number = session, number


class Transfers:
    """One session's part of ``pool_access``. ``counters`` count what it transfers.

    ``find_scopes()`` returns the session's scopes, its own first; it is called when first needed.
    With bundles, ``used`` are the actions that the session used, in order, and ``expected`` those
    that came or will come from bundles and have not hit yet. Both are None with the objects layout.
    """

    def __init__(
        self,
        pool_access: "TransferHost",
        counters: "Counters",
        find_scopes: "Callable[[], Iterable[str]]",
    ) -> None:
        self.counters = counters
        self.expected: set[str] | None = None
        self._pool_access = pool_access
        self._front = pool_access.front
        self._options = options = pool_access.front.options
        self.used: list[str] | None = [] if options.layout != "objects" else None
        self._find_scopes = find_scopes if self.used is not None else lambda: ("",)
        self._scopes: tuple[str, ...] | None = None
        self._pool: PoolClient | None = None  # the pool that knows the session
        self._number = 0  # of the session in that pool
        self._is_over = False  # finish was called: requests after a close do not reach the pool
        self._waiting: dict[str, list[_WaitingGet]] = {}  # by action, for the fetch of it
        self._known: set[str] = set()  # all actions in bundles, once ``expected`` is known
        self._complete = False  # the bucket holds nothing else
        self._spool: SpoolSession | None = None
        # Number of an upload job: number of its entry in the spool, None if it is not there.
        self._uploading: dict[int, int | None] = {}
        self._finishing: set[int] = set()  # numbers of FinishJobs that write a manifest

    @property
    def pending(self) -> int:
        """The number of uploads that are not done; a manifest counts as one."""
        return len(self._uploading) + len(self._finishing)

    def pending_text(self) -> str:
        """What ``pending`` counts, for a message."""
        return f"{len(self._uploading)} uploads" if self._uploading else "the manifest"

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes of the session, its own first; ("",) with the objects layout."""
        if self._scopes is None:
            self._scopes = tuple(self._find_scopes())
        return self._scopes

    def prefetch(self) -> None:
        """Fetch what the session will ask for, if the layout knows it."""
        if self.used is not None:
            pool = self._find_pool()
            if pool is not None:
                pool.prefetch(self._number)

    def _find_pool(self) -> "PoolClient | None":
        """The pool, which by now knows the session; None if no job can be sent."""
        if self._is_over:
            return None
        pool = self._pool_access.pool()
        if pool is not None and pool is not self._pool:
            try:
                self._number = self._pool_access.begin(pool, self)
            except LOCAL_TROUBLE as error:
                self._pool_access.give_up(error)
                return None
            self._pool = pool
        return pool

    def on_expected(self, message: "jobs.Expected") -> None:
        """Note which actions the bundles of the session hold."""
        self.expected = set(message.actions)
        self._known = self.expected | set(message.others)
        self._complete = message.complete

    # -- gets --------------------------------------------------------------------------------------

    def fetch(self, session: "WaitingSession", number: int, action: str) -> None:
        """Answer a get that missed in the store, now or later. Gets of one action share a fetch."""
        waiting = self._waiting.get(action)
        if waiting is not None:
            waiting.append(_WaitingGet(session, number))
            session.outstanding += 1
        elif self._complete and self._pool_access.usable and action not in self._known:
            self.counters.get_fault_miss += 1
            session.answer_miss(number)
        else:
            pool = self._find_pool()
            if pool is None:
                session.answer_miss(number)
                return
            self._waiting[action] = [_WaitingGet(session, number)]
            session.outstanding += 1
            self._pool_access.expect(pool.fetch(self._number, action), self.on_fetched)

    def on_fetched(self, result: "jobs.FetchResult") -> None:
        """Answer the gets that wait for this result."""
        from ..ipc import jobs

        self.counters.get_fault_bytes += result.received
        waiting = self._waiting.pop(result.action, [])
        if result.status == jobs.ARRIVED:
            answered = [self._answer_from_store(get, result.action) for get in waiting]
            if not all(answered):
                self.counters.get_fault_error += 1
        elif result.status == jobs.HIT and result.output and result.path:
            put_time, path = timestamp(result.time_ns), json_text(result.path)
            for get in waiting:
                answer = hit_answer(get.number, result.output, result.size, put_time, path)
                self._answer_hit(get, answer, result.action, result.size)
        else:
            self._count_miss(result)
            for get in waiting:
                get.session.answer_miss(get.number)
        for get in waiting:
            get.session.outstanding -= 1
        for session in {get.session for get in waiting}:
            session.flush()

    def _count_miss(self, result: "jobs.FetchResult") -> None:
        """Count why a fetch found nothing, once for all gets that waited for it."""
        from ..ipc import jobs

        counters = self.counters
        if result.status == jobs.MISS:
            counters.get_fault_miss += 1
        elif result.status == jobs.DAMAGED:
            counters.get_fault_damaged += 1
            if result.output is not None:
                self._pool_access.damaged.add(result.output)
        elif result.status == jobs.SKIPPED:
            counters.get_fault_skipped += 1
        else:
            counters.get_fault_error += 1

    def _answer_from_store(self, get: _WaitingGet, action: str) -> bool:
        """Answer a get of an entry that a worker has stored; False, and a miss, if it is gone."""
        front = self._front
        found = front.lookup(action)
        if found is not None:
            output, size, put_time, path, mtime = found
            if mtime >= front.stale_before or front.note_use(action, output):
                answer = hit_answer(get.number, output, size, put_time, json_text(path))
                self._answer_hit(get, answer, action, size)
                return True
        get.session.answer_miss(get.number)
        return False

    def _answer_hit(self, get: _WaitingGet, answer: str, action: str, size: int) -> None:
        get.session.answer(answer)
        if self.used is not None:
            self.used.append(action)
        if self.expected:
            self.expected.discard(action)
        self.counters.get_fault_hit += 1
        self.counters.get_hits += 1
        self.counters.get_hit_bytes += size

    # -- puts --------------------------------------------------------------------------------------

    def upload(self, action: str, output: str, size: int, time_ns: int, path: str) -> None:
        """Upload a stored entry, or count why not; ``path`` is its body."""
        pool_access = self._pool_access
        if self.used is not None:
            self.used.append(action)
        if self._options.read_only:
            self.counters.put_skip_read_only += 1
        elif size < self._options.min_upload_bytes:
            self.counters.put_skip_small += 1
        elif not pool_access.keeps_puts:
            self.counters.put_s3_skipped += 1
        else:
            try:
                entry, number = self._spool_entry(action, output, size, time_ns, path)
            except LOCAL_TROUBLE as error:
                self.counters.put_s3_skipped += 1
                pool_access.give_up(error)
                return
            pool = self._find_pool() if pool_access.uploads_wanted else None
            if pool is None:
                self.counters.put_s3_skipped += 1
            else:
                replace = output in pool_access.damaged
                job = pool.upload(self._number, entry, replace=replace)
                self._uploading[job] = number
                pool_access.expect(job, self.on_uploaded)

    def _spool_entry(
        self, action: str, output: str, size: int, time_ns: int, path: str
    ) -> "tuple[Entry, int | None]":
        """Add an entry to the spool, so that its upload survives the death of this process.

        Returns the entry and its number in the spool; None if the spool could not be written.
        """
        from ..store import spool

        try:
            session = self._own_spool()
            number = session.add(action, output, size, time_ns, path)
            return session.pending[number], number
        except OSError:
            return spool.Entry(action, output, size, time_ns, path), None

    def _own_spool(self) -> "SpoolSession":
        if self._spool is None:
            from ..store.spool import SpoolSession

            self._spool = SpoolSession.create(self._front.store, self._options, self.scopes[0])
        return self._spool

    def on_uploaded(self, result: "jobs.UploadResult") -> None:
        """Count an upload, and take its entry out of the spool unless it is to be tried again."""
        from ..ipc import jobs

        counters = self.counters
        counters.put_s3_bytes += result.sent
        number = self._uploading.pop(result.number)
        if result.status not in (jobs.STORED, jobs.DAMAGED):
            self._pool_access.upload_failed = True
        elif number is not None and self._spool is not None:
            self._spool.done(number)
        if result.status == jobs.STORED:
            counters.put_s3_action += 1
            if result.found:
                counters.put_s3_found += 1
            else:
                counters.put_s3_object += 1
        elif result.status == jobs.SKIPPED:
            counters.put_s3_skipped += 1
        else:
            counters.put_s3_error += 1

    # -- the end -----------------------------------------------------------------------------------

    def finish(self) -> None:
        """The session has ended: write its last bundle and its manifest.

        The pool is told even while the bucket is given up: it answers the uploads that it has
        gathered for a bundle.
        """
        self._is_over = True
        if self._pool is None or not self._pool.alive:
            return
        used = None
        if self.used is not None and self._pool_access.uploads_wanted:
            used = list(dict.fromkeys(self.used))
        number = self._pool.finish(self._number, used)
        if used is not None:
            self._finishing.add(number)
            self._pool_access.expect(number, self.on_finished)

    def on_finished(self, result: "jobs.FinishResult") -> None:
        """The manifest is written, or has failed."""
        self._finishing.discard(result.number)

    def mark_ending(self) -> None:
        """Have a flush wait for the uploads that are pending, even if only a manifest is."""
        if not self.pending:
            return
        try:
            self._own_spool().mark_ending()
        except LOCAL_TROUBLE:
            pass  # a flush then does not wait for this session

    def release(self) -> None:
        """Unlock the spool of the session, whose entries the next uploader may take."""
        if self._spool is not None:
            if not self._spool.release():
                self._pool_access.left_spooled = True
            self._spool = None
