"""The messages that cross between the front, the pool process and its workers.

Ids are lower-case hex, sizes are bytes, times are nanoseconds since the epoch unless a name says
otherwise. ``number`` tells one job from every other job of its sender. The front sends jobs to the
pool; the pool's plan turns them into tasks for workers; each job and task is answered by a result.

A new message is one class here and nothing else: the wire format, the direction of a task and the
result of a failure all follow from it.
"""

from ..errors import Absent, Damaged, RemoteError, TimedOut, Unusable
from ..tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    # The fields of a remote.bundles.rows.Row, as a plain tuple: marshal takes nothing else.
    PlainRow = tuple[str, str, int, int, int, str, int, int, int, int]
    # action, output, size, time_ns, path
    PlainEntry = tuple[str, str, int, int, str]

# Statuses of a result.
HIT = "hit"  # fetched and stored
ARRIVED = "arrived"  # the entry is in the store by now; the result says nothing else of it
MISS = "miss"  # the bucket does not have it
DAMAGED = "damaged"  # the bucket has it, but its content is wrong
FAILED = "failed"  # S3 answered with an error, or not at all
LOCAL = "local"  # the local disk could not be read or written
SKIPPED = "skipped"  # not tried, because S3 is turned off for a while or for the whole session
STORED = "stored"  # uploaded
UNUSABLE = "unusable"  # as FAILED, and every later job would fail in the same way
TIMED_OUT = "timed out"  # as FAILED, after the whole time-out
LOST = "lost"  # the worker died while it had the task

# The directions of tasks. Each has its own circuit breaker, queue and limit. Used in log lines.
FETCHING, UPLOADING = "fetching from", "uploading to"


# -- results ---------------------------------------------------------------------------------------


class FetchResult(NamedTuple):
    """Answers a FetchJob. ``received``: bytes that came over the network.

    HIT sets output to path; DAMAGED sets output alone, where it is known.
    """

    number: int
    action: str
    status: str
    output: "str | None" = None
    size: int = 0
    time_ns: int = 0
    path: "str | None" = None
    received: int = 0
    reason: str = ""


class UploadResult(NamedTuple):
    """Answers an UploadJob. found: the bucket had the body; sent: bytes over the network."""

    number: int
    status: str
    found: bool = False
    sent: int = 0
    reason: str = ""


class FinishResult(NamedTuple):
    """Answers a FinishJob, once everything the session writes is in the bucket or has failed."""

    number: int
    status: str
    reason: str = ""


class FileResult(NamedTuple):
    """Answers a FileFetchJob or a FileUploadJob. ``size``: bytes that went over the network."""

    number: int
    status: str
    size: int = 0
    reason: str = ""


class LoadResult(NamedTuple):
    """Answers a LoadJob.

    own: rows of the session's own scope; related: rows of the scopes that it falls back to;
    unrelated: rows of the scopes that were written to last, if the others have none. superseded:
    manifests of the own scope that a new manifest with these rows supersedes. written_s: when the
    newest manifest of the own scope was written (epoch). missing: actions of all rows that the local
    store lacks, in the order of first use. has_objects: whether the bucket also holds the objects
    layout. damaged: how many manifests could not be used. now_s: the time by the store's clock
    (epoch).
    """

    number: int
    status: str
    reason: str = ""
    own: "Sequence[PlainRow]" = ()
    related: "Sequence[PlainRow]" = ()
    unrelated: "Sequence[PlainRow]" = ()
    superseded: "Sequence[str]" = ()
    written_s: float = 0
    missing: "Sequence[str]" = ()
    has_objects: bool = False
    damaged: int = 0
    now_s: float = 0


class RangeResult(NamedTuple):
    """Answers a RangeJob.

    arrived: actions that are in the store now; damaged: actions whose bytes in the bucket are
    wrong; gone: the bundle does not exist; received: bytes over the network.
    """

    number: int
    status: str
    reason: str = ""
    arrived: "Sequence[str]" = ()
    damaged: "Sequence[str]" = ()
    gone: bool = False
    received: int = 0


class BundleResult(NamedTuple):
    """Answers a BundleJob.

    rows: where each entry lies now; bad: outputs whose local bodies are missing or wrong; sent:
    bytes over the network.
    """

    number: int
    status: str
    reason: str = ""
    rows: "Sequence[PlainRow]" = ()
    bad: "Sequence[str]" = ()
    sent: int = 0


class ManifestResult(NamedTuple):
    """Answers a ManifestJob. ``name``: the new manifest's; ``sent``: bytes over the network."""

    number: int
    status: str
    reason: str = ""
    name: str = ""
    sent: int = 0


# -- from the front to the pool --------------------------------------------------------------------


class BeginJob(NamedTuple):
    """A session begins; the first message that names it. ``scopes``: those of scope.find."""

    session: int
    scopes: "Sequence[str]"


class PrefetchJob(NamedTuple):
    """The session will ask for much: fetch it now. Answered by Expected alone."""

    session: int


class FetchJob(NamedTuple):
    """Fetch an action into the store. Also a worker's task, in the objects layout."""

    number: int
    action: str
    session: int = 0

    def direction(self) -> str:
        return FETCHING

    def failed(self, status: str, reason: str = "", output: "str | None" = None) -> FetchResult:
        return FetchResult(self.number, self.action, status, output, reason=reason)


class UploadJob(NamedTuple):
    """Upload an entry whose body is the file ``path``. Also a worker's task, in the objects layout.

    recovered: the entry was left by a process that died, perhaps while it uploaded it. replace: the
    bucket's copy of the output is known to be damaged.
    """

    number: int
    action: str
    output: str
    size: int
    time_ns: int
    path: str
    recovered: bool = False
    replace: bool = False
    session: int = 0

    def direction(self) -> str:
        return UPLOADING

    def failed(self, status: str, reason: str = "", _: "str | None" = None) -> UploadResult:
        return UploadResult(self.number, status, reason=reason)


