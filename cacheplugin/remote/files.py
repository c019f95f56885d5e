"""Files that are no entries, such as those of the module proxy: one object each, raw."""

import os

from ..errors import Damaged
from ..ipc import jobs
from ..options import key_prefix
from .s3 import LARGE_BYTES
from .slow_body import PatientBody

_CHUNK_BYTES = 1 << 18


class Files:
    """``bucket`` is a remote.s3.Bucket, ``prefix`` clean or empty."""

    def __init__(self, bucket, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = key_prefix(prefix)

    def fetch(self, job) -> jobs.FileResult:
        """Write the object of a FileFetchJob over the file at its path.

        Raises RemoteError (Damaged where it is too large), and OSError where the local disk does not take it.
        """
        key = self._prefix + job.key
        with open(job.path, "r+b") as file:
            with self._bucket.open(key) as (size, body):
                if size > job.limit:
                    raise Damaged(f"{key} has {size} bytes")
                body, left = PatientBody(body), size if size <= LARGE_BYTES else 0
                while left:
                    file.write(body.read(min(left, _CHUNK_BYTES)))
                    left -= min(left, _CHUNK_BYTES)
            if size > LARGE_BYTES:
                self._bucket.download(key, file, size)
        return jobs.FileResult(job.number, jobs.HIT, size, "")

    def upload(self, job) -> jobs.FileResult:
        """Make the bucket hold the file of a FileUploadJob; raises as ``fetch`` does."""
        key = self._prefix + job.key
        size = os.stat(job.path).st_size
        if size > LARGE_BYTES:
            if job.replace or not self._bucket.exists(key):
                self._bucket.upload_file(key, job.path)
                return jobs.FileResult(job.number, jobs.STORED, size, "")
        else:
            with open(job.path, "rb") as file:
                data = file.read()
            if job.replace:
                self._bucket.write(key, data)
            if job.replace or self._bucket.write_new(key, data):
                return jobs.FileResult(job.number, jobs.STORED, size, "")
        return jobs.FileResult(job.number, jobs.STORED, 0, "")
