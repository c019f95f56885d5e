"""What one session has of S3: the gets that a fetch is to answer, the puts that are to be uploaded.

It outlives the session until all is uploaded. A session of hits needs neither pool nor jobs, so
these are imported late.
"""

from ..store.record import timestamp
from .protocol import hit_answer, json_text


class Transfers:
    """One session's part of ``pool_access``, the PoolAccess. ``counters`` count what comes of it.

    ``find_scopes()`` gives the session's scopes, its own first, and is called when they are needed.
    With bundles, ``used`` are the actions that the session used, in order, and ``expected`` those
    that came or come from bundles and did not hit yet; both are None with the objects layout.
    """

    def __init__(self, pool_access, counters, find_scopes) -> None:
        self.counters = counters
        self.expected = None
        self._pool_access = pool_access
        self._front = pool_access.front
        self._options = options = pool_access.front.options
        self.used = [] if options.layout != "objects" else None
        self._find_scopes = find_scopes if self.used is not None else lambda: ("",)
        self._scopes = None
        self._number = None  # as its pool knows the session, once it does
        self._pool = None
        self._is_over = False  # what a client asks behind its close is not for the pool
        self._fetching = {}  # action: [(session, request id)] that wait for it
        self._known = None  # all actions that bundles have
        self._complete = False  # whether nothing else is in the bucket
        self._spool = None
        self._spooled = {}  # number of an upload job: number of its entry in the spool
        self._finishing = set()  # numbers of FinishJobs that write something

    @property
    def pending(self) -> int:
        """How many uploads are not done, the manifest among them."""
        return len(self._spooled) + len(self._finishing)

    def pending_text(self) -> str:
        """What ``pending`` counts, for a person."""
        return f"{len(self._spooled)} uploads" if self._spooled else "the manifest"

    @property
    def scopes(self):
        """Those of scope.find, a tuple."""
        if self._scopes is None:
            self._scopes = tuple(self._find_scopes())
        return self._scopes

    def prefetch(self) -> None:
        """Much will be missed: have it fetched now, where the layout knows what that is."""
        if self.used is not None and self._start():
            self._pool.prefetch(self._number)

    def _start(self) -> bool:
        """Whether there is a pool to give jobs to; it knows the session by now."""
        if self._is_over:
            return False
        pool = self._pool_access.pool()
        if pool is not None and pool is not self._pool:
            self._pool, self._number = pool, self._pool_access.begin(self)
        return pool is not None

    def learn(self, message) -> None:
        """Take an Expected."""
        self.expected = set(message.actions)
        self._known = self.expected | set(message.others)
        self._complete = message.complete

    # -- gets --------------------------------------------------------------------------------------

    def fetch(self, session, number: int, action: str) -> None:
        """Answer a get that misses locally, now or later. One fetch an action."""
        waiting = self._fetching.get(action)
        if waiting is not None:
            waiting.append((session, number))
            session.outstanding += 1
        elif self._complete and self._pool_access.usable and action not in self._known:
            self.counters.get_fault_miss += 1
            session.answer_miss(number)
        elif self._start():
            self._fetching[action] = [(session, number)]
            session.outstanding += 1
            self._pool_access.expect(self._pool.fetch(self._number, action), self.on_fetched)
        else:
            session.answer_miss(number)

    def on_fetched(self, result) -> None:
        """Take a FetchResult."""
        from ..ipc import jobs

        counters = self.counters
        counters.get_fault_bytes += result.received
        waiting = self._fetching.pop(result.action, ())
        if result.status == jobs.ARRIVED:
            if not all([self._answer_arrived(*one, result.action) for one in waiting]):
                counters.get_fault_error += 1
        elif result.status == jobs.HIT:
            put_time, path = timestamp(result.time_ns), json_text(result.path)
            for session, number in waiting:
                answer = hit_answer(number, result.output, result.size, put_time, path)
                self._answer_hit(session, answer, result.action, result.size)
        else:
            if result.status == jobs.MISS:
                counters.get_fault_miss += 1
            elif result.status == jobs.DAMAGED:
                counters.get_fault_damaged += 1
                self._pool_access.damaged.add(result.output)
            elif result.status == jobs.SKIPPED:
                counters.get_fault_skipped += 1
            else:
                counters.get_fault_error += 1
            for session, number in waiting:
                session.answer_miss(number)
        for session, _ in waiting:
            session.outstanding -= 1
        for session in {session for session, _ in waiting}:
            session.flush()

    def _answer_arrived(self, session, number, action) -> bool:
        """Answer a get of what a worker has stored; False where it is gone again, a miss."""
        front = self._front
        found = front.lookup(action)
        if found is not None:
            output, size, put_time, path, mtime = found
            if mtime >= front.stale_before or front.note_use(action, output):
                answer = hit_answer(number, output, size, put_time, json_text(path))
                self._answer_hit(session, answer, action, size)
                return True
        session.answer_miss(number)
        return False

    def _answer_hit(self, session, answer, action, size) -> None:
        session.answer(answer)
        if self.used is not None:
            self.used.append(action)
        if self.expected:
            self.expected.discard(action)
        self.counters.get_fault_hit += 1
        self.counters.get_hits += 1
        self.counters.get_hit_bytes += size

    # -- puts --------------------------------------------------------------------------------------

    def upload(self, action: str, output: str, size: int, time_ns: int, path: str) -> None:
        """Have a stored entry uploaded, if it is to be."""
        pool_access = self._pool_access
        if self.used is not None:
            self.used.append(action)
        if self._options.read_only:
            self.counters.put_skip_read_only += 1
        elif size < self._options.min_upload_bytes:
            self.counters.put_skip_small += 1
        elif not pool_access.usable and not pool_access.has_worked:
            self.counters.put_s3_skipped += 1  # a spool that nothing ever empties only grows
        else:
            entry, number = self._spool_entry(action, output, size, time_ns, path)
            if pool_access.uploads_wanted and self._start():
                job = self._pool.upload(self._number, entry, replace=output in pool_access.damaged)
                self._spooled[job] = number
                pool_access.expect(job, self.on_uploaded)
            else:
                self.counters.put_s3_skipped += 1

    def _spool_entry(self, *put):
        """(entry, its number in the spool or None): what is answered shall survive this process."""
        from ..store import spool

        try:
            number = self._own_spool().add(*put)
            return self._spool.pending[number], number
        except OSError:
            return spool.Entry(*put), None  # a full disk: it has to do without

    def _own_spool(self):
        if self._spool is None:
            from ..store.spool import SpoolSession

            self._spool = SpoolSession.create(self._front.store, self._options, self.scopes[0])
        return self._spool

    def on_uploaded(self, result) -> None:
        """Take an UploadResult."""
        from ..ipc import jobs

        counters = self.counters
        counters.put_s3_bytes += result.sent
        number = self._spooled.pop(result.number)
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
        """The session has ended: have its last bundle and its manifest written.

        Also where S3 is turned off, as what is gathered for a bundle has to be answered.
        """
        self._is_over = True
        if self._pool is None or not self._pool.alive:
            return
        writes = self.used is not None and self._pool_access.uploads_wanted
        used = list(dict.fromkeys(self.used)) if writes else None
        number = self._pool.finish(self._number, used)
        if writes:
            self._finishing.add(number)
            self._pool_access.expect(number, self.on_finished)

    def on_finished(self, result) -> None:
        """Take a FinishResult."""
        self._finishing.discard(result.number)

    def mark_ending(self) -> None:
        """Let a flush wait for what the session still writes, be it a manifest alone."""
        if not self.pending:
            return
        try:
            self._own_spool().mark_ending()
        except OSError:
            pass  # then it does not wait

    def release(self) -> None:
        """Let go of the spool: what is in it belongs to whoever uploads next."""
        if self._spool is not None:
            if not self._spool.release():
                self._pool_access.left_some = True
            self._spool = None
