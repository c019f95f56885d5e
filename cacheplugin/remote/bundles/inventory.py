"""All manifests and bundles of a prefix, and what they need each other for: for prune and stats."""

import re
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

from ...errors import Absent, Damaged
from . import manifest
from .tasks import MAX_MANIFEST_BYTES

_AT_ONCE = 16
# Whatever else lies there is somebody else's, and none of our business.
_MANIFEST = re.compile(f"([0-9a-f]{{16}})/({manifest.MANIFEST_NAME.pattern})")

# key: of the manifest; scope: as in keys, text: in words. bundles: the names of those it names, None
# where it cannot be read; newer: because a newer program wrote it.
ManifestInfo = namedtuple(
    "ManifestInfo", "key scope name size modified_s text superseded bundles newer"
)


class Inventory:
    """What a bucket held when it was counted.

    ``manifests`` are ManifestInfo, the newest first; ``bundles`` {name: remote.Listed};
    ``now_s`` is the time of the count by the store's clock, in seconds since the epoch.
    """

    def __init__(self, bucket, layout) -> None:
        """Count; raises RemoteError."""
        self._bucket = bucket
        found = [
            (one, match)
            for one in bucket.list_all(layout.manifests)
            if (match := _MANIFEST.fullmatch(one.key.removeprefix(layout.manifests)))
        ]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            read = list(pool.map(lambda one: self._read(*one), found))
        self.manifests = sorted(
            (one for one in read if one is not None), key=lambda one: -one.modified_s
        )
        # Bundles are listed after the manifests that name them, so none of theirs is missing here.
        self.bundles = {
            name: one
            for one in bucket.list_all(layout.bundles)
            if manifest.BUNDLE_NAME.fullmatch(name := one.key.removeprefix(layout.bundles))
        }
        self.now_s = bucket.now_s()

    def _read(self, found, match):
        """A ManifestInfo; None where it is gone by now."""
        text, superseded, bundles, newer = "", (), None, False
        for _ in range(2):  # what is damaged may have been so on its way only
            try:
                data = self._bucket.read_all(found.key, MAX_MANIFEST_BYTES)
                text, superseded, bundles = manifest.decode_names(data)
                break
            except manifest.NewerVersion:
                newer = True
                break
            except Absent:
                return None
            except Damaged:
                continue
        return ManifestInfo(
            found.key,
            *match.groups(),
            found.size,
            found.modified_s,
            text,
            superseded,
            bundles,
            newer,
        )

    def superseded_since(self) -> dict:
        """{(scope, name): when the first manifest that supersedes it was written}."""
        since = {}
        for one in self.manifests:  # so the oldest writes last
            for name in one.superseded:
                since[one.scope, name] = one.modified_s
        return since

    def scopes(self, without=()):
        """[(ManifestInfo, Manifest)] of what none supersedes, the newest first, for scope after scope.

        One scope is in memory at a time. ``without`` are ManifestInfo to pass over. Raises
        RemoteError.
        """
        gone = set(self.superseded_since())
        gone.update((one.scope, one.name) for one in without)
        heads = {}
        for one in self.manifests:
            if (one.scope, one.name) not in gone and one.bundles is not None:
                heads.setdefault(one.scope, []).append(one)
        for found in heads.values():
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                whole = zip(found, pool.map(self._whole, found))
                found = [(one, text) for one, text in whole if text is not None]
            if found:
                yield found

    def _whole(self, info):
        try:
            return manifest.decode(self._bucket.read_all(info.key, MAX_MANIFEST_BYTES))
        except (Absent, Damaged):
            return None


class Live:
    """What of the bundles of a Inventory is needed by the rows that it was told of."""

    def __init__(self, bundles) -> None:
        self.bytes = {}  # bundle: bytes of the blocks that are needed
        self.rows = {}  # bundle: rows that lie there
        self.missing = set()  # bundles that rows name and that are not there
        self._bundles = bundles
        self._blocks = set()

    def add(self, rows) -> None:
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


def working_set(heads) -> list:
    """The rows of the [(ManifestInfo, Manifest)] of one scope, as a session would merge them."""
    return list(manifest.merge(text.rows for _, text in heads).values())
