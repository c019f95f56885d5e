"""One bucket, and botocore's many errors translated in one place."""

import os
import threading
import time
from collections import namedtuple
from contextlib import contextmanager
from email.utils import parsedate_to_datetime

import botocore.session
from botocore import exceptions as boto
from botocore.config import Config

from .. import __version__
from ..errors import Absent, Damaged, RemoteError, TimedOut, Unavailable, Unusable
from .fast_get import DirectGets
from .slow_body import PatientBody

# An object in a listing: its size in bytes, when it was written by the store's own clock (epoch, s).
Listed = namedtuple("Listed", "key size modified_s")

# Bodies of more bytes than this go in parts, several at once, through s3transfer.
LARGE_BYTES = 8 << 20

CONNECT_TIMEOUT_S = 3
FETCH_READ_TIMEOUT_S = 6  # a get waits for it, and a miss is better than a long wait
UPLOAD_READ_TIMEOUT_S = 20
# A fetch is tried again by Bucket.open, and only where it did not time out.
FETCH_ATTEMPTS = 1
UPLOAD_ATTEMPTS = 2

_REASON_LENGTH = 300  # some errors quote whole regular expressions
_LIST_KEYS = 1000  # the most that S3 gives in one answer
_NO_SUCH_RANGE = ("416", "InvalidRange")
_ABSENT = ("404", "NoSuchKey", "NotFound")
_REFUSED = (
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "NoSuchBucket",
    "InvalidBucketName",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
)
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.SSOError,
    boto.ProfileNotFound,
    boto.ConfigParseError,
    boto.InvalidConfigError,
    boto.UnknownCredentialError,
    boto.ParamValidationError,
    boto.InvalidRegionError,
    boto.NoRegionError,
    boto.UnsupportedS3ConfigurationError,
)
_TIMED_OUT = (boto.ConnectTimeoutError, boto.ReadTimeoutError)
# What a store says that does not know If-None-Match on a put.
_NOT_CONDITIONAL = ("NotImplemented", "501", "InvalidArgument", "InvalidRequest")


