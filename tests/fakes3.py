"""An S3 server in memory for tests, which can be told to fail in many ways.

It supports path-style addresses: GET and HEAD (with Range), PUT (with If-None-Match and If-Match)
and DELETE of an object, ListObjectsV2, DeleteObjects and multipart uploads, for bodies with a
Content-Length. All bucket names exist and stand for the same bucket. Tests that need a complete
server use moto or versitygw.
"""

import re
import socket
import sys
import threading
import time
import uuid
from collections import namedtuple
from collections.abc import MutableMapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from replies import Replies

_ERROR = "<Error><Code>{code}</Code><Message>told to</Message></Error>"
_CODES = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}
_STATUS = {  # HTTP statuses by error code; 403 for other codes
    "EntityTooSmall": 400,
    "InternalError": 500,
    "InvalidArgument": 400,
    "InvalidPart": 400,
    "InvalidPartOrder": 400,
    "InvalidRange": 416,
    "MalformedXML": 400,
    "NoSuchBucket": 404,
    "NoSuchKey": 404,
    "NoSuchUpload": 404,
    "NotImplemented": 501,
    "PreconditionFailed": 412,
    "SlowDown": 503,
}
_RANGE = re.compile(r"bytes=(?:(\d+)-(\d*)|-(\d+))")

# Query parameters that select another operation, and how ``requests`` notes it for the bucket.
_CALLS = {"list-type": "?list", "uploads": "?uploads", "delete": "?delete", "uploadId": "?uploadId"}

# S3's own limits.
MOST_PER_REQUEST = 1000  # keys in a page of a list, or in a DeleteObjects
LAST_PART_NUMBER = 10_000
MIN_PART_BYTES = 5 << 20  # of every part but the last

# Faults in place of a response, and faults of the body in a response.
FAILURES = ("refuse", "hang", "500", "503", "403")
DAMAGE = ("truncate", "flip", "die")

# An unfinished multipart upload: parts is {part number: bytes}, began is in epoch seconds.
Upload = namedtuple("Upload", "key parts began")


class _Objects(dict):
    """{key: body} that notes in ``modified`` when a body was written."""

    def __init__(self, modified) -> None:
        super().__init__()
        self._modified = modified

    def __setitem__(self, key, body) -> None:
        self._modified[key] = time.time()
        super().__setitem__(key, body)

    update = MutableMapping.update
    setdefault = MutableMapping.setdefault


class FakeS3:
    """``objects``: {key: body}; ``requests``: [(method, key)] in order; ``served``: their number.

    The key noted for a request to the bucket is "?list <prefix>", "?uploads <prefix>" (a list of
    multipart uploads) or "?delete" (DeleteObjects).

    ``signers``: (access key id, region) of every signature that came with a request.

    ``modified``: {key: epoch seconds}, set whenever a body is put into ``objects``; a test may
    change an entry afterwards. Clients get whole seconds, as from S3. ``uploads``: {upload id:
    Upload}.

    ``fault``: None, one of FAILURES or DAMAGE, or the code of an error to answer with.
    ``faulty(method, key)`` selects the requests that the fault affects. ``hold(method, key)``
    selects the requests that wait for ``release``; ``held`` counts them. ``quirk(handler)`` may
    answer a request in place of the server, and returns whether it has: see s3quirks.py.
    """

    def __init__(self) -> None:
        self.modified, self.uploads, self.requests = {}, {}, []
        self.signers = set()
        self.objects = _Objects(self.modified)
        self.served = 0
        self.fault = None
        self.faulty = lambda method, key: True
        self.hold = lambda method, key: False
        self.quirk = lambda handler: False
        self.held = 0
        self.lock = threading.Lock()
        self._nth = {}
        self._released = threading.Event()
        self._server = None
        self._listen(0)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _listen(self, port) -> None:
        handler = type("Handler", (_Handler,), {"s3": self})
        self._server = _Server(("127.0.0.1", port), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def flags(self, bucket: str = "bucket", layout: str = "objects") -> list:
        return [
            f"--bucket={bucket}",
            f"--s3-endpoint-url={self.url}",
            "--s3-path-style",
            f"--layout={layout}",
        ]

    def fail(self, fault) -> None:
        """Apply ``fault`` to the requests that ``faulty`` selects, from now on."""
        self.fault = fault
        if fault == "refuse":
            self._close()

    def fail_nth(self, n: int, fault) -> None:
        """Apply ``fault`` to the ``n``-th request from now (1: the next) alone.

        This ignores ``faulty`` and replaces the fault of ``fail``. "refuse" closes the connection.
        """
        with self.lock:
            self._nth[self.served + n] = fault

    def begin(self, method: str, key: str):
        """Note a request and hold it if ``hold`` selects it; returns the fault that affects it."""
        with self.lock:
            self.served += 1
            number = self.served
            self.requests.append((method, key))
        if self.hold(method, key):
            self.wait_for_release()
        with self.lock:
            if number in self._nth:
                return self._nth.pop(number)
        return self.fault if self.faulty(method, key) else None

    def count(self, method: str, word: str = "") -> int:
        return sum(got == method and word in key for got, key in list(self.requests))

    def wait_for_release(self) -> None:
        with self.lock:
            self.held += 1
        self._released.wait(60)

    def release(self) -> None:
        """Let held requests go on, and hold no more."""
        self.hold = lambda method, key: False
        self._released.set()

    def _close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None

    def stop(self) -> None:
        self.fault = None
        self.release()
        self._close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):  # of a client that was killed
            super().handle_error(request, client_address)


