"""All manifests and bundles below a prefix, and which bundles are needed: for prune and stats."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ...errors import Absent, Damaged
from ...tuples import NamedTuple
from . import manifest
from .keys import BUNDLE_NAME, MANIFEST_NAME
from .tasks import MAX_MANIFEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ..contracts import Bucket
    from ..s3 import Listed
    from .keys import KeyPrefixes
    from .rows import Row

_AT_ONCE = 16
# Keys of another form belong to other programs.
_MANIFEST = re.compile(f"([0-9a-f]{{16}})/({MANIFEST_NAME.pattern})")


class ManifestInfo(NamedTuple):
    """A manifest in the bucket, without its rows.

    scope: the hash in the key; text: the scope's text; bundles: the names of its bundles, or None
    if it cannot be read; is_newer: it cannot, because a newer version of this program wrote it.
    modified_s: seconds since the epoch by the store's clock.
    """

    key: str
    scope: str
    name: str
    size: int
    modified_s: float
    text: str
    superseded: Sequence[str]
    bundles: Sequence[str] | None
    is_newer: bool


class CurrentManifest(NamedTuple):
    """A whole manifest that no other manifest supersedes."""

    info: ManifestInfo
    manifest: manifest.Manifest


class Inventory:
    """What a bucket held when the inventory was made.

    ``manifests`` begin with the newest. ``bundles`` are by name. ``now_s`` is the time of the
    inventory by the store's clock, in seconds since the epoch.
    """

    def __init__(self, bucket: Bucket, prefixes: KeyPrefixes) -> None:
        """List the bucket and read all manifests; raises RemoteError."""
        self._bucket = bucket
        found = [
            (listed, match)
            for listed in bucket.list_all(prefixes.manifests)
            if (match := _MANIFEST.fullmatch(listed.key.removeprefix(prefixes.manifests)))
        ]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            infos = list(pool.map(lambda args: self._read_info(*args), found))
        self.manifests = sorted(
            (info for info in infos if info is not None), key=lambda info: -info.modified_s
        )
        # Manifests are written after their bundles. So a listing of bundles that comes after that
        # of manifests has all bundles that these name.
        self.bundles: dict[str, Listed] = {
            name: listed
            for listed in bucket.list_all(prefixes.bundles)
            if BUNDLE_NAME.fullmatch(name := listed.key.removeprefix(prefixes.bundles))
        }
        self.now_s = bucket.now_s()

    def _read_info(self, listed: Listed, match: re.Match[str]) -> ManifestInfo | None:
        """Read one manifest; None if it was deleted meanwhile."""
        names, bundles, is_newer = manifest.Names("", [], []), None, False
        for _ in range(2):  # the first read may have been damaged on the way
            try:
                data = self._bucket.read_all(listed.key, MAX_MANIFEST_BYTES)
                names = manifest.decode_names(data)
                bundles = names.bundles
                break
            except manifest.NewerVersion:
                is_newer = True
                break
            except Absent:
                return None
            except Damaged:
                continue
        scope, name = match.groups()
        return ManifestInfo(
            listed.key,
            scope,
            name,
            listed.size,
            listed.modified_s,
            names.scope,
            names.superseded,
            bundles,
            is_newer,
        )

    def superseded_since(self) -> dict[tuple[str, str], float]:
        """When each manifest was first superseded, by its scope and name.

        That is the time of the oldest manifest that supersedes it, in seconds since the epoch. The
        scope is the hash in keys.
        """
        since = {}
        for info in self.manifests:  # from the newest to the oldest
            for name in info.superseded:
                since[info.scope, name] = info.modified_s
        return since

    def scopes(self, without: Iterable[ManifestInfo] = ()) -> Iterator[list[CurrentManifest]]:
        """Scope by scope, the manifests that no other one supersedes, the newest first.

        Manifests that cannot be read and those in ``without`` are left out, and so are scopes of
        which none is left. One scope is in memory at a time. Raises RemoteError.
        """
        excluded = set(self.superseded_since())
        excluded.update((info.scope, info.name) for info in without)
        by_scope: dict[str, list[ManifestInfo]] = {}
        for info in self.manifests:
            if (info.scope, info.name) not in excluded and info.bundles is not None:
                by_scope.setdefault(info.scope, []).append(info)
        for infos in by_scope.values():
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                read = zip(infos, pool.map(self._read_manifest, infos), strict=True)
                current = [
                    CurrentManifest(info, whole) for info, whole in read if whole is not None
                ]
            if current:
                yield current

    def _read_manifest(self, info: ManifestInfo) -> manifest.Manifest | None:
        """A whole manifest; None if it was deleted meanwhile or is damaged."""
        try:
            return manifest.decode(self._bucket.read_all(info.key, MAX_MANIFEST_BYTES))
        except (Absent, Damaged):
            return None


class BundleUsage:
    """How much of each of ``bundles``, those of an Inventory, the added rows need.

    ``bytes``: of the blocks that are needed, by bundle; ``rows``: how many rows lie there, by
    bundle; ``missing``: bundles that rows name and that do not exist.
    """

    def __init__(self, bundles: Mapping[str, Listed]) -> None:
        self.bytes: dict[str, int] = {}
        self.rows: dict[str, int] = {}
        self.missing: set[str] = set()
        self._bundles = bundles
        self._blocks: set[tuple[str, int]] = set()  # bundle and offset

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            if not row.length:
                continue
            if row.bundle not in self._bundles:
                self.missing.add(row.bundle)
                continue
            self.rows[row.bundle] = self.rows.get(row.bundle, 0) + 1
            if (row.bundle, row.offset) not in self._blocks:
                self._blocks.add((row.bundle, row.offset))
                self.bytes[row.bundle] = self.bytes.get(row.bundle, 0) + row.length


def working_set(current: Iterable[CurrentManifest]) -> list[Row]:
    """The rows of the current manifests of one scope, merged as a session merges them."""
    return list(manifest.merge(found.manifest.rows for found in current).values())
