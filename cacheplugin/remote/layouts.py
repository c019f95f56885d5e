"""Layouts: how entries lie in a bucket.

A layout has two halves, which run in different processes and exchange messages of ipc/jobs.py:

- A *plan* runs in the pool process, one for the sessions of the same scopes, without network I/O.
  It takes the front's jobs (fetch, upload, finish), turns them into tasks for workers, gets the
  results of the tasks and answers the jobs. plan.py has the base class and the plan of
  ``objects``, bundles/plan.py the plan of ``bundles``, ``auto`` and ``both``.
- *Tasks* run in the worker processes, in threads: Remote looks up the method that does a task.
  Those of ``objects`` are in objects.py; they are the front's own jobs. Those of ``bundles`` are
  in bundles/tasks.py; they read manifests and ranges, and write whole bundles. Those for files of
  the module proxy are in files.py and need no plan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ipc import jobs

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..options import Options
    from ..store.cache import LocalCache
    from ..store.tree import Store
    from .contracts import Bucket, PlanHost
    from .plan import Plan


class Remote:
    """Does the tasks of workers. Thread-safe."""

    def __init__(self, options: Options, bucket: Bucket, cache: LocalCache) -> None:
        from .files import Files
        from .objects import ObjectsLayout

        files = Files(bucket, options.prefix)
        objects = ObjectsLayout(bucket, cache, options.prefix)
        # Any: each method takes the one type of its key.
        self._methods: dict[type, Callable[[Any], jobs.TaskResult]] = {
            jobs.FileFetchJob: files.fetch,
            jobs.FileUploadJob: files.upload,
            jobs.FetchJob: objects.fetch_job,
            jobs.UploadJob: objects.upload_job,
        }
        if options.layout == "objects":
            return
        from .bundles.tasks import BundlesLayout

        bundles = BundlesLayout(bucket, cache, options.prefix, options.layout == "auto")
        self._methods |= {
            jobs.LoadJob: bundles.load,
            jobs.RangeJob: bundles.fetch,
            jobs.BundleJob: bundles.upload,
            jobs.ManifestJob: bundles.write_manifest,
        }

    def perform(self, task: jobs.Task) -> jobs.TaskResult:
        """Do a task and return its result; raises RemoteError, and OSError for the local disk."""
        return self._methods[type(task)](task)


def connect(options: Options, cache: LocalCache) -> Remote:
    """The Remote of the bucket that ``options`` name; raises Unusable."""
    from .s3 import Bucket

    return Remote(options, Bucket(options), cache)


def make_plan(options: Options, pool: PlanHost, store: Store, scopes: tuple[str, ...]) -> Plan:
    """A plan of ``--layout`` for sessions of ``scopes`` (see BeginJob); workers fill ``store``."""
    if options.layout == "objects":
        from .plan import ObjectsPlan

        return ObjectsPlan(pool, scopes)
    from .bundles.plan import BundlesPlan

    return BundlesPlan(options, pool, store, scopes)
