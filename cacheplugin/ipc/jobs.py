"""The messages between the front, the pool process and its workers.

The front sends jobs to the pool, which turns them into tasks for its workers. Each job and each
task is answered by one result with the same ``number``, which is unique for each sender. Ids are
lower-case hex, sizes are bytes, times are nanoseconds since the epoch unless a name says otherwise.
"""

from ..errors import LOCAL_TROUBLE, Absent, Damaged, TimedOut, Unreadable, Unusable
from ..tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    # The fields of a remote.bundles.rows.Row, as a plain tuple: marshal takes nothing else.
    PlainRow = tuple[str, str, int, int, int, str, int, int, int, int]
    PlainEntry = tuple[str, str, int, int, str]  # action, output, size, time_ns, path

# Statuses of a result.
HIT = "hit"  # fetched and stored
ARRIVED = "arrived"  # the entry is in the store; the other fields of the result are not set
MISS = "miss"  # the bucket does not have it
DAMAGED = "damaged"  # the bucket has it, but its content is wrong
FAILED = "failed"  # S3 answered with an error, or did not answer
LOCAL = "local"  # the local disk could not be read or written
SKIPPED = "skipped"  # not tried, because the breaker is open or S3 cannot be used at all
STORED = "stored"  # uploaded
UNUSABLE = "unusable"  # like FAILED, and every later job would fail in the same way
TIMED_OUT = "timed out"  # like FAILED, because S3 did not answer within the time-out
LOST = "lost"  # the worker died while it worked on the task

# The directions of tasks. Each has its own circuit breaker, queue and limit. Used in log lines.
FETCHING, UPLOADING = "fetching from", "uploading to"

# -- results ---------------------------------------------------------------------------------------


class FetchResult(NamedTuple):
    """Answers a FetchJob. ``received``: bytes received over the network.

    With HIT, the fields from output to path are set; with DAMAGED, output is set if it is known.
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
    """Answers an UploadJob. found: the bucket had the body; sent: bytes sent over the network."""

    number: int
    status: str
    found: bool = False
    sent: int = 0
    reason: str = ""


class FinishResult(NamedTuple):
    """Answers a FinishJob, after every upload of the session has ended or failed."""

    number: int
    status: str
    reason: str = ""


class FileResult(NamedTuple):
    """Answers a FileFetchJob or a FileUploadJob. ``size``: bytes sent or received."""

    number: int
    status: str
    size: int = 0
    reason: str = ""


class LoadResult(NamedTuple):
    """Answers a LoadJob.

    own: rows of the session's own scope; related: rows of the scopes that it falls back to;
    unrelated: rows of the scopes that were written to last, if the others have none. superseded:
    manifests of the own scope that a new manifest with these rows supersedes. written_s: when the
    newest manifest of the own scope was written (epoch). missing: actions that the local store
    lacks, in the order of first use. has_objects: whether the bucket also holds the objects layout.
    damaged: how many manifests could not be used. now_s: the time by the bucket's clock (epoch).
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
    wrong; gone: the bundle does not exist; received: bytes received over the network.
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

    rows: the place of each entry in the bucket; bad: outputs whose local bodies are missing or
    wrong; sent: bytes over the network; unreadable: (output, reason) where reading has failed.
    """

    number: int
    status: str
    reason: str = ""
    rows: "Sequence[PlainRow]" = ()
    bad: "Sequence[str]" = ()
    sent: int = 0
    unreadable: "Sequence[tuple[str, str]]" = ()


class ManifestResult(NamedTuple):
    """Answers a ManifestJob. ``name``: that of the new manifest; ``sent``: bytes sent."""

    number: int
    status: str
    reason: str = ""
    name: str = ""
    sent: int = 0


# -- from the front to the pool --------------------------------------------------------------------


class BeginJob(NamedTuple):
    """Begins a session; sent before its other messages. ``scopes``: what scope.find returned."""

    session: int
    scopes: "Sequence[str]"


class PrefetchJob(NamedTuple):
    """Asks for the prefetch of the session's working set. Answered by Expected only."""

    session: int


