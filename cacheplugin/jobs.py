"""What crosses between the front, the pool process and its workers: small named tuples.

Ids are lower-case hex, sizes bytes, times nanoseconds since the epoch. ``number`` tells one job
from every other of its session. (collections.namedtuple, because typing costs the front five
times as much to import.)
"""
from collections import namedtuple

# Statuses of a result.
HIT = "hit"  # fetched and stored
MISS = "miss"  # not in the bucket
DAMAGED = "damaged"  # in the bucket, and not what it should be
FAILED = "failed"  # S3 did not give or take it
LOCAL = "local"  # the local disk did not take or give it
SKIPPED = "skipped"  # not tried: S3 is turned off for a while, or for good
STORED = "stored"  # uploaded
UNUSABLE = "unusable"  # as FAILED, and so will be every other job
TIMED_OUT = "timed out"  # as FAILED, after the whole time-out
LOST = "lost"  # the worker died with it

FetchJob = namedtuple("FetchJob", "number action")
# recovered: left by a process that died, perhaps in the middle of it. replace: the bucket's output
# is known to be damaged.
UploadJob = namedtuple(
    "UploadJob",
    "number action output size time_ns path recovered replace",
    defaults=(False, False),
)

# output to path are None unless the status is HIT, but output is also that which is DAMAGED; received: bytes that came over the network.
FetchResult = namedtuple(
    "FetchResult", "number action status output size time_ns path received reason"
)
# found: the bucket had the body; sent: bytes that went over the network.
UploadResult = namedtuple("UploadResult", "number status found sent reason")
# From the pool to the front: the remote is of no more use to this session.
Disabled = namedtuple("Disabled", "reason")

_KINDS = (FetchJob, UploadJob, FetchResult, UploadResult, Disabled)


def pack(message) -> tuple:
    """A named tuple of this module as a plain one."""
    return (_KINDS.index(type(message)), *message)


def unpack(fields: tuple):
    """The named tuple that ``pack`` took."""
    return _KINDS[fields[0]](*fields[1:])


def fetch_failed(job: FetchJob, status: str, reason: str = "") -> FetchResult:
    return FetchResult(job.number, job.action, status, None, 0, 0, None, 0, reason)


def upload_failed(job: UploadJob, status: str, reason: str = "") -> UploadResult:
    return UploadResult(job.number, status, False, 0, reason)
