"""What sessions leave of their counters, for ``stats``: ``sessions.jsonl``, a JSON line for each.

It is a help, not a record: lines may be lost, and a garbled one is passed over.
"""

import os
import time

_NAME = "sessions.jsonl"
_KEEP_LINES = 1000
_MAX_LINES = 2000
_LEAST_LINE_BYTES = 100  # with fewer bytes a line there is no need to count lines

# Field of a line: counter. Besides: "end", seconds since the epoch, and "waited_s".
_FIELDS = (
    ("gets", "get_requests"),
    ("local_hits", "get_local_hit"),
    ("s3_hits", "get_fault_hit"),
    ("misses", "get_misses"),
    ("puts", "put_requests"),
    ("bytes_down", "get_fault_bytes"),
    ("bytes_up", "put_s3_bytes"),
)


def append_session(root: str, counters) -> None:
    """Add a session that has ended to the history of the store at ``root``.

    Never raises OSError; one that neither asked nor stored anything is left out.
    """
    if not counters.get_requests and not counters.put_requests:
        return
    # Written by hand: json would cost the end of each session more than all the rest here.
    numbers = "".join(f'"{field}":{getattr(counters, name)},' for field, name in _FIELDS)
    line = f'{{"end":{time.time():.3f},{numbers}"waited_s":{counters.drain_s:.3f}}}\n'
    try:
        fd = os.open(f"{root}/{_NAME}", os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, line.encode())
            if os.fstat(fd).st_size > _MAX_LINES * _LEAST_LINE_BYTES:
                _cut(root, fd)
        finally:
            os.close(fd)
    except OSError:
        pass


def _cut(root, fd) -> None:
    """Replace the file by its last lines; a line that is added meanwhile may be lost."""
    import fcntl

    from .tree import Store

    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    path = f"{root}/{_NAME}"
    if not os.path.samestat(os.fstat(fd), os.stat(path)):
        return  # another session has just done it
    lines = os.pread(fd, os.fstat(fd).st_size, 0).splitlines(keepends=True)
    if len(lines) > _MAX_LINES:
        with Store(root).temporary() as temp:
            temp.write(b"".join(lines[-_KEEP_LINES:]))
            temp.rename(path)


def read_sessions(root: str) -> list:
    """[{"end": seconds since the epoch, "gets": …, "waited_s": …}], the oldest first."""
    import json

    try:
        with open(f"{root}/{_NAME}", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    keys = {"end", "waited_s", *(field for field, _ in _FIELDS)}
    sessions = []
    for line in lines:
        try:
            session = json.loads(line)
        except ValueError:
            continue
        if (
            isinstance(session, dict)
            and session.keys() >= keys
            and all(type(session[key]) in (int, float) for key in keys)
        ):
            sessions.append({key: session[key] for key in session if key in keys})
    return sessions