class FetchJob(NamedTuple):
    """Fetch an action into the store. In the objects layout also a worker's task."""

    number: int
    action: str
    session: int = 0

    def direction(self) -> str:
        return FETCHING

    def failed(self, status: str, reason: str = "", output: "str | None" = None) -> FetchResult:
        return FetchResult(self.number, self.action, status, output, reason=reason)


class UploadJob(NamedTuple):
    """Upload an entry whose body is the file ``path``. In the objects layout also a worker's task.

    recovered: the entry was left by a process that died, perhaps during its upload. replace: the
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
    """Ends a session; sent after its other messages.

    used: the actions that it used, in the order of first use; None: it writes no manifest.
    """

    number: int
    used: "Sequence[str] | None"
    session: int = 0

    def failed(self, status: str, reason: str = "", _: "str | None" = None) -> FinishResult:
        return FinishResult(self.number, status, reason)


class FileFetchJob(NamedTuple):
    """Write the object ``key`` (without the prefix; at most ``limit`` bytes) to the file ``path``.

    The job belongs to no session. Also a worker's task.
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
    """Upload the file ``path`` as the object ``key`` (without the prefix). Also a worker's task.

    replace: overwrite an object that exists; otherwise it is taken for the same file and kept.
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
    """Fetch the entries of ``rows``, in the order of their places, from a part of a bundle."""

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


# -- notices from the pool to the front ------------------------------------------------------------


class Disabled(NamedTuple):
    """No session can use the bucket any longer. refused: it says no, or credentials are missing."""

    reason: str
    refused: bool = False


class Failed(NamedTuple):
    """A task has failed for ``reason``; ``told``: the pool has logged a warning of it."""

    reason: str
    told: bool


class Expected(NamedTuple):
    """The actions in the session's bundles.

    actions: those that the local store lacks; others: the rest; complete: the bucket has no others.
    """

    actions: "Sequence[str]"
    others: "Sequence[str]"
    complete: bool
    session: int = 0


class Transferred(NamedTuple):
    """Bytes over the network for several jobs of ``session`` and others, or for none.

    damaged: objects found damaged outside of a get.
    """

    received: int
    sent: int
    damaged: int
    session: int = 0


class PoolStatus(NamedTuple):
    """Answers a StatusJob, by direction; off_s: how long a breaker has not been closed, if any."""

    queued: "dict[str, int]"
    running: "dict[str, int]"
    workers: int
    breakers: "dict[str, str]"
    off_s: "float | None" = None


if TYPE_CHECKING:
    Job = FetchJob | UploadJob | FinishJob | FileFetchJob | FileUploadJob
    ObjectTask = FetchJob | UploadJob | FileFetchJob | FileUploadJob
    Task = ObjectTask | LoadJob | RangeJob | BundleJob | ManifestJob
    JobResult = FetchResult | UploadResult | FinishResult | FileResult
    TaskResult = JobResult | LoadResult | RangeResult | BundleResult | ManifestResult
    Order = BeginJob | PrefetchJob | StatusJob
    Notice = Disabled | Failed | Expected | Transferred | PoolStatus
    Message = Job | Task | TaskResult | Order | Notice

# All messages in the order of this module; the index of each class is its number on the wire.
_KINDS = [kind for kind in list(globals().values()) if hasattr(kind, "_fields")]


def pack(message: "Message") -> "tuple[Any, ...]":
    """The plain tuple for a message, which a channel takes."""
    return (_KINDS.index(type(message)), *message)


def unpack(fields: "Sequence[Any]") -> "Any":
    """The message for a tuple from ``pack``. The caller annotates which messages its peer sends."""
    return _KINDS[fields[0]](*fields[1:])


def status_of(error: Exception, uploading: bool) -> str:
    """The status of a task that ended with ``error``; ``uploading``: its direction."""
    if isinstance(error, Absent):
        return FAILED if uploading else MISS
    for kind, status in ((Damaged, DAMAGED), (Unusable, UNUSABLE), (TimedOut, TIMED_OUT)):
        if isinstance(error, kind):
            return status
    return LOCAL if isinstance(error, (Unreadable, *LOCAL_TROUBLE)) else FAILED
