"""Entries for tests: ids of names and bodies, and the files in a directory."""

import hashlib
import os

TIME_NS = 1_700_000_000_123_456_789
TIME = "2023-11-14T22:13:20.123456789Z"


def action_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def output_id(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def put(cache, name: str, body: bytes, time_ns: int = TIME_NS) -> str:
    """Store an entry in a LocalCache; returns the body's path."""
    with cache.writer(action_id(name), output_id(body), len(body)) as writer:
        if body:
            writer.write(body)
        return writer.commit(time_ns)


def read(path) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def files(root) -> dict:
    """The content of every file below ``root``, by its path relative to ``root``."""
    found = {}
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, root)] = read(path)
    return found
