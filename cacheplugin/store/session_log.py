"""The session log for ``stats``: ``sessions.jsonl``, a JSON line of counters for each session.

It is informative only: lines may be lost, and readers skip a damaged line.
"""

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..metrics import Counters

_NAME = "sessions.jsonl"
# Another user may have put a pipe or a link there: neither wait nor follow.
_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KEEP_LINES = 1000
_MAX_LINES = 2000
_MOST = 250e9  # more than any number in a line: seconds until the year 9892, or a petabyte
_LEAST_LINE_BYTES = 100  # no line is shorter, so the file's size tells when to count its lines

# Fields of a line and the counters they hold. A line also has "end", in seconds since the epoch,
# and "waited_s".
_FIELDS = (
    ("gets", "get_requests"),
    ("local_hits", "get_local_hit"),
    ("s3_hits", "get_fault_hit"),
    ("misses", "get_misses"),
    ("puts", "put_requests"),
    ("bytes_down", "get_fault_bytes"),
    ("bytes_up", "put_s3_bytes"),
)


def append_session(root: str, counters: "Counters") -> None:
    """Add a session that has ended to the log of the store at ``root``. Never raises OSError.

    A session without gets and puts is left out.
    """
    if not counters.get_requests and not counters.put_requests:
        return
    # Not with the json module: importing it would take longer than everything else here.
    numbers = "".join(f'"{field}":{getattr(counters, name)},' for field, name in _FIELDS)
    line = f'{{"end":{time.time():.3f},{numbers}"waited_s":{counters.drain_s:.3f}}}\n'
    try:
        fd = os.open(f"{root}/{_NAME}", _APPEND, 0o644)
        try:
            os.write(fd, line.encode())
            if os.fstat(fd).st_size > _MAX_LINES * _LEAST_LINE_BYTES:
                _cut(root, fd)
        finally:
            os.close(fd)
    except OSError:
        pass


def _cut(root: str, fd: int) -> None:
    """Replace the file by its last lines; a line that is added meanwhile may be lost."""
    from .locks import try_lock
    from .tree import Store

    path = f"{root}/{_NAME}"
    if not try_lock(fd) or not os.path.samestat(os.fstat(fd), os.stat(path)):
        return  # another session is doing it or has just done it
    lines = os.pread(fd, os.fstat(fd).st_size, 0).splitlines(keepends=True)
    if len(lines) > _MAX_LINES:
        with Store(root).temporary() as temp:
            temp.write(b"".join(lines[-_KEEP_LINES:]))
            temp.rename(path)


def read_sessions(root: str) -> "list[dict[str, float]]":
    """Return [{"end": seconds since the epoch, "gets": …, "waited_s": …}], the oldest first."""
    import json

    from .contents import open_regular

    try:
        with open(open_regular(f"{root}/{_NAME}"), "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    keys = {"end", "waited_s", *(field for field, _ in _FIELDS)}
    sessions = []
    for line in lines:
        try:
            session = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if (
            isinstance(session, dict)
            and session.keys() >= keys
            and all(type(session[key]) in (int, float) for key in keys)
            and all(0 <= session[key] < _MOST for key in keys)
        ):
            sessions.append({key: session[key] for key in session if key in keys})
    return sessions
