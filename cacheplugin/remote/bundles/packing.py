"""The uploading half of the plan: gathers puts into bundles, and names them in manifests.

A body goes once: puts of one that a bundle holds, or will hold, only add a row. A put is answered as
uploaded when a manifest that names it is in the bucket.
"""

import time
from collections import deque

from ...ipc import jobs
from . import manifest
from .index import Row

BUNDLE_BYTES = 64 << 20  # of bodies; compressed, about 16 MiB
BUNDLE_ENTRIES = 50_000
BUNDLES_AT_ONCE = 4  # each holds some 60 MB of memory while it is written
IDLE_S = 20  # a bundle that nothing was added to for so long is closed


class Packing:
    """``plan`` is the BundlesPlan of ``scope``, ``catalog`` its Catalog.

    The clocks give monotonic seconds and such since the epoch.
    """

    def __init__(self, plan, catalog, scope: str, clock=time.monotonic, wall=time.time) -> None:
        self._plan = plan
        self._catalog = catalog
        self._scope = scope
        self.ahead_s = 0.0  # the store's clock, of ours: the one that all machines share counts
        self._clock, self._wall = clock, wall
        self._entries = []  # of the bundle that is gathered: (action, output, size, time_ns, path)
        self._gathered = set()  # their outputs
        self._bytes = 0
        self._added_at = 0.0
        self._pending = {}  # output: [UploadJob] that wait for a bundle with it
        self._unnamed = []  # (UploadJob, found) whose bodies are in bundles, and in no manifest
        self._closed = deque()  # entries of bundles that wait for their turn
        self._writing = 0  # BundleJobs
        self._finishing = []  # FinishJobs that wait for their manifest
        self._manifest = None  # the manifest that is written

    def add(self, job) -> None:
        """Take a put, or what was fetched from the objects layout (with ``number`` None)."""
        known = self._catalog.row(job.action)
        if known is not None and known.time_ns > job.time_ns:  # a late upload undoes no later put
            if self._catalog.is_named(job.action):
                self._answer(job, jobs.STORED, found=True)
            else:
                self._catalog.add(known)
                self._unnamed.append((job, True))
            return
        place = self._catalog.place(job.output)
        if place is not None and place.size == job.size:
            self._named_next(job, place, found=True)
            return
        if job.output not in self._pending:
            self._pending[job.output] = []
            self._gathered.add(job.output)
            self._bytes += job.size
        self._pending[job.output].append(job)
        if job.output not in self._gathered:
            return  # a bundle that is being written has it
        self._entries.append(job[1:6])
        self._added_at = self._clock()
        if self._bytes >= BUNDLE_BYTES or len(self._entries) >= BUNDLE_ENTRIES:
            self._close_bundle()

    def finish(self, job) -> None:
        """A session has ended: write what it put, and its manifest."""
        self._finishing.append(job)
        self._close_bundle()
        self._go_on()

    @property
    def is_finishing(self) -> bool:
        """Whether a session waits for what it left to be written."""
        return bool(self._finishing)

    def timeout_s(self):
        """Until ``on_time`` is wanted; None: never."""
        return max(0, self._added_at + IDLE_S - self._clock()) if self._entries else None

    def on_time(self) -> None:
        if self._entries and self._clock() >= self._added_at + IDLE_S:
            self._close_bundle()

    def _close_bundle(self) -> None:
        if self._entries:
            entries, self._entries, self._bytes = self._entries, [], 0
            self._gathered.clear()
            self._closed.append(entries)
            self._write_next()

    def _write_next(self) -> None:
        while self._closed and self._writing < BUNDLES_AT_ONCE:
            self._writing += 1
            entries = self._closed.popleft()
            self._plan.submit(jobs.BundleJob, (self._scope, entries), self._bundle_done)

    def _bundle_done(self, task, result) -> None:
        self._writing -= 1
        for fields in result.rows:
            row = Row(*fields)
            sent = True
            for job in self._pending.pop(row.output, ()):
                self._named_next(job, row, found=not sent)
                sent = False
        if result.status == jobs.STORED:
            status, left = jobs.DAMAGED, result.bad
        else:
            status, left = result.status, {output for _, output, *_ in task.entries}
        for output in left:
            for job in self._pending.pop(output, ()):
                self._answer(job, status, result.reason)
        if result.sent:
            self._plan.transferred(0, result.sent, 0)
        self._write_next()
        self._go_on()

    def _named_next(self, job, place, found) -> None:
        """A job's body lies at ``place``: the next manifest names it."""
        row = place._replace(action=job.action, time_ns=job.time_ns, used_s=0)
        self._catalog.add(row if row.length else row._replace(bundle=""))  # it lies nowhere
        self._unnamed.append((job, found))

    # -- manifests ---------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Write the manifest of the sessions that finish, once their bundles are there."""
        if not self._finishing or self._writing or self._manifest is not None:
            return
        lost = [job for job, _ in self._unnamed if self._catalog.row(job.action) is None]
        if lost:  # their bodies lay in a bundle that was found gone or damaged since
            self._unnamed = [one for one in self._unnamed if one[0] not in lost]
            for job in lost:
                self.add(job)
            self._close_bundle()
            return
        finishing, self._finishing = self._finishing, []
        used = dict.fromkeys(action for job in finishing for action in job.used)
        text = self._catalog.manifest(used, self._now_s())
        named, self._unnamed = self._unnamed, []
        if text is None:
            self._named(finishing, named, jobs.STORED, "")
            return
        self._manifest = text
        self._plan.submit(
            jobs.ManifestJob,
            (self._scope, manifest.encode(text)),
            lambda _, result: self._manifest_done(finishing, named, result),
        )

    def _manifest_done(self, finishing, named, result) -> None:
        written, self._manifest = self._manifest, None
        if result.status == jobs.STORED:
            self._catalog.wrote(result.name, written, self._now_s())
            self._plan.transferred(0, result.sent, 0)
        self._named(finishing, named, result.status, result.reason)
        self._go_on()

    def _now_s(self) -> float:
        return self._wall() + self.ahead_s

    def _named(self, finishing, named, status, reason) -> None:
        for job, found in named:
            self._answer(job, status, reason, found)
        for job in finishing:
            self._plan.report(jobs.FinishResult(job.number, status, reason))

    def _answer(self, job, status, reason="", found=False) -> None:
        if job.number is not None:
            result = job.failed(status, reason)
            self._plan.uploaded(job, result._replace(found=found))
