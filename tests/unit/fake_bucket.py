"""An in-memory remote.s3.Bucket that notes what is asked of it."""

import io
from contextlib import contextmanager

from cacheplugin.errors import Absent


class FakeBucket:
    """``objects`` is {key: bytes}; ``calls`` the (method, key) asked; ``faults`` {key: exception}.

    ``lengths`` {key: length} makes an object announce another length than it has.
    """

    def __init__(self) -> None:
        self.objects = {}
        self.calls = []
        self.faults = {}
        self.lengths = {}

    def _note(self, method, key):
        self.calls.append((method, key))
        if key in self.faults:
            raise self.faults[key]

    def _get(self, method, key):
        self._note(method, key)
        if key not in self.objects:
            raise Absent(key)
        return self.objects[key]

    def methods(self) -> list:
        return [method for method, _ in self.calls]

    def read(self, key, limit):
        return self._get("read", key)[:limit]

    @contextmanager
    def open(self, key):
        data = self._get("open", key)
        with io.BytesIO(data) as body:
            yield self.lengths.get(key, len(data)), body

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
        self.objects[key] = data

    def write_new(self, key, data):
        self._note("write_new", key)
        if key in self.objects:
            return False
        self.objects[key] = data
        return True

    def upload_file(self, key, path):
        self._note("upload_file", key)
        with open(path, "rb") as file:
            self.objects[key] = file.read()
