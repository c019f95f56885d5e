"""Module files in the cache directory: ``module/<xx>/<SHA-256 of the cache name in hex>``.

The Go program uses the same names, on disk and in S3.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ...errors import reason_of
from ...store.contents import open_regular
from ...store.tree import MIN_AGE_S, unlink_quietly
from ...tuples import NamedTuple
from . import names

if TYPE_CHECKING:
    from ...store.cache import LocalCache
    from .download import Download
    from .names import Name

log = logging.getLogger(__name__)

# A file up to this size is read into memory; a larger one is sent with sendfile, which takes twice
# as long as read and write for a zip of 100 kB.
SMALL_BYTES = 256 << 10


class Stored(NamedTuple):
    """A file on disk.

    size: in bytes. data: the content, None for a file larger than SMALL_BYTES. max_age_s: for how
    many seconds the file still counts as fresh; None if it is immutable or was just fetched.
    """

    path: str
    size: int
    data: bytes | None
    max_age_s: float | None = None

    def content(self) -> bytes:
        """The whole content. Not for zips: they can be larger than memory allows."""
        if self.data is not None:
            return self.data
        with open(open_regular(self.path), "rb") as file:
            return file.read()


class Disk:
    """Reads and stores module files. ``local`` has the store and, if that is full, another one."""

    def __init__(self, local: LocalCache, counters: dict[str, int]) -> None:
        self._local = local
        self._counters = counters

    def lookup(self, name: Name) -> Stored | None:
        """The stored file of a Name, fresh or not; None when it is not on disk."""
        key = key_of(name.text)
        for store in (self._local.session_store, self._local.store):
            if store is None:
                continue
            path = f"{store.root}/{key}"
            try:
                fd = open_regular(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._note_error(path, error)
                continue
            try:
                status = os.fstat(fd)
                if status.st_mtime < time.time() - MIN_AGE_S / 2:
                    with suppress(OSError):  # EPERM for a file of another user
                        os.utime(fd)  # prune removes by the time of last use
                data = os.read(fd, status.st_size) if status.st_size <= SMALL_BYTES else None
                if status.st_size or name.kind == names.LIST:  # other empty files are damaged
                    return Stored(path, status.st_size, data)
            except OSError as error:
                self._note_error(path, error)
            finally:
                os.close(fd)
        return None

    def _note_error(self, path: str, error: OSError) -> None:
        self._counters["get_local_error"] += 1
        log.warning("%s cannot be read: %s; the file is fetched again", path, reason_of(error))

    async def store(self, download: Download) -> None:
        """Move a complete download to its final path, durably, and set ``download.path``.

        On failure the file stays where it is, is served to those who wait, and is not stored.
        """
        draft, key = download.draft, key_of(download.name.text)
        try:
            await asyncio.to_thread(os.fsync, draft.open().fd)
            draft.attempt(lambda: draft.open().rename(f"{draft.store.root}/{key}"))
        except OSError as error:
            self._counters["put_local_error"] += 1
            log.warning(
                "module file %s is served but not stored in %s: %s",
                download.name.text,
                draft.store.root,
                reason_of(error),
            )
            return
        download.path = f"{draft.store.root}/{key}"
        self._counters["put_local_bytes"] += download.size
        # Remove an older version: it is from when the disk was full, or could not be replaced.
        for store in (self._local.store, self._local.session_store):
            if store is not None and store is not draft.store:
                unlink_quietly(f"{store.root}/{key}")

    def remove_leftovers(self) -> None:
        """Remove temporary files of processes that died.

        Files younger than MIN_AGE_S stay, because a running process may still be writing them.
        """
        directory = os.path.join(self._local.store.root, "tmp")
        cutoff = time.time() - MIN_AGE_S
        with suppress(OSError):
            for entry in list(os.scandir(directory)):
                with suppress(OSError):
                    if entry.is_file() and entry.stat().st_mtime < cutoff:
                        os.unlink(entry.path)


def key_of(text: str) -> str:
    """The path of a file below the cache directory, and its key in S3 (without the prefix)."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"module/{digest[:2]}/{digest}"
