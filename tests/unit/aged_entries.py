"""Entries with a given age, for the tests of prune."""

import fcntl
import os
import time
from contextlib import contextmanager

from cacheplugin.options import Options
from entries import action_id, put

HOUR_S = 3600
BODY_BYTES = 100_000


def age(path, hours) -> None:
    """Set the time of last use of a file to ``hours`` ago."""
    used = time.time() - hours * HOUR_S
    os.utime(path, (used, used))


def store_aged(cache, name, hours, size=BODY_BYTES) -> bytes:
    """Store an entry with a random body, last used ``hours`` ago; return the body."""
    name, body = str(name), os.urandom(size)
    used = time.time() - hours * HOUR_S
    for path in (put(cache, name, body), cache.store.action_path(action_id(name))):
        os.utime(path, (used, used))
    return body


def write_aged(root, path, hours, data=b"x" * 5000) -> str:
    """Write a file below ``root``, last used ``hours`` ago; return its path."""
    path = os.path.join(root, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    age(path, hours)
    return path


def hits(cache, names) -> list:
    """Return the names that have a record, without a lookup, which would remove damaged ones."""
    return [name for name in names if os.path.exists(cache.store.action_path(action_id(str(name))))]


def options_of(cache, **fields) -> Options:
    return Options(cache_dir=cache.store.root, **{"min_age_s": HOUR_S, **fields})


@contextmanager
def other_prune(root):
    """Hold the lock of a prune of ``root``, as a second process would."""
    os.makedirs(root, exist_ok=True)
    fd = os.open(f"{root}/prune.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)
