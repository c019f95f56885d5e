"""The layout ``objects``: one object for each action and one for each output.

::

    [prefix/]action/<xx>/<action id>   "<output id> <unix nanoseconds>", no newline
    [prefix/]output/<xx>/<output id>   the body

It is the Go program's, byte for byte, so that both may share a bucket.
"""

import hashlib
from collections import namedtuple

from ..errors import Absent, BodyMismatch, Damaged, RemoteError
from ..ipc import jobs
from ..options import key_prefix
from ..store.tree import EMPTY_OUTPUT
from .s3 import LARGE_BYTES
from .slow_body import PatientBody

# received, sent: bytes of bodies over the network; found: the bucket had the body already.
Fetched = namedtuple("Fetched", "output size time_ns path received")
Uploaded = namedtuple("Uploaded", "found sent")

_ACTION_BYTES = 512
_CHUNK_BYTES = 1 << 18


class ObjectsLayout:
    """``bucket`` is a remote.s3.Bucket, ``cache`` a LocalCache, ``prefix`` clean or empty."""

    def __init__(self, bucket, cache, prefix: str) -> None:
        self._bucket = bucket
        self._cache = cache
        self._prefix = key_prefix(prefix)
        self._uploaded = set()  # outputs the bucket is known to hold

    def _key(self, kind: str, name: str) -> str:
        return f"{self._prefix}{kind}/{name[:2]}/{name}"

    def fetch_job(self, job) -> jobs.FetchResult:
        got = self.fetch(job.action)
        return jobs.FetchResult(job.number, job.action, jobs.HIT, *got, "")

    def upload_job(self, job) -> jobs.UploadResult:
        done = self.upload(job)
        return jobs.UploadResult(job.number, jobs.STORED, done.found, done.sent, "")

    def fetch(self, action: str) -> Fetched:
        """Bring an entry into the local cache, verified, and say where it is.

        Raises RemoteError, and OSError where the local disk does not take the body.
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
            raise Damaged(f"action {action} names an output that is not there") from error
        except BodyMismatch as error:
            raise Damaged(f"output {output}: {error}", output) from error
        self._uploaded.add(output)
        return Fetched(output, size, time_ns, path, size)

    def _download(self, action, output, time_ns):
        key = self._key("output", output)
        with self._bucket.open(key) as (size, body):
            if size <= LARGE_BYTES:
                with self._cache.writer(action, output, size) as writer:
                    body, left = PatientBody(body), size
                    while left:
                        writer.write(body.read(min(left, _CHUNK_BYTES)))
                        left -= min(left, _CHUNK_BYTES)
                    return size, writer.commit(time_ns)
        with self._cache.writer(action, output, size) as writer:
            writer.fill(lambda file: self._bucket.download(key, file, size))
            return size, writer.commit(time_ns)

    def upload(self, job) -> Uploaded:
        """Make the bucket hold the entry of an UploadJob; doing it twice is harmless.

        Raises RemoteError (Damaged where the local body is gone or wrong), and OSError where it
        cannot be read.
        """
        found, sent = True, 0
        if job.output not in self._uploaded or job.replace:
            found = not self._upload_output(job)
            sent = 0 if found else job.size
            self._uploaded.add(job.output)
        key = self._key("action", job.action)
        if not (job.recovered and self._has_newer(key, job.time_ns)):
            self._bucket.write(key, f"{job.output} {job.time_ns}".encode())
        return Uploaded(found, sent)

    def _has_newer(self, key: str, time_ns: int) -> bool:
        """Whether the bucket has a later put of the action, which a late upload must not undo."""
        try:
            return parse_action(self._bucket.read(key, _ACTION_BYTES))[1] > time_ns
        except RemoteError:
            return False

    def _upload_output(self, job) -> bool:
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
                pass  # not allowed to; if S3 is down, what follows says so
        if not job.replace and self._bucket.exists(key):
            return False
        _checked_body(job)
        self._bucket.upload_file(key, job.path)
        return True


def parse_action(data: bytes):
    """(output id, time in nanoseconds) of an action object; raises Damaged."""
    fields = data.split()
    if len(fields) == 2:
        output, time_ns = fields
        if (
            len(output) == len(EMPTY_OUTPUT)
            and not output.strip(b"0123456789abcdef")
            and time_ns.isdigit()
            and len(time_ns) < 20  # and so before the year 2287
        ):
            return output.decode(), int(time_ns)
    raise Damaged(f"an action object holds {data[:80]!r}")


def _checked_body(job) -> bytes:
    """The body of an UploadJob, or nothing of a large one; what is uploaded is served to everybody.

    Raises Damaged where it is gone or not what its name says.
    """
    if job.output == EMPTY_OUTPUT:
        return b""
    digest, body = hashlib.sha256(), b""
    try:
        with open(job.path, "rb", buffering=0) as file:
            if job.size <= LARGE_BYTES:
                body = file.read()
                digest.update(body)
            else:
                while data := file.read(_CHUNK_BYTES):
                    digest.update(data)
    except FileNotFoundError as error:
        raise Damaged(f"{job.path} is gone") from error
    if digest.hexdigest() != job.output:
        raise Damaged(f"{job.path} is not what its name says")
    return body
