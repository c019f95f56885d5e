"""The messages between the server and its HTTP process.

The HTTP process sends requests, each with a number of its own. The server answers each with one
Answer that carries the same number; a BusyNotice has no answer. server/http_process.py has the
server's side, web/server_client.py the other side. The channel carries plain tuples: see ``pack``.
"""

from ..tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, TypedDict

    class ServerSnapshot(TypedDict):
        """The state of a server at one moment, in plain values.

        counters: {group: {counter: count}}. histograms: {"local", "s3" or "upload": (counts by
        bound, sum of seconds)}; the last two only where there is a bucket. sessions: clients that
        are served now. sessions_begun: {"unix" or "tcp": count}. uploads_pending: uploads that are
        not finished. turned_away: clients that were refused. bucket_usable: None where there is no
        bucket. bucket_answered: S3 has answered once. bucket_off_s: for how many seconds the
        bucket has been given up, or has failed without ever answering; None if neither is so.
        """

        counters: dict[str, dict[str, int]]
        histograms: dict[str, tuple[list[int], float]]
        sessions: int
        sessions_begun: dict[str, int]
        uploads_pending: int
        is_stopping: bool
        turned_away: int
        bucket_usable: bool | None
        bucket_answered: bool
        bucket_off_s: float | None

    class Snapshot(ServerSnapshot):
        """The value of the answer to a SnapshotRequest.

        pool: the fields of a jobs.PoolStatus; None if no pool answered in time. http_restarts: how
        often the HTTP process died.
        """

        pool: tuple[Any, ...] | None
        http_restarts: int


class SnapshotRequest(NamedTuple):
    """Asks for a Snapshot, the value of the answer."""

    number: int


class FetchRequest(NamedTuple):
    """Asks to write an object of the bucket to a file.

    key: without the prefix; path: of the file; limit: the most bytes that the object may have. The
    value of the answer is the fields of a jobs.FileResult.
    """

    number: int
    key: str
    path: str
    limit: int


class UploadRequest(NamedTuple):
    """Asks to upload a file.

    key: without the prefix; replace: overwrite the bucket's object. The value of the answer is the
    fields of a jobs.FileResult.
    """

    number: int
    key: str
    path: str
    replace: bool


class BusyNotice(NamedTuple):
    """Says whether the HTTP process serves requests now. ``number`` is 0, as no answer follows."""

    number: int
    is_busy: bool


class Answer(NamedTuple):
    """The server's answer to the request ``number``."""

    number: int
    value: "Any"


if TYPE_CHECKING:
    Request = SnapshotRequest | FetchRequest | UploadRequest | BusyNotice

_KINDS: "dict[str, type[Request]]" = {
    "snapshot": SnapshotRequest,
    "fetch": FetchRequest,
    "upload": UploadRequest,
    "busy": BusyNotice,
}
_TAGS = {kind: tag for tag, kind in _KINDS.items()}


def pack(request: "Request") -> "tuple[Any, ...]":
    """A request as a plain tuple, its kind first, for a channel."""
    return (_TAGS[type(request)], *request)


def unpack(fields: "Sequence[Any]") -> "Request":
    """The request that ``pack`` made ``fields`` of."""
    return _KINDS[fields[0]](*fields[1:])
