"""A fake upstream GOPROXY, in memory, with faults on demand.

It serves modules by the GOPROXY protocol (https://go.dev/ref/mod#goproxy-protocol), zips also by
Range, and a checksum database under /sumdb. Paths are recorded and matched as they were sent, with
the leading slash and escapes; the keys of ``body_overrides`` are percent-decoded.
"""

import hashlib
import re
import socket
import struct
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from modules import order, unescape
from replies import Replies

# Faults: an error status, no answer, a wrong answer, or damage to the right answer.
STATUSES = ("403", "404", "410", "429", "500", "502", "503")
SILENCE = ("reset", "hang")
LIES = ("empty", "html")
DAMAGE = ("cut", "long", "short", "slow", "flip")

PIECES = 4  # in which the body of a "slow" answer is sent
EXTRA_BYTES = 10  # how many more bytes a "long" answer announces than it sends
LOGIN_PAGE = b"<!DOCTYPE html><html><body><h1>Sign in to the network</h1></body></html>\n"
_LIMIT_S = 60  # how long a request is held without a release
_TYPES = {".info": "application/json", ".zip": "application/zip"}
_PSEUDO = re.compile(r"[-.]\d{14}-[0-9a-f]{12}(\+incompatible)?$")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class FakeUpstream:
    """``url``: the value for GOPROXY. A context manager, which stops it at the end.

    requests: [(method, path)] in order of arrival. headers: the headers of each.
    modules: {(path, version): Module}. queries: {(path, branch or the like): version}.
    body_overrides: {path: bytes} to serve instead. checksums: a ChecksumDatabase, or None.
    held: how many requests were held or hung.
    """

    def __init__(self, *modules, checksums=None) -> None:
        self.requests, self.headers = [], []
        self.modules, self.queries, self.body_overrides = {}, {}, {}
        self.checksums = checksums
        self.held = 0
        self._faults = []  # [fault, times left or None, match]
        self._hold = None
        self._turn = 0  # increased by ``release``, for which held requests wait
        self._steps = 0  # how many pieces slow answers may send
        self._changed = threading.Condition()
        self._server = None
        # Bound but not listening, so that the port stays reserved while the server is closed.
        self._guard = socket.socket()
        self._guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._guard.bind(("127.0.0.1", 0))
        self.port = self._guard.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.add(*modules)
        self.reopen()

    def __enter__(self) -> "FakeUpstream":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def add(self, *modules) -> None:
        """Serve these modules too; they replace equal versions. ``checksums`` does not change."""
        with self._changed:
            self.modules.update({(module.path, module.version): module for module in modules})

    # -- the network -------------------------------------------------------------------------------

    def close(self) -> None:
        """End every connection, and refuse new ones until ``reopen``."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server.end_connections()
            self._server = None
            self._wake_all()

    def reopen(self) -> None:
        """Listen again, on the same port."""
        handler = type("Handler", (_Handler,), {"upstream": self})
        self._server = _Server(("127.0.0.1", self.port), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        self.release()
        self.close()
        self._guard.close()

    # -- faults ------------------------------------------------------------------------------------

    def fail(self, fault, times=None, match=lambda path: True) -> None:
        """Apply ``fault`` to the next ``times`` requests (None: all) whose path matches.

        A fault is one of STATUSES, SILENCE, LIES or DAMAGE. Of several that match, the first
        applies until its ``times`` are used up. Damage leaves a 404 unchanged.
        """
        assert fault in STATUSES + SILENCE + LIES + DAMAGE, fault
        with self._changed:
            self._faults.append([fault, times, match])

    def heal(self) -> None:
        """Remove all faults. Requests that hang do so until ``release``."""
        with self._changed:
            self._faults.clear()

    def hold(self, match=lambda path: True) -> None:
        """From now on, hold the answers to matching paths until ``release``."""
        with self._changed:
            self._hold = match

    def release(self) -> None:
        """Stop holding: answer held requests, end those that hang, let slow answers finish."""
        with self._changed:
            self._hold = None
        self._wake_all()

    def step(self, timeout_s=30) -> None:
        """Let a slow answer send one more piece; returns when it was taken."""
        with self._changed:
            self._steps += 1
            self._changed.notify_all()
            taken = self._changed.wait_for(lambda: not self._steps, timeout_s)
            assert taken, f"no slow answer took a piece within {timeout_s} s"

    def _wake_all(self) -> None:
        with self._changed:
            self._turn += 1
            self._changed.notify_all()

    # -- requests ----------------------------------------------------------------------------------

    def count(self, word="") -> int:
        """The number of requests with ``word`` in their path."""
        return sum(word in path for _, path in list(self.requests))

    def wait_for_requests(self, n, word="", timeout_s=30) -> None:
        """Wait until ``n`` requests with ``word`` in their path have come since the start."""
        self._wait_until(lambda: self.count(word) >= n, f"{n} requests of {word!r}", timeout_s)

    def wait_for_held(self, n, timeout_s=30) -> None:
        """Wait until ``n`` requests were held or hung since the start."""
        self._wait_until(lambda: self.held >= n, f"{n} held requests", timeout_s)

    def _wait_until(self, condition, what, timeout_s) -> None:
        with self._changed:
            came = self._changed.wait_for(condition, timeout_s)
            assert came, f"not within {timeout_s} s: {what}; requests: {self.requests}"

    # -- for the handler ---------------------------------------------------------------------------

    def begin(self, method, path, headers):
        """Record a request, hold it if needed; returns (its fault or None, the turn)."""
        with self._changed:
            turn = self._turn
            self.requests.append((method, path))
            self.headers.append(headers)
            self._changed.notify_all()
            if self._hold is not None and self._hold(path):
                self._wait_for_release()
                turn = self._turn
            fault = self._next_fault(path)
            if fault == "hang":
                self._wait_for_release()
            return fault, turn

    def _next_fault(self, path):
        for told in self._faults:
            fault, times, match = told
            if times != 0 and match(path):
                if times is not None:
                    told[1] -= 1
                return fault
        return None

    def _wait_for_release(self) -> None:
        """Call it with the lock held; waiting releases it."""
        turn = self._turn
        self.held += 1
        self._changed.notify_all()
        self._changed.wait_for(lambda: self._turn != turn, _LIMIT_S)

    def wait_for_step(self, turn) -> None:
        """Wait until ``step`` allows a piece, or for a release after ``turn``."""
        with self._changed:
            self._changed.wait_for(lambda: self._steps or self._turn != turn, _LIMIT_S)
            if self._turn == turn and self._steps:
                self._steps -= 1
                self._changed.notify_all()

    def body(self, path):
        """The body for a path, or None."""
        if path in self.body_overrides:
            return self.body_overrides[path]
        if path.startswith("/sumdb/"):
            return self._sumdb_body(path)
        with self._changed:
            return self._module_body(path)

    def _module_body(self, path):
        if path.endswith("/@latest"):
            module = self._latest(unescape(path[1 : -len("/@latest")]))
            return module and module.info
        escaped, _, name = path[1:].partition("/@v/")
        module_path = unescape(escaped)
        if name == "list":
            versions = self._versions(module_path)
            listed = sorted(filter(lambda v: not _PSEUDO.search(v), versions), key=order)
            return "".join(f"{v}\n" for v in listed).encode() if versions else None
        stem, dot, extension = name.rpartition(".")
        version = unescape(stem)
        if extension == "info":
            version = self.queries.get((module_path, version), version)
        module = self.modules.get((module_path, version))
        if module is None or dot + extension not in (".info", ".mod", ".zip"):
            return None
        return getattr(module, extension)

    def _versions(self, module_path) -> list:
        return [version for path, version in self.modules if path == module_path]

    def _latest(self, module_path):
        """The module for "@latest": releases first, then pre-releases, then commits."""

        def rank(version):
            return "-" not in version, not _PSEUDO.search(version), order(version)

        best = max(self._versions(module_path), key=rank, default=None)
        return self.modules.get((module_path, best))

    def _sumdb_body(self, path):
        if self.checksums is None:
            return None
        prefix = f"/sumdb/{self.checksums.name}/"
        rest = path[len(prefix) :] if path.startswith(prefix) else ""
        if rest == "supported":
            return b""
        if rest == "latest":
            return self.checksums.latest()
        if rest.startswith("lookup/"):
            return self.checksums.lookup(rest[len("lookup/") :])
        return self.checksums.tile(rest)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, *args) -> None:
        self._connections = set()
        super().__init__(*args)

    def get_request(self):
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request):
        self._connections.discard(request)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        for connection in list(self._connections):
            with suppress(OSError):  # the connection ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):  # which means that the client disconnected
            super().handle_error(request, client_address)


class _Handler(Replies, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # with Nagle's algorithm a body waits 40 ms after the headers
    upstream = None

    def do_GET(self):
        fault, self._turn = self.upstream.begin(self.command, self.path, self.headers)
        if fault == "reset":
            self._reset()
        elif fault == "hang":
            self.close_connection = True
        elif fault == "empty":
            self._reply(200, b"", {})
        elif fault == "html":
            self._reply(200, LOGIN_PAGE, {"Content-Type": "text/html; charset=UTF-8"})
        elif fault in STATUSES:
            self._refuse(int(fault), "told to fail")
        else:
            self._answer(fault)

    do_HEAD = do_GET

    def _answer(self, damage) -> None:
        path = unquote(self.path.partition("?")[0])
        body = self.upstream.body(path)
        if body is None:
            self._refuse(404, f"not found: {path[1:]}")
            return
        kind = _TYPES.get(path[path.rfind(".") :], "text/plain; charset=UTF-8")
        headers = {"Content-Type": kind}
        status = 200
        if path.endswith(".zip"):
            headers["Accept-Ranges"] = "bytes"
            headers["ETag"] = etag = f'"{hashlib.sha256(body).hexdigest()}"'
            span = _span(self.headers.get("Range", ""), len(body))
            if span and self.headers.get("If-Range", etag) == etag:
                start, end = span
                if start >= end:
                    whole = {"Content-Range": f"bytes */{len(body)}"}
                    self._refuse(416, "no such range", whole)
                    return
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
                status, body = 206, body[start:end]
        self._send(status, body, headers, damage)

    def _send(self, status, body, headers, damage) -> None:
        """Answer with ``body``, damaged as the fault says."""
        length = len(body)
        if damage == "flip" and body:
            middle = length // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        elif damage == "cut":
            body = body[: length // 2]
        elif damage == "long":
            length += EXTRA_BYTES
        elif damage == "short":
            length //= 2
        self._head(status, length, headers)
        if damage == "slow":
            self._write_slowly(body)
        else:
            self._write(body)
        if damage in ("cut", "long"):
            self.close_connection = True

    def _write_slowly(self, body) -> None:
        size = -(-len(body) // PIECES)
        for start in range(0, len(body), size or 1):
            self.upstream.wait_for_step(self._turn)
            self._write(body[start : start + size])

    def _reset(self) -> None:
        """End the connection with an RST: shutdown() would send a FIN first."""
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        socket.close(self.connection.detach())

    def _refuse(self, status, text, headers=None) -> None:
        headers = {"Content-Type": "text/plain; charset=UTF-8", **(headers or {})}
        self._reply(status, f"{text}\n".encode(), headers)


def _span(header, size):
    """(first byte, byte after the last) of a Range header for ``size`` bytes; None: all."""
    found = _RANGE.fullmatch(header)
    if not found or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size
