"""Files that are not cache entries, such as those of the module proxy: one object for each file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..errors import Damaged
from ..ipc import jobs
from ..options import key_prefix
from ..store.contents import open_regular
from .body_reader import BodyReader
from .s3 import LARGE_BYTES

if TYPE_CHECKING:
    from .contracts import Bucket

_CHUNK_BYTES = 1 << 18


class Files:
    """Copies files to and from a bucket. ``prefix`` is that of --prefix, perhaps empty."""

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = key_prefix(prefix)

    def fetch(self, job: jobs.FileFetchJob) -> jobs.FileResult:
        """Write an object over the file at ``job.path``, which must exist.

        Raises RemoteError (Damaged if the object is larger than ``job.limit``), and OSError if the
        file cannot be written.
        """
        key = self._prefix + job.key
        with open(job.path, "r+b") as file:
            with self._bucket.open(key) as (size, body):
                if size > job.limit:
                    raise Damaged(f"{key} has {size} bytes, more than the {job.limit} allowed")
                reader, left = BodyReader(body), size if size <= LARGE_BYTES else 0
                while left:
                    file.write(reader.read(min(left, _CHUNK_BYTES)))
                    left -= min(left, _CHUNK_BYTES)
            if size > LARGE_BYTES:
                self._bucket.download(key, file, size)
        return jobs.FileResult(job.number, jobs.HIT, size)

    def upload(self, job: jobs.FileUploadJob) -> jobs.FileResult:
        """Make the bucket hold the file at ``job.path``.

        Without ``job.replace`` an object that exists is kept. Raises RemoteError, and OSError if
        the file cannot be read.
        """
        key = self._prefix + job.key
        size = os.stat(job.path).st_size
        if size > LARGE_BYTES:
            if job.replace or not self._bucket.exists(key):
                self._bucket.upload_file(key, job.path)
                return jobs.FileResult(job.number, jobs.STORED, size)
        else:
            with open(open_regular(job.path), "rb") as file:
                data = file.read()
            if job.replace:
                self._bucket.write(key, data)
            if job.replace or self._bucket.write_new(key, data):
                return jobs.FileResult(job.number, jobs.STORED, size)
        return jobs.FileResult(job.number, jobs.STORED, 0)
