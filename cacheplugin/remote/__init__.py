"""The remote cache. This package alone imports botocore and s3transfer.

A layout is how entries lie in a bucket. It has two methods:

``fetch(action) -> Fetched``
    Bring an entry into the local cache, verified, and say where it is. Raises Absent, Damaged,
    Unavailable or Unusable, and OSError where the local disk does not take the body.

``upload(job) -> Uploaded``
    Make the bucket hold the entry of an UploadJob; doing it twice is harmless. Raises Unavailable,
    Unusable, Damaged where the local body is gone or wrong, and OSError where it cannot be read.

Both may be called from many threads at once.
"""
from collections import namedtuple

# received, sent: bytes of bodies over the network; found: the bucket had the body already.
Fetched = namedtuple("Fetched", "output size time_ns path received")
Uploaded = namedtuple("Uploaded", "found sent")


def connect(options, cache):
    """The layout that ``options`` ask for, over ``cache`` (a LocalCache); raises Unusable."""
    from .objects import ObjectsLayout
    from .s3 import Bucket

    return ObjectsLayout(Bucket(options), cache, options.prefix)
