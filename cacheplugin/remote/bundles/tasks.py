"""The tasks of workers: read manifests and ranges of bundles, write bundles and manifests."""

import os
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import groupby

from ...errors import Absent, BodyMismatch, Damaged, RemoteError, reason_of
from ...ipc import jobs
from ...options import key_prefix
from ...store.spool import Entry
from ...store.tree import EMPTY_OUTPUT
from ..slow_body import PatientBody
from . import manifest
from .bundle import LARGE_BYTES, Packer, Stream, inflate, inflate_pieces
from .index import Row

MAX_MANIFEST_BYTES = 256 << 20
_MOST_MANIFESTS = 64  # that are read of the session's own scope
_OTHERS = 4  # and of each related one
_FOREIGN_SCOPES = 2
_AT_ONCE = 8
_MAX_BLOCK_BYTES = LARGE_BYTES + (LARGE_BYTES >> 7)  # zstd adds less to what it cannot compress


class BundlesLayout:
    """``bucket`` is a remote.s3.Bucket, ``cache`` a LocalCache, ``prefix`` clean or empty.

    ``look_for_objects``: say whether there are objects of the objects layout as well. ``bundles``
    and ``manifests`` are how all their keys begin.
    """

    def __init__(self, bucket, cache, prefix: str, look_for_objects: bool) -> None:
        self._bucket = bucket
        self._cache = cache
        prefix = key_prefix(prefix)
        self.bundles, self.manifests = f"{prefix}bundle/", f"{prefix}manifest/"
        self._actions = f"{prefix}action/"
        self._look_for_objects = look_for_objects

    # -- what there is -----------------------------------------------------------------------------

    def load(self, job) -> jobs.LoadResult:
        """Read the manifests of a scope and of those it falls back to; raises RemoteError.

        One that cannot be used is counted and passed over.
        """
        scopes = [manifest.scope_key(scope) for scope in job.scopes]
        with ThreadPoolExecutor(len(scopes) + 1) as pool:
            objects = None
            if self._look_for_objects:
                objects = pool.submit(self._bucket.list, self._actions, 1)
            own, *others = [
                pool.submit(self._read_scope, scope, most)
                for scope, most in zip(scopes, (_MOST_MANIFESTS, _OTHERS, _OTHERS))
            ]
            own = own.result()  # without these there is nothing to go on with
            others = [_ignoring(other, _NOTHING) for other in others]
            foreign = []
            if not own.rows and not any(other.rows for other in others):
                foreign = _ignoring(pool.submit(self._read_foreign, scopes), ())
            has_objects = objects is not None and bool(_ignoring(objects, True))
        rows = [
            list(manifest.merge(scope.rows for scope in some).values())
            for some in ((own,), others, foreign)
        ]
        actions, outputs = self._cache.first_store().names()
        missing = dict.fromkeys(
            row.action
            for some in rows
            for row in some
            if row.action not in actions or row.output not in outputs
        )
        return jobs.LoadResult(
            job.number,
            jobs.HIT,
            "",
            *([tuple(row) for row in some] for some in rows),
            own.superseded,
            own.written_s,
            list(missing),
            has_objects,
            sum(scope.damaged for scope in (own, *others, *foreign)),
            self._bucket.now_s(),
        )

    def _read_scope(self, scope: str, most: int) -> "_Scope":
        """Read the manifests of a scope, up to ``most``, and none that another one supersedes.

        Raises RemoteError where they cannot be listed, or those that are there cannot be read.
        """
        listed = _newest(self._bucket, f"{self.manifests}{scope}/")
        merged, found, damaged, superseded, failure = {}, set(), 0, set(), None
        at_once, rest = 1, listed  # as a rule the newest supersedes all others
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            while rest and most > 0 and (failure is None or found):
                batch, rest = rest[: min(at_once, most)], rest[min(at_once, most) :]
                most -= len(batch)
                for one, got in zip(batch, pool.map(self._read_manifest, batch)):
                    if isinstance(got, manifest.Manifest):
                        found.add(_name(one))
                        if _name(one) not in superseded:
                            superseded.update(got.superseded)
                            manifest.merge([got.rows], merged)
                    elif isinstance(got, (Absent, Damaged)):
                        damaged += 1  # perhaps only on the way: it is not superseded for that
                    else:
                        failure = got
                rest = [one for one in rest if _name(one) not in superseded]
                at_once = _AT_ONCE
        if failure is not None and not found:
            raise failure
        return _Scope(
            list(merged.values()),
            [name for name in map(_name, listed) if name in superseded or name in found],
            max((one.modified_s for one in listed if _name(one) in found), default=0),
            damaged,
        )

    def _read_manifest(self, listed):
        """The Manifest that is listed, or the RemoteError that kept it from being read."""
        try:
            return manifest.decode(self._bucket.read_all(listed.key, MAX_MANIFEST_BYTES))
        except RemoteError as error:
            return error

    def _read_foreign(self, own) -> list:
        """The other _Scopes that were written for last, by the names of bundles; raises RemoteError."""
        names = (_name(one) for one in _newest(self._bucket, self.bundles))
        matches = filter(None, map(manifest.BUNDLE_NAME.fullmatch, names))
        found = dict.fromkeys(match[1] for match in matches)
        scopes = [scope for scope in found if scope not in own][:_FOREIGN_SCOPES]
        return [self._read_scope(scope, _OTHERS) for scope in scopes]

    # -- fetching ----------------------------------------------------------------------------------

    def fetch(self, job) -> jobs.RangeResult:
        """Bring the entries of a RangeJob into the local store; raises RemoteError and OSError.

        What is there already is not fetched. After a failure in the middle, what arrived before
        it is in the result.
        """
        arrived, damaged, wanted = [], [], []
        for fields in job.rows:
            row = Row(*fields)
            if self._is_here(row):
                arrived.append(row.action)
            else:
                wanted.append(row)
        status, reason, gone, received = jobs.HIT, "", False, 0
        if wanted:
            start, end = wanted[0].offset, max(row.offset + row.length for row in wanted)
            received = end - start
            try:
                with self._bucket.open_range(self.bundles + job.bundle, start, received) as body:
                    self._take(body, start, wanted, arrived, damaged)
            except (Absent, Damaged) as error:
                status, reason, gone = jobs.DAMAGED, str(error), isinstance(error, Absent)
                damaged = [row.action for row in wanted if row.action not in set(arrived)]
                received = 0
            except (RemoteError, OSError) as error:
                if not arrived:
                    raise
                status, reason = jobs.status_of(error, uploading=False), reason_of(error)
        return jobs.RangeResult(job.number, status, reason, arrived, damaged, gone, received)

    def _is_here(self, row) -> bool:
        """Whether the entry is in the local store, perhaps by giving a body a further record."""
        store = self._cache.first_store()
        if store.lookup(row.action) is not None:
            return True
        if row.output != EMPTY_OUTPUT and not os.path.exists(store.output_path(row.output)):
            return False
        return self._cache.adopt(row.action, row.output, row.time_ns) is not None

    def _take(self, body, position, rows, arrived, damaged) -> None:
        """Store the entries of ``rows`` from a part of a bundle that begins at ``position``."""
        body = PatientBody(body)
        for (offset, length), block_rows in groupby(rows, key=lambda row: (row.offset, row.length)):
            block_rows = list(block_rows)
            if offset < position:
                raise Damaged(f"blocks that overlap at {offset}")
            body.read(offset - position)
            position = offset + length
            if block_rows[0].size > LARGE_BYTES:
                with closing(inflate_pieces(body.read, length)) as pieces:
                    self._store(block_rows.pop(0), pieces, arrived, damaged)
                inflated = b""
            elif length > _MAX_BLOCK_BYTES:
                raise Damaged(f"a block of {length} bytes at {offset}")
            else:
                try:
                    inflated = inflate(body.read(length), LARGE_BYTES)
                except Damaged:
                    inflated = b""
            for row in block_rows:
                if self._is_here(row):  # two actions may share a body
                    arrived.append(row.action)
                else:
                    piece = memoryview(inflated)[row.inner : row.inner + row.size]
                    self._store(row, (piece,), arrived, damaged)

    def _store(self, row, pieces, arrived, damaged) -> None:
        """Publish one entry, or find it damaged; raises OSError."""
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

    def upload(self, job) -> jobs.BundleResult:
        """Write a bundle of the entries of a BundleJob; raises RemoteError and OSError."""
        unique = f"{manifest.scope_key(job.scope)}-{os.urandom(4).hex()}"
        name = manifest.new_name(time.time(), unique)
        packer = Packer([Entry(*entry) for entry in job.entries], name)
        stream = Stream(packer.chunks())
        try:
            self._bucket.upload_file(self.bundles + name, stream)
        except Damaged as error:  # of all that was to be in it nothing can be
            return jobs.BundleResult(job.number, jobs.STORED, str(error), (), list(packer.bad), 0)
        return jobs.BundleResult(
            job.number,
            jobs.STORED,
            "; ".join(packer.bad.values()),
            [tuple(row) for row in packer.rows],
            list(packer.bad),
            stream.size,
        )

    def write_manifest(self, job) -> jobs.ManifestResult:
        """Write a manifest; raises RemoteError."""
        name = manifest.new_name(time.time(), os.urandom(4).hex())
        self._bucket.write(f"{self.manifests}{manifest.scope_key(job.scope)}/{name}", job.data)
        return jobs.ManifestResult(job.number, jobs.STORED, "", name, len(job.data))


# rows: what its manifests say together; superseded: the names of all manifests that these stand for;
# written_s: when the newest was written; damaged: how many could not be used.
_Scope = namedtuple("_Scope", "rows superseded written_s damaged")
_NOTHING = _Scope((), (), 0, 0)


def _newest(bucket, prefix) -> list:
    """What one page lists below ``prefix``, the newest first by the store's own clock."""
    return sorted(bucket.list(prefix), key=lambda one: one.modified_s, reverse=True)


def _name(listed) -> str:
    return listed.key.rpartition("/")[2]


def _ignoring(future, default):
    """What a future brings, or ``default`` where S3 did not give it."""
    try:
        return future.result()
    except RemoteError:
        return default
