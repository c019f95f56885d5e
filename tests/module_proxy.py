"""Helpers for tests of the module proxy: its modules, the server, and its answers."""

import hashlib
import http.client
import json

from helpers import DEADLINE_S, wait_until
from modules import go_module
from server_sessions import ask

# A path with an upper-case letter; a module that requires it; an older version of that one.
LEAF = go_module("example.test/Leaf", "v1.0.0")
ROOT = go_module("example.test/base", "v1.2.0", requires=[LEAF])
OLD = go_module("example.test/base", "v1.1.0")


class Answer:
    """``body``: what arrived. ``is_cut``: whether the connection ended before all of it did."""

    def __init__(self, response, body: bytes, is_cut: bool) -> None:
        self.status, self.headers, self.body, self.is_cut = (
            response.status,
            response.headers,
            body,
            is_cut,
        )

    @property
    def text(self) -> str:
        return self.body.decode()


class ModProxy:
    """A running server with --modproxy. ``url``: the value for GOPROXY."""

    def __init__(self, server, port: int) -> None:
        self.server, self.port = server, port
        self.url = f"http://127.0.0.1:{port}/mod"

    def connect(self, path: str, method: str = "GET", **headers):
        """(connection, response), with status and headers read; ``path``: what follows /mod."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        connection.request(method, f"/mod{path}", headers=headers)
        return connection, connection.getresponse()

    def get(self, path: str, method: str = "GET", **headers) -> Answer:
        """The answer to a request; ``headers``: {name: value}."""
        connection, response = self.connect(path, method, **headers)
        try:
            return Answer(response, response.read(), False)
        except http.client.IncompleteRead as error:
            return Answer(response, error.partial, True)
        except ConnectionError:
            return Answer(response, b"", True)
        finally:
            connection.close()

    def counts(self) -> dict:
        """The modcache counters that are not 0."""
        _, _, text = ask(self.port, "/debug/vars")
        return {name: count for name, count in json.loads(text)["modcache"].items() if count}


def path_of(module, kind: str) -> str:
    """The path of a module's .info, .mod or .zip, below the proxy's URL."""
    return module.url_path(f".{kind}")


def key_of(path: str) -> str:
    """The path of a file below the cache directory, and its key in the bucket."""
    digest = hashlib.sha256(path[1:].encode()).hexdigest()
    return f"module/{digest[:2]}/{digest}"


def wait_for_count(proxy, name: str, count: int = 1) -> None:
    wait_until(lambda: proxy.counts().get(name, 0) >= count, f"{name} at {count}")
