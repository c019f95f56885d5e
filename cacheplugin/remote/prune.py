"""``prune --remote``: deletes manifests and bundles that nobody needs, and rewrites scattered ones.

1. A manifest goes when it was not renewed for --expiry, when another one supersedes it since more
   than a day, or when it is damaged.
2. Bundles of which little is live, and many small ones that one working set is scattered over, are
   rewritten: their live entries go into fresh bundles, and each scope that needs them gets a new
   manifest, which supersedes those it replaces. (That renews it, so no scope that was not used for
   half of --expiry is.)
3. A bundle goes when no manifest names it, nor did one when this began, and it is older than a day.

A session that runs meanwhile never fails: at worst it misses, and what it writes is younger than a
day. All ages are by the store's clock. What is not named as a manifest or bundle is not touched.
"""

import itertools
import logging
import os
import shutil
import tempfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

from ..errors import RemoteError, Unavailable
from ..ipc import jobs
from ..store.cache import LocalCache
from ..store.tree import Store
from .bundles import manifest
from .bundles.index import ROW_BYTES, Row
from .bundles.inventory import Inventory, Live, working_set
from .bundles.packing import BUNDLE_BYTES
from .bundles.ranges import cut
from .bundles.tasks import BundlesLayout

logger = logging.getLogger(__name__)

GRACE_S = 86400  # a session takes no longer from its first bundle to its manifest
LIVE_SHARE = 0.5  # a bundle of which less is live is rewritten
SMALL_BYTES = 8 << 20  # one of which less is live is small
SCATTERED = 16  # more small ones than this in one working set are rewritten
_AT_ONCE = 8

# bytes: of the objects; rewritten: bundles that were replaced by fresh ones.
Result = namedtuple("Result", "manifests bundles bytes rewritten kept kept_bytes")