class Bucket:
    """Objects by key, in the bucket that ``options`` name. Safe to use from many threads."""

    def __init__(self, options) -> None:
        self._options = options
        self._name = options.bucket
        self._conditional_puts = True
        self._ahead_s = 0.0  # of our clock
        self._upload_client, self._lock = None, threading.Lock()
        try:
            with translated():
                self._session = botocore.session.get_session()
                self._region = self._find_region()
                self._fetches = self._client(FETCH_READ_TIMEOUT_S, FETCH_ATTEMPTS)
                credentials = self._session.get_credentials()
                if credentials is None:
                    raise Unusable("no AWS credentials found")
                self._gets = DirectGets(self._fetches, credentials)
        except ValueError as error:  # an endpoint URL that only botocore finds wrong
            raise Unusable(_one_line(error)) from error

    def _find_region(self) -> str:
        region = (
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
            return self._region  # not allowed to ask, a store without regions, or S3 is down
        location = answer.get("LocationConstraint") or self._region
        return "eu-west-1" if location == "EU" else location

    @property
    def _uploads(self):
        """The client for all that writes: made when it is needed, as gets wait for the first one."""
        with self._lock:
            if self._upload_client is None:
                self._upload_client = self._client(UPLOAD_READ_TIMEOUT_S, UPLOAD_ATTEMPTS)
            return self._upload_client

    def _client(self, read_timeout_s: float, attempts: int):
        options = self._options
        return self._session.create_client(
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
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path" if options.path_style else "auto"},
                user_agent_extra=f"go-cache-plugin/{__version__}",
            ),
        )

    def read(self, key: str, limit: int) -> bytes:
        """A small object; no more than its first ``limit`` bytes."""
        with self.open(key) as (_, body):
            return body.read(limit)

    def read_all(self, key: str, limit: int) -> bytes:
        """A small object, whole; raises Damaged where it has more than ``limit`` bytes."""
        with self.open(key) as (length, body):
            if length > limit:
                raise Damaged(f"{key} has {length} bytes")
            return PatientBody(body).read(length)

    @contextmanager
    def open_range(self, key: str, start: int, length: int):
        """The body of a part of an object, with ``read(n)``, for the context.

        Raises Damaged where the object has no such part.
        """
        try:
            with self.open(key, f"bytes={start}-{start + length - 1}") as (got, body):
                if got < length:
                    raise Damaged(f"{key} has {got} of {length} bytes at {start}")
                if got > length:
                    raise Unavailable(f"{key}: the store gives more than the range that was asked")
                yield body
        except Unavailable as error:
            cause = error.__cause__
            if isinstance(cause, boto.ClientError) and _code_and_status(cause)[0] in _NO_SUCH_RANGE:
                raise Damaged(f"{key} has nothing at {start}") from error
            raise

    @contextmanager
    def open(self, key: str, byte_range: str = None):
        """(length in bytes, body with ``read(n)`` and ``close()``) of an object, for the context.

        ``byte_range``: the part that is asked for, as the Range header says it.
        """
        with translated():
            tried = self._gets.ready
            body = self._gets.open(key, byte_range)
            if body is not None:
                length = int(body.headers["content-length"])
            else:
                answer = self._get_object(key, byte_range, again=not tried)
                body, length = answer["Body"], answer["ContentLength"]
            whole = False
            try:
                yield length, body
                whole = True
            finally:
                # A connection goes back to the pool with the last byte read; with some unread, never.
                if not whole or body.read(1):
                    body.close()

    def _get_object(self, key, byte_range, again):
        """get_object, and once more after a failure that was not a time-out, if ``again``."""
        part = {"Range": byte_range} if byte_range else {}
        return self._tried_twice(
            lambda: self._fetches.get_object(Bucket=self._name, Key=key, **part), again
        )

    def _tried_twice(self, request, again=True):
        try:
            with translated():
                return request()
        except TimedOut:
            raise
        except Unavailable:
            if not again:
                raise
        with translated():
            return request()

    def list(self, prefix: str, limit: int = _LIST_KEYS) -> list:
        """The first objects whose keys begin with ``prefix``, as Listed, in the order of keys.

        One request, so 1000 of them at most.
        """
        with _listing():
            answer = self._tried_twice(
                lambda: self._fetches.list_objects_v2(
                    Bucket=self._name, Prefix=prefix, MaxKeys=min(limit, _LIST_KEYS)
                )
            )
        self._note_time(answer)
        return [_listed(item) for item in answer.get("Contents", ())]

    def _note_time(self, answer) -> None:
        try:
            date = answer["ResponseMetadata"]["HTTPHeaders"]["date"]
            self._ahead_s = parsedate_to_datetime(date).timestamp() - time.time()
        except (KeyError, ValueError, TypeError):
            pass  # a store that does not tell

    def now_s(self) -> float:
        """Seconds since the epoch by the store's own clock, as its last listing told it."""
        return time.time() + self._ahead_s

    def list_all(self, prefix: str):
        """All of the objects that ``list`` gives the first of; an iterator."""
        with _listing(), translated():
            pages = self._fetches.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._name, Prefix=prefix):
                self._note_time(page)
                for item in page.get("Contents", ()):
                    yield _listed(item)

    def delete(self, keys) -> None:
        """Delete objects; one that is not there is no error. Raises Unavailable where one stays."""
        keys = list(keys)
        for at in range(0, len(keys), _LIST_KEYS):
            batch = {"Objects": [{"Key": key} for key in keys[at : at + _LIST_KEYS]], "Quiet": True}
            with translated():
                answer = self._uploads.delete_objects(Bucket=self._name, Delete=batch)
            for error in answer.get("Errors", ()):
                raise Unavailable(f"{error.get('Key')} stays: {error.get('Code')}")

    def exists(self, key: str) -> bool:
        try:
            with translated():
                self._uploads.head_object(Bucket=self._name, Key=key)
        except Absent:
            return False
        return True

    def write(self, key: str, data: bytes) -> None:
        """Write an object, in place of any older one."""
        with translated():
            self._uploads.put_object(Bucket=self._name, Key=key, Body=data)

    def write_new(self, key: str, data: bytes) -> bool:
        """Write an object unless it exists; returns whether it was written."""
        if self._conditional_puts:
            try:
                with translated():
                    self._uploads.put_object(Bucket=self._name, Key=key, Body=data, IfNoneMatch="*")
                return True
            except RemoteError as error:
                cause = error.__cause__
                if not isinstance(cause, boto.ClientError):
                    raise
                code, status = _code_and_status(cause)
                if status == 412:
                    return False
                if status == 501 or code in _NOT_CONDITIONAL:
                    self._conditional_puts = False
                elif status != 409:  # 409: somebody else is writing it at this moment
                    raise
        if self.exists(key):
            return False
        self.write(key, data)
        return True

    def download(self, key: str, file, size: int) -> None:
        """Write an object of ``size`` bytes into a seekable binary ``file``, in parallel parts."""
        from s3transfer.subscribers import BaseSubscriber

        class KnownSize(BaseSubscriber):
            def on_queued(self, future, **_):
                future.meta.provide_transfer_size(size)

        with translated(), _transfers(self._fetches) as transfers:
            transfers.download(self._name, key, file, subscribers=[KnownSize()]).result()

    def upload_file(self, key: str, source) -> None:
        """Write ``source`` to an object, in parallel parts and constant memory.

        It is the path of a file, or what has ``read(n)``; what that raises comes out, and then there
        is no object.
        """
        with translated(), _transfers(self._uploads) as transfers:
            transfers.upload(source, self._name, key).result()

    def abort_uploads(self, prefix: str, wanted) -> None:
        """Abort multipart uploads that somebody began and did not end, of keys with ``prefix``.

        Those for which ``wanted(key, when it began in seconds since the epoch)`` is true.
        """
        with translated():
            found = self._uploads.list_multipart_uploads(Bucket=self._name, Prefix=prefix)
            for upload in found.get("Uploads", ()):
                if wanted(upload["Key"], upload["Initiated"].timestamp()):
                    self._uploads.abort_multipart_upload(
                        Bucket=self._name, Key=upload["Key"], UploadId=upload["UploadId"]
                    )


