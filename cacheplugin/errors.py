"""Every error this package raises on purpose, as one tree.

CachePluginError
├── UsageError            wrong flag, variable or cache directory: correct the command line
├── ProtocolError         stdin does not carry GOCACHEPROG: start the program from the go command
├── BodyMismatch          a body has another size or SHA-256 than announced: nothing was stored
├── InvalidName           a path under /mod/ is not that of a module file, tile or record
├── FileMismatch          a module file failed its checks and was not stored: look at its source
├── UpstreamError         no module proxy or checksum database delivered a file: look at its answer
│   └── NotThere          it answered that the file does not exist (404, 410)
│       └── UpstreamOff   --modproxy-upstream=off: no request was made
└── RemoteError           S3 did not deliver or take an object; the build goes on without it
    ├── Absent            the object does not exist (404): a plain miss
    ├── Damaged           the object has wrong content: a miss; the action's next put replaces it
    ├── Unreadable        a body on the local disk cannot be read: its entry stays in the spool
    ├── Unavailable       refused, cut off, 403, 5xx: look at the endpoint and the bucket's policy
    │   └── TimedOut      no answer in time: look at the endpoint and the network
    └── Unusable          credentials missing or refused, no such bucket: correct the configuration
"""


class CachePluginError(Exception):
    """Root of the tree above; its text is one line for the user."""


class UsageError(CachePluginError):
    """The command line, the environment or the cache directory cannot be used."""


class ProtocolError(CachePluginError):
    """The bytes on stdin break the protocol in a way that affects more than one request."""


class BodyMismatch(CachePluginError):
    """A body differs in size or SHA-256 from what was announced."""


class InvalidName(CachePluginError):
    """A path breaks the rules for module paths, versions and tiles.

    ``status`` is the HTTP status of the answer to its request.
    """

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


class FileMismatch(CachePluginError):
    """A module file has a wrong format, or contradicts its name or the checksum database."""


class UpstreamError(CachePluginError):
    """An upstream did not deliver a file.

    ``status`` is the HTTP status with which the client is told so.
    """

    def __init__(self, reason: str, status: int = 502) -> None:
        super().__init__(reason)
        self.status = status


class NotThere(UpstreamError):
    """An upstream answered 404 or 410; the error's text is the text of its answer.

    ``left_s`` is how long this answer may be repeated from memory, in seconds; None for a new
    answer.
    """

    def __init__(self, reason: str, status: int = 404, left_s: "float | None" = None) -> None:
        super().__init__(reason, status)
        self.left_s = left_s


class UpstreamOff(NotThere):
    """The list of upstreams is ``off``."""

    def __init__(self) -> None:
        super().__init__("it is not in the cache, and upstream is off")


class RemoteError(CachePluginError):
    """A request to the bucket failed, or what it returned cannot be used."""


class Absent(RemoteError):
    """The object does not exist."""


class Damaged(RemoteError):
    """The object exists and has wrong content.

    ``output`` is the id of the output that is wrong, None where it is not known.
    """

    def __init__(self, reason: str, output: "str | None" = None) -> None:
        super().__init__(reason)
        self.output = output


class Unreadable(RemoteError):
    """The local body to upload is there and cannot be read; the text begins with its path."""

    def __init__(self, path: str, error: OSError) -> None:
        super().__init__(f"{path} cannot be read: {reason_of(error)}")


class Unavailable(RemoteError):
    """The request failed; the same request may succeed later."""


class TimedOut(Unavailable):
    """S3 did not answer within the time-out; every such request delays the build."""


class Unusable(RemoteError):
    """Every request of this session would fail for the same reason."""


def is_exhausted(error: Exception) -> bool:
    """Whether the cause is a lack of processes, threads, memory or descriptors."""
    import errno

    if isinstance(error, OSError):
        return error.errno in (errno.EAGAIN, errno.ENOMEM, errno.ENFILE, errno.EMFILE)
    return isinstance(error, MemoryError) or "can't start new thread" in str(error)


# What any part may raise when the machine has no memory, processes or descriptors left, or when a
# file of the program is gone, which a late import then misses.
LOCAL_TROUBLE = (OSError, MemoryError, ImportError)


def reason_of(error: Exception) -> str:
    """The text of an error for the user; for an OSError without its number and path."""
    if isinstance(error, MemoryError):
        return "no memory is left"
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return str(error)
