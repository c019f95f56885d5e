"""Where module files come from: the disk, S3, upstream; what is brought is checked and kept.

On disk and in S3 a file is ``module/<xx>/<SHA-256 of its cache name>``, as the Go program has it.
"""
import asyncio
import hashlib
import logging
import os
import time
from collections import OrderedDict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ... import jobs
from ...errors import FileMismatch, NotThere, UpstreamError, UpstreamOff, reason_of
from ...local import Draft
from ...store import MIN_AGE_S
from . import checks, goproxy, names, zips
from .download import Download

log = logging.getLogger(__name__)

ABSENT_S = 60.0  # for which an upstream's 404 is remembered
# A stored file up to this size is read at once; sendfile costs twice as much for a zip of 100 kB.
SMALL_BYTES = 256 << 10
_RETRY_S = 60.0  # after which an upload that failed is tried again
_MOST_REMEMBERED = 10_000
_CHECKS_AT_ONCE = 2  # they cost CPU

# size: in bytes; data: all of it, or None where it is not small; max_age_s: for which it will be
# fresh, None: for ever.
Stored = namedtuple("Stored", "path size data max_age_s")
_NO_SUMS = checks.Sums(None, None)


class Recent:
    """A bounded dict whose values are forgotten after a while."""

    def __init__(self, clock=time.monotonic) -> None:
        self._clock = clock
        self._found = OrderedDict()

    def add(self, key, value, seconds: float) -> None:
        self._found.pop(key, None)
        self._found[key] = (self._clock() + seconds, value)
        while len(self._found) > _MOST_REMEMBERED:
            self._found.popitem(last=False)

    def get(self, key):
        """(its value, the seconds it has left), or None."""
        end, value = self._found.get(key, (0.0, None))
        left = end - self._clock()
        if left <= 0:
            self._found.pop(key, None)
            return None
        return value, left