class _Refused(Exception):
    """An error response; the text is its error code."""


class _Handler(Replies, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise a body is sent 40 ms after its headers
    s3 = None

    def do_GET(self):
        self._serve(b"")

    do_HEAD = do_DELETE = do_GET

    def do_PUT(self):
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # the client was killed
            self.close_connection = True
        else:
            self._serve(body)

    do_POST = do_PUT

    def _serve(self, body) -> None:
        path, _, query = self.path.partition("?")
        self._bucket, _, key = path.lstrip("/").partition("/")
        self._key, self._body = unquote(key), body
        self._query = dict(parse_qsl(query, keep_blank_values=True))
        self._call = next((call for call in _CALLS if call in self._query), "")
        if self._begin() and not self.s3.quirk(self):
            about = "object" if self._key else "bucket"
            try:
                self._ACTIONS.get((self.command, about, self._call), _Handler._unknown)(self)
            except _Refused as refused:
                self._error(str(refused))

    def _begin(self) -> bool:
        """Note the request; returns whether to serve it."""
        s3 = self.s3
        if "Credential=" in self.headers.get("Authorization", ""):
            key_id, _, region, *_ = self.headers["Authorization"].split("Credential=")[1].split("/")
            s3.signers.add((key_id, region))
        fault = s3.begin(self.command, self._key or self._bucket_call())
        self._damage = fault if fault in DAMAGE else None
        if fault is None or self._damage:
            return True
        if fault in ("hang", "refuse"):  # refuse: for connections that were open before
            if fault == "hang":
                s3.wait_for_release()
            self.close_connection = True
        else:
            self._error(_CODES.get(fault, fault))
        return False

    def _bucket_call(self) -> str:
        """The key that is noted for a request to the bucket."""
        if not self._call:
            return ""
        name = _CALLS[self._call]
        return f"{name} {self._query.get('prefix', '')}" if self.command == "GET" else name

    def _unknown(self) -> None:
        raise _Refused("NotImplemented")

    def _get(self) -> None:
        with self.s3.lock:
            if self._key not in self.s3.objects:
                raise _Refused("NoSuchKey")
            body, modified_s = self.s3.objects[self._key], self.s3.modified[self._key]
        size = len(body)
        span = _span(self.headers.get("Range", ""), size)
        start, end = span or (0, size)
        if self._damage == "truncate":  # the headers agree with the shorter body
            end = size = start + (end - start) // 2
        if span and start >= size:
            raise _Refused("InvalidRange")
        headers = {"ETag": _etag(body), "Last-Modified": self.date_time_string(modified_s)}
        if span:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._send(206 if span else 200, body[start:end], headers)

    def _send(self, status, body, headers) -> None:
        """Send an object's ``body``, damaged as the request's fault says."""
        if self._damage == "flip":
            body = body[:-1] + bytes([body[-1] ^ 1]) if body else b""
        elif self._damage == "die":
            self._head(status, len(body), headers)
            self._write(body[: len(body) // 2])
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._reply(status, body, headers)

    def _put(self) -> None:
        with self.s3.lock:
            self._store(self._body)
        self._reply(200, b"", {"ETag": _etag(self._body)})

    def _store(self, body) -> None:
        """Store the object; the caller holds the lock."""
        found, wanted = self.s3.objects.get(self._key), self.headers.get("If-Match")
        if found is not None and self.headers.get("If-None-Match") == "*":
            raise _Refused("PreconditionFailed")
        if wanted and found is None:
            raise _Refused("NoSuchKey")
        if wanted and wanted != _etag(found):
            raise _Refused("PreconditionFailed")
        self.s3.objects[self._key] = body

    def _delete(self) -> None:
        self._remove([self._key])
        self._reply(204)

    def _delete_many(self) -> None:
        order = _parsed(self._body)
        keys = [listed.findtext("{*}Key") for listed in order.findall("{*}Object")]
        if not keys or len(keys) > MOST_PER_REQUEST or None in keys:
            raise _Refused("MalformedXML")
        self._remove(keys)
        quiet = order.findtext("{*}Quiet") == "true"
        deleted = [] if quiet else [_element("Deleted", _element("Key", escape(k))) for k in keys]
        self._answer("DeleteResult", *deleted)

    def _remove(self, keys) -> None:
        with self.s3.lock:
            for key in keys:
                self.s3.objects.pop(key, None)
                self.s3.modified.pop(key, None)

    def _list(self) -> None:
        query = self._query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        try:
            limit = min(int(query.get("max-keys", MOST_PER_REQUEST)), MOST_PER_REQUEST)
            token = bytes.fromhex(query.get("continuation-token", "")).decode()
        except ValueError:
            raise _Refused("InvalidArgument") from None
        after = "" if token else query.get("start-after", "")
        url = query.get("encoding-type") == "url"

        def named(tag, name):
            return _element(tag, quote(name) if url else escape(name))

        with self.s3.lock:
            objects, modified = dict(self.s3.objects), dict(self.s3.modified)
        names = {}  # {key or common prefix: whether it is a common prefix}
        for key in sorted(objects):
            if key.startswith(prefix) and key > after:
                cut = key.find(delimiter, len(prefix)) if delimiter else -1
                name = key if cut < 0 else key[: cut + len(delimiter)]
                if name > token:
                    names[name] = cut >= 0
        page = list(names)[:limit]
        more = 0 < limit < len(names)
        answer = [
            _element("Name", escape(self._bucket)),
            named("Prefix", prefix),
            _element("MaxKeys", limit),
            _element("KeyCount", len(page)),
            _element("IsTruncated", str(more).lower()),
        ]
        if delimiter:
            answer.append(named("Delimiter", delimiter))
        if url:
            answer.append(_element("EncodingType", "url"))
        if more:
            answer.append(_element("NextContinuationToken", page[-1].encode().hex()))
        for name in page:
            if names[name]:
                answer.append(_element("CommonPrefixes", named("Prefix", name)))
            else:
                about = [
                    named("Key", name),
                    _element("LastModified", _iso(modified[name])),
                    _element("ETag", escape(_etag(objects[name]))),
                    _element("Size", len(objects[name])),
                    _element("StorageClass", "STANDARD"),
                ]
                answer.append(_element("Contents", *about))
        self._answer("ListBucketResult", *answer)

    def _list_uploads(self) -> None:
        """List all uploads on one page, whatever page size is requested."""
        prefix = self._query.get("prefix", "")
        with self.s3.lock:
            uploads = [(upload.key, upload.began, n) for n, upload in self.s3.uploads.items()]
        answer = [
            _element("Bucket", escape(self._bucket)),
            _element("Prefix", escape(prefix)),
            _element("IsTruncated", "false"),
        ]
        for key, began, upload_id in sorted(uploads):
            if key.startswith(prefix):
                about = [
                    _element("Key", escape(key)),
                    _element("UploadId", escape(upload_id)),
                    _element("Initiated", _iso(began)),
                ]
                answer.append(_element("Upload", *about))
        self._answer("ListMultipartUploadsResult", *answer)

    def _create_upload(self) -> None:
        upload_id = uuid.uuid4().hex
        with self.s3.lock:
            self.s3.uploads[upload_id] = Upload(self._key, {}, time.time())
        self._answer(
            "InitiateMultipartUploadResult",
            _element("Bucket", escape(self._bucket)),
            _element("Key", escape(self._key)),
            _element("UploadId", upload_id),
        )

    def _upload(self) -> Upload:
        """The upload of the request; the caller holds the lock."""
        upload = self.s3.uploads.get(self._query["uploadId"])
        if upload is None or upload.key != self._key:
            raise _Refused("NoSuchUpload")
        return upload

    def _put_part(self) -> None:
        number = self._query.get("partNumber", "")
        if not number.isdecimal() or not 1 <= int(number) <= LAST_PART_NUMBER:
            raise _Refused("InvalidArgument")
        with self.s3.lock:
            self._upload().parts[int(number)] = self._body
        self._reply(200, b"", {"ETag": _etag(self._body)})

    def _complete(self) -> None:
        listed = [
            (int(part.findtext("{*}PartNumber")), part.findtext("{*}ETag"))
            for part in _parsed(self._body).findall("{*}Part")
        ]
        with self.s3.lock:
            whole = _joined(listed, self._upload().parts)
            self._store(whole)
            del self.s3.uploads[self._query["uploadId"]]
        self._answer(
            "CompleteMultipartUploadResult",
            _element("Bucket", escape(self._bucket)),
            _element("Key", escape(self._key)),
            _element("ETag", escape(_etag(whole))),
        )

    def _abort(self) -> None:
        with self.s3.lock:
            self._upload()
            del self.s3.uploads[self._query["uploadId"]]
        self._reply(204)

    _ACTIONS = {  # noqa: RUF012 # a table that is never changed
        ("GET", "object", ""): _get,
        ("HEAD", "object", ""): _get,
        ("PUT", "object", ""): _put,
        ("DELETE", "object", ""): _delete,
        ("GET", "bucket", "list-type"): _list,
        ("POST", "bucket", "delete"): _delete_many,
        ("GET", "bucket", "uploads"): _list_uploads,
        ("POST", "object", "uploads"): _create_upload,
        ("PUT", "object", "uploadId"): _put_part,
        ("POST", "object", "uploadId"): _complete,
        ("DELETE", "object", "uploadId"): _abort,
    }

    def _answer(self, root, *elements) -> None:
        xmlns = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
        text = f'<?xml version="1.0" encoding="UTF-8"?><{root} {xmlns}>{"".join(elements)}</{root}>'
        self._reply(200, text.encode(), {"Content-Type": "application/xml"})

    def _error(self, code) -> None:
        self._reply(_STATUS.get(code, 403), _ERROR.format(code=code).encode())


def _span(header, size):
    """(first byte, end) that a Range header requests of ``size`` bytes; None: all."""
    found = _RANGE.fullmatch(header)
    if not found:
        return None
    first, last, length = found.groups()
    if length:
        return max(0, size - int(length)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size


def _joined(listed, parts) -> bytes:
    """The object of [(part number, ETag)] and {part number: bytes}; raises _Refused as S3 does."""
    numbers = [number for number, _ in listed]
    if not listed:
        raise _Refused("MalformedXML")
    if numbers != sorted(set(numbers)):
        raise _Refused("InvalidPartOrder")
    for number, etag in listed:
        if number not in parts or etag.strip('"') != _etag(parts[number]).strip('"'):
            raise _Refused("InvalidPart")
    if any(len(parts[number]) < MIN_PART_BYTES for number in numbers[:-1]):
        raise _Refused("EntityTooSmall")
    return b"".join(parts[number] for number in numbers)


def _etag(body) -> str:
    """A hash that is the same for equal bytes while this process lives. bytes objects cache it."""
    return f'"{hash(body) % 2**64:032x}"'


def _parsed(body):
    try:
        return ElementTree.fromstring(body)
    except ElementTree.ParseError:
        raise _Refused("MalformedXML") from None


def _element(tag, *content) -> str:
    """An XML element. ``content``: elements, or one text that is already escaped."""
    return f"<{tag}>{''.join(map(str, content))}</{tag}>"


def _iso(epoch_s) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(epoch_s))
