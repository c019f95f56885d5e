"""``prune --remote``: deletes unneeded manifests and bundles, and rewrites sparse bundles.

1. A manifest is deleted if it was not renewed for --expiry, if another one superseded it more than
   a day ago, or if it is damaged.
2. Bundles of which little is live, and small bundles if one working set needs many, are rewritten:
   their live entries go into fresh bundles, and each scope that needs the entries gets a new
   manifest, which supersedes the scope's others. A new manifest also renews its scope, so scopes
   that were not used for half of --expiry are left as they are.
3. A bundle is deleted if no manifest names it, including the manifests that are deleted in the same
   run, and it is older than a day.

Sessions can run at the same time. At worst they have misses; what they write is younger than a day.
All ages are by the store's clock. Keys of any other form are not touched.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..errors import RemoteError, Unavailable
from ..ipc import jobs
from ..store.cache import LocalCache
from ..store.tree import Store
from ..tuples import NamedTuple
from .bundles import manifest
from .bundles.inventory import BundleUsage, Inventory, working_set
from .bundles.keys import BUNDLE_NAME, KeyPrefixes
from .bundles.ranges import ranges_of
from .bundles.rows import ROW_BYTES, Row, plain_rows
from .bundles.tasks import BundlesLayout
from .bundles.uploading import BUNDLE_BYTES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from .bundles.inventory import CurrentManifest, ManifestInfo
    from .contracts import Bucket

logger = logging.getLogger(__name__)

GRACE_S = 86400  # more than a session takes from its first bundle to its manifest
MIN_LIVE_SHARE = 0.5  # a bundle of which less is live is rewritten
SMALL_BYTES = 8 << 20  # a bundle with less live data is small
MAX_SMALL_BUNDLES = 16  # if a working set needs more small bundles, they are rewritten
_AT_ONCE = 8


class Result(NamedTuple):
    """What a run deleted, rewrote and kept, in objects and bytes.

    manifests, bundles, bytes: what was deleted; rewritten: bundles whose live entries are in fresh
    bundles now; kept, kept_bytes: bundles that were found and not deleted. The field names are
    those of ``prune --remote --json``.
    """

    manifests: int
    bundles: int
    bytes: int
    rewritten: int
    kept: int
    kept_bytes: int


class RemotePrune:
    """Prunes the bundles layout below ``prefix`` of a bucket."""

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._prefixes = KeyPrefixes(prefix)

    def run(self, expiry_s: float, dry_run: bool = False) -> Result:
        """Prune, or only find out what would be done if ``dry_run``.

        Raises RemoteError, and OSError if the temporary directory cannot be written.
        """
        inventory = Inventory(self._bucket, self._prefixes)
        expired = _expired(inventory, expiry_s)
        fresh_s = inventory.now_s - expiry_s / 2
        sparse = _sparse(inventory, expired, fresh_s)
        if sparse and not dry_run:
            _Rewrite(self._bucket, self._prefix, inventory, sparse).run(expired, fresh_s)
        unneeded = _unneeded(inventory)
        if not dry_run:
            self._bucket.delete([info.key for info in expired])
            self._bucket.delete([self._prefixes.bundles + name for name in unneeded])
            self._abort_uploads(inventory.now_s - GRACE_S)
        deleted = sum(info.size for info in expired)
        deleted += sum(inventory.bundles[name].size for name in unneeded)
        kept = [listed.size for name, listed in inventory.bundles.items() if name not in unneeded]
        return Result(len(expired), len(unneeded), deleted, len(sparse), len(kept), sum(kept))

    def _abort_uploads(self, before_s: float) -> None:
        """Abort multipart uploads of bundles that began before a time (epoch)."""
        prefix = self._prefixes.bundles

        def is_old_bundle(key: str, begun_s: float) -> bool:
            return begun_s < before_s and bool(BUNDLE_NAME.fullmatch(key.removeprefix(prefix)))

        try:
            self._bucket.abort_uploads(prefix, is_old_bundle)
        except RemoteError as error:  # it may not be permitted
            logger.info("unfinished uploads of bundles were not aborted: %s", error)


def _expired(inventory: Inventory, expiry_s: float) -> list[ManifestInfo]:
    """The manifests to delete."""
    superseded, old_s = inventory.superseded_since(), inventory.now_s - GRACE_S
    return [
        info
        for info in inventory.manifests
        if not info.is_newer
        and (
            info.modified_s < inventory.now_s - max(expiry_s, GRACE_S)
            or superseded.get((info.scope, info.name), inventory.now_s) < old_s
            or (info.bundles is None and info.modified_s < old_s)
        )
    ]


def _unneeded(inventory: Inventory) -> set[str]:
    """The names of the bundles to delete: old ones that no manifest named.

    That includes manifests that are deleted now, because a session may have just read one.
    """
    if any(info.bundles is None for info in inventory.manifests):
        logger.warning("no bundle is deleted, because a manifest that cannot be read may need it")
        return set()
    named = {name for info in inventory.manifests for name in info.bundles or ()}
    old_s = inventory.now_s - GRACE_S
    return {
        name
        for name, listed in inventory.bundles.items()
        if name not in named and listed.modified_s < old_s
    }


def _sparse(inventory: Inventory, expired: Collection[ManifestInfo], fresh_s: float) -> set[str]:
    """The names of the bundles to rewrite. Scopes older than ``fresh_s`` (epoch) want none."""
    usage, needs = BundleUsage(inventory.bundles), []
    for current in inventory.scopes(without=expired):
        rows = working_set(current)
        usage.add(rows)
        if current[0].info.modified_s >= fresh_s:
            needs.append({row.bundle for row in rows})
    # A bundle's index is not part of its blocks. It is counted as live for the rows that are; that
    # is an upper bound, because the index is compressed.
    shares = {
        name: (live + usage.rows[name] * ROW_BYTES) / inventory.bundles[name].size
        for name, live in usage.bytes.items()
    }
    found: set[str] = set()
    for names in needs:
        found |= {name for name in names if shares.get(name, 1) < MIN_LIVE_SHARE}
        small = {name for name in names if usage.bytes.get(name, SMALL_BYTES) < SMALL_BYTES}
        if len(small) > MAX_SMALL_BUNDLES:
            found |= small
    return found


class _Rewrite:
    """Moves the live entries of ``sparse`` bundles into fresh bundles, and writes manifests."""

    def __init__(
        self, bucket: Bucket, prefix: str, inventory: Inventory, sparse: Collection[str]
    ) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._inventory = inventory
        self._sparse = sparse
        self._moved: dict[str, Row] = {}  # rows in fresh bundles, by output
        self._damaged: set[str] = set()  # actions
        self._numbers = itertools.count(1)

    def run(self, expired: Iterable[ManifestInfo], fresh_s: float) -> None:
        """Rewrite for all scopes with a manifest written since ``fresh_s`` (epoch).

        Raises RemoteError, and OSError if the temporary directory cannot take the entries.
        """
        directory = tempfile.mkdtemp(prefix="go-cache-plugin-")
        try:
            store = Store(directory)
            layout = BundlesLayout(
                self._bucket, LocalCache(store, spill=False), self._prefix, look_for_objects=False
            )
            for current in self._inventory.scopes(without=expired):
                if current[0].info.modified_s < fresh_s:
                    continue
                rows = working_set(current)
                affected = [row for row in rows if row.bundle in self._sparse]
                unmoved = (row for row in affected if row.output not in self._moved)
                for batch in _batches(unmoved):
                    self._move(layout, store, current[0].manifest.scope, batch)
                if affected:
                    self._write_manifest(layout, current, rows)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _move(self, layout: BundlesLayout, store: Store, scope: str, rows: Sequence[Row]) -> None:
        """Fetch entries, which checks them, and write them into one fresh bundle of ``scope``."""
        tasks = [
            jobs.RangeJob(
                next(self._numbers), part.bundle, part.start, part.length, plain_rows(part.rows)
            )
            for part in ranges_of(rows)
        ]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for result in pool.map(layout.fetch, tasks):
                self._damaged.update(result.damaged)
                if result.status not in (jobs.HIT, jobs.DAMAGED):
                    raise Unavailable(f"a range of a bundle was not fetched: {result.reason}")
        entries = [
            (row.action, row.output, row.size, row.time_ns, store.output_path(row.output))
            for row in rows
            if row.action not in self._damaged
        ]
        if entries:
            written = layout.upload(jobs.BundleJob(next(self._numbers), scope, entries))
            for fields in written.rows:
                row = Row(*fields)
                self._moved[row.output] = row
        for row in rows:
            for path in (store.output_path(row.output), store.action_path(row.action)):
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    pass

    def _write_manifest(
        self, layout: BundlesLayout, current: Sequence[CurrentManifest], rows: Iterable[Row]
    ) -> None:
        """Write a manifest in place of a scope's ``current`` ones, without damaged entries."""
        live = []
        for row in rows:
            if row.bundle in self._sparse and row.output in self._moved:
                live.append(row.moved_to(self._moved[row.output].place))
            elif row.action not in self._damaged:
                live.append(row)
        names = [found.info.name for found in current]
        names += [name for found in current for name in found.manifest.superseded]
        superseded = list(dict.fromkeys(names))[: manifest.MAX_SUPERSEDED]
        scope = current[0].manifest.scope
        data = manifest.encode(manifest.Manifest(scope, superseded, live))
        layout.write_manifest(jobs.ManifestJob(next(self._numbers), scope, data))


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Split rows into those of one bundle each."""
    batch: list[Row] = []
    size, outputs = 0, set()
    for row in rows:
        batch.append(row)
        if row.output not in outputs:
            outputs.add(row.output)
            size += row.size
        if size >= BUNDLE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