class ModuleCache:
    """``local`` is a LocalCache, ``bucket`` a ServerLink or None, ``counters`` a dict of all names."""

    def __init__(self, options, local, bucket, upstream, counters) -> None:
        self._options = options
        self._local = local
        self._bucket = bucket
        self._upstream = upstream
        self._counters = counters
        self._uploads = bucket is not None and options.upload != "off" and not options.read_only
        self._databases = tuple(goproxy.parse_databases(options.sumdb, "--sumdb"))
        self._fresh = Recent()
        self._absent = Recent()  # values: (text, status) of NotThere
        self._downloads = {}  # cache name: Download
        self._damaged = set()  # keys of what is wrong in the bucket
        self._tasks = set()
        self._checkers = ThreadPoolExecutor(_CHECKS_AT_ONCE, "check")

    async def get(self, name, via: str = ""):
        """The file of a Name: Stored, or a Download to be read; ``via``: of the request for it.

        Raises UpstreamError, and OSError where there is no disk to write to.
        """
        fresh = None if name.is_immutable else self._fresh.get(name.text)
        if name.is_immutable or fresh:
            stored = self.lookup(name)
            if stored is not None:
                return stored._replace(max_age_s=fresh[1]) if fresh else stored
        absent = self._absent.get(name.text)
        if absent is not None:
            raise NotThere(*absent[0])
        download = self._downloads.get(name.text)
        if download is None:
            download = self._downloads[name.text] = Download(name, Draft(self._local))
            self._run(self._bring(download, via))
        return download

    def lookup(self, name):
        """What the disk has, Stored, whether it is fresh or not; or None."""
        key = key_of(name.text)
        for store in (self._local.store, self._local.session_store):
            if store is None:
                continue
            path = f"{store.root}/{key}"
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._note_local_error(path, error)
                continue
            try:
                status = os.fstat(fd)
                if status.st_mtime < time.time() - MIN_AGE_S / 2:
                    with suppress(OSError):  # another user's keeps its clock
                        os.utime(fd)  # of use, by which prune goes
                data = os.read(fd, status.st_size) if status.st_size <= SMALL_BYTES else None
                return Stored(path, status.st_size, data, None)
            except OSError as error:
                self._note_local_error(path, error)
            finally:
                os.close(fd)
        return None

    def _note_local_error(self, path, error) -> None:
        self._counters["get_local_error"] += 1
        log.warning("%s cannot be read: %s", path, reason_of(error))

    async def read(self, name) -> bytes:
        """The whole of a file that is no zip; raises as ``get`` does."""
        found = await self.get(name)
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
            if not name.is_immutable:
                await self._renew(download, via)
            elif not await self._bring_from_s3(download):
                await self._bring_for_good(download, via)
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
            elif not await self._bring_from_s3(download):
                raise
            log.info("module file %s: its last good copy is served: %s", name.text, error)
            self._counters["get_stale"] += 1
        else:
            self._fresh.add(name.text, True, self._options.modproxy_max_age_s)

    async def _bring_for_good(self, download, via) -> None:
        """Bring a file that never changes; a tile, where upstream fails, out of a wider one."""
        try:
            await self._bring_from_upstream(download, via)
        except UpstreamError:
            for entries, wider in names.wider_tiles(download.name):
                stored = self.lookup(wider)
                if stored is not None:
                    download.forget()
                    download.write(data_of(stored)[: entries * names.HASH_BYTES])
                    self._counters["get_stale"] += 1
                    return
            raise

    async def _bring_from_s3(self, download) -> bool:
        """Whether the bucket had the file, and it was right."""
        if self._bucket is None:
            return False
        name, key = download.name, key_of(download.name.text)
        # In a file of its own: a worker that nobody waits for any more may still write to it.
        with Draft(self._local) as draft:
            result = await self._bucket.fetch_file(key, draft.attempt(draft.open).path)
            if result.status != jobs.HIT:
                is_absent = result.status == jobs.MISS
                self._counters["get_fault_miss" if is_absent else "get_fault_error"] += 1
                return False
            try:
                keeps = await self._check(name, draft, self._ask_sums(name))
            except FileMismatch as error:
                self._counters["get_fault_error"] += 1
                log.warning("module file %s in S3 is passed over: %s", name.text, error)
                self._damaged.add(key)
                return False
            self._counters["get_fault_hit"] += 1
            self._counters["get_s3_bytes"] += result.size
            download.take_over(draft)
        if keeps:
            await self._keep(download)
        return True

    async def _bring_from_upstream(self, download, via) -> None:
        name, key = download.name, key_of(download.name.text)
        sums = self._ask_sums(name)  # while the file comes
        await self._upstream.fetch(name, download, via)
        keeps = await self._check(name, download.draft, sums)
        if not keeps:
            return
        self._counters["put_request"] += 1
        before = None if name.is_immutable else self.lookup(name)
        if before is not None and data_of(before) == download.read():
            self._counters["put_local_hit"] += 1
            return
        await self._keep(download)
        if self._uploads and download.path:
            self._run(self._upload(key, download.path, not name.is_immutable or key in self._damaged))
            self._damaged.discard(key)

    async def _check(self, name, draft, sums) -> bool:
        """Whether all that was to be checked of a draft was, so that it may be kept.

        ``sums`` is what _ask_sums gave. Raises FileMismatch.
        """
        fd = draft.attempt(draft.open).fd
        if name.kind == names.ZIP:
            found, go_mod = await self._in_thread(_read_zip, fd, name)
        else:
            go_mod = os.pread(fd, os.fstat(fd).st_size, 0)
            checks.check_text(name, go_mod)
            if name.kind != names.MOD:
                return True
            found = checks.hash_mod(go_mod)
        try:
            sums = await sums
        except UpstreamError as error:
            self._counters["unverified"] += 1
            log.warning("module file %s is served and not kept: %s", name.text, error)
            return False
        expected = sums.zip if name.kind == names.ZIP else sums.mod
        if expected not in (None, found):
            raise FileMismatch(f"its hash is {found}, the checksum database has {expected}")
        await self._compare(name, go_mod, expected is not None)
        return True

    async def _compare(self, name, go_mod, is_proven) -> None:
        """Compare a go.mod, of a zip or by itself, with the other one, where that is kept."""
        if name.kind == names.ZIP:
            other = self.lookup(names.sibling(name, names.MOD))
            found = None if other is None else data_of(other)
        else:
            other = None if is_proven else self.lookup(names.sibling(name, names.ZIP))
            found = None if other is None else await self._in_thread(zips.mod_in_zip, other.path, name)
        if None in (go_mod, found) or go_mod == found:
            return
        os.unlink(other.path)  # which of the two is wrong, nobody knows, unless this one is proven
        if not is_proven:
            raise FileMismatch("its go.mod and that of its zip differ")

    def _in_thread(self, call, *arguments):
        return asyncio.get_running_loop().run_in_executor(self._checkers, call, *arguments)

    def _ask_sums(self, name):
        """A future of the Sums of a version; it may be left alone."""
        asked = asyncio.ensure_future(self._sums_of(name))
        asked.add_done_callback(lambda done: done.cancelled() or done.exception())
        return asked

    async def _sums_of(self, name) -> checks.Sums:
        """What a checksum database says of a version; raises UpstreamError where it does not say."""
        if name.kind in (names.ZIP, names.MOD):
            if not goproxy.is_private(name.module, self._options.nosumdb):
                for database in self._databases:
                    try:
                        record = await self.read(names.lookup(database, name.module, name.version))
                        return checks.read_lookup(record, name.module, name.version)
                    except NotThere:
                        continue
        return _NO_SUMS

    async def _keep(self, download) -> None:
        """Put a file where it is found again, durably; where no disk takes it, it is only served."""
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


def _read_zip(fd, name):
    with open(fd, "rb", closefd=False) as file:
        return zips.read_zip(file, name)
