"""What crosses between the front, the pool process and its workers: small named tuples.

Ids are lower-case hex, sizes bytes, times nanoseconds since the epoch. ``number`` tells one job
from every other of its sender. The front's jobs go to the pool, whose plan makes tasks for workers
of them. (collections.namedtuple, because typing costs the front five times as much to import.)
"""

from collections import namedtuple

from ..errors import Absent, Damaged, RemoteError, TimedOut, Unusable

# Statuses of a result.
HIT = "hit"  # fetched and stored
ARRIVED = "arrived"  # it is in the store by now: look there
MISS = "miss"  # not in the bucket
DAMAGED = "damaged"  # in the bucket, and not what it should be
FAILED = "failed"  # S3 did not give or take it
LOCAL = "local"  # the local disk did not take or give it
SKIPPED = "skipped"  # not tried: S3 is turned off for a while, or for good
STORED = "stored"  # uploaded
UNUSABLE = "unusable"  # as FAILED, and so will be every other job
TIMED_OUT = "timed out"  # as FAILED, after the whole time-out
LOST = "lost"  # the worker died with it

# -- from the front to the pool --------------------------------------------------------------------

# ``session`` numbers one of the front's sessions: BeginJob is the first that names it, FinishJob the
# last. scopes: those of scope.find.
BeginJob = namedtuple("BeginJob", "session scopes")
# The session will ask for much: get it now. There is no answer but Expected.
PrefetchJob = namedtuple("PrefetchJob", "session")
FetchJob = namedtuple("FetchJob", "number action session", defaults=(0,))
# recovered: left by a process that died, perhaps in the middle of it. replace: the bucket's output
# is known to be damaged.
UploadJob = namedtuple(
    "UploadJob",
    "number action output size time_ns path recovered replace session",
    defaults=(False, False, 0),
)
# A session has ended. used: the actions it used, in the order of first use; None: it leaves nothing.
FinishJob = namedtuple("FinishJob", "number used session", defaults=(0,))

# A file that is no entry, by the end of its key behind the prefix, from or to ``path``, of no session.
# limit: of its bytes. replace: what the bucket has is to be replaced, else it is the same.
FileFetchJob = namedtuple("FileFetchJob", "number key path limit")
FileUploadJob = namedtuple("FileUploadJob", "number key path replace")

# Answered with a PoolStatus.
StatusJob = namedtuple("StatusJob", "")

# -- from the pool to workers ----------------------------------------------------------------------

# Also FetchJob and UploadJob, of the objects layout, FileFetchJob and FileUploadJob.
# scopes: as in BeginJob; scope: the first of them.
LoadJob = namedtuple("LoadJob", "number scopes")
# rows: those of remote.index that lie in bytes start to start + length of a bundle, as plain tuples
# in the order of their places.
RangeJob = namedtuple("RangeJob", "number bundle start length rows")
# entries: (action, output, size, time_ns, path) of each.
BundleJob = namedtuple("BundleJob", "number scope entries")
ManifestJob = namedtuple("ManifestJob", "number scope data")

# -- back ------------------------------------------------------------------------------------------

# output to path are None unless the status is HIT, but output is also that which is DAMAGED;
# received: bytes that came over the network.
FetchResult = namedtuple(
    "FetchResult", "number action status output size time_ns path received reason"
)
# found: the bucket had the body; sent: bytes that went over the network.
UploadResult = namedtuple("UploadResult", "number status found sent reason")
FinishResult = namedtuple("FinishResult", "number status reason")
# size: bytes that went over the network.
FileResult = namedtuple("FileResult", "number status size reason")
# own: rows of the scope's manifests, others: those of related scopes. names: the manifests whose
# rows own has. written_s: when the newest of them was written. missing: actions that the local store
# lacks, in the order in which they will be wanted. objects: whether the bucket holds the objects
# layout as well. damaged: manifests that could not be used. now_s: the time by the store's clock.
LoadResult = namedtuple(
    "LoadResult",
    "number status reason own others foreign names written_s missing objects damaged now_s",
)
# arrived: actions that are in the store now; damaged: those that are not what they should be in the
# bucket; gone: the bundle is not there.
RangeResult = namedtuple("RangeResult", "number status reason arrived damaged gone received")
# rows: as in RangeJob; bad: outputs whose local bodies are gone or wrong.
BundleResult = namedtuple("BundleResult", "number status reason rows bad sent")
ManifestResult = namedtuple("ManifestResult", "number status reason name sent")

# -- from the pool to the front --------------------------------------------------------------------

# The remote is of no more use to any session.
Disabled = namedtuple("Disabled", "reason")
# What bundles have: actions that the store lacks, and others; complete: the bucket has nothing else.
Expected = namedtuple("Expected", "actions others complete session", defaults=(0,))
# Bytes over the network that belong to no one job; damaged: things found wrong by no one's get.
# session: one of those on whose behalf.
Transferred = namedtuple("Transferred", "received sent damaged session", defaults=(0,))

# queued, running: tasks by direction; breakers: their states by direction.
PoolStatus = namedtuple("PoolStatus", "queued running workers breakers")

_KINDS = (
    BeginJob,
    PrefetchJob,
    FetchJob,
    UploadJob,
    FinishJob,
    LoadJob,
    RangeJob,
    BundleJob,
    ManifestJob,
    FetchResult,
    UploadResult,
    FinishResult,
    LoadResult,
    RangeResult,
    BundleResult,
    ManifestResult,
    Disabled,
    Expected,
    Transferred,
    StatusJob,
    PoolStatus,
    FileFetchJob,
    FileUploadJob,
    FileResult,
)
FETCHING, UPLOADING = "fetching from", "uploading to"  # the two directions of tasks
_DIRECTIONS = {
    FetchJob: FETCHING,
    LoadJob: FETCHING,
    RangeJob: FETCHING,
    FileFetchJob: FETCHING,
    UploadJob: UPLOADING,
    BundleJob: UPLOADING,
    ManifestJob: UPLOADING,
    FileUploadJob: UPLOADING,
}


def pack(message) -> tuple:
    """A named tuple of this module as a plain one."""
    return (_KINDS.index(type(message)), *message)


def unpack(fields: tuple):
    """The named tuple that ``pack`` took."""
    return _KINDS[fields[0]](*fields[1:])


def direction(task) -> str:
    """FETCHING or UPLOADING: which circuit breaker, queue and limit a worker's task is under."""
    return _DIRECTIONS[type(task)]


def failed(job, status: str, reason: str = "", output: str = None):
    """The result of a job or task that failed; ``output`` is the one that is DAMAGED, if known."""
    number = job.number
    if isinstance(job, FetchJob):
        return FetchResult(number, job.action, status, output, 0, 0, None, 0, reason)
    if isinstance(job, UploadJob):
        return UploadResult(number, status, False, 0, reason)
    if isinstance(job, FinishJob):
        return FinishResult(number, status, reason)
    if isinstance(job, (FileFetchJob, FileUploadJob)):
        return FileResult(number, status, 0, reason)
    if isinstance(job, LoadJob):
        return LoadResult(number, status, reason, (), (), (), (), 0, (), False, 0, 0)
    if isinstance(job, RangeJob):
        return RangeResult(number, status, reason, (), (), False, 0)
    if isinstance(job, BundleJob):
        return BundleResult(number, status, reason, (), (), 0)
    return ManifestResult(number, status, reason, "", 0)


def status_of(error: Exception, uploading: bool) -> str:
    """The status of a task that ended with ``error``."""
    if isinstance(error, Absent):
        return FAILED if uploading else MISS  # absent, for an upload, is the bucket's own doing
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
