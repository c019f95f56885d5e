"""The plan of the layout ``bundles``, and of ``auto`` and ``both``, which use ``objects`` as well.

The first need of anything loads the manifests. Then a get waits for its range, is a miss at once, or
is looked for in the objects layout; a put joins a bundle; a finish writes bundle and manifest.
"""

import itertools
import logging
import time

from ...ipc import jobs
from ..plan import Fetches, Plan
from .catalog import Catalog
from .fetching import Fetching
from .manifest import scope_key
from .packing import Packing

log = logging.getLogger(__name__)

SHARED_S = 60  # a session that begins later than this looks for newer manifests

_numbers = itertools.count(1)  # of the tasks of all plans


class BundlesPlan(Plan):
    """See ../plan.py for what it does for whom; ``scopes`` are those of scope.find.

    ``clock`` gives monotonic seconds.
    """

    def __init__(self, options, pool, store, scopes, clock=time.monotonic) -> None:
        super().__init__(pool, scopes)
        scope = scopes[0]
        self._clock = clock
        self._open_until = clock() + SHARED_S
        self._twofold = options.layout == "both"  # whether all goes into both layouts
        self._in_objects = self._twofold  # whether what no manifest names may be in the other
        # Whether what is found there is bundled.
        self._bundles_found = not options.read_only and options.upload != "off"
        self._catalog = Catalog(scope)
        self._fetching = Fetching(
            self, self._catalog, store, options.prefetch_limit_bytes, scope_key(scope)
        )
        self._packing = Packing(self, self._catalog, scope)
        self._fetches = Fetches()
        self._tasks = {}  # number: what hears its result
        self._loading = self._loaded = False
        self._held = []  # jobs that wait for the manifests
        self._halves = {}  # number of an upload: the result of one layout, with that of the other due

    @property
    def is_open(self) -> bool:
        return self._clock() < self._open_until

    @property
    def is_over(self) -> bool:
        return not (self.sessions or self._tasks or self._held or self._packing.is_finishing)

    # -- the front's jobs --------------------------------------------------------------------------

    def begin(self, session: int) -> None:
        super().begin(session)
        if self._loaded:
            self._tell(session, self._fetching.coming())

    def prefetch(self) -> None:
        if not self._loaded:
            self._load()

    def fetch(self, job) -> None:
        if not self._loaded:
            self._held.append(job)
            self._load()
        elif not self._fetching.get(job):
            self.not_in_bundles(job, jobs.MISS, "")

    def upload(self, job) -> None:
        if not self._loaded:
            self._held.append(job)
            self._load()
            return
        if self._twofold:
            self.submit(jobs.UploadJob, job[1:], lambda _, result: self.uploaded(job, result))
        self._packing.add(job)

    def finish(self, job) -> None:
        if self._loading:
            self._held.append(job)
            return
        self.sessions.discard(job.session)
        if not self.sessions:
            self._fetching.stop()
        if job.used is None:
            self.report(jobs.FinishResult(job.number, jobs.STORED, ""))
        else:
            self._packing.finish(job)

    def stop(self) -> None:
        self._fetching.stop()

    def timeout_s(self):
        return self._packing.timeout_s()

    def on_time(self) -> None:
        self._packing.on_time()

    # -- tasks -------------------------------------------------------------------------------------

    def submit(self, kind, fields, hear) -> None:
        """Have a worker do the task ``kind(number, *fields)``; ``hear(task, result)`` gets its end."""
        task = kind(next(_numbers), *fields)
        self._tasks[task.number] = hear
        self._pool.submit(self, task)

    def done(self, task, result) -> None:
        self._tasks.pop(task.number)(task, result)

    def _load(self) -> None:
        if not self._loading:
            self._loading = True
            self.submit(jobs.LoadJob, (self.scopes,), self._load_done)

    def _load_done(self, _, result) -> None:
        self._loading = False
        held, self._held = self._held, []
        if result.status == jobs.HIT:
            self._loaded = True
            self._in_objects |= result.objects
            self._catalog.load(result)
            self._packing.ahead_s = result.now_s - time.time()
            log.info(
                "manifests name %d entries, the local store lacks %d of them",
                len(self._catalog),
                len(result.missing),
            )
            if result.damaged:
                self.transferred(0, 0, result.damaged)
            for session in self.sessions:
                self._tell(session, list(result.missing))
            ended = {job.session for job in held if isinstance(job, jobs.FinishJob)}
            if not self.sessions <= ended:
                self._fetching.begin(result.missing)
        for job in held:
            if result.status == jobs.LOST and not isinstance(job, jobs.FetchJob):
                self._held.append(job)  # with its worker: uploads are tried again
                self._load()
            elif isinstance(job, jobs.FinishJob):
                self.finish(job)
            elif not self._loaded:
                self.report(job.failed(result.status, result.reason))
            elif isinstance(job, jobs.FetchJob):
                self.fetch(job)
            else:
                self.upload(job)

    def transferred(self, received, sent, damaged) -> None:
        """Report bytes, and what is damaged, on behalf of whoever is there."""
        session = min(self.sessions, default=0)
        self.report(jobs.Transferred(received, sent, damaged, session))

    def _tell(self, session, coming) -> None:
        """Tell a session what bundles have, of which the actions in ``coming`` are not here yet."""
        expected = set(coming)
        others = [action for action in self._catalog.actions() if action not in expected]
        self.report(jobs.Expected(coming, others, not self._in_objects, session))

    # -- together with the objects layout ----------------------------------------------------------

    def not_in_bundles(self, job, status, reason) -> bool:
        """Look for an entry in the objects layout; False where that is none, and it is answered."""
        if not self._in_objects:
            self.report(job.failed(status, reason))
            return False
        if self._fetches.add(job):
            self.submit(jobs.FetchJob, (job.action,), self._fetched)
        return True

    def _fetched(self, _, result) -> None:
        """What the objects layout had is answered, and bundled for the next."""
        for answer in self._fetches.results(result):
            self.report(answer)
        if result.status == jobs.HIT and self._bundles_found:
            put = (result.action, result.output, result.size, result.time_ns, result.path)
            self._packing.add(jobs.UploadJob(None, *put))

    def uploaded(self, job, result) -> None:
        """The end of an upload, in both layouts where it goes into both."""
        result = result._replace(number=job.number)
        if self._twofold:
            first = self._halves.pop(job.number, None)
            if first is None:
                self._halves[job.number] = result
                return
            worse = result if first.status == jobs.STORED else first
            result = worse._replace(
                found=first.found and result.found, sent=first.sent + result.sent
            )
        self.report(result)
