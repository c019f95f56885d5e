"""HTTP responses of the fake servers: a mixin for BaseHTTPRequestHandler."""


class Replies:
    """Sends responses with a Content-Length, no body for HEAD, and writes no log."""

    def _reply(self, status, body=b"", headers=None) -> None:
        self._head(status, len(body), headers or {})
        self._write(body)

    def _head(self, status, length, headers) -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _write(self, body) -> None:
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass
