"""The tasks of workers: read manifests and ranges of bundles, write bundles and manifests."""
import os
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import groupby

from ... import jobs
from ...errors import Absent, BodyMismatch, Damaged, RemoteError, Unavailable
from ...store import EMPTY_OUTPUT
from . import manifest
from .bundle import LARGE_BYTES, Packer, Stream, inflate, inflate_pieces
from .index import Row

MAX_MANIFEST_BYTES = 256 << 20
_MOST_MANIFESTS = 64  # that are read of the session's own scope
_OTHERS = 4  # and of each related one
_FOREIGN_SCOPES = 2
_AT_ONCE = 8
_MAX_BLOCK_BYTES = LARGE_BYTES + (LARGE_BYTES >> 7)  # zstd adds less to what it cannot compress

# A body slower than this is given up, so that no get waits for ever on a trickle.
_PATIENCE_S = 30
_SLOWEST_BYTES_PER_S = 1 << 18

_Read = namedtuple("_Read", "name manifest modified_s")


class BundlesLayout:
    """``bucket`` is a remote.s3.Bucket, ``cache`` a LocalCache, ``prefix`` clean or empty.

    ``scopes`` are those of scope.find; ``look_for_objects``: say whether there are objects of the
    objects layout as well. ``bundles`` and ``manifests`` are how all their keys begin.
    """

    def __init__(self, bucket, cache, prefix: str, scopes, look_for_objects: bool) -> None:
        self._bucket = bucket
        self._cache = cache
        prefix = prefix if prefix in ("", "/") else f"{prefix}/"
        self.bundles, self.manifests = f"{prefix}bundle/", f"{prefix}manifest/"
        self._actions = f"{prefix}action/"
        self._scopes = [manifest.scope_key(scope) for scope in scopes]
        self._look_for_objects = look_for_objects

    # -- what there is -----------------------------------------------------------------------------

    def load(self, job) -> jobs.LoadResult:
        """Read the manifests of this scope and of those it falls back to; raises RemoteError.

        One that cannot be used is counted and passed over.
        """
        reader = _Reader(self._bucket)
        with ThreadPoolExecutor(len(self._scopes) + 1) as pool:
            objects = None
            if self._look_for_objects:
                objects = pool.submit(self._bucket.list, self._actions, 1)
            own, *others = [
                pool.submit(reader.read, f"{self.manifests}{scope}/", most)
                for scope, most in zip(self._scopes, (_MOST_MANIFESTS, _OTHERS, _OTHERS))
            ]
            own_list, own = own.result()  # without these there is nothing to go on with
            others = [read for other in others for read in _ignoring(other, ((), ()))[1]]
            foreign = []
            if not own and not others:
                for scope in self._foreign_scopes():
                    foreign += reader.read(f"{self.manifests}{scope}/", _OTHERS)[1]
            has_objects = objects is not None and bool(_ignoring(objects, True))
        rows = [
            list(manifest.merge(read.manifest for read in reads).values())
            for reads in (own, others, foreign)
        ]
        present = self._cache.first_store().actions()
        return jobs.LoadResult(
            job.number, jobs.HIT, "", *([tuple(row) for row in some] for some in rows),
            _superseded(own_list, own), max((read.modified_s for read in own), default=0),
            [row.action for some in rows for row in some if row.action not in present],
            has_objects, len(reader.damaged),
        )  # fmt: skip

    def _foreign_scopes(self) -> list:
        """The scopes that were written for last, by the names of bundles."""
        names = [_name(one).split("-") for one in _newest(self._bucket, self.bundles)]
        found = dict.fromkeys(parts[1] for parts in names if len(parts) == 3)
        return [scope for scope in found if scope not in self._scopes][:_FOREIGN_SCOPES]

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
                status, reason = jobs.status_of(error, uploading=False), str(error)
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
        deadline = time.monotonic() + _PATIENCE_S
        for (offset, length), block_rows in groupby(rows, key=lambda row: row[6:8]):
            block_rows = list(block_rows)
            while position < offset:
                position += len(body.read(min(offset - position, LARGE_BYTES)))
            position += length
            deadline += length / _SLOWEST_BYTES_PER_S
            if block_rows[0].size > LARGE_BYTES:
                with closing(inflate_pieces(body.read, length)) as pieces:
                    self._store(block_rows[0], _in_time(pieces, deadline), arrived, damaged)
                continue
            if length > _MAX_BLOCK_BYTES:
                raise Damaged(f"a block of {length} bytes at {offset}")
            block = body.read(length)
            try:
                inflated = inflate(block, LARGE_BYTES)
            except Damaged:
                inflated = b""
            for row in block_rows:
                if not self._is_here(row):  # two actions may share it
                    piece = memoryview(inflated)[row.inner : row.inner + row.size]
                    self._store(row, (piece,), arrived, damaged)
                else:
                    arrived.append(row.action)
            if time.monotonic() > deadline:
                raise Unavailable("a bundle comes too slowly")

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
        unique = f"{self._scopes[0]}-{os.urandom(4).hex()}"
        name = manifest.new_name(time.time(), unique)
        packer = Packer([_Entry(*entry) for entry in job.entries], name)
        stream = Stream(packer.chunks())
        try:
            self._bucket.upload_stream(self.bundles + name, stream)
        except Damaged as error:  # of all that was to be in it nothing can be
            return jobs.BundleResult(job.number, jobs.STORED, str(error), (), list(packer.bad), 0)
        return jobs.BundleResult(
            job.number, jobs.STORED, "; ".join(packer.bad.values()),
            [tuple(row) for row in packer.rows], list(packer.bad), stream.size,
        )  # fmt: skip

    def write_manifest(self, job) -> jobs.ManifestResult:
        """Write a manifest for this scope; raises RemoteError."""
        name = manifest.new_name(time.time(), os.urandom(4).hex())
        self._bucket.write(f"{self.manifests}{self._scopes[0]}/{name}", job.data)
        return jobs.ManifestResult(job.number, jobs.STORED, "", name, len(job.data))


_Entry = namedtuple("_Entry", "action output size time_ns path")


class _Reader:
    """Reads the manifests of scopes, and none that another one of its scope supersedes."""

    def __init__(self, bucket) -> None:
        self.damaged = []  # errors; (appended to by many threads)
        self._bucket = bucket

    def read(self, prefix: str, most: int):
        """(all that is listed, up to ``most`` of them as _Read), the newest first.

        Raises RemoteError where nothing could be listed, or not one could be read.
        """
        listed = _newest(self._bucket, prefix)
        found, superseded, failure = [], set(), None
        at_once, rest = 1, listed  # as a rule the newest supersedes all others
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            while rest and len(found) < most:
                batch, rest = rest[:at_once], rest[at_once:]
                for one, got in zip(batch, pool.map(self._get, batch)):
                    if isinstance(got, RemoteError):
                        failure = got
                    elif got is not None:
                        found.append(_Read(_name(one), got, one.modified_s))
                        superseded.update(got.superseded)
                rest = [one for one in rest if _name(one) not in superseded]
                at_once = min(_AT_ONCE, most)
        if failure is not None and not found:
            raise failure
        return listed, [read for read in found if read.name not in superseded]

    def _get(self, listed):
        """The manifest; None where there is none that can be used; or what failed."""
        try:
            return manifest.decode(self._bucket.read_all(listed.key, MAX_MANIFEST_BYTES))
        except (Absent, Damaged) as error:
            self.damaged.append(error)
        except RemoteError as error:
            return error
        return None


def _newest(bucket, prefix) -> list:
    """What one page lists below ``prefix``, the newest first by the store's own clock."""
    return sorted(bucket.list(prefix), key=lambda one: one.modified_s, reverse=True)


def _superseded(listed, own) -> list:
    """The names of all manifests whose rows are in ``own``, the newest first."""
    read = {read.name for read in own}
    for one in own:
        read.update(one.manifest.superseded)
    return [_name(one) for one in listed if _name(one) in read][: manifest.MAX_SUPERSEDED]


def _name(listed) -> str:
    return listed.key.rpartition("/")[2]


def _ignoring(future, default):
    """What a future brings, or ``default`` where S3 did not give it."""
    try:
        return future.result()
    except RemoteError:
        return default


def _in_time(pieces, deadline):
    for piece in pieces:
        yield piece
        if time.monotonic() > deadline:
            raise Unavailable("a bundle comes too slowly")
