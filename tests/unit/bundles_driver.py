"""A BundlesPlan for tests, which play the front and the workers."""

import time

from cacheplugin.ipc import jobs
from cacheplugin.options import Options
from cacheplugin.remote.bundles import manifest
from cacheplugin.remote.bundles.plan import BundlesPlan
from cacheplugin.remote.bundles.uploading import Uploading
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.tree import Store
from entries import TIME_NS, action_id, output_id, put

SCOPE = "example.com/a linux/amd64 main"
WALL_S = 1_800_000_000


class Driver:
    """Plays the front and the pool's workers for a plan, whose session 0 has begun.

    ``now`` is the plan's clock, ``store`` the one that workers fill. ``tasks`` and ``messages`` are
    what the plan has submitted and reported.
    """

    def __init__(self, root, **options) -> None:
        self.now = 0.0
        self.tasks, self.messages = [], []
        self.store = Store(str(root))
        self.plan = BundlesPlan(
            Options(**{"layout": "bundles"} | options), self, self.store, (SCOPE,)
        )
        self.plan.begin(0)
        self.plan._uploading = Uploading(
            self.plan, self.plan._catalog, SCOPE, lambda: self.now, lambda: WALL_S + self.now
        )
        self._number = 0

    # -- the pool of the plan

    def submit(self, _, task) -> None:
        self.tasks.append(task)

    def report(self, message) -> None:
        self.messages.append(message)

    # -- the front

    def _next(self) -> int:
        self._number += 1
        return self._number

    def get(self, name) -> int:
        """Ask for the action ``name``; returns the number of the job."""
        job = jobs.FetchJob(self._next(), action_id(name))
        self.plan.fetch(job)
        return job.number

    def put(self, name, body=None, time_ns=TIME_NS, size=1000) -> int:
        """Put the action ``name``; returns the job's number.

        The body is its own unless ``body`` names another.
        """
        output = output_id((body or name).encode())
        job = jobs.UploadJob(
            self._next(), action_id(name), output, size, time_ns, f"/store/{output}"
        )
        self.plan.upload(job)
        return job.number

    def finish(self, used="") -> int:
        job = jobs.FinishJob(self._next(), [action_id(name) for name in used])
        self.plan.finish(job)
        return job.number

    def answers(self) -> dict:
        """The statuses of the answers since the last call, by number; each job once."""
        answers = [one for one in self.messages if hasattr(one, "number")]
        self.messages = [one for one in self.messages if not hasattr(one, "number")]
        found = {one.number: one.status for one in answers}
        assert len(found) == len(answers)
        return found

    # -- the workers

    def take(self, kind) -> list:
        """Remove and return the tasks of one kind."""
        found = [task for task in self.tasks if isinstance(task, kind)]
        self.tasks = [task for task in self.tasks if not isinstance(task, kind)]
        return found

    def only(self, kind):
        """Remove and return the only task of a kind."""
        (task,) = self.take(kind)
        return task

    def load(
        self, own=(), related=(), unrelated=(), missing="", has_objects=False, damaged=0
    ) -> None:
        """Do the LoadJob that is due; all rows were used recently."""
        task = self.only(jobs.LoadJob)
        rows = [
            [tuple(one._replace(used_s=WALL_S - 10)) for one in some]
            for some in (own, related, unrelated)
        ]
        written_s = WALL_S - 10 if own else 0
        actions = [action_id(name) for name in missing]
        result = jobs.LoadResult(
            task.number,
            jobs.HIT,
            "",
            *rows,
            ["m-1"] if own else [],
            written_s,
            actions,
            has_objects,
            damaged,
            time.time(),
        )
        self.plan.done(task, result)
        self.plan._uploading.clock_offset_s = 0.0  # both clocks of a test agree

    def begin(self, *own, **result) -> None:
        """Load manifests of the scope with these rows."""
        self.plan.prefetch()
        self.load(own, **result)

    def fail(self, task, status=jobs.FAILED) -> None:
        self.plan.done(task, task.failed(status, "why"))

    def arrive(self, task, **fields) -> None:
        """Do a RangeJob; all of its rows arrive unless ``fields`` say otherwise."""
        known = {
            "number": task.number,
            "status": jobs.HIT,
            "reason": "",
            "arrived": [one[0] for one in task.rows],
            "damaged": [],
            "gone": False,
            "received": task.length,
        }
        self.plan.done(task, jobs.RangeResult(**known | fields))

    def store_entry(self, name) -> None:
        """Write the entry of this action into the local store."""
        put(LocalCache(self.store, spill=False), name, name.encode())

    def bundle(self, task, bad=(), bundle="bundle-n", unreadable=()) -> None:
        """Do a BundleJob: all entries are in one block, except these outputs."""
        bad = [output_id(name.encode()) for name in bad]
        unreadable = [output_id(name.encode()) for name in unreadable]
        rows = [
            (action, output, size, time_ns, 0, bundle, 8, 100, at, 7)
            for at, (action, output, size, time_ns, _) in enumerate(task.entries)
            if output not in (*bad, *unreadable)
        ]
        reasons = [(output, f"{output} cannot be read") for output in unreadable]
        result = jobs.BundleResult(task.number, jobs.STORED, "", rows, bad, 500, reasons)
        self.plan.done(task, result)

    def manifest(self, name="m-2") -> manifest.Manifest:
        """Do the ManifestJob that is due; returns the manifest."""
        task = self.only(jobs.ManifestJob)
        written = manifest.decode(task.data)
        result = jobs.ManifestResult(task.number, jobs.STORED, "", name, len(task.data))
        self.plan.done(task, result)
        return written
