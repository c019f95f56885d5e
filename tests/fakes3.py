"""A stand-in for an S3 server, kept in memory, that can be made to fail in every way.

Only what a small object needs: GET, HEAD and PUT (with If-None-Match) in the path style. Where
the tests need the real thing they use moto or versitygw.
"""
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_ERROR = "<Error><Code>{code}</Code><Message>told to</Message></Error>"
_CODES = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}

# What happens in place of an answer, and what happens to the body of one.
FAILURES = ("refuse", "hang", "500", "503", "403")
DAMAGE = ("truncate", "flip", "die")


class FakeS3:
    """``objects``: {key: body}; ``requests``: [(method, key)] as they came.

    ``fault``: None, one of FAILURES or DAMAGE, or the code of an error to answer with 403.
    ``faulty(method, key)`` chooses the requests it strikes. ``hold(method, key)`` chooses those that
    wait for ``release``; ``held`` counts them.
    """

    def __init__(self) -> None:
        self.objects, self.requests = {}, []
        self.fault = None
        self.faulty = lambda method, key: True
        self.hold = lambda method, key: False
        self.held = 0
        self.lock = threading.Lock()
        self._released = threading.Event()
        self._server = None
        self._listen(0)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _listen(self, port) -> None:
        handler = type("Handler", (_Handler,), {"s3": self})
        self._server = _Server(("127.0.0.1", port), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def flags(self, bucket: str = "bucket") -> list:
        return [f"--bucket={bucket}", f"--s3-endpoint-url={self.url}", "--s3-path-style"]

    def fail(self, fault) -> None:
        """From now on, strike with ``fault``."""
        self.fault = fault
        if fault == "refuse":
            self._close()

    def count(self, method: str, word: str = "") -> int:
        return sum(got == method and word in key for got, key in list(self.requests))

    def wait_for_release(self) -> None:
        with self.lock:
            self.held += 1
        self._released.wait(60)

    def release(self) -> None:
        """Let what is held go on, and hold no more."""
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
        pass  # a client that was killed


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    s3 = None

    def do_GET(self):
        if self._begin():
            body = self.s3.objects.get(self._key)
            if body is None:
                self._error(404, "NoSuchKey")
            else:
                self._send(body)

    do_HEAD = do_GET

    def do_PUT(self):
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # a client that was killed
            self.close_connection = True
        elif self._begin():
            with self.s3.lock:
                exists = self._key in self.s3.objects
                refused = exists and self.headers.get("If-None-Match") == "*"
                if not refused:
                    self.s3.objects[self._key] = body
            if refused:
                self._error(412, "PreconditionFailed")
            else:
                self._reply(200, b"")

    def _begin(self) -> bool:
        """Note the request; returns whether it is to be served."""
        s3 = self.s3
        self._key = self.path.partition("?")[0].lstrip("/").partition("/")[2]
        s3.requests.append((self.command, self._key))
        if s3.hold(self.command, self._key):
            s3.wait_for_release()
        fault = s3.fault if s3.faulty(self.command, self._key) else None
        self._damage = fault if fault in DAMAGE else None
        if fault is None or self._damage:
            return True
        if fault in ("hang", "refuse"):  # refuse: a connection that was open before
            if fault == "hang":
                s3.wait_for_release()
            self.close_connection = True
        elif fault in _CODES:
            self._error(int(fault), _CODES[fault])
        else:
            self._error(403, fault)
        return False

    def _send(self, body) -> None:
        if self._damage == "flip":
            body = body[:-1] + bytes([body[-1] ^ 1]) if body else b""
        elif self._damage == "truncate":  # whole by its own account, and too short
            body = body[: len(body) // 2]
        elif self._damage == "die":
            self._head(200, len(body))
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._reply(200, body)

    def _error(self, status, code) -> None:
        self._reply(status, _ERROR.format(code=code).encode())

    def _reply(self, status, body) -> None:
        self._head(status, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status, length) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", '"none"')
        self.end_headers()

    def log_message(self, *_):
        pass
