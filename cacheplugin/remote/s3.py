"""One bucket through botocore."""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing, contextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from botocore import exceptions as boto
from botocore.config import Config

from .. import __version__
from ..errors import Absent, Damaged, RemoteError, TimedOut, Unavailable, Unusable
from ..tuples import NamedTuple
from . import settings
from .body_reader import BodyReader
from .fast_get import FastGet
from .s3_errors import code_and_status, one_line, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, BinaryIO, TypeVar

    from ..options import Options
    from .body_reader import Body

    T = TypeVar("T")

LARGE_BYTES = 8 << 20  # s3transfer moves larger bodies, in parallel parts

CONNECT_TIMEOUT_S = 3
FETCH_READ_TIMEOUT_S = 6  # a get waits for a fetch, and a miss is better than a long wait
UPLOAD_READ_TIMEOUT_S = 20
FETCH_ATTEMPTS = 1  # Bucket._retry_once repeats requests of fetches, except after a time-out
UPLOAD_ATTEMPTS = 2

_LIST_KEYS = 1000  # the most keys in one listing or deletion
_NO_SUCH_RANGE = ("416", "InvalidRange")
# Errors of stores that do not support If-None-Match or If-Match on a put.
_NOT_CONDITIONAL = ("NotImplemented", "501", "InvalidArgument", "InvalidRequest")
# HTTP statuses of answers to conditional puts.
_WRITTEN, _FORBIDDEN, _CONFLICT, _CHANGED, _NOT_SUPPORTED = 200, 403, 409, 412, 501


class Listed(NamedTuple):
    """An object in a listing. ``modified_s``: seconds since the epoch by the store's clock."""

    key: str
    size: int
    modified_s: float


