"""The remote cache. This package alone imports botocore and s3transfer.

A layout is how entries lie in a bucket. It has two halves. A *plan* (plan.py) lives in the pool
process: it takes what the front asks (FetchJob, UploadJob, FinishJob), makes tasks for workers of
it, and hears how they went. ``Remote`` lives in the workers and does the tasks: those of ``objects``
are the front's own jobs, those of ``bundles`` read manifests and ranges and write whole bundles.
"""

from ..ipc import jobs


class Remote:
    """Does the tasks of workers, each from any of many threads."""

    def __init__(self, options, bucket, cache) -> None:
        """``cache``: a LocalCache; ``bucket``: an s3.Bucket."""
        from .files import Files
        from .objects import ObjectsLayout

        files = Files(bucket, options.prefix)
        objects = ObjectsLayout(bucket, cache, options.prefix)
        self._perform = {
            jobs.FileFetchJob: files.fetch,
            jobs.FileUploadJob: files.upload,
            jobs.FetchJob: objects.fetch_job,
            jobs.UploadJob: objects.upload_job,
        }
        if options.layout == "objects":
            return
        from .bundles.tasks import BundlesLayout

        bundles = BundlesLayout(bucket, cache, options.prefix, options.layout == "auto")
        self._perform |= {
            jobs.LoadJob: bundles.load,
            jobs.RangeJob: bundles.fetch,
            jobs.BundleJob: bundles.upload,
            jobs.ManifestJob: bundles.write_manifest,
        }

    def perform(self, task):
        """Do a task and return its result; raises RemoteError, and OSError for the local disk."""
        return self._perform[type(task)](task)


def connect(options, cache) -> Remote:
    """The Remote of the bucket that ``options`` name; raises Unusable."""
    from .s3 import Bucket

    return Remote(options, Bucket(options), cache)


def make_plan(options, pool, store, scopes):
    """The plan of ``--layout`` for sessions of these scopes; ``store`` is what workers write to."""
    if options.layout == "objects":
        from .plan import ObjectsPlan

        return ObjectsPlan(pool, scopes)
    from .bundles.plan import BundlesPlan

    return BundlesPlan(options, pool, store, scopes)
