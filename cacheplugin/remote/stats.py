"""``stats --remote``: what the bundles layout holds in a bucket, and what of it is needed."""

from .bundles.inventory import Census, Live, working_set
from .bundles.tasks import BundlesLayout


def collect(bucket, prefix: str) -> dict:
    """All that ``stats --remote`` says, as --json prints it; raises RemoteError."""
    census = Census(bucket, BundlesLayout(bucket, None, prefix, False))
    scopes, live = [], Live(census.bundles)
    for heads in census.scopes():
        rows = working_set(heads)
        live.add(rows)
        scopes.append(
            {
                "scope": heads[0][1].scope,
                "entries": len(rows),
                "bytes": sum({row.output: row.size for row in rows}.values()),
                "bundles": len({row.bundle for row in rows if row.length}),
                "heads": len(heads),
                "age_s": round(census.now_s - heads[0][0].modified_s),
            }
        )
    return {
        "manifests": len(census.manifests),
        "manifest_bytes": sum(one.size for one in census.manifests),
        "unreadable_manifests": sum(one.bundles is None for one in census.manifests),
        "bundles": len(census.bundles),
        "bundle_bytes": sum(one.size for one in census.bundles.values()),
        "live_bundles": len(live.bytes),
        "live_bytes": sum(live.bytes.values()),
        "missing_bundles": len(live.missing),
        "scopes": sorted(scopes, key=lambda scope: scope["age_s"]),
    }
