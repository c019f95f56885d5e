"""The counters of the module proxy, under the names that /debug/vars shows."""

from __future__ import annotations

GROUP = "modcache"
NAMES = (
    # The Go program has these under the same names.
    "path_error",
    "get_request",
    "get_local_hit",
    "get_local_miss",
    "get_fault_hit",
    "get_fault_miss",
    "get_local_error",
    "get_fault_error",
    "get_local_bytes",
    "get_s3_bytes",
    "put_request",
    "put_local_hit",
    "put_local_error",
    "put_s3_error",
    "put_local_bytes",
    "put_s3_bytes",
    # Only this program has these.
    "get_absent",
    "get_error",
    "get_stale",
    "mismatch",
    "unverified",
    "upstream_request",
    "upstream_error",
    "upstream_bytes",
)


def make() -> dict[str, int]:
    """A dict with every counter at 0."""
    return dict.fromkeys(NAMES, 0)