def _transfers(client):
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
def translated():
    """Turn what botocore, s3transfer and urllib3 raise into this package's RemoteError."""
    from s3transfer.exceptions import RetriesExceededError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except boto.ClientError as error:
        code, status = _code_and_status(error)
        if code in _REFUSED:
            raise Unusable(_one_line(error)) from error
        if code in _ABSENT:
            raise Absent(_one_line(error)) from error
        raise Unavailable(_one_line(error)) from error
    except _NO_CREDENTIALS as error:
        raise Unusable(_one_line(error)) from error
    except _TIMED_OUT as error:
        raise TimedOut(_one_line(error)) from error
    except (boto.BotoCoreError, RetriesExceededError, HTTPError) as error:
        raise Unavailable(_one_line(error)) from error


@contextmanager
def _listing():
    """A listing has no keys that could be absent: who answers 404 to it is no S3."""
    try:
        yield
    except Absent as error:
        raise Unusable(f"it cannot be listed: {error}") from error


def _listed(item) -> Listed:
    return Listed(item["Key"], item["Size"], item["LastModified"].timestamp())


def _code_and_status(error):
    return (
        str(error.response.get("Error", {}).get("Code", "")),
        error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0),
    )


def _one_line(error) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _REASON_LENGTH else f"{text[:_REASON_LENGTH]}..."
