"""What the module proxy counts, under the names of /debug/vars."""

GROUP = "modcache"
# The last three lines are ours, the others the Go program's.
NAMES = (
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
    "get_absent",
    "get_error",
    "get_stale",
    "mismatch",
    "unverified",
    "upstream_request",
    "upstream_error",
    "upstream_bytes",
)


def make() -> dict:
    """{name: 0} of all counters."""
    return dict.fromkeys(NAMES, 0)
