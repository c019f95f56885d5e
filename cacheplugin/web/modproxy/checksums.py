"""Whether a file of a version is what the checksum database, and its other files, say."""

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ...errors import FileMismatch, NotThere, UpstreamError, UpstreamOff
from . import checks, goproxy, names, zips
from .disk import data_of
from .expiring import Recent

log = logging.getLogger(__name__)

_CHECKS_AT_ONCE = 2  # they cost CPU
_WARN_S = 60.0  # between two warnings
_NO_SUMS = checks.Sums(None, None)


class Prover:
    """``read(name, renews)`` is an awaitable of the record of a checksum database, from anywhere, or anew."""

    def __init__(self, databases, nosumdb: str, shelf, read, counters) -> None:
        self._databases = databases
        self._nosumdb = nosumdb
        self._shelf = shelf
        self._read = read
        self._counters = counters
        self._warned = Recent()
        self._threads = ThreadPoolExecutor(_CHECKS_AT_ONCE, "check")

    def ask(self, name):
        """A future of what the databases say of a version, for ``check``; it may be left alone."""
        asked = asyncio.ensure_future(self._sums_of(name))
        asked.add_done_callback(lambda done: done.cancelled() or done.exception())
        return asked

    async def check(self, name, draft, asked) -> bool:
        """Whether all that was to be checked of a draft was, so that it may be kept.

        ``asked`` is what ``ask`` gave. Raises FileMismatch.
        """
        fd = draft.attempt(draft.open).fd
        if name.kind == names.ZIP:
            found, go_mod = await self._in_thread(_read_zip, fd, name)
        else:
            size = os.fstat(fd).st_size
            if size > checks.max_bytes(name):
                raise FileMismatch(f"it has {size} bytes")
            go_mod = os.pread(fd, size, 0)
            checks.check_text(name, go_mod)
            if name.kind != names.MOD:
                return True
            found = checks.hash_mod(go_mod)
        try:
            sums = await asked
            if _of(sums, name) not in (None, found):
                sums = await self._sums_of(name, renews=True)  # the record may be what is wrong
        except UpstreamError as error:
            self._note_unverified(name, error)
            return False
        expected = _of(sums, name)
        if expected not in (None, found):
            raise FileMismatch(f"its hash is {found}, the checksum database has {expected}")
        await self._compare(name, go_mod, expected is not None)
        return True

    def _note_unverified(self, name, error) -> None:
        self._counters["unverified"] += 1
        level = logging.INFO if self._warned.get("unverified") else logging.WARNING
        if level == logging.WARNING:
            self._warned.add("unverified", True, _WARN_S)
        log.log(level, "module file %s is served and not kept: %s", name.text, error)

    async def _compare(self, name, go_mod, is_proven) -> None:
        """Compare a go.mod, of a zip or by itself, with the other one, where that is kept."""
        if name.kind == names.ZIP:
            other = self._shelf.lookup(names.sibling(name, names.MOD))
            found = None if other is None else data_of(other)
        else:
            other = None if is_proven else self._shelf.lookup(names.sibling(name, names.ZIP))
            found = (
                None if other is None else await self._in_thread(zips.mod_in_zip, other.path, name)
            )
        if None in (go_mod, found) or go_mod == found:
            return
        with suppress(FileNotFoundError):
            os.unlink(
                other.path
            )  # which of the two is wrong, nobody knows, unless this one is proven
        if not is_proven:
            raise FileMismatch("its go.mod and that of its zip differ")

    async def _sums_of(self, name, renews: bool = False) -> checks.Sums:
        """What a checksum database says of a version; raises UpstreamError where none says anything.

        ``renews``: what is kept of it does not count.
        """
        if name.kind not in (names.ZIP, names.MOD) or not self._databases:
            return _NO_SUMS
        if goproxy.is_private(name.module, self._nosumdb):
            return _NO_SUMS
        for database in self._databases:
            lookup = names.lookup(database, name.module, name.version)
            try:
                try:
                    record = await self._read(lookup, renews)
                    return checks.read_lookup(record, name.module, name.version)
                except FileMismatch:
                    record = await self._read(lookup, True)  # the disk has damaged it
                    return checks.read_lookup(record, name.module, name.version)
            except UpstreamOff:
                raise UpstreamError(
                    "no record of its checksum is here, and upstream is off"
                ) from None
            except NotThere:
                continue
            except FileMismatch as error:
                raise UpstreamError(f"checksum database {database}: {error}") from None
        raise UpstreamError("no checksum database has it; --nosumdb names modules that none has")

    def _in_thread(self, call, *arguments):
        return asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)


def _of(sums, name):
    return sums.zip if name.kind == names.ZIP else sums.mod


def _read_zip(fd, name):
    with open(fd, "rb", closefd=False) as file:
        return zips.read_zip(file, name)
