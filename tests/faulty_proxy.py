"""A proxy before a real S3 server, which fails a part of the requests at random."""

import http.client
import random
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from replies import Replies

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>told to</Message></Error>"
_FAULTS = ("503", "close", "cut")
_HOP_BY_HOP = ("connection", "transfer-encoding", "content-length")
_TIMEOUT_S = 30


class FaultyProxy:
    """``rate``: the share of requests that fail. ``counts``: requests and faults by kind.

    The faults: an answer 503, a connection that is closed without an answer, a body that is cut.
    """

    def __init__(self, target_url: str, rate: float, seed: int) -> None:
        self.rate, self.counts, self.target = rate, Counter(), urlsplit(target_url).netloc
        self._random, self._lock = random.Random(seed), threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def choose_fault(self):
        with self._lock:
            fault = self._random.choice(_FAULTS) if self._random.random() < self.rate else None
            self.counts["requests" if fault is None else fault] += 1
            return fault

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request, client_address):
        pass  # the client was killed, or the server behind the proxy was stopped


class _Handler(Replies, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy = None

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.choose_fault()
        if fault == "503":
            self._reply(503, _SLOW_DOWN)
        elif fault == "close":
            self.close_connection = True
        else:
            self._answer(*self._ask(body), cut=fault == "cut")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    def _ask(self, body) -> tuple:
        """(status, headers, body, length) of the server's answer."""
        connection = http.client.HTTPConnection(self.proxy.target, timeout=_TIMEOUT_S)
        try:
            connection.putrequest(self.command, self.path, True, True)
            for name, value in self.headers.items():  # with Host, which is signed
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            length = answer.getheader("Content-Length")
        finally:
            connection.close()
        kept = {n: value for n, value in answer.getheaders() if n.lower() not in _HOP_BY_HOP}
        return answer.status, kept, data, int(length or len(data))

    def _answer(self, status, headers, body, length, cut) -> None:
        self._head(status, length, headers)
        self._write(body[: len(body) // 2] if cut else body)
        self.close_connection |= cut
