"""The half of the plan for puts: gathers them into bundles and names them in manifests.

A body is uploaded once: a put whose body is in a bundle, written or still gathered, only adds a
row. A put is answered as uploaded once a manifest that names it is in the bucket.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from ...ipc import jobs
from ...tuples import NamedTuple
from . import manifest
from .rows import Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from .catalog import Catalog
    from .contracts import Host

BUNDLE_BYTES = 64 << 20  # of bodies, which is about 16 MiB compressed
BUNDLE_ENTRIES = 50_000
BUNDLES_AT_ONCE = 4  # a worker needs about 60 MB of memory to write one
IDLE_S = 20  # a bundle is closed when nothing was added to it for so long
NO_ANSWER = -1  # the number of an UploadJob that the front did not send


class _Stored(NamedTuple):
    """A put whose body is in a bundle. ``found``: it was there before this put."""

    job: jobs.UploadJob
    found: bool


class Uploading:
    """Writes the bundles and manifests of ``scope``, the session's own.

    ``clock`` gives monotonic seconds, ``wall`` seconds since the epoch by this machine's clock.
    """

    def __init__(
        self,
        host: Host,
        catalog: Catalog,
        scope: str,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._catalog = catalog
        self._scope = scope
        # The store's clock minus ours. Manifests have the store's time, which all machines share.
        self.clock_offset_s = 0.0
        self._clock, self._wall = clock, wall
        self._entries: list[jobs.PlainEntry] = []  # of the bundle that is being gathered
        self._gathered: set[str] = set()  # their outputs
        self._bytes = 0
        self._added_at = 0.0
        self._pending: dict[
            str, list[jobs.UploadJob]
        ] = {}  # puts that wait for a bundle, by output
        self._unnamed: list[_Stored] = []  # puts that no manifest names yet
        self._closed: deque[list[jobs.PlainEntry]] = deque()  # bundles that wait to be written
        self._writing = 0  # BundleJobs
        self._finishing: list[jobs.FinishJob] = []  # that wait for their manifest
        self._manifest: manifest.Manifest | None = None  # that is being written

    def add(self, job: jobs.UploadJob) -> None:
        """Take a put. One with the number NO_ANSWER is not answered."""
        known = self._catalog.row(job.action)
        if known is not None and known.time_ns > job.time_ns:
            # A late upload does not undo a later put.
            if self._catalog.is_named(job.action):
                self._answer(job, jobs.STORED, found=True)
            else:
                self._catalog.add(known)
                self._unnamed.append(_Stored(job, True))
            return
        body = self._catalog.body(job.output)
        if body is not None and body.size == job.size:
            self._name_next(job, body, found=True)
            return
        if job.output not in self._pending:
            self._pending[job.output] = []
            self._gathered.add(job.output)
            self._bytes += job.size
        self._pending[job.output].append(job)
        if job.output not in self._gathered:
            return  # the body is in a bundle that is being written
        self._entries.append((job.action, job.output, job.size, job.time_ns, job.path))
        self._added_at = self._clock()
        if self._bytes >= BUNDLE_BYTES or len(self._entries) >= BUNDLE_ENTRIES:
            self._close_bundle()

    def finish(self, job: jobs.FinishJob) -> None:
        """End a session: write its puts and its manifest, and answer ``job`` after that."""
        self._finishing.append(job)
        self._close_bundle()
        self._advance()

    @property
    def is_finishing(self) -> bool:
        """Whether a session's manifest is still to be begun."""
        return bool(self._finishing)

    def timeout_s(self) -> float | None:
        """Seconds until ``on_time`` must be called; None for never."""
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
            task = jobs.BundleJob(self._host.next_number(), self._scope, self._closed.popleft())
            self._submit_bundle(task)

    def _submit_bundle(self, task: jobs.BundleJob) -> None:
        self._host.submit(task, lambda result: self._bundle_done(task, result))

    def _bundle_done(self, task: jobs.BundleJob, result: jobs.BundleResult) -> None:
        self._writing -= 1
        for fields in result.rows:
            row = Row(*fields)
            found = False
            for job in self._pending.pop(row.output, ()):
                self._name_next(job, row, found)
                found = True
        for output, reason in result.unreadable:
            self._answer_failed(output, jobs.LOCAL, reason)
        for output in result.bad:
            self._answer_failed(output, jobs.DAMAGED, result.reason)
        if result.status != jobs.STORED:
            for _, output, *_ in task.entries:
                self._answer_failed(output, result.status, result.reason)
        if result.sent:
            self._host.transferred(0, result.sent, 0)
        self._write_next()
        self._advance()

    def _answer_failed(self, output: str, status: str, reason: str) -> None:
        """Answer the puts of an output that is in no bundle."""
        for job in self._pending.pop(output, ()):
            self._answer(job, status, reason)

    def _name_next(self, job: jobs.UploadJob, body: Row, found: bool) -> None:
        """Name a put in the next manifest; its body is at the place of ``body``."""
        row = body._replace(action=job.action, time_ns=job.time_ns, used_s=0)
        self._catalog.add(row if row.length else row._replace(bundle=""))  # an empty body has none
        self._unnamed.append(_Stored(job, found))

    # -- manifests ---------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Write the manifest of the sessions that finish, once their bundles are written."""
        if not self._finishing or self._writing or self._manifest is not None:
            return
        lost = [put.job for put in self._unnamed if self._catalog.row(put.job.action) is None]
        if lost:  # their bundle was found absent or damaged meanwhile
            self._unnamed = [put for put in self._unnamed if put.job not in lost]
            for job in lost:
                self.add(job)
            self._close_bundle()
            return
        finishing, self._finishing = self._finishing, []
        used = dict.fromkeys(action for job in finishing for action in job.used or ())
        content = self._catalog.manifest(used, self._now_s())
        named, self._unnamed = self._unnamed, []
        if content is None:
            self._answer_all(finishing, named, jobs.STORED, "")
            return
        self._manifest = content
        number, data = self._host.next_number(), manifest.encode(content)
        self._host.submit(
            jobs.ManifestJob(number, self._scope, data),
            lambda result: self._manifest_done(content, finishing, named, result),
        )

    def _manifest_done(
        self,
        written: manifest.Manifest,
        finishing: list[jobs.FinishJob],
        named: list[_Stored],
        result: jobs.ManifestResult,
    ) -> None:
        self._manifest = None
        if result.status == jobs.STORED:
            self._catalog.wrote(result.name, written, self._now_s())
            self._host.transferred(0, result.sent, 0)
        self._answer_all(finishing, named, result.status, result.reason)
        self._advance()

    def _now_s(self) -> float:
        return self._wall() + self.clock_offset_s

    def _answer_all(
        self, finishing: list[jobs.FinishJob], named: list[_Stored], status: str, reason: str
    ) -> None:
        """Answer the puts that a manifest names, and then the sessions that it was written for."""
        for put in named:
            self._answer(put.job, status, reason, put.found)
        for job in finishing:
            self._host.report(jobs.FinishResult(job.number, status, reason))

    def _answer(
        self, job: jobs.UploadJob, status: str, reason: str = "", found: bool = False
    ) -> None:
        if job.number != NO_ANSWER:
            result = job.failed(status, reason)
            self._host.uploaded(job, result._replace(found=found))
