"""Counters by REFERENCE names, and the summary at exit."""

HOST = "gocache_host"
SERVER = "gocache_server"

_NAMES = {
    SERVER: (
        "get_requests", "get_hits", "get_hit_bytes", "get_misses", "get_errors",
        "put_requests", "put_bytes", "put_errors",
    ),
    HOST: (
        "get_local_hit", "get_fault_hit", "get_fault_miss", "get_fault_damaged", "get_fault_error",
        "get_fault_skipped", "get_fault_bytes",
        "put_skip_small", "put_skip_read_only", "put_s3_found", "put_s3_action", "put_s3_object",
        "put_s3_bytes", "put_s3_error", "put_s3_skipped",
    ),
}  # fmt: skip


class Counters:
    """One attribute for each counter; all counts of things or bytes, from 0 upwards."""

    __slots__ = (*_NAMES[SERVER], *_NAMES[HOST], "drain_s")

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    def as_dict(self) -> dict:
        """{group: {name: count}}"""
        return {
            group: {name: getattr(self, name) for name in names} for group, names in _NAMES.items()
        }

    def summary(self) -> str:
        """The counters that counted, then one line for a person."""
        lines = []
        for group, counts in self.as_dict().items():
            shown = " ".join(f"{name}={count}" for name, count in counts.items() if count)
            lines.append(f"{group}: {shown or '(nothing)'}")
        rate = 100 * self.get_hits / self.get_requests if self.get_requests else 0
        lines.append(
            f"go-cache-plugin: {self.get_requests} gets, {self.get_local_hit} local hits, "
            f"{self.get_fault_hit} S3 hits ({rate:.1f} % hit), {self.put_requests} puts; "
            f"{byte_text(self.get_fault_bytes)} down, {byte_text(self.put_s3_bytes)} up, "
            f"{self.drain_s:.1f} s waited for uploads"
        )
        return "\n".join(lines) + "\n"


def byte_text(count: int) -> str:
    """A number of bytes for a person, in the decimal units that --max-size takes."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
