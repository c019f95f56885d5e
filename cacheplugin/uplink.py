"""The front's way to S3: the gets that a fetch is to answer, the puts that are to be uploaded.

It is made where there is a bucket, and it never waits: the pool (poollink.py) does the work, and
what comes back is heard in the front's loop. A session of hits needs neither pool nor jobs, so these
are imported late.
"""
import os

from .protocol import hit_answer, json_text
from .record import timestamp


class Uplink:
    """``front`` is the Front, whose counters, store and loop it shares.

    With bundles, ``used`` are the actions that the session used, in order, and ``expected`` those
    that came or come from bundles and did not hit yet; both are None with the objects layout.
    """

    def __init__(self, front) -> None:
        self.usable = True  # False once the bucket turned out to be of no use to this session
        self.used = [] if front.options.layout != "objects" else None
        self.expected = None
        self._front = front
        self._options = front.options
        self._counters = front.counters
        self._pool = None
        self._fetching = {}  # action: [(session, request id)] that wait for it
        self._known = None  # all actions that bundles have
        self._complete = False  # whether nothing else is in the bucket
        self._damaged = set()  # outputs that are wrong in the bucket
        self._spool = None
        self._spooled = {}  # number of an upload job: number of its entry in the spool
        self._finishing = False  # whether a FinishResult is due
        self._all_uploaded = True
        self._upload_failed = False
        self._bucket_worked = False  # it answered once; what comes after is worth keeping for it

    @property
    def waits(self) -> bool:
        """Whether close waits for uploads."""
        return self._options.upload == "wait"

    @property
    def lingers(self) -> bool:
        """Whether a bundle that was begun goes on without the go command.

        (Single objects are left to an uploader.)
        """
        return self._options.upload == "background" and self.used is not None

    @property
    def pending(self) -> int:
        """How many uploads are not done, the manifest among them."""
        return len(self._spooled) + self._finishing

    @property
    def _uploads_wanted(self) -> bool:
        return self._options.upload != "off" and not self._options.read_only

    def begin(self) -> None:
        """A session begins: where the store is empty all will be missed, so it is wanted at once."""
        if self.used is not None and not os.path.exists(f"{self._front.store.root}/action"):
            if self._start_pool():
                self._pool.prefetch()

    def _start_pool(self) -> bool:
        """Whether there is a pool to give jobs to."""
        if self.usable and self._pool is None:
            from .poollink import PoolLink

            fields = self._options.as_dict()
            self._front.mark_open()
            try:
                if not self._front.writable:
                    fields["cache_dir"] = self._front.local.first_store().root
                    fields["prefetch_limit_bytes"] = 0  # the pool does not know what is here
                self._pool = PoolLink((fields,), self._front.loop, self._on_message)
            except OSError as error:
                self.usable = False
                self._front.warn(f"bucket {self._options.bucket} is not used: {error.strerror}")
        return self.usable

    def _on_message(self, message) -> None:
        from . import jobs

        counters = self._counters
        if isinstance(message, jobs.FetchResult):
            self._on_fetched(message)
        elif isinstance(message, jobs.UploadResult):
            self._on_uploaded(message)
        elif isinstance(message, jobs.Transferred):
            counters.get_fault_bytes += message.received
            counters.put_s3_bytes += message.sent
            counters.get_fault_damaged += message.damaged
        elif isinstance(message, jobs.Expected):
            self.expected = set(message.actions)
            self._known = self.expected | set(message.others)
            self._complete = message.complete
            self._bucket_worked = True
        elif isinstance(message, jobs.FinishResult):
            self._finishing = False
        else:
            self.usable = False
            if not self._pool.alive:
                self._front.warn(f"bucket {self._options.bucket} is not used: {message.reason}")

    # -- gets --------------------------------------------------------------------------------------

    def fetch(self, session, number: int, action: str) -> None:
        """Answer a get that misses locally, now or later. One fetch an action."""
        waiting = self._fetching.get(action)
        if waiting is not None:
            waiting.append((session, number))
        elif self._complete and self.usable and action not in self._known:
            self._counters.get_fault_miss += 1
            session.answer_miss(number)
        elif self._start_pool():
            self._fetching[action] = [(session, number)]
            self._pool.fetch(action)
        else:
            session.answer_miss(number)

    def _on_fetched(self, result) -> None:
        from . import jobs

        counters = self._counters
        counters.get_fault_bytes += result.received
        self._bucket_worked |= result.status in (jobs.HIT, jobs.MISS, jobs.DAMAGED)
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
                self._damaged.add(result.output)
            elif result.status == jobs.SKIPPED:
                counters.get_fault_skipped += 1
            else:
                counters.get_fault_error += 1
            for session, number in waiting:
                session.answer_miss(number)
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
        self._counters.get_fault_hit += 1
        self._counters.get_hits += 1
        self._counters.get_hit_bytes += size

    # -- puts --------------------------------------------------------------------------------------

    def upload(self, action: str, output: str, size: int, time_ns: int, path: str) -> None:
        """Have a stored entry uploaded, if it is to be."""
        if self.used is not None:
            self.used.append(action)
        if self._options.read_only:
            self._counters.put_skip_read_only += 1
        elif size < self._options.min_upload_bytes:
            self._counters.put_skip_small += 1
        elif not self.usable and not self._bucket_worked:
            self._counters.put_s3_skipped += 1  # a spool that nothing ever empties only grows
        else:
            entry, number = self._spool_entry(action, output, size, time_ns, path)
            if self._uploads_wanted and self._start_pool():
                job = self._pool.upload(entry, replace=output in self._damaged)
                self._spooled[job] = number
            else:
                self._counters.put_s3_skipped += 1

    def _spool_entry(self, *put):
        """(entry, its number in the spool or None): what is answered shall survive this process."""
        from . import spool

        try:
            if self._spool is None:
                self._spool = spool.SpoolSession.create(self._front.store, self._options)
            number = self._spool.add(*put)
            return self._spool.pending[number], number
        except OSError:
            return spool.Entry(*put), None  # a full disk: it has to do without

    def _on_uploaded(self, result) -> None:
        from . import jobs

        counters = self._counters
        counters.put_s3_bytes += result.sent
        number = self._spooled.pop(result.number)
        if result.status not in (jobs.STORED, jobs.DAMAGED):
            self._upload_failed = True
        elif number is not None:
            self._spool.done(number)
        if result.status == jobs.STORED:
            self._bucket_worked = True
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
        alive = self._pool is not None and self._pool.alive
        if alive and self.used is not None and self._uploads_wanted:
            self._finishing = True
            self._pool.finish(list(dict.fromkeys(self.used)))

    def pending_text(self) -> str:
        """What ``pending`` counts, for a person."""
        return f"{len(self._spooled)} uploads" if self._spooled else "the manifest"

    def mark_ending(self) -> None:
        """Let a flush wait for what the session still writes, be it a manifest alone."""
        if not self._finishing:
            return
        from .spool import SpoolSession

        try:
            if self._spool is None:
                self._spool = SpoolSession.create(self._front.store, self._options)
            self._spool.mark_ending()
        except OSError:
            pass  # then it does not wait

    def release(self) -> None:
        """Let go of the spool: what is in it belongs to whoever uploads next."""
        if self._spool is not None:
            self._all_uploaded = self._spool.release()
            self._spool = None

    def close(self, rest: bool) -> None:
        """Let go of all; with ``rest`` an uploader is started for what is in the spool, if wanted."""
        if self._pool is not None:
            self._pool.close()
        self.release()
        if not rest or self._upload_failed or not self.usable or not self._uploads_wanted:
            return
        if self._all_uploaded or self._options.upload == "background":
            try:
                if os.path.isdir(f"{self._front.store.root}/spool"):
                    from . import flush

                    flush.start_detached(self._options)
            except OSError:
                pass  # a later session tries again