class Bucket:
    """Objects by key in the bucket that ``options`` name. Thread-safe; methods raise RemoteError.

    The constructor raises Unusable if the configuration or the credentials cannot be used.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._name = options.bucket
        self._conditional_puts = True
        self._clock_offset_s = 0.0  # the store's clock minus ours
        self._upload_client: Any = None
        self._lock = threading.Lock()
        try:
            with translated():
                self._session: Any = settings.open_session(options, os.environ)
                self._region = self._find_region()
                self._fetches = self._client(FETCH_READ_TIMEOUT_S, FETCH_ATTEMPTS)
                credentials = self._session.get_credentials()
                if credentials is None:
                    raise Unusable("no AWS credentials found")
                self._fast_get = FastGet(
                    self._fetches, credentials, settings.payer_headers(options)
                )
        except ValueError as error:  # an endpoint URL that options accepts and botocore refuses
            raise Unusable(one_line(error)) from error

    def _find_region(self) -> str:
        region: str = (
            self._options.region
            or os.environ.get("AWS_REGION")
            or self._session.get_config_variable("region")
        )
        if region:
            return region
        self._region = "us-east-1"
        client = self._client(FETCH_READ_TIMEOUT_S, FETCH_ATTEMPTS)
        try:
            answer = client.get_bucket_location(Bucket=self._name)
        except (boto.ClientError, boto.HTTPClientError, boto.ConnectionError):
            return self._region  # not permitted, a store without regions, or S3 is down
        location: str = answer.get("LocationConstraint") or self._region
        return "eu-west-1" if location == "EU" else location

    @property
    def _uploads(self) -> Any:
        """The client for requests that write, made at the first one: gets need not wait for it."""
        with self._lock:
            if self._upload_client is None:
                self._upload_client = self._client(UPLOAD_READ_TIMEOUT_S, UPLOAD_ATTEMPTS)
            return self._upload_client

    def _client(self, read_timeout_s: float, attempts: int) -> Any:
        options = self._options
        client = self._session.create_client(
            "s3",
            region_name=self._region,
            endpoint_url=options.endpoint_url or None,
            config=Config(
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=read_timeout_s,
                retries={"mode": "standard", "total_max_attempts": attempts},
                max_pool_connections=options.fetches_at_once + options.uploads_at_once,
                tcp_keepalive=True,
                parameter_validation=False,
                # A setting of the user's own counts: None leaves the choice to botocore.
                request_checksum_calculation=self._unless_set("request_checksum_calculation"),
                response_checksum_validation=self._unless_set("response_checksum_validation"),
                s3={"addressing_style": "path"} if options.path_style else None,
                user_agent_extra=f"go-cache-plugin/{__version__}",
            ),
        )
        settings.apply_to(client, options)
        return client

    def _unless_set(self, name: str) -> str | None:
        return None if settings.own_setting(self._session, name) else "when_required"

    def read(self, key: str, limit: int) -> bytes:
        """The first ``limit`` bytes of a small object, or all of it if it has fewer."""
        with self.open(key) as (_, body):
            return body.read(limit)

    def read_all(self, key: str, limit: int) -> bytes:
        """The whole of an object; raises Damaged if it has more than ``limit`` bytes."""
        with self.open(key) as (length, body):
            if length > limit:
                raise Damaged(f"{key} has {length} bytes, more than the {limit} allowed")
            return BodyReader(body).read(length)

    @contextmanager
    def open_range(self, key: str, start: int, length: int) -> Iterator[Body]:
        """A context with the body of a part of an object.

        Raises Damaged if the object ends before the part does.
        """
        try:
            with self.open(key, f"bytes={start}-{start + length - 1}") as (got, body):
                if got < length:
                    raise Damaged(f"{key} has only {got} of {length} bytes at offset {start}")
                if got > length:
                    raise Unavailable(f"{key}: the store sends more than the requested range")
                yield body
        except Unavailable as error:
            if code_and_status(error.__cause__)[0] in _NO_SUCH_RANGE:
                raise Damaged(f"{key} has no bytes at offset {start}") from error
            raise

    @contextmanager
    def open(self, key: str, byte_range: str | None = None) -> Iterator[tuple[int, Body]]:
        """A context with the length in bytes and the body of an object.

        ``byte_range``: the value of a Range header, to get a part of the object.
        """
        with translated():
            tried = self._fast_get.is_ready
            body = self._fast_get.open(key, byte_range)
            if body is not None:
                length = int(body.headers["content-length"])
            else:
                answer = self._get_object(key, byte_range, retry=not tried)
                body, length = answer["Body"], answer["ContentLength"]
            complete = False
            try:
                yield length, body
                complete = True
            finally:
                # urllib3 reuses a connection after the last byte of a body is read. One with unread
                # bytes must be closed.
                if not complete or body.read(1):
                    body.close()

    def _get_object(self, key: str, byte_range: str | None, retry: bool) -> Any:
        part = {"Range": byte_range} if byte_range else {}
        return self._retry_once(
            lambda: self._fetches.get_object(Bucket=self._name, Key=key, **part), retry
        )

    def _retry_once(self, request: Callable[[], T], retry: bool = True) -> T:
        """The result of ``request``; if ``retry``, repeated after a failure that is no time-out."""
        try:
            with translated():
                return request()
        except TimedOut:
            raise
        except Unavailable:
            if not retry:
                raise
        with translated():
            return request()

    def list(self, prefix: str, limit: int = _LIST_KEYS) -> Sequence[Listed]:
        """The first objects whose keys begin with ``prefix``, in the order of keys.

        Sends one request, so ``limit`` is at most 1000.
        """
        with _listing():
            answer = self._retry_once(
                lambda: self._fetches.list_objects_v2(
                    Bucket=self._name, Prefix=prefix, MaxKeys=min(limit, _LIST_KEYS)
                )
            )
        self._note_time(answer)
        return [_listed(item) for item in answer.get("Contents", ())]

    def _note_time(self, answer: Any) -> None:
        """Learn the offset of the store's clock from a response's Date header."""
        try:
            date = answer["ResponseMetadata"]["HTTPHeaders"]["date"]
            self._clock_offset_s = parsedate_to_datetime(date).timestamp() - time.time()
        except (KeyError, ValueError, TypeError):
            pass  # the store sends no usable Date

    def now_s(self) -> float:
        """Seconds since the epoch by the store's clock, as the Date of the last listing gave it."""
        return time.time() + self._clock_offset_s

    def list_all(self, prefix: str) -> Iterator[Listed]:
        """All objects whose keys begin with ``prefix``, in the order of keys."""
        with _listing(), translated():
            pages = self._fetches.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._name, Prefix=prefix):
                self._note_time(page)
                for item in page.get("Contents", ()):
                    yield _listed(item)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; absent ones are no error. Raises Unavailable if one is not deleted."""
        keys = [*keys]
        for at in range(0, len(keys), _LIST_KEYS):
            batch = {"Objects": [{"Key": key} for key in keys[at : at + _LIST_KEYS]], "Quiet": True}
            with translated():
                answer = self._uploads.delete_objects(Bucket=self._name, Delete=batch)
            for error in answer.get("Errors", ()):
                raise Unavailable(f"{error.get('Key')} was not deleted: {error.get('Code')}")

    def exists(self, key: str) -> bool:
        try:
            with translated():
                self._uploads.head_object(Bucket=self._name, Key=key)
        except Absent:
            return False
        return True

    def write(self, key: str, data: bytes) -> None:
        """Write an object, over an existing one too."""
        with translated():
            self._uploads.put_object(Bucket=self._name, Key=key, Body=data)

    def write_new(self, key: str, data: bytes) -> bool:
        """Write an object unless it exists; returns whether it was written."""
        status = self._write_if(key, data, IfNoneMatch="*")
        if status not in (_CONFLICT, _NOT_SUPPORTED):
            return status == _WRITTEN
        if self.exists(key):
            return False
        self.write(key, data)
        return True

    def read_version(self, key: str, limit: int) -> tuple[bytes, str] | None:
        """The first ``limit`` bytes of a small object, and its version for ``write_over``.

        None if it does not exist. S3 answers 403 for that as well, to those who may not list.
        """
        try:
            with translated():
                answer = self._get_object(key, None, retry=True)
                with closing(answer["Body"]) as body:
                    return body.read(limit), answer.get("ETag", "")
        except Absent:
            return None
        except Unavailable as error:
            if code_and_status(error.__cause__)[1] == _FORBIDDEN:
                return None
            raise

    def write_over(self, key: str, data: bytes, version: str | None) -> bool:
        """Write an object unless it has changed since ``version``; returns whether it was written.

        ``version`` None: it did not exist. On a store without conditional puts it is written.
        """
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            status = self._write_if(key, data, **condition) if version != "" else _NOT_SUPPORTED
        except Absent:  # deleted since
            return False
        if status == _NOT_SUPPORTED:
            self.write(key, data)
            return True
        return status == _WRITTEN

    def _write_if(self, key: str, data: bytes, **condition: str) -> int:
        """Write an object if ``condition`` holds.

        Returns _WRITTEN; _CHANGED if it does not hold; _CONFLICT if another writer is writing the
        object now; _NOT_SUPPORTED if the store does not support conditions.
        """
        if not self._conditional_puts:
            return _NOT_SUPPORTED
        try:
            with translated():
                self._uploads.put_object(Bucket=self._name, Key=key, Body=data, **condition)
        except RemoteError as error:
            code, status = code_and_status(error.__cause__)
            if status in (_CHANGED, _CONFLICT):
                return status
            if status != _NOT_SUPPORTED and code not in _NOT_CONDITIONAL:
                raise
            self._conditional_puts = False
            return _NOT_SUPPORTED
        return _WRITTEN

    def download(self, key: str, file: BinaryIO, size: int) -> None:
        """Write an object of ``size`` bytes into a seekable binary ``file``, in parallel parts."""
        from s3transfer.subscribers import BaseSubscriber

        class KnownSize(BaseSubscriber):  # type: ignore[misc] # s3transfer has no types
            def on_queued(self, future: Any, **_: Any) -> None:
                future.meta.provide_transfer_size(size)

        with translated(), _transfers(self._fetches) as transfers:
            transfers.download(self._name, key, file, subscribers=[KnownSize()]).result()

    def upload_file(self, key: str, source: str | Body) -> None:
        """Write ``source``, a path or a body, to an object, in parallel parts and constant memory.

        Also raises what ``source.read`` raises; then the object is not written.
        """
        with translated(), _transfers(self._uploads) as transfers:
            transfers.upload(source, self._name, key).result()

    def abort_uploads(self, prefix: str, is_wanted: Callable[[str, float], bool]) -> None:
        """Abort unfinished multipart uploads of keys that begin with ``prefix``.

        Only those for which ``is_wanted(key, begin in seconds since the epoch)`` is true.
        """
        with translated():
            found = self._uploads.list_multipart_uploads(Bucket=self._name, Prefix=prefix)
            for upload in found.get("Uploads", ()):
                if is_wanted(upload["Key"], upload["Initiated"].timestamp()):
                    self._uploads.abort_multipart_upload(
                        Bucket=self._name, Key=upload["Key"], UploadId=upload["UploadId"]
                    )


def _transfers(client: Any) -> Any:
    from s3transfer.manager import TransferConfig, TransferManager

    return TransferManager(
        client,
        TransferConfig(
            multipart_threshold=LARGE_BYTES,
            multipart_chunksize=LARGE_BYTES,
            max_request_concurrency=4,
            max_in_memory_upload_chunks=2,
            max_in_memory_download_chunks=2,
        ),
    )


@contextmanager
def _listing() -> Iterator[None]:
    """Translate a 404 into Unusable: a server that answers a listing so is not an S3 bucket."""
    try:
        yield
    except Absent as error:
        raise Unusable(f"the bucket cannot be listed: {error}") from error


def _listed(item: Any) -> Listed:
    return Listed(item["Key"], item["Size"], item["LastModified"].timestamp())