class FinishJob(NamedTuple):
    """A session has ended; the last message that names it.

    used: the actions it used, in the order of first use; None where it writes no manifest.
    """

    number: int
    used: "Sequence[str] | None"
    session: int = 0

    def failed(self, status: str, reason: str = "", _: "str | None" = None) -> FinishResult:
        return FinishResult(self.number, status, reason)


class FileFetchJob(NamedTuple):
    """Write the object ``key`` (without the prefix) to the file ``path``; also a worker's task.

    limit: the most bytes that the object may have. Belongs to no session.
    """

    number: int
    key: str
    path: str
    limit: int

    def direction(self) -> str:
        return FETCHING

    def failed(self, status: str, reason: str = "", _: "str | None" = None) -> FileResult:
        return FileResult(self.number, status, reason=reason)


class FileUploadJob(NamedTuple):
    """Upload the file ``path`` as the object ``key`` (without the prefix); also a worker's task.

    replace: overwrite the bucket's object; otherwise an object that exists is the same file.
    """

    number: int
    key: str
    path: str
    replace: bool

    def direction(self) -> str:
        return UPLOADING

    def failed(self, status: str, reason: str = "", _: "str | None" = None) -> FileResult:
        return FileResult(self.number, status, reason=reason)


class StatusJob(NamedTuple):
    """Asks for a PoolStatus."""


# -- from the pool to workers ----------------------------------------------------------------------


class LoadJob(NamedTuple):
    """Read the manifests of ``scopes``, the session's own scope first."""

    number: int
    scopes: "Sequence[str]"

    def direction(self) -> str:
        return FETCHING

    def failed(self, status: str, reason: str = "", _: "str | None" = None) -> LoadResult:
        return LoadResult(self.number, status, reason)


class RangeJob(NamedTuple):
    """Fetch the entries in bytes start to start + length of a bundle.

    rows: the rows that lie there, in the order of their places.
    """

    number: int
    bundle: str
    start: int
    length: int
    rows: "Sequence[PlainRow]"

    def direction(self) -> str:
        return FETCHING

    def failed(self, status: str, reason: str = "", _: "str | None" = None) -> RangeResult:
        return RangeResult(self.number, status, reason)


class BundleJob(NamedTuple):
    """Write a bundle of ``entries`` for ``scope``."""

    number: int
    scope: str
    entries: "Sequence[PlainEntry]"

    def direction(self) -> str:
        return UPLOADING

    def failed(self, status: str, reason: str = "", _: "str | None" = None) -> BundleResult:
        return BundleResult(self.number, status, reason)


class ManifestJob(NamedTuple):
    """Write ``data`` as a manifest of ``scope``."""

    number: int
    scope: str
    data: bytes

    def direction(self) -> str:
        return UPLOADING

    def failed(self, status: str, reason: str = "", _: "str | None" = None) -> ManifestResult:
        return ManifestResult(self.number, status, reason)


# -- from the pool to the front, unasked or about no one job ---------------------------------------


class Disabled(NamedTuple):
    """The bucket can no longer be used by any session."""

    reason: str


class Expected(NamedTuple):
    """What the session's bundles hold.

    actions: those that the store lacks; others: the rest; complete: the bucket holds nothing else.
    """

    actions: "Sequence[str]"
    others: "Sequence[str]"
    complete: bool
    session: int = 0


class Transferred(NamedTuple):
    """Bytes over the network that belong to no one job.

    damaged: how many things in the bucket were found wrong without a get for them. session: one of
    those that the bytes were for.
    """

    received: int
    sent: int
    damaged: int
    session: int = 0


class PoolStatus(NamedTuple):
    """Answers a StatusJob.

    queued, running: the number of tasks by direction; breakers: the breakers' states by direction.
    """

    queued: "dict[str, int]"
    running: "dict[str, int]"
    workers: int
    breakers: "dict[str, str]"


if TYPE_CHECKING:
    Job = FetchJob | UploadJob | FinishJob | FileFetchJob | FileUploadJob
    ObjectTask = FetchJob | UploadJob | FileFetchJob | FileUploadJob
    BundleTask = LoadJob | RangeJob | BundleJob | ManifestJob
    Task = ObjectTask | BundleTask
    JobResult = FetchResult | UploadResult | FinishResult | FileResult
    TaskResult = JobResult | LoadResult | RangeResult | BundleResult | ManifestResult
    Order = BeginJob | PrefetchJob | StatusJob
    Notice = Disabled | Expected | Transferred | PoolStatus
    Message = Job | Task | TaskResult | Order | Notice

# Every message by its place in this module, which is its number on the wire.
_KINDS = [kind for kind in list(globals().values()) if hasattr(kind, "_fields")]


def pack(message: "Message") -> "tuple[Any, ...]":
    """A message as a plain tuple, for a channel."""
    return (_KINDS.index(type(message)), *message)


def unpack(fields: "Sequence[Any]") -> "Any":
    """The Message that ``pack`` made ``fields`` of.

    The caller annotates which messages its peer sends.
    """
    return _KINDS[fields[0]](*fields[1:])


def status_of(error: Exception, uploading: bool) -> str:
    """The status of a task that ended with ``error``."""
    if isinstance(error, Absent):
        return FAILED if uploading else MISS  # an upload has nothing that could be absent
    for kind, status in (
        (Damaged, DAMAGED),
        (Unusable, UNUSABLE),
        (TimedOut, TIMED_OUT),
        (RemoteError, FAILED),
        (OSError, LOCAL),
    ):
        if isinstance(error, kind):
            return status
    return FAILED
