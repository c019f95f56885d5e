"""All manifests and bundles of a prefix, and what they need each other for: for prune and stats."""
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

from ...errors import Absent, Damaged
from . import manifest
from .layout import MAX_MANIFEST_BYTES

_AT_ONCE = 16

# bundles: the names of those it names; None where it cannot be read. text: that of its scope.
ManifestInfo = namedtuple("ManifestInfo", "key scope name size modified_s text superseded bundles")


class Census:
    """What a bucket held when it was counted.

    ``manifests`` are ManifestInfo, the newest first; ``bundles`` {name: remote.Listed}; ``unknown`` is
    whether a newer program left manifests, of which nobody here can say what they need.
    """

    def __init__(self, bucket, layout) -> None:
        """Count; raises RemoteError."""
        self.unknown = False
        self._bucket = bucket
        found = list(bucket.list_all(layout.manifests))
        # Bundles are listed after the manifests that name them, so none of theirs is missing here.
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            read = list(pool.map(self._read, found))
        self.manifests = sorted(
            (one for one in read if one is not None), key=lambda one: -one.modified_s
        )
        self.bundles = {
            one.key.removeprefix(layout.bundles): one for one in bucket.list_all(layout.bundles)
        }

    def _read(self, found):
        """A ManifestInfo; None where it is gone by now."""
        scope, _, name = found.key.rpartition("/")
        text, superseded, bundles = "", (), None
        try:
            data = self._bucket.read_all(found.key, MAX_MANIFEST_BYTES)
            text, superseded, bundles = manifest.decode_names(data)
        except manifest.NewerVersion:
            self.unknown = True
        except Absent:
            return None
        except Damaged:
            pass
        return ManifestInfo(
            found.key, scope.rpartition("/")[2], name, found.size, found.modified_s, text,
            superseded, bundles,
        )  # fmt: skip

    def superseded_since(self) -> dict:
        """{(scope, name): when the first manifest that supersedes it was written}."""
        since = {}
        for one in self.manifests:  # so the oldest writes last
            for name in one.superseded:
                since[one.scope, name] = one.modified_s
        return since

    def heads(self, without=()) -> dict:
        """{scope: [(ManifestInfo, Manifest)]} of what none supersedes, the newest first.

        ``without`` are ManifestInfo to pass over. Raises RemoteError.
        """
        gone = set(self.superseded_since())
        gone.update((one.scope, one.name) for one in without)
        heads = [
            one
            for one in self.manifests
            if (one.scope, one.name) not in gone and one.bundles is not None
        ]
        found = {}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for one, text in zip(heads, pool.map(self._whole, heads)):
                if text is not None:
                    found.setdefault(one.scope, []).append((one, text))
        return found

    def _whole(self, listed):
        try:
            return manifest.decode(self._bucket.read_all(listed.key, MAX_MANIFEST_BYTES))
        except (Absent, Damaged):
            return None

    def live_bytes(self, rows) -> dict:
        """{bundle: bytes of its blocks that ``rows`` need}, of those bundles that are there."""
        live, seen = {}, set()
        for row in rows:
            if row.bundle in self.bundles:
                live.setdefault(row.bundle, 0)
                if (row.bundle, row.offset) not in seen:
                    seen.add((row.bundle, row.offset))
                    live[row.bundle] += row.length
        return live


def working_set(heads) -> list:
    """The rows of the [(ManifestInfo, Manifest)] of one scope, as a session would merge them."""
    return list(manifest.merge(text for _, text in heads).values())
