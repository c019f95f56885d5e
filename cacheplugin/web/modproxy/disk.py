"""Module files on disk: ``module/<xx>/<SHA-256 of the cache name>``, as the Go program and S3 have them."""

import asyncio
import hashlib
import logging
import os
import time
from collections import namedtuple
from contextlib import suppress

from ...errors import reason_of
from ...store.tree import MIN_AGE_S, unlink_quietly
from . import names

log = logging.getLogger(__name__)

# A file up to this size is read at once; sendfile costs twice as much for a zip of 100 kB.
SMALL_BYTES = 256 << 10

# size: in bytes; data: all of it, or None where it is not small; max_age_s: for which it will be
# fresh, None: for ever.
Stored = namedtuple("Stored", "path size data max_age_s")


class Disk:
    """``local`` is a LocalCache, whose session store has what its store does not take."""

    def __init__(self, local, counters) -> None:
        self._local = local
        self._counters = counters

    def lookup(self, name):
        """What is there of a Name, Stored, whether it is fresh or not; or None."""
        key = key_of(name.text)
        for store in (self._local.session_store, self._local.store):
            if store is None:
                continue
            path = f"{store.root}/{key}"
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._note_error(path, error)
                continue
            try:
                status = os.fstat(fd)
                if status.st_mtime < time.time() - MIN_AGE_S / 2:
                    with suppress(OSError):  # another user's keeps its clock
                        os.utime(fd)  # of use, by which prune goes
                data = os.read(fd, status.st_size) if status.st_size <= SMALL_BYTES else None
                if status.st_size or name.kind == names.LIST:  # no other file is ever empty
                    return Stored(path, status.st_size, data, None)
            except OSError as error:
                self._note_error(path, error)
            finally:
                os.close(fd)
        return None

    def _note_error(self, path, error) -> None:
        self._counters["get_local_error"] += 1
        log.warning("%s cannot be read: %s", path, reason_of(error))

    async def keep(self, download) -> None:
        """Put a download where it is found again, durably; where no disk takes it, it is only served."""
        draft, key = download.draft, key_of(download.name.text)
        try:
            await asyncio.to_thread(os.fsync, draft.temp.fd)
            draft.attempt(lambda: draft.temp.rename(f"{draft.store.root}/{key}"))
        except OSError as error:
            self._counters["put_local_error"] += 1
            log.warning("module file %s is not kept: %s", download.name.text, reason_of(error))
            return
        download.path = f"{draft.store.root}/{key}"
        self._counters["put_local_bytes"] += download.size
        if self._local.session_store not in (None, draft.store):
            # An older one, from when the disk was full.
            unlink_quietly(f"{self._local.session_store.root}/{key}")

    def remove_leftovers(self) -> None:
        """Remove what processes that died were writing; what is younger than MIN_AGE_S may be alive."""
        directory, cutoff = f"{self._local.store.root}/tmp", time.time() - MIN_AGE_S
        with suppress(OSError):
            for entry in [*os.scandir(directory)]:
                with suppress(OSError):
                    if entry.is_file() and entry.stat().st_mtime < cutoff:
                        os.unlink(entry.path)


def key_of(text: str) -> str:
    """Where the file of a cache name is, below the cache directory and behind the prefix in S3."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"module/{digest[:2]}/{digest}"


def data_of(stored) -> bytes:
    """All of a Stored file that is no zip."""
    if stored.data is not None:
        return stored.data
    with open(stored.path, "rb") as file:
        return file.read()