class RemotePrune:
    """Prunes the bundles below ``prefix`` of a Bucket."""

    def __init__(self, bucket, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._numbers = itertools.count(1)

    def run(self, expiry_s: float, dry_run: bool = False) -> Result:
        """Do all of it, or only say what would be done; raises RemoteError and OSError."""
        layout = self._layout(None)
        inventory = Inventory(self._bucket, layout)
        old_s = inventory.now_s - GRACE_S
        gone = self._useless(inventory, expiry_s)
        fresh_s = inventory.now_s - expiry_s / 2
        scattered = self._scattered(inventory, gone, fresh_s)
        if scattered and not dry_run:
            self._rewrite(inventory, gone, fresh_s, scattered)
        # Also what a manifest named that goes now: a session may have just read it.
        named = {name for one in inventory.manifests for name in one.bundles or ()}
        unneeded = {
            name
            for name, listed in inventory.bundles.items()
            if name not in named and listed.modified_s < old_s
        }
        if any(one.bundles is None for one in inventory.manifests):
            logger.warning("a manifest that cannot be read may name any bundle: none is deleted")
            unneeded = set()
        if not dry_run:
            self._bucket.delete([one.key for one in gone])
            self._bucket.delete([layout.bundles + name for name in unneeded])
            try:
                self._bucket.abort_uploads(
                    layout.bundles,
                    lambda key, begun_s: (
                        begun_s < old_s
                        and manifest.BUNDLE_NAME.fullmatch(key.removeprefix(layout.bundles))
                    ),
                )
            except RemoteError as error:
                logger.info("unfinished uploads stay: %s", error)  # not allowed to
        deleted = sum(one.size for one in gone)
        deleted += sum(inventory.bundles[name].size for name in unneeded)
        kept = [listed.size for name, listed in inventory.bundles.items() if name not in unneeded]
        return Result(len(gone), len(unneeded), deleted, len(scattered), len(kept), sum(kept))

    def _useless(self, inventory, expiry_s) -> list:
        """The manifests that go."""
        superseded, old_s = inventory.superseded_since(), inventory.now_s - GRACE_S
        return [
            one
            for one in inventory.manifests
            if not one.newer
            and (
                one.modified_s < inventory.now_s - max(expiry_s, GRACE_S)
                or superseded.get((one.scope, one.name), inventory.now_s) < old_s
                or (one.bundles is None and one.modified_s < old_s)
            )
        ]

    def _layout(self, cache) -> BundlesLayout:
        return BundlesLayout(self._bucket, cache, self._prefix, False)

    # -- rewriting ---------------------------------------------------------------------------------

    def _scattered(self, inventory, gone, fresh_s) -> set:
        """The bundles whose live entries are better off in fresh ones."""
        live, sets = Live(inventory.bundles), []
        for heads in inventory.scopes(without=gone):
            rows = working_set(heads)
            live.add(rows)
            if heads[0][0].modified_s >= fresh_s:
                sets.append({row.bundle for row in rows})
        # The index is no part of the blocks; it has fewer bytes than the rows in it.
        shares = {
            name: (count + live.rows[name] * ROW_BYTES) / inventory.bundles[name].size
            for name, count in live.bytes.items()
        }
        found = set()
        for bundles in sets:
            found |= {name for name in bundles if shares.get(name, 1) < LIVE_SHARE}
            small = {name for name in bundles if live.bytes.get(name, SMALL_BYTES) < SMALL_BYTES}
            if len(small) > SCATTERED:
                found |= small
        return found

    def _rewrite(self, inventory, gone, fresh_s, scattered) -> None:
        """Put what is live in ``scattered`` into fresh bundles, and write the manifests for it."""
        directory = tempfile.mkdtemp(prefix="go-cache-plugin-")
        try:
            places, lost = {}, set()  # output: Row in a fresh bundle; actions that are damaged
            cache = LocalCache(Store(directory), spill=False)
            layout = self._layout(cache)
            for heads in inventory.scopes(without=gone):
                if heads[0][0].modified_s < fresh_s:
                    continue
                rows = working_set(heads)
                affected = [row for row in rows if row.bundle in scattered]
                for batch in _batches(row for row in affected if row.output not in places):
                    self._move(layout, heads[0][1].scope, cache, batch, places, lost)
                if affected:
                    self._write_manifest(layout, heads, rows, scattered, places, lost)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _move(self, layout, scope, cache, rows, places, lost) -> None:
        """Fetch the entries of ``rows``, checked, and write them into one fresh bundle of ``scope``."""
        tasks = [
            jobs.RangeJob(
                next(self._numbers),
                part.bundle,
                part.start,
                part.length,
                [tuple(row) for row in part.rows],
            )
            for part in cut(rows)
        ]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for result in pool.map(layout.fetch, tasks):
                lost.update(result.damaged)
                if result.status not in (jobs.HIT, jobs.DAMAGED):
                    raise Unavailable(f"a range could not be read: {result.reason}")
        entries = [
            (row.action, row.output, row.size, row.time_ns, cache.store.output_path(row.output))
            for row in rows
            if row.action not in lost
        ]
        if entries:
            result = layout.upload(jobs.BundleJob(next(self._numbers), scope, entries))
            for fields in result.rows:
                row = Row(*fields)
                places[row.output] = row
        for row in rows:
            for path in (cache.store.output_path(row.output), cache.store.action_path(row.action)):
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    pass

    def _write_manifest(self, layout, heads, rows, scattered, places, lost) -> None:
        """A manifest of the scope in place of its ``heads``; what is damaged is left out."""
        moved = []
        for row in rows:
            if row.bundle in scattered and row.output in places:
                place = places[row.output]
                row = row._replace(
                    bundle=place.bundle, offset=place.offset, length=place.length, inner=place.inner
                )
            elif row.action in lost:
                continue
            moved.append(row)
        names = [one.name for one, _ in heads]
        names += [name for _, text in heads for name in text.superseded]
        superseded = list(dict.fromkeys(names))[: manifest.MAX_SUPERSEDED]
        scope = heads[0][1].scope
        data = manifest.encode(manifest.Manifest(scope, superseded, moved))
        layout.write_manifest(jobs.ManifestJob(next(self._numbers), scope, data))


def _batches(rows):
    """Lists of ``rows`` whose bodies make one bundle each."""
    batch, size, seen = [], 0, set()
    for row in rows:
        batch.append(row)
        if row.output not in seen:
            seen.add(row.output)
            size += row.size
        if size >= BUNDLE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
