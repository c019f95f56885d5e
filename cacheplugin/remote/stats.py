"""``stats --remote``: what the bundles layout holds in a bucket, and how much of it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .bundles.inventory import BundleUsage, Inventory, working_set
from .bundles.keys import KeyPrefixes

if TYPE_CHECKING:
    from typing import Any

    from .contracts import Bucket


def collect(bucket: Bucket, prefix: str) -> dict[str, Any]:
    """The content of ``stats --remote --json``; raises RemoteError."""
    inventory = Inventory(bucket, KeyPrefixes(prefix))
    scopes, usage = [], BundleUsage(inventory.bundles)
    for current in inventory.scopes():
        rows = working_set(current)
        usage.add(rows)
        newest = current[0]
        scopes.append(
            {
                "scope": newest.manifest.scope,
                "entries": len(rows),
                "bytes": sum({row.output: row.size for row in rows}.values()),
                "bundles": len({row.bundle for row in rows if row.length}),
                "heads": len(current),
                "age_s": round(inventory.now_s - newest.info.modified_s),
            }
        )
    return {
        "manifests": len(inventory.manifests),
        "manifest_bytes": sum(info.size for info in inventory.manifests),
        "unreadable_manifests": sum(info.bundles is None for info in inventory.manifests),
        "bundles": len(inventory.bundles),
        "bundle_bytes": sum(listed.size for listed in inventory.bundles.values()),
        "live_bundles": len(usage.bytes),
        "live_bytes": sum(usage.bytes.values()),
        "missing_bundles": len(usage.missing),
        "scopes": sorted(scopes, key=lambda scope: scope["age_s"]),
    }
