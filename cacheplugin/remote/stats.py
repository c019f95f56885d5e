"""``stats --remote``: what the bundles layout holds in a bucket, and what of it is needed."""

from .bundles.inventory import Inventory, Live, working_set
from .bundles.tasks import BundlesLayout


def collect(bucket, prefix: str) -> dict:
    """All that ``stats --remote`` says, as --json prints it; raises RemoteError."""
    inventory = Inventory(bucket, BundlesLayout(bucket, None, prefix, False))
    scopes, live = [], Live(inventory.bundles)
    for heads in inventory.scopes():
        rows = working_set(heads)
        live.add(rows)
        scopes.append(
            {
                "scope": heads[0][1].scope,
                "entries": len(rows),
                "bytes": sum({row.output: row.size for row in rows}.values()),
                "bundles": len({row.bundle for row in rows if row.length}),
                "heads": len(heads),
                "age_s": round(inventory.now_s - heads[0][0].modified_s),
            }
        )
    return {
        "manifests": len(inventory.manifests),
        "manifest_bytes": sum(one.size for one in inventory.manifests),
        "unreadable_manifests": sum(one.bundles is None for one in inventory.manifests),
        "bundles": len(inventory.bundles),
        "bundle_bytes": sum(one.size for one in inventory.bundles.values()),
        "live_bundles": len(live.bytes),
        "live_bytes": sum(live.bytes.values()),
        "missing_bundles": len(live.missing),
        "scopes": sorted(scopes, key=lambda scope: scope["age_s"]),
    }
