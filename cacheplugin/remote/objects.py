"""The layout ``objects``: one object for each action and one for each output.

::

    [prefix/]action/<xx>/<action id>   "<output id> <unix nanoseconds>", no newline
    [prefix/]output/<xx>/<output id>   the body

<xx> are the first two digits of the id. The layout is that of the Go program go-cache-plugin, byte
for byte, so that both programs can share a bucket.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

from ..errors import Absent, BodyMismatch, Damaged, RemoteError, Unavailable
from ..ipc import jobs
from ..options import key_prefix
from ..store.record import timestamp
from ..store.tree import EMPTY_OUTPUT
from ..tuples import NamedTuple
from .body_reader import BodyReader
from .local_body import open_body, unreadable
from .s3 import LARGE_BYTES

if TYPE_CHECKING:
    from ..store.cache import LocalCache
    from .contracts import Bucket

_ACTION_BYTES = 512
_CHUNK_BYTES = 1 << 18
_RECORD_TRIES = 5
_LATE_NS = 10 * 10**9  # a put that is uploaded so much later may have been overtaken
_SKEW_NS = 86400 * 10**9  # a put so far in the future was made by a wrong clock, or is a forgery


class Fetched(NamedTuple):
    """An entry that is in the local cache now. ``received``: bytes over the network."""

    output: str
    size: int
    time_ns: int
    path: str
    received: int


class Uploaded(NamedTuple):
    """found: the bucket had the body already; sent: bytes over the network."""

    found: bool
    sent: int


class ActionRecord(NamedTuple):
    """The content of an action object."""

    output: str
    time_ns: int


class ObjectsLayout:
    """Does the tasks of the layout. ``prefix`` is that of --prefix, perhaps empty. Thread-safe."""

    def __init__(self, bucket: Bucket, cache: LocalCache, prefix: str) -> None:
        self._bucket = bucket
        self._cache = cache
        self._prefix = key_prefix(prefix)
        self._in_bucket: set[str] = set()  # outputs that the bucket is known to hold

    def _key(self, kind: str, name: str) -> str:
        return f"{self._prefix}{kind}/{name[:2]}/{name}"

    def fetch_job(self, job: jobs.FetchJob) -> jobs.FetchResult:
        got = self.fetch(job.action)
        return jobs.FetchResult(job.number, job.action, jobs.HIT, *got)

    def upload_job(self, job: jobs.UploadJob) -> jobs.UploadResult:
        done = self.upload(job)
        return jobs.UploadResult(job.number, jobs.STORED, done.found, done.sent)

    def fetch(self, action: str) -> Fetched:
        """Bring the entry of an action into the local cache and check its body.

        Raises RemoteError, and OSError if the body cannot be written to the local disk.
        """
        output, time_ns = parse_action(
            self._bucket.read(self._key("action", action), _ACTION_BYTES)
        )
        adopted = self._cache.adopt(action, output, time_ns)
        if adopted:
            size, path = adopted
            return Fetched(output, size, time_ns, path, 0)
        try:
            size, path = self._download(action, output, time_ns)
        except Absent as error:
            raise Damaged(f"action {action} names output {output}, which is absent") from error
        except BodyMismatch as error:
            raise Damaged(f"output {output}: {error}", output) from error
        self._in_bucket.add(output)
        return Fetched(output, size, time_ns, path, size)

    def _download(self, action: str, output: str, time_ns: int) -> tuple[int, str]:
        """Store a body and its record; returns the body's size and path."""
        key = self._key("output", output)
        with self._bucket.open(key) as (size, body):
            if size <= LARGE_BYTES:
                with self._cache.writer(action, output, size) as writer:
                    reader, left = BodyReader(body), size
                    while left:
                        writer.write(reader.read(min(left, _CHUNK_BYTES)))
                        left -= min(left, _CHUNK_BYTES)
                    return size, writer.commit(time_ns)
        with self._cache.writer(action, output, size) as writer:
            writer.fill(lambda file: self._bucket.download(key, file, size))
            return size, writer.commit(time_ns)

    def upload(self, job: jobs.UploadJob) -> Uploaded:
        """Make the bucket hold the entry of a job. A second upload of the same entry is harmless.

        Raises RemoteError (Damaged if the local body is missing or wrong, Unreadable if it cannot
        be read).
        """
        found, sent = True, 0
        if job.output not in self._in_bucket or job.replace:
            found = not self._upload_output(job)
            sent = 0 if found else job.size
            self._in_bucket.add(job.output)
        self._write_record(job)
        return Uploaded(found, sent)

    def _write_record(self, job: jobs.UploadJob) -> None:
        """Write a job's record, unless the bucket has that of a later put.

        A put usually follows a miss, so the first try expects that there is no record.
        """
        key, record = self._key("action", job.action), f"{job.output} {job.time_ns}".encode()
        must_look = self._may_be_late(job)
        for _ in range(_RECORD_TRIES):
            found = self._bucket.read_version(key, _ACTION_BYTES) if must_look else None
            if found is not None and _is_later(found[0], job.time_ns):
                return
            if self._bucket.write_over(key, record, None if found is None else found[1]):
                return
            must_look = True
        raise Unavailable(
            f"{key} was replaced {_RECORD_TRIES} times by other machines during its upload"
        )

    def _may_be_late(self, job: jobs.UploadJob) -> bool:
        """Whether the bucket must be asked for a later put first.

        On a store that supports conditional puts this is never needed; others ignore the condition.
        """
        if job.recovered or time.time_ns() - job.time_ns > _LATE_NS:
            return True
        local = self._cache.lookup(job.action)
        return local is not None and local[2] > timestamp(job.time_ns)

    def _upload_output(self, job: jobs.UploadJob) -> bool:
        """Write a job's body unless the bucket has it; returns whether it was written."""
        key = self._key("output", job.output)
        if job.size <= LARGE_BYTES:
            body = _checked_body(job)
            if not job.replace:
                return self._bucket.write_new(key, body)
            self._bucket.write(key, body)
            return True
        if job.recovered:
            try:
                self._bucket.abort_uploads(key, lambda begun, _: begun == key)
            except RemoteError:
                pass  # maybe it is not permitted; if S3 is down, the next request reports that
        if not job.replace and self._bucket.exists(key):
            return False
        _checked_body(job)
        try:
            self._bucket.upload_file(key, job.path)
        except OSError as error:
            raise unreadable(job.path, error) from error
        return True


