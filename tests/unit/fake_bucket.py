"""An in-memory bucket (see remote/contracts.py) that notes the calls of its methods."""

import hashlib
import io
import threading
from contextlib import contextmanager

from cacheplugin.errors import Absent, Damaged
from cacheplugin.remote.s3 import Listed

BEGAN_S = 1_700_000_000.0


class FakeBucket:
    """``objects`` is {key: bytes}; ``calls`` are (method, key); ``faults`` {key: exception}.

    ``lengths`` {key: length} makes responses announce another length than the object has.

    ``modified`` is {key: epoch seconds}, set at each write to ``clock``, which then advances by a
    second. Objects that a test put into ``objects`` were written at BEGAN_S unless ``modified`` has
    them. ``unfinished`` is {key: epoch seconds of its begin} of multipart uploads.
    """

    def __init__(self) -> None:
        self.objects = {}
        self.calls = []
        self.faults = {}
        self.lengths = {}
        self.modified = {}
        self.unfinished = {}
        self.clock = BEGAN_S
        self._lock = threading.Lock()

    def _note(self, method, key):
        self.calls.append((method, key))
        if key in self.faults:
            raise self.faults[key]

    def _get(self, method, key):
        self._note(method, key)
        if key not in self.objects:
            raise Absent(key)
        return self.objects[key]

    def _store(self, key, data, unless_exists=False):
        """Returns whether the object was stored."""
        with self._lock:
            if unless_exists and key in self.objects:
                return False
            self.objects[key], self.modified[key] = data, self.clock
            self.clock += 1
        return True

    def methods(self) -> list:
        return [method for method, _ in self.calls]

    def read(self, key, limit):
        return self._get("read", key)[:limit]

    def read_all(self, key, limit):
        data = self._get("read_all", key)
        if len(data) > limit:
            raise Damaged(f"{key} has {len(data)} bytes")
        return data

    @contextmanager
    def open(self, key):
        data = self._get("open", key)
        with io.BytesIO(data) as body:
            yield self.lengths.get(key, len(data)), body

    @contextmanager
    def open_range(self, key, start, length):
        data = self._get("open_range", key)[start : start + length]
        if len(data) != length:
            raise Damaged(f"{key} has {len(data)} of {length} bytes at {start}")
        with io.BytesIO(data) as body:
            yield body

    def now_s(self):
        return self.clock

    def abort_uploads(self, prefix, wanted):
        self._note("abort_uploads", prefix)
        for key, begun_s in list(self.unfinished.items()):
            if key.startswith(prefix) and wanted(key, begun_s):
                del self.unfinished[key]

    def list(self, prefix, limit=1000):
        self._note("list", prefix)
        return self._listed(prefix)[:limit]

    def list_all(self, prefix):
        self._note("list_all", prefix)
        yield from self._listed(prefix)

    def _listed(self, prefix):
        with self._lock:
            return [
                Listed(key, len(self.objects[key]), self.modified.get(key, BEGAN_S))
                for key in sorted(self.objects)
                if key.startswith(prefix)
            ]

    def delete(self, keys):
        for key in keys:
            self._note("delete", key)
            with self._lock:
                self.objects.pop(key, None)
                self.modified.pop(key, None)

    def download(self, key, file, size):
        data = self._get("download", key)
        half = len(data) // 2
        file.seek(half)
        file.write(data[half:])
        file.seek(0)
        file.write(data[:half])

    def exists(self, key):
        self._note("exists", key)
        return key in self.objects

    def write(self, key, data):
        self._note("write", key)
        self._store(key, data)

    def write_new(self, key, data):
        self._note("write_new", key)
        return self._store(key, data, unless_exists=True)

    def read_version(self, key, limit):
        self._note("read_version", key)
        found = self.objects.get(key)
        return None if found is None else (found[:limit], _version(found))

    def write_over(self, key, data, version):
        self._note("write_over", key)
        found = self.objects.get(key)
        if (None if found is None else _version(found)) != version:
            return False
        return self._store(key, data)

    def upload_file(self, key, source):
        self._note("upload_file", key)
        if isinstance(source, str):
            with open(source, "rb") as file:
                self._store(key, file.read())
        else:
            self._store(key, b"".join(iter(lambda: source.read(1 << 16), b"")))


def _version(data) -> str:
    return hashlib.sha256(data).hexdigest()
