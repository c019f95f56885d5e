"""Where module files come from: the disk, S3, upstream; what is brought is checked and kept."""

import asyncio
import logging
import os
import time

from ...errors import FileMismatch, NotThere, UpstreamError, UpstreamOff, reason_of
from ...ipc import jobs
from ...store.cache import Draft
from . import checks, names
from .checksums import Prover
from .disk import Disk, data_of, key_of
from .download import Download
from .expiring import Recent

log = logging.getLogger(__name__)

ABSENT_S = 60.0  # for which an upstream's 404 is remembered
_DAMAGED_S = 86400.0  # for which what the bucket has of a file is not asked for
_RETRY_S = 60.0  # after which an upload that failed is tried again
# What a fetch from S3 may take: so long, and as it is so fast; it is looked at so often.
_PATIENCE_S, _SLOWEST, _LOOK_S = 30.0, 256 << 10, 5.0


class ModuleCache:
    """``databases``: the names of those of checksums; ``local``: a LocalCache.

    ``bucket`` is a ServerClient or None, ``counters`` a dict of all names.
    """

    def __init__(self, options, databases, local, bucket, upstream, counters) -> None:
        self._max_age_s = options.modproxy_max_age_s
        self._local = local
        self._bucket = bucket
        self._upstream = upstream
        self._counters = counters
        self._uploads = bucket is not None and options.upload != "off" and not options.read_only
        self._shelf = Disk(local, counters)
        self.lookup = self._shelf.lookup
        self._prover = Prover(databases, options.nosumdb, self._shelf, self.read, counters)
        self._fresh = Recent()
        self._absent = Recent()  # values: (text, status) of NotThere
        self._downloads = {}  # cache name: Download
        self._damaged = Recent()  # keys of what is wrong in the bucket
        self._tasks = set()
        self._run(asyncio.to_thread(self._shelf.remove_leftovers))

    def close(self) -> None:
        """Let go of what is on its way."""
        for task in self._tasks:
            task.cancel()
        for download in self._downloads.values():
            download.draft.discard()

    async def get(self, name, via: str = "", renews: bool = False):
        """The file of a Name: Stored, or a Download to be read; ``via``: of the request for it.

        ``renews``: from upstream, whatever is kept. Raises UpstreamError, and OSError where there is no
        disk to write to.
        """
        fresh = None if name.is_immutable else self._fresh.get(name.text)
        if not renews and (name.is_immutable or fresh):
            stored = self.lookup(name)
            if stored is not None:
                return stored._replace(max_age_s=fresh[1]) if fresh else stored
        absent = self._absent.get(name.text)
        if absent is not None and not renews:
            (text, status), left_s = absent
            raise NotThere(text, status, left_s)
        download = self._downloads.get(name.text)
        if download is None:
            if renews:
                self._note_damaged(key_of(name.text))
            download = self._downloads[name.text] = Download(name, Draft(self._local))
            self._run(self._bring(download, via))
        return download

    async def read(self, name, renews: bool = False) -> bytes:
        """The whole of a file that is no zip; raises as ``get`` does."""
        found = await self.get(name, renews=renews)
        if isinstance(found, Download):
            with found:
                await found.whole()
                return found.read()
        return data_of(found)

    def _run(self, coroutine) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # the loop alone would let it be collected
        task.add_done_callback(self._tasks.discard)

    # -- one file ----------------------------------------------------------------------------------

    async def _bring(self, download, via) -> None:
        """Bring a file, whoever waits for it, and say how that ended."""
        name, outcome = download.name, None
        try:
            if name.is_immutable:
                await self._bring_for_good(download, via)
            else:
                await self._renew(download, via)
        except NotThere as error:
            self._absent.add(name.text, (str(error), error.status), ABSENT_S)
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
            log.exception("module file %s failed in a way nobody foresaw", name.text)
            outcome = UpstreamError(f"internal error: {error!r}", 500)
        del self._downloads[name.text]
        download.finish(outcome)

    async def _bring_for_good(self, download, via) -> None:
        """Bring a file that never changes; a tile, where all else fails, out of a wider one."""
        status = await self._bring_from_s3(download)
        if status == jobs.HIT:
            return
        try:
            await self._bring_from_upstream(download, via)
        except UpstreamError as error:
            for wider in names.wider_tiles(download.name):
                stored = self.lookup(wider)
                if stored is not None and stored.size == names.tile_size(wider)[1]:
                    download.forget()
                    download.write(data_of(stored)[: names.tile_size(download.name)[1]])
                    self._counters["get_stale"] += 1
                    return
            raise _unless_s3_failed(error, status) from None

    async def _renew(self, download, via) -> None:
        """Bring a file that changes, or its last good copy where upstream fails."""
        name = download.name
        try:
            await self._bring_from_upstream(download, via)
        except (UpstreamError, FileMismatch) as error:
            if isinstance(error, NotThere) and not isinstance(error, UpstreamOff):
                raise
            download.forget()
            stored = self.lookup(name)
            if stored is not None:
                download.write(data_of(stored))
            else:
                status = await self._bring_from_s3(download)
                if status != jobs.HIT:
                    raise _unless_s3_failed(error, status) from None
            log.info("module file %s: its last good copy is served: %s", name.text, error)
            self._counters["get_stale"] += 1
            download.is_stale = True
        else:
            if download.path:
                self._fresh.add(name.text, True, self._max_age_s)

    async def _bring_from_s3(self, download) -> str:
        """jobs.HIT where the bucket had the file, and it was right; MISS, or FAILED."""
        name, key = download.name, key_of(download.name.text)
        if self._bucket is None or self._damaged.get(key):
            return jobs.MISS
        # In a file of its own: a worker that nobody waits for any more may still write to it.
        with Draft(self._local) as draft:
            result = await self._fetch_from_s3(key, draft, checks.max_bytes(name))
            if result.status != jobs.HIT:
                is_absent = result.status == jobs.MISS
                self._counters["get_fault_miss" if is_absent else "get_fault_error"] += 1
                if result.status == jobs.DAMAGED:
                    self._note_damaged(key)
                return jobs.MISS if is_absent else jobs.FAILED
            try:
                keeps = await self._prover.check(name, draft, self._prover.ask(name))
            except FileMismatch as error:
                self._counters["get_fault_error"] += 1
                log.warning("module file %s in S3 is passed over: %s", name.text, error)
                self._note_damaged(key)
                return jobs.FAILED
            self._counters["get_fault_hit"] += 1
            self._counters["get_s3_bytes"] += result.size
            download.take_over(draft)
        if keeps:
            await self._shelf.keep(download)
        return jobs.HIT

    async def _fetch_from_s3(self, key, draft, limit) -> jobs.FileResult:
        """The result of a fetch into a draft; it is given up where it comes too slowly."""
        temp, begun = draft.attempt(draft.open), time.monotonic()
        asked = asyncio.ensure_future(self._bucket.fetch_file(key, temp.path, limit))
        while not (await asyncio.wait({asked}, timeout=_LOOK_S))[0]:
            written = os.fstat(temp.fd).st_blocks * 512  # parts come in any order
            if time.monotonic() - begun > _PATIENCE_S + written / _SLOWEST:
                return jobs.FileResult(0, jobs.TIMED_OUT, 0, "it comes too slowly")
        return asked.result()

    async def _bring_from_upstream(self, download, via) -> None:
        name, key = download.name, key_of(download.name.text)
        asked = self._prover.ask(name)  # while the file comes
        await self._upstream.fetch(name, download, via)
        if not await self._prover.check(name, download.draft, asked):
            return
        self._counters["put_request"] += 1
        before = None if name.is_immutable else self.lookup(name)
        if before is not None and data_of(before) == download.read():
            self._counters["put_local_hit"] += 1
            download.path = before.path
            return
        await self._shelf.keep(download)
        if self._uploads and download.path:
            replaces = not name.is_immutable or self._damaged.get(key) is not None
            self._run(self._upload(key, download.path, replaces))

    def _note_damaged(self, key) -> None:
        """What the bucket has is not asked for, and replaced by what comes from upstream."""
        self._damaged.add(key, True, _DAMAGED_S)

    async def _upload(self, key, path, replace) -> None:
        """Upload a file, later where it does not go now, for as long as it is there."""
        while True:
            result = await self._bucket.upload_file(key, path, replace)
            if result.status == jobs.STORED:
                self._counters["put_s3_bytes"] += result.size
                return
            self._counters["put_s3_error"] += 1
            if result.status == jobs.LOCAL:
                return
            await asyncio.sleep(_RETRY_S)


def _unless_s3_failed(error, status) -> Exception:
    """What a client is told: that a file is not there says nobody who could not look everywhere."""
    if isinstance(error, UpstreamOff) and status == jobs.FAILED:
        return UpstreamError("it is not on disk, S3 fails, and upstream is off")
    return error
