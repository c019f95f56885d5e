"""Every error this package raises on purpose, as one tree.

CachePluginError
├── UsageError            a flag, a variable or the cache directory is wrong: mend the command line
├── ProtocolError         stdin does not carry the GOCACHEPROG protocol: start it from the go command
├── BodyMismatch          a body is not what its size or SHA-256 says: nothing was stored, send it again
├── InvalidName           a path under /mod/ names no module file, tile or record: ask for another
├── FileMismatch          a module file is not what it should be: nothing was stored; look at its source
├── UpstreamError         no module proxy or checksum database gave a file: look at what it answered
│   └── NotThere          it says that there is no such file (404, 410)
│       └── UpstreamOff   nobody was asked, as --modproxy-upstream says
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


class InvalidName(CachePluginError):
    """A path that breaks the rules of module paths, versions and tiles; ``status`` answers it."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


class FileMismatch(CachePluginError):
    """A module file breaks its format, or is not what a checksum database, or its name, says."""


class UpstreamError(CachePluginError):
    """An upstream gave no file; ``status``, an HTTP one, tells a client so."""

    def __init__(self, reason: str, status: int = 502) -> None:
        super().__init__(reason)
        self.status = status


class NotThere(UpstreamError):
    """An upstream answered 404 or 410; the error's text is that of its answer.

    ``left_s``: for how long that will be believed, None: from now on.
    """

    def __init__(self, reason: str, status: int = 404, left_s: float = None) -> None:
        super().__init__(reason, status)
        self.left_s = left_s


class UpstreamOff(NotThere):
    """The list of upstreams says ``off``."""

    def __init__(self) -> None:
        super().__init__("it is not in the cache, and upstream is off")


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
