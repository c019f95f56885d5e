"""The tasks of workers: read manifests and ranges of bundles, write bundles and manifests."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import groupby
from typing import TYPE_CHECKING

from ...errors import Absent, BodyMismatch, Damaged, RemoteError, reason_of
from ...ipc import jobs
from ...options import key_prefix
from ...store.spool import Entry
from ...store.tree import EMPTY_OUTPUT
from ...tuples import NamedTuple
from ..body_reader import BodyReader
from . import manifest
from .bundle import LARGE_BYTES, BundleEncoder, ChunkReader, decompress, decompress_pieces
from .keys import BUNDLE_NAME, KeyPrefixes, new_name, scope_key
from .rows import Row, plain_rows

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from concurrent.futures import Future
    from typing import TypeVar

    from ...store.cache import LocalCache
    from ..body_reader import Body
    from ..contracts import Bucket
    from ..s3 import Listed

    T = TypeVar("T")

MAX_MANIFEST_BYTES = 256 << 20
# The most manifests that are read of the session's own scope, and of each other one.
_OWN_MANIFESTS = 64
_OTHER_MANIFESTS = 4
_RELATED_SCOPES = 2
_UNRELATED_SCOPES = 2
_AT_ONCE = 8
# zstd adds less than this to data that it cannot compress.
_MAX_BLOCK_BYTES = LARGE_BYTES + (LARGE_BYTES >> 7)


class _Scope(NamedTuple):
    """The content of a scope's manifests.

    rows: of all manifests, merged; superseded: names of the manifests that a new one with these
    rows supersedes; written_s: when the newest was written, by the store's clock (epoch); damaged:
    how many could not be used.
    """

    rows: Sequence[Row] = ()
    superseded: Sequence[str] = ()
    written_s: float = 0
    damaged: int = 0


class BundlesLayout:
    """Does the tasks of the layout. ``prefix`` is that of --prefix, perhaps empty. Thread-safe.

    ``look_for_objects``: let ``load`` find out whether the bucket also holds the objects layout.
    """

    def __init__(
        self, bucket: Bucket, cache: LocalCache, prefix: str, look_for_objects: bool
    ) -> None:
        self._bucket = bucket
        self._cache = cache
        self._prefixes = KeyPrefixes(prefix)
        self._actions = f"{key_prefix(prefix)}action/"
        self._look_for_objects = look_for_objects

    # -- loading manifests -------------------------------------------------------------------------

    def load(self, job: jobs.LoadJob) -> jobs.LoadResult:
        """Read the manifests of a scope and of those it falls back to.

        Manifests that cannot be used are left out and counted. If these scopes name no entry, the
        manifests of the scopes that were written to last are read. Raises RemoteError if the
        scope's own manifests cannot be listed or read; failures of other requests are ignored.
        """
        scopes = [scope_key(scope) for scope in job.scopes]
        with ThreadPoolExecutor(len(scopes) + 1) as pool:
            objects = pool.submit(self._find_objects)
            reading_own = pool.submit(self._read_scope, scopes[0], _OWN_MANIFESTS)
            reading_related = [
                pool.submit(self._read_scope, scope, _OTHER_MANIFESTS)
                for scope in scopes[1 : 1 + _RELATED_SCOPES]
            ]
            own = reading_own.result()
            related = [_result_or(future, _Scope()) for future in reading_related]
            unrelated: list[_Scope] = []
            if not own.rows and not any(scope.rows for scope in related):
                unrelated = _result_or(pool.submit(self._read_unrelated, scopes), [])
            has_objects = _result_or(objects, True)
        own_rows, related_rows, unrelated_rows = map(_merged, ([own], related, unrelated))
        return jobs.LoadResult(
            job.number,
            jobs.HIT,
            own=plain_rows(own_rows),
            related=plain_rows(related_rows),
            unrelated=plain_rows(unrelated_rows),
            superseded=own.superseded,
            written_s=own.written_s,
            missing=self._missing((*own_rows, *related_rows, *unrelated_rows)),
            has_objects=has_objects,
            damaged=sum(scope.damaged for scope in (own, *related, *unrelated)),
            now_s=self._bucket.now_s(),
        )

    def _find_objects(self) -> bool:
        """Whether the bucket holds the objects layout; False if not asked. Raises RemoteError."""
        return self._look_for_objects and bool(self._bucket.list(self._actions, 1))

    def _missing(self, rows: Iterable[Row]) -> list[str]:
        """The actions of rows that the local store lacks, in order, each once."""
        actions, outputs = self._cache.first_store().names()
        return list(
            dict.fromkeys(
                row.action for row in rows if row.action not in actions or row.output not in outputs
            )
        )

    def _read_scope(self, scope: str, most: int) -> _Scope:
        """Read up to ``most`` manifests of a scope, none of them superseded by one that was read.

        Raises RemoteError if they cannot be listed, or none can be read and S3 failed for one.
        """
        listed = _newest(self._bucket, f"{self._prefixes.manifests}{scope}/")
        reader = _ScopeReader()
        at_once, rest = 1, listed  # the newest usually supersedes all others
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            while rest and most > 0 and (reader.failure is None or reader.read):
                batch, rest = rest[: min(at_once, most)], rest[min(at_once, most) :]
                most -= len(batch)
                for found, content in zip(batch, pool.map(self._read_manifest, batch), strict=True):
                    reader.add(_name(found), content)
                rest = [found for found in rest if _name(found) not in reader.superseded]
                at_once = _AT_ONCE
        return reader.result(listed)

    def _read_manifest(self, listed: Listed) -> manifest.Manifest | RemoteError:
        """A manifest, or the error that kept it from being read."""
        try:
            return manifest.decode(self._bucket.read_all(listed.key, MAX_MANIFEST_BYTES))
        except RemoteError as error:
            return error

    def _read_unrelated(self, own: Collection[str]) -> list[_Scope]:
        """Read the scopes, other than ``own``, that bundles were last written for.

        Scopes are hashes as in keys. Raises RemoteError.
        """
        names = map(_name, _newest(self._bucket, self._prefixes.bundles))
        matches = filter(None, map(BUNDLE_NAME.fullmatch, names))
        found = dict.fromkeys(match[1] for match in matches)
        scopes = [scope for scope in found if scope not in own][:_UNRELATED_SCOPES]
        return [self._read_scope(scope, _OTHER_MANIFESTS) for scope in scopes]

    # -- fetching ----------------------------------------------------------------------------------

    def fetch(self, job: jobs.RangeJob) -> jobs.RangeResult:
        """Bring the entries of a range into the local store; raises RemoteError and OSError.

        Entries that are there are not fetched. If the range fails after some entries arrived, the
        result names these and the failure's status.
        """
        arrived: list[str] = []
        damaged: list[str] = []
        wanted = []
        for fields in job.rows:
            row = Row(*fields)
            if self._is_stored(row):
                arrived.append(row.action)
            else:
                wanted.append(row)
        status, reason, is_absent, received = jobs.HIT, "", False, 0
        if wanted:
            start, end = wanted[0].offset, max(row.offset + row.length for row in wanted)
            received = end - start
            try:
                with self._bucket.open_range(
                    self._prefixes.bundles + job.bundle, start, received
                ) as body:
                    self._store_range(body, start, wanted, arrived, damaged)
            except (Absent, Damaged) as error:
                status, reason, is_absent = jobs.DAMAGED, str(error), isinstance(error, Absent)
                damaged = [row.action for row in wanted if row.action not in set(arrived)]
                received = 0
            except (RemoteError, OSError) as error:
                if not arrived:
                    raise
                status, reason = jobs.status_of(error, uploading=False), reason_of(error)
        return jobs.RangeResult(job.number, status, reason, arrived, damaged, is_absent, received)

    def _is_stored(self, row: Row) -> bool:
        """Whether the local store has the entry; writes its record if the store has the body."""
        store = self._cache.first_store()
        if store.lookup(row.action) is not None:
            return True
        if row.output != EMPTY_OUTPUT and not os.path.exists(store.output_path(row.output)):
            return False
        return self._cache.adopt(row.action, row.output, row.time_ns) is not None

    def _store_range(
        self, body: Body, position: int, rows: Iterable[Row], arrived: list[str], damaged: list[str]
    ) -> None:
        """Store the entries of ``rows`` from a part of a bundle that begins at ``position``.

        Adds actions to ``arrived`` and ``damaged``. Raises RemoteError and OSError.
        """
        reader = BodyReader(body)
        for (offset, length), group in groupby(rows, key=lambda row: (row.offset, row.length)):
            block_rows = list(group)
            if offset < position:
                raise Damaged(f"the block at offset {offset} overlaps the one before it")
            reader.read(offset - position)
            position = offset + length
            content = b""
            if block_rows[0].size > LARGE_BYTES:
                with closing(decompress_pieces(reader.read, length)) as pieces:
                    self._store(block_rows.pop(0), pieces, arrived, damaged)
            elif length > _MAX_BLOCK_BYTES:
                raise Damaged(f"the block at offset {offset} has {length} bytes, which is too many")
            else:
                try:
                    content = decompress(reader.read(length), LARGE_BYTES)
                except Damaged:
                    pass  # its entries are then found to be damaged
            for row in block_rows:
                if self._is_stored(row):  # entries may share a body
                    arrived.append(row.action)
                else:
                    piece = memoryview(content)[row.inner : row.inner + row.size]
                    self._store(row, (piece,), arrived, damaged)

    def _store(
        self,
        row: Row,
        pieces: Iterable[bytes | memoryview],
        arrived: list[str],
        damaged: list[str],
    ) -> None:
        """Publish one entry in the local store, unless its body is wrong; raises OSError."""
        try:
            with self._cache.writer(row.action, row.output, row.size) as writer:
                for piece in pieces:
                    writer.write(piece)
                writer.commit(row.time_ns)
        except (BodyMismatch, Damaged):
            damaged.append(row.action)
        else:
            arrived.append(row.action)

    # -- uploading ---------------------------------------------------------------------------------

    def upload(self, job: jobs.BundleJob) -> jobs.BundleResult:
        """Write a bundle; raises RemoteError and OSError."""
        unique = f"{scope_key(job.scope)}-{os.urandom(4).hex()}"
        name = new_name(time.time(), unique)
        encoder = BundleEncoder([Entry(*entry) for entry in job.entries], name)
        reader = ChunkReader(encoder.chunks())
        try:
            self._bucket.upload_file(self._prefixes.bundles + name, reader)
        except Damaged:  # no entry has a body, so there is no bundle to write
            reader.size = 0
        for output in encoder.unreadable:
            encoder.bad.pop(output, None)  # a body that may be intact is not given up
        return jobs.BundleResult(
            job.number,
            jobs.STORED,
            "; ".join(encoder.bad.values()),
            plain_rows(encoder.rows),
            list(encoder.bad),
            reader.size,
            list(encoder.unreadable.items()),
        )

    def write_manifest(self, job: jobs.ManifestJob) -> jobs.ManifestResult:
        """Write a manifest; raises RemoteError."""
        name = new_name(time.time(), os.urandom(4).hex())
        self._bucket.write(f"{self._prefixes.manifests}{scope_key(job.scope)}/{name}", job.data)
        return jobs.ManifestResult(job.number, jobs.STORED, "", name, len(job.data))


class _ScopeReader:
    """Merges the manifests of one scope, which are added from the newest to the oldest."""

    def __init__(self) -> None:
        self.read: set[str] = set()  # names
        self.superseded: set[str] = set()  # names
        self.failure: RemoteError | None = None  # the last failure of S3
        self._rows: dict[str, Row] = {}  # by action
        self._damaged = 0

    def add(self, name: str, content: manifest.Manifest | RemoteError) -> None:
        if isinstance(content, manifest.Manifest):
            self.read.add(name)
            if name not in self.superseded:
                self.superseded.update(content.superseded)
                manifest.merge([content.rows], self._rows)
        elif isinstance(content, (Absent, Damaged)):
            self._damaged += 1  # not superseded: maybe it was damaged on the way only
        else:
            self.failure = content

    def result(self, listed: Iterable[Listed]) -> _Scope:
        """The content of the scope; ``listed`` are all its manifests.

        Raises RemoteError if S3 failed and no manifest was read.
        """
        if self.failure is not None and not self.read:
            raise self.failure
        names = [_name(found) for found in listed]
        written_s = [found.modified_s for found in listed if _name(found) in self.read]
        return _Scope(
            list(self._rows.values()),
            [name for name in names if name in self.superseded or name in self.read],
            max(written_s, default=0),
            self._damaged,
        )


def _merged(scopes: Iterable[_Scope]) -> list[Row]:
    return list(manifest.merge(scope.rows for scope in scopes).values())


def _newest(bucket: Bucket, prefix: str) -> list[Listed]:
    """The first page of objects below ``prefix``, the newest first by the store's clock."""
    return sorted(bucket.list(prefix), key=lambda listed: listed.modified_s, reverse=True)


def _name(listed: Listed) -> str:
    return listed.key.rpartition("/")[2]


def _result_or(future: Future[T], default: T) -> T:
    """The result of a future, or ``default`` if it raised RemoteError."""
    try:
        return future.result()
    except RemoteError:
        return default
