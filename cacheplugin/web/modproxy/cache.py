"""Finds module files on disk, in S3 and upstream. Files that are fetched are checked and stored."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING

from ...errors import FileMismatch, NotThere, UpstreamError, UpstreamOff, reason_of
from ...ipc import jobs
from ...store.cache import Draft
from ...tuples import NamedTuple
from . import checks, names
from .checksums import ChecksumVerifier
from .disk import Disk, Stored, key_of
from .download import Download
from .expiring import ExpiringCache

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from typing import Any

    from ...options import Options
    from ...store.cache import LocalCache
    from ..server_client import ServerClient
    from .names import Name
    from .upstream import Upstream

log = logging.getLogger(__name__)

ABSENT_S = 60.0  # for how long a 404 or 410 of upstream is remembered
_DAMAGED_S = 86400.0  # for how long an object that was found damaged is not fetched again
_UPLOAD_RETRY_S = 60.0
# A fetch from S3 may take _FETCH_BASE_S and the time for its size at _MIN_BYTES_PER_S. Its progress
# is checked every _CHECK_INTERVAL_S.
_FETCH_BASE_S, _MIN_BYTES_PER_S, _CHECK_INTERVAL_S = 30.0, 256 << 10, 5.0


class _Absence(NamedTuple):
    """The text and HTTP status of a NotThere."""

    text: str
    status: int


class ModuleCache:
    """``databases``: names of checksum databases. ``bucket``: the way to S3, None without a bucket.

    ``local``: where files are stored. ``counters``: the dict of counters.make().
    """

    def __init__(
        self,
        options: Options,
        databases: Sequence[str],
        local: LocalCache,
        bucket: ServerClient | None,
        upstream: Upstream,
        counters: dict[str, int],
    ) -> None:
        self._max_age_s = options.modproxy_max_age_s
        self._local = local
        self._bucket = bucket
        self._upstream = upstream
        self._counters = counters
        self._uploads = options.upload != "off" and not options.read_only
        self._disk = Disk(local, counters)
        self._verifier = ChecksumVerifier(
            databases, options.nosumdb, self._disk, self.read, counters
        )
        self._fresh: ExpiringCache[bool] = ExpiringCache()  # by cache name
        self._absent: ExpiringCache[_Absence] = ExpiringCache()  # by cache name
        self._downloads: dict[str, Download] = {}  # by cache name
        self._damaged: ExpiringCache[bool] = ExpiringCache()  # by key: damaged objects in S3
        # The event loop holds only weak references to tasks, so this set keeps them alive.
        self._tasks: set[asyncio.Task[None]] = set()
        self._start(asyncio.to_thread(self._disk.remove_leftovers))

    def close(self) -> None:
        """Cancel all fetches and uploads and remove their temporary files."""
        for task in self._tasks:
            task.cancel()
        for download in self._downloads.values():
            download.draft.discard()

    def lookup(self, name: Name) -> Stored | None:
        """The stored file of a Name, fresh or not; None when it is not on disk."""
        return self._disk.lookup(name)

    async def get(self, name: Name, via: str = "", refresh: bool = False) -> Stored | Download:
        """The file of a Name: Stored, or a Download that the caller reads while it is fetched.

        via: the Via header of the client's request. refresh: fetch the file from upstream, whatever
        is stored. Raises NotThere for a file that upstream did not have a short while ago, and
        OSError when no disk can be written to.
        """
        if not refresh:
            stored = self._lookup_fresh(name)
            if stored is not None:
                return stored
            absent = self._absent.get(name.text)
            if absent is not None:
                (text, status), left_s = absent
                raise NotThere(text, status, left_s)
        download = self._downloads.get(name.text)
        if download is None:
            if refresh:
                self._note_damaged(key_of(name.text))
            download = self._downloads[name.text] = Download(name, Draft(self._local))
            self._start(self._fetch(download, via))
        return download

    def _lookup_fresh(self, name: Name) -> Stored | None:
        if name.is_immutable:
            return self.lookup(name)
        fresh = self._fresh.get(name.text)
        if fresh is None:
            return None
        _, left_s = fresh
        stored = self.lookup(name)
        return None if stored is None else stored._replace(max_age_s=left_s)

    async def read(self, name: Name, refresh: bool = False) -> bytes:
        """The whole content of a file that is not a zip.

        Raises as ``get`` does, and UpstreamError when the file cannot be fetched.
        """
        found = await self.get(name, refresh=refresh)
        if isinstance(found, Download):
            with found:
                await found.wait_complete()
                return found.read_all()
        return found.content()

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- one file ----------------------------------------------------------------------------------

    async def _fetch(self, download: Download, via: str) -> None:
        """Fetch a file, check and store it, and finish the download with the outcome."""
        name = download.name
        outcome: UpstreamError | None = None
        try:
            if name.is_immutable:
                await self._fetch_immutable(download, via)
            else:
                await self._fetch_mutable(download, via)
        except NotThere as error:
            self._absent.add(name.text, _Absence(str(error), error.status), ABSENT_S)
            outcome = error
        except UpstreamError as error:
            outcome = error
        except FileMismatch as error:
            self._counters["mismatch"] += 1
            log.warning("module file %s is refused: %s", name.text, error)
            outcome = UpstreamError(f"{name.text} is refused: {error}")
        except OSError as error:
            self._counters["put_local_error"] += 1
            log.warning("module file %s cannot be stored: %s", name.text, reason_of(error))
            outcome = UpstreamError(f"{name.text} cannot be stored: {reason_of(error)}", 500)
        except Exception as error:
            log.exception("module file %s: unexpected error", name.text)
            outcome = UpstreamError(f"{name.text}: unexpected error: {error!r}", 500)
        del self._downloads[name.text]
        download.finish(outcome)

    async def _fetch_immutable(self, download: Download, via: str) -> None:
        """Fetch from S3, else from upstream. If both fail, cut a tile from a wider stored tile."""
        status = await self._fetch_from_s3(download)
        if status == jobs.HIT:
            return
        try:
            await self._fetch_from_upstream(download, via)
        except UpstreamError as error:
            if not self._cut_from_wider_tile(download):
                raise _unless_s3_failed(error, status) from None

    def _cut_from_wider_tile(self, download: Download) -> bool:
        """Write a partial tile that is the beginning of a stored tile. False if there is none."""
        for wider in names.wider_tiles(download.name):
            stored = self.lookup(wider)
            if stored is not None and stored.size == names.tile_size(wider).size:
                download.restart()
                download.write(stored.content()[: names.tile_size(download.name).size])
                self._counters["get_stale"] += 1
                return True
        return False

    async def _fetch_mutable(self, download: Download, via: str) -> None:
        """Fetch from upstream. If that fails, use the last good copy: on disk, else in S3."""
        name = download.name
        try:
            await self._fetch_from_upstream(download, via)
        except (UpstreamError, FileMismatch) as error:
            if isinstance(error, NotThere) and not isinstance(error, UpstreamOff):
                raise
            download.restart()
            stored = self.lookup(name)
            if stored is not None:
                download.write(stored.content())
            else:
                status = await self._fetch_from_s3(download)
                if status != jobs.HIT:
                    raise _unless_s3_failed(error, status) from None
            log.info("module file %s: serving the last good copy, because %s", name.text, error)
            self._counters["get_stale"] += 1
            download.is_stale = True
        else:
            if download.path:
                self._fresh.add(name.text, True, self._max_age_s)

    async def _fetch_from_s3(self, download: Download) -> str:
        """jobs.HIT if the bucket had a good file, MISS if it had none, else FAILED."""
        name, key = download.name, key_of(download.name.text)
        if self._bucket is None or self._damaged.get(key):
            return jobs.MISS
        # Not in the download's own file: after a time-out the worker may go on writing to this one.
        with Draft(self._local) as draft:
            result = await self._request_from_s3(self._bucket, key, draft, checks.max_bytes(name))
            if result.status != jobs.HIT:
                is_absent = result.status == jobs.MISS
                self._counters["get_fault_miss" if is_absent else "get_fault_error"] += 1
                if result.status == jobs.DAMAGED:
                    self._note_damaged(key)
                return jobs.MISS if is_absent else jobs.FAILED
            try:
                may_store = await self._verifier.verify(
                    name, draft, self._verifier.request_sums(name)
                )
            except FileMismatch as error:
                self._counters["get_fault_error"] += 1
                log.warning(
                    "module file %s in S3 is not used: %s; it is replaced when upstream has it",
                    name.text,
                    error,
                )
                self._note_damaged(key)
                return jobs.FAILED
            self._counters["get_fault_hit"] += 1
            self._counters["get_s3_bytes"] += result.size
            download.take_over(draft)
        if may_store:
            await self._disk.store(download)
        return jobs.HIT

    async def _request_from_s3(
        self, bucket: ServerClient, key: str, draft: Draft, limit: int
    ) -> jobs.FileResult:
        """Have an object of at most ``limit`` bytes written to a draft. TIMED_OUT if too slow."""
        temp, begun = draft.attempt(draft.open), time.monotonic()
        fetch = asyncio.ensure_future(bucket.fetch_file(key, temp.path, limit))
        while True:
            done, _ = await asyncio.wait({fetch}, timeout=_CHECK_INTERVAL_S)
            if done:
                return fetch.result()
            # Blocks, not the size: the parts of an object are written in any order.
            written = os.fstat(temp.fd).st_blocks * 512
            if time.monotonic() - begun > _FETCH_BASE_S + written / _MIN_BYTES_PER_S:
                reason = f"slower than {_MIN_BYTES_PER_S >> 10} KiB/s"
                return jobs.FileResult(0, jobs.TIMED_OUT, 0, reason)

    async def _fetch_from_upstream(self, download: Download, via: str) -> None:
        name, key = download.name, key_of(download.name.text)
        sums = self._verifier.request_sums(name)  # in parallel with the file
        await self._upstream.fetch(name, download, via)
        if not await self._verifier.verify(name, download.draft, sums):
            return
        self._counters["put_request"] += 1
        before = None if name.is_immutable else self.lookup(name)
        if before is not None and before.content() == download.read_all():
            self._counters["put_local_hit"] += 1
            download.path = before.path
            return
        await self._disk.store(download)
        if self._bucket is not None and self._uploads and download.path:
            replace = not name.is_immutable or self._damaged.get(key) is not None
            self._start(self._upload(self._bucket, key, download.path, replace))

    def _note_damaged(self, key: str) -> None:
        """Do not fetch this object again; replace it when upstream has the file."""
        self._damaged.add(key, True, _DAMAGED_S)

    async def _upload(self, bucket: ServerClient, key: str, path: str, replace: bool) -> None:
        """Upload a file. Retries until it succeeds or the file can no longer be read."""
        while True:
            result = await bucket.upload_file(key, path, replace)
            if result.status == jobs.STORED:
                self._counters["put_s3_bytes"] += result.size
                return
            self._counters["put_s3_error"] += 1
            if result.status == jobs.LOCAL:
                return
            await asyncio.sleep(_UPLOAD_RETRY_S)


def _unless_s3_failed(error: Exception, status: str) -> Exception:
    """``error``, or the failure of S3 when upstream is off.

    A client must not get a 404 when S3, which may have the file, could not be asked.
    """
    if isinstance(error, UpstreamOff) and status == jobs.FAILED:
        return UpstreamError("it is not on disk, S3 could not be asked, and upstream is off")
    return error
