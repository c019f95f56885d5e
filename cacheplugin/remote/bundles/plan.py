"""The plan of the layout ``bundles``, and of ``auto`` and ``both``, which use ``objects`` as well.

The first job of any kind loads the manifests; jobs wait until they are loaded. After that a get
waits for the range with its entry, is looked up in the objects layout, or is a miss at once. A put
joins a bundle. A finish writes the bundle and the manifest.
"""

from __future__ import annotations

import itertools
import logging
import time
from typing import TYPE_CHECKING

from ...ipc import jobs
from ..plan import CoalescedFetches, Plan
from .catalog import Catalog
from .fetching import Fetching
from .keys import scope_key
from .uploading import NO_ANSWER, Uploading

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from typing import Any

    from ...options import Options
    from ...store.tree import Store
    from ..contracts import PlanHost
    from .contracts import R, TaskOf

log = logging.getLogger(__name__)

JOIN_S = 60  # sessions that begin later get another plan, which loads newer manifests

_numbers = itertools.count(1)  # of the tasks of all plans


class BundlesPlan(Plan):
    """See Plan. ``scopes`` are those of BeginJob, ``clock`` gives monotonic seconds."""

    def __init__(
        self,
        options: Options,
        pool: PlanHost,
        store: Store,
        scopes: tuple[str, ...],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(pool, scopes)
        scope = scopes[0]
        self._clock = clock
        self._open_until = clock() + JOIN_S
        self._writes_both = options.layout == "both"
        # Whether the bucket may hold entries in the objects layout alone. LoadResult may set it.
        self._reads_objects = self._writes_both
        self._bundles_objects = not options.read_only and options.upload != "off"
        self._catalog = Catalog(scope)
        self._fetching = Fetching(
            self, self._catalog, store, options.prefetch_limit_bytes, scope_key(scope)
        )
        self._uploading = Uploading(self, self._catalog, scope)
        self._fetches = CoalescedFetches()
        self._callbacks: dict[int, Callable[[Any], None]] = {}  # by the number of a task
        self._loading = self._loaded = False
        # Jobs that wait for the manifests.
        self._held: list[jobs.FetchJob | jobs.UploadJob | jobs.FinishJob] = []
        # With layout both: results of one layout that wait for the other's, by an upload's number.
        self._halves: dict[int, jobs.UploadResult] = {}

    @property
    def is_open(self) -> bool:
        return self._clock() < self._open_until

    @property
    def is_over(self) -> bool:
        return not (self.sessions or self._callbacks or self._held or self._uploading.is_finishing)

    # -- the front's jobs --------------------------------------------------------------------------

    def begin(self, session: int) -> None:
        super().begin(session)
        if self._loaded:
            self._tell(session, self._fetching.coming())

    def prefetch(self) -> None:
        if not self._loaded:
            self._load()

    def fetch(self, job: jobs.FetchJob) -> None:
        if not self._loaded:
            self._held.append(job)
            self._load()
        elif not self._fetching.get(job):
            self.not_in_bundles(job, jobs.MISS, "")

    def upload(self, job: jobs.UploadJob) -> None:
        if not self._loaded:
            self._held.append(job)
            self._load()
            return
        if self._writes_both:
            task = job._replace(number=self.next_number())
            self.submit(task, lambda result: self.uploaded(job, result))
        self._uploading.add(job)

    def finish(self, job: jobs.FinishJob) -> None:
        if self._loading:
            self._held.append(job)
            return
        self.sessions.discard(job.session)
        if not self.sessions:
            self._fetching.stop()
        if job.used is None:
            self.report(jobs.FinishResult(job.number, jobs.STORED))
        else:
            self._uploading.finish(job)

    def stop(self) -> None:
        self._fetching.stop()

    def timeout_s(self) -> float | None:
        return self._uploading.timeout_s()

    def on_time(self) -> None:
        self._uploading.on_time()

    # -- tasks -------------------------------------------------------------------------------------

    def next_number(self) -> int:
        return next(_numbers)

    def submit(self, task: TaskOf[R], on_result: Callable[[R], None]) -> None:
        self._callbacks[task.number] = on_result
        self._pool.submit(self, task)  # type: ignore[arg-type] # only messages of jobs are a TaskOf

    def done(self, task: jobs.Task, result: jobs.TaskResult) -> None:
        self._callbacks.pop(task.number)(result)

    def _load(self) -> None:
        if not self._loading:
            self._loading = True
            self.submit(jobs.LoadJob(self.next_number(), self.scopes), self._load_done)

    def _load_done(self, result: jobs.LoadResult) -> None:
        self._loading = False
        held, self._held = self._held, []
        if result.status == jobs.HIT:
            self._take_manifests(result)
            ended = {job.session for job in held if isinstance(job, jobs.FinishJob)}
            if not self.sessions <= ended:
                self._fetching.begin(result.missing)
        for job in held:
            if result.status == jobs.LOST and not isinstance(job, jobs.FetchJob):
                self._held.append(job)  # uploads are tried again when a worker dies
                self._load()
            elif isinstance(job, jobs.FinishJob):
                self.finish(job)
            elif not self._loaded:
                self.report(job.failed(result.status, result.reason))
            elif isinstance(job, jobs.FetchJob):
                self.fetch(job)
            else:
                self.upload(job)

    def _take_manifests(self, result: jobs.LoadResult) -> None:
        self._loaded = True
        self._reads_objects |= result.has_objects
        self._catalog.load(result)
        self._uploading.clock_offset_s = result.now_s - time.time()
        log.info(
            "manifests name %d entries, the local store lacks %d of them",
            len(self._catalog),
            len(result.missing),
        )
        if result.damaged:
            self.transferred(0, 0, result.damaged)
        for session in self.sessions:
            self._tell(session, list(result.missing))

    def transferred(self, received: int, sent: int, damaged: int) -> None:
        session = min(self.sessions, default=0)
        self.report(jobs.Transferred(received, sent, damaged, session))

    def _tell(self, session: int, coming: Sequence[str]) -> None:
        """Tell a session which actions bundles hold; ``coming`` are those not in the store yet."""
        expected: Collection[str] = set(coming)
        others = [action for action in self._catalog.actions() if action not in expected]
        self.report(jobs.Expected(coming, others, not self._reads_objects, session))

    # -- together with the objects layout ----------------------------------------------------------

    def not_in_bundles(self, job: jobs.FetchJob, status: str, reason: str) -> bool:
        if not self._reads_objects:
            self.report(job.failed(status, reason))
            return False
        if self._fetches.add(job):
            self.submit(jobs.FetchJob(self.next_number(), job.action), self._fetched)
        return True

    def _fetched(self, result: jobs.FetchResult) -> None:
        """Answer gets with the result of the objects layout; add a hit to a bundle."""
        for answer in self._fetches.results(result):
            self.report(answer)
        output, path = result.output, result.path
        if output is None or path is None or not self._bundles_objects:
            return  # only a hit has both
        self._uploading.add(
            jobs.UploadJob(NO_ANSWER, result.action, output, result.size, result.time_ns, path)
        )

    def uploaded(self, job: jobs.UploadJob, result: jobs.UploadResult) -> None:
        result = result._replace(number=job.number)
        if self._writes_both:
            first = self._halves.pop(job.number, None)
            if first is None:
                self._halves[job.number] = result
                return
            worse = result if first.status == jobs.STORED else first
            result = worse._replace(
                found=first.found and result.found, sent=first.sent + result.sent
            )
        self.report(result)
