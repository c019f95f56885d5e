"""Compares the files of a module version with checksum databases, and with each other."""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ...errors import FileMismatch, NotThere, UpstreamError, UpstreamOff
from . import checks, goproxy, names, zips
from .expiring import ExpiringCache

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ...store.cache import Draft
    from .checks import Sums
    from .contracts import ReadRecord
    from .disk import Disk
    from .names import Name

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_CHECKS_AT_ONCE = 2  # checking a zip keeps a core busy
_WARN_INTERVAL_S = 60.0
_NO_SUMS = checks.Sums(None, None)


class ChecksumVerifier:
    """Verifies files. ``databases``: names of checksum databases, asked in this order.

    ``nosumdb``: patterns of modules for which no database is asked. ``read`` returns a record.
    """

    def __init__(
        self,
        databases: Sequence[str],
        nosumdb: str,
        disk: Disk,
        read: ReadRecord,
        counters: dict[str, int],
    ) -> None:
        self._databases = databases
        self._nosumdb = nosumdb
        self._disk = disk
        self._read = read
        self._counters = counters
        self._warned: ExpiringCache[bool] = ExpiringCache()
        self._threads = ThreadPoolExecutor(_CHECKS_AT_ONCE, "check")

    def request_sums(self, name: Name) -> asyncio.Future[Sums]:
        """Ask the databases for the hashes of a version, for ``verify``.

        The result may be dropped: nothing is logged if it fails.
        """
        sums = asyncio.ensure_future(self._sums_of(name))
        sums.add_done_callback(lambda done: done.cancelled() or done.exception())
        return sums

    async def verify(self, name: Name, draft: Draft, requested: asyncio.Future[Sums]) -> bool:
        """Check the complete file in ``draft``. ``requested``: the result of ``request_sums``.

        Returns whether it may be stored: False when no database could be asked about it. Raises
        FileMismatch for a wrong file.
        """
        fd = draft.attempt(draft.open).fd
        go_mod: bytes | None
        if name.kind == names.ZIP:
            found, go_mod = await self._in_thread(partial(_read_zip, fd, name))
        else:
            size = os.fstat(fd).st_size
            if size > checks.max_bytes(name):
                raise FileMismatch(f"it has {size} bytes; the limit is {checks.max_bytes(name)}")
            go_mod = os.pread(fd, size, 0)
            checks.check_text(name, go_mod)
            if name.kind != names.MOD:
                return True
            found = checks.hash_mod(go_mod)
        try:
            expected = _sum_of(name, await requested)
            if expected not in (None, found):  # perhaps it is the stored record that is wrong
                expected = _sum_of(name, await self._sums_of(name, refresh=True))
        except UpstreamError as error:
            self._note_unverified(name, error)
            return False
        if expected not in (None, found):
            raise FileMismatch(f"its hash is {found}, but the checksum database has {expected}")
        await self._compare_go_mods(name, go_mod, expected is not None)
        return True

    def _note_unverified(self, name: Name, error: UpstreamError) -> None:
        self._counters["unverified"] += 1
        level = logging.INFO if self._warned.get("unverified") else logging.WARNING
        if level == logging.WARNING:
            self._warned.add("unverified", True, _WARN_INTERVAL_S)
        log.log(
            level,
            "module file %s is served but not stored, because its checksum is unknown: %s",
            name.text,
            error,
        )

    async def _compare_go_mods(self, name: Name, go_mod: bytes | None, is_verified: bool) -> None:
        """Compare the go.mod of a zip with the stored .mod, or a .mod with that of the stored zip.

        ``is_verified``: a checksum database has the hash of the file. If they differ, the stored
        file is removed; FileMismatch unless ``is_verified``.
        """
        if name.kind == names.ZIP:
            other = self._disk.lookup(names.sibling(name, names.MOD))
            found = None if other is None else other.content()
        elif is_verified:
            return
        else:
            other = self._disk.lookup(names.sibling(name, names.ZIP))
            found = None
            if other is not None:
                found = await self._in_thread(partial(zips.mod_in_zip, other.path, name))
        if other is None or None in (go_mod, found) or go_mod == found:
            return
        with suppress(FileNotFoundError):
            os.unlink(other.path)  # stored without a checksum, so it may be wrong
        if not is_verified:
            raise FileMismatch("the go.mod in its zip and its .mod differ; both are fetched again")

    async def _sums_of(self, name: Name, refresh: bool = False) -> Sums:
        """The hashes that the first checksum database with a record has of a version.

        ``refresh``: fetch the record, even if it is stored. Raises UpstreamError when no database
        has a record or one could not be asked.
        """
        if name.kind not in (names.ZIP, names.MOD) or not self._databases:
            return _NO_SUMS
        if goproxy.is_private(name.module, self._nosumdb):
            return _NO_SUMS
        for database in self._databases:
            lookup = names.lookup(database, name.module, name.version)
            try:
                try:
                    record = await self._read(lookup, refresh)
                    return checks.read_lookup(record, name.module, name.version)
                except FileMismatch:  # the stored record is damaged
                    record = await self._read(lookup, True)
                    return checks.read_lookup(record, name.module, name.version)
            except UpstreamOff:
                raise UpstreamError(
                    "the cache has no record of a checksum database, and upstream is off"
                ) from None
            except NotThere:
                continue
            except FileMismatch as error:
                raise UpstreamError(
                    f"checksum database {database}: bad record of {name.module}: {error}"
                ) from None
        raise UpstreamError(
            "no checksum database has the version; list private modules in --nosumdb"
        )

    def _in_thread(self, call: Callable[[], _Result]) -> asyncio.Future[_Result]:
        return asyncio.get_running_loop().run_in_executor(self._threads, call)


def _sum_of(name: Name, sums: Sums) -> str | None:
    return sums.zip if name.kind == names.ZIP else sums.mod


def _read_zip(fd: int, name: Name) -> zips.ZipContent:
    with open(fd, "rb", closefd=False) as file:
        return zips.read_zip(file, name)