def parse_action(data: bytes) -> ActionRecord:
    """Parse an action object; raises Damaged."""
    fields = data.split()
    if len(fields) == 2:
        output, time_ns = fields
        if (
            len(output) == len(EMPTY_OUTPUT)
            and not output.strip(b"0123456789abcdef")
            and time_ns.isdigit()
            and len(time_ns) < 20  # and so before the year 2287
        ):
            return ActionRecord(output.decode(), int(time_ns))
    raise Damaged(f"an action object has invalid content: {data[:80]!r}")


def _is_later(record: bytes, time_ns: int) -> bool:
    """Whether an action object is that of a later put, which a late upload must not undo."""
    try:
        found_ns = parse_action(record).time_ns
    except Damaged:
        return False
    return time_ns < found_ns < time.time_ns() + _SKEW_NS


def _checked_body(job: jobs.UploadJob) -> bytes:
    """Check a local body by its SHA-256, because every machine is served what is uploaded.

    Returns the body, or b"" for a large one, which is only checked. Raises Damaged if the body is
    missing or wrong, Unreadable if it cannot be read.
    """
    if job.output == EMPTY_OUTPUT:
        return b""
    digest, body = hashlib.sha256(), b""
    try:
        with open_body(job.path) as file:
            if job.size <= LARGE_BYTES:
                body = file.read()
                digest.update(body)
            else:
                while data := file.read(_CHUNK_BYTES):
                    digest.update(data)
    except FileNotFoundError as error:
        raise Damaged(f"{job.path} is missing") from error
    except OSError as error:
        raise unreadable(job.path, error) from error
    if digest.hexdigest() != job.output:
        raise Damaged(f"{job.path} does not have the SHA-256 of output {job.output}")
    return body
