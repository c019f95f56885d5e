"""``stats --remote``: what the bundles layout holds in a bucket, and what of it is needed."""
import json
import sys

from ..errors import RemoteError, UsageError
from ..metrics import byte_text
from .bundles.inventory import Census, Live, working_set
from .bundles.tasks import BundlesLayout
from .s3 import Bucket

_LAST_SCOPES = 20


def run(options) -> int:
    """The command; returns the exit status, raises UsageError."""
    if not options.bucket:
        raise UsageError("stats --remote needs --bucket")
    try:
        found = collect(Bucket(options), options.prefix)
    except RemoteError as error:
        sys.stderr.write(f"go-cache-plugin: bucket {options.bucket}: {error}\n")
        return 1
    sys.stdout.write(f"{json.dumps(found)}\n" if options.json else text(found))
    return 0


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


def text(found: dict) -> str:
    """``collect``'s answer for a person."""
    lines = [
        f"{found['bundles']} bundles, {byte_text(found['bundle_bytes'])}; needed are"
        f" {found['live_bundles']}, {byte_text(found['live_bytes'])} of them",
        f"{found['manifests']} manifests, {byte_text(found['manifest_bytes'])}",
    ]
    if found["unreadable_manifests"]:
        lines.append(f"{found['unreadable_manifests']} manifests cannot be read")
    if found["missing_bundles"]:
        lines.append(f"{found['missing_bundles']} bundles that manifests name are not there")
    if not found["bundles"] and not found["manifests"]:
        lines.append("nothing here is in bundles: see --prefix and --layout")
        return "\n".join(lines) + "\n"
    lines += ["", "   entries       bytes   bundles   age  scope"]
    for scope in found["scopes"][:_LAST_SCOPES]:
        lines.append(
            f"{scope['entries']:>10}{byte_text(scope['bytes']):>12}{scope['bundles']:>10}"
            f"{_age_text(scope['age_s']):>6}  {scope['scope']}"
        )
    if len(found["scopes"]) > _LAST_SCOPES:
        lines.append(f"and {len(found['scopes']) - _LAST_SCOPES} older scopes")
    return "\n".join(lines) + "\n"


def _age_text(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name}"
    return f"{max(0, seconds):.0f} s"
