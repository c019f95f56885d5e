"""Every error this package raises on purpose, as one tree.

CachePluginError
├── UsageError            a flag, a variable or the cache directory is wrong: mend the command line
├── ProtocolError         stdin does not carry the GOCACHEPROG protocol: start it from the go command
├── BodyMismatch          a body is not what its size or SHA-256 says: nothing was stored, send it again
└── RemoteError           S3 did not give or take an object; the build goes on without it
    ├── Absent            the object is not there (404): a plain miss
    ├── Damaged           the object is there and wrong: a miss; the next put of that action mends it
    ├── Unavailable       refused, cut off, 403, 5xx: look at the endpoint and the bucket's policy
    │   └── TimedOut      no answer in time: the same, and the network between
    └── Unusable          no credentials, credentials refused, no such bucket: mend the configuration
"""


class CachePluginError(Exception):
    """Root of the tree above; its text is one line for the user."""


class UsageError(CachePluginError):
    """The command line, the environment or the cache directory cannot be used."""


class ProtocolError(CachePluginError):
    """The bytes on stdin break the protocol beyond one request."""


class BodyMismatch(CachePluginError):
    """A body differs in size or SHA-256 from what was announced."""


class RemoteError(CachePluginError):
    """Trouble between this machine and the bucket."""


class Absent(RemoteError):
    """The object does not exist."""


class Damaged(RemoteError):
    """The object exists and is not what its name promises; ``output`` is the id of a bad output."""

    def __init__(self, reason: str, output: str = None) -> None:
        super().__init__(reason)
        self.output = output


class Unavailable(RemoteError):
    """The request failed; the same one may succeed later."""


class TimedOut(Unavailable):
    """S3 did not answer within the time-out; every such request holds up the build."""


class Unusable(RemoteError):
    """Every request of this session would fail for the same reason."""


def reason_of(error: Exception) -> str:
    """What a user is told of an error: its text, of an OSError without number and path."""
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return str(error)
