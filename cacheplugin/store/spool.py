"""The spool: entries that still have to be uploaded, kept so that no crash of a process loses them.

::

    spool/<target>/target, settings    JSON: where the entries go, and how (spool_target.py)
    spool/<target>/<session>/journal   a line for each put, and a line for each finished upload
    spool/<target>/<session>/ending    exists while an ended session still uploads
    spool/<target>/<session>/<output>  hard link to a body, because prune may remove the body itself

A process locks the journal of its session as long as it lives. Any uploader may claim the session
of a dead process. Files of other users, except root, are not believed: they would tell where to
send bodies, with the credentials of this user. Journal lines are ``put <action> <output> <size>
<unix nanoseconds>`` and ``done <line number>``; each is one write. A process that is killed in the
middle of a write leaves a line without a newline, which is ignored.
"""

import errno
import json
import os
import re
import shutil
import stat
import time

import xxhash

from .locks import try_lock
from .spool_target import TARGET_FIELDS, files_of
from .tree import Store, unlink_quietly

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..options import Options

_JOURNAL = "journal"
_ENDING = "ending"
_PUT = re.compile(rb"put ([0-9a-f]{2,128}) ([0-9a-f]{64}) ([0-9]{1,19}) ([0-9]{1,19})")
_DONE = re.compile(rb"done ([0-9]{1,19})")
_BIRTH_S = 60  # upper bound, by far, of the time between a session's directory and its journal


class Entry:
    """One put: hex ids, size in bytes, time in nanoseconds since the epoch, path of the body."""

    __slots__ = ("action", "output", "path", "size", "time_ns")

    def __init__(self, action: str, output: str, size: int, time_ns: int, path: str) -> None:
        self.action, self.output, self.size = action, output, size
        self.time_ns, self.path = time_ns, path


class _Body:
    """A body that pending entries need: how many of them, and its path."""

    __slots__ = ("entries", "path")

    def __init__(self, path: str) -> None:
        self.entries = 0
        self.path = path


class SpoolSession:
    """One session's entries: of this process (``create``) or of a dead process (``claim``).

    ``pending`` maps line numbers of the journal to entries that S3 does not have yet. Not safe for
    use by two threads.
    """

    def __init__(self, directory: str, journal_fd: int) -> None:
        self.directory = directory
        self.pending: dict[int, Entry] = {}
        self._fd = journal_fd
        self._lines = 0
        self._bodies: dict[str, _Body] = {}  # by output id

    @classmethod
    def create(cls, store: Store, options: "Options", scope: str) -> "SpoolSession":
        """Start a session of this process; ``scope`` is "" if it has none. Raises OSError."""
        files = files_of(options, scope, os.environ)
        home = f"{store.root}/spool/{xxhash.xxh3_64_hexdigest(''.join(files.values()).encode())}"
        directory = f"{home}/{os.getpid()}-{os.urandom(8).hex()}"
        os.makedirs(directory, 0o755)
        try:
            return cls._begin(store, home, directory, files)
        except OSError:
            shutil.rmtree(directory, ignore_errors=True)
            raise

    @classmethod
    def _begin(
        cls, store: Store, home: str, directory: str, files: "dict[str, str]"
    ) -> "SpoolSession":
        for name, content in files.items():
            if not _is_trusted_file(f"{home}/{name}"):
                with store.temporary() as temp:
                    temp.write(content.encode())
                    temp.rename(f"{home}/{name}")
        with store.temporary() as temp:
            fd = os.open(temp.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            try:
                try_lock(fd)  # before it gets the name by which uploaders find it
                temp.rename(f"{directory}/{_JOURNAL}")
            except OSError:
                os.close(fd)
                raise
        return cls(directory, fd)

    @classmethod
    def claim(cls, store: Store, directory: str) -> "SpoolSession | None":
        """Take over the session of a dead process; None if it lives or cannot be read."""
        try:
            fd = _open_trusted(f"{directory}/{_JOURNAL}", os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            _remove_unborn(directory)
            return None
        except OSError:
            return None
        try:
            # Without a link the session was finished and removed between open and lock.
            if try_lock(fd) and os.fstat(fd).st_nlink:
                session = cls(directory, fd)
                os.ftruncate(fd, session._replay(store))  # cut an incomplete last line
                return session
        except OSError:
            pass
        os.close(fd)
        return None

    @classmethod
    def read(cls, store: Store, directory: str) -> "SpoolSession":
        """Read a session's journal, of a live or dead process; the session must not be changed."""
        try:
            fd = _open_trusted(f"{directory}/{_JOURNAL}", os.O_RDONLY)
        except OSError:
            return cls(directory, -1)
        session = cls(directory, fd)
        try:
            session._replay(store)
        finally:
            os.close(fd)
        return session

    def _replay(self, store: Store) -> int:
        """Fill ``pending`` from the journal; return how many bytes of it are complete lines."""
        with open(self._fd, "rb", closefd=False) as file:
            data = file.read()
        *lines, torn = data.split(b"\n")
        self._lines = len(lines)
        entries: dict[int, Entry] = {}
        intact = True
        for number, line in enumerate(lines):
            if put := _PUT.fullmatch(line):
                action, output = put[1].decode(), put[2].decode()
                path = f"{self.directory}/{output}"
                if not os.path.exists(path):
                    path = store.output_path(output)
                entries[number] = Entry(action, output, int(put[3]), int(put[4]), path)
            elif done := _DONE.fullmatch(line):
                # After a line that a power cut damaged, line numbers can no longer be relied on.
                if intact:
                    entries.pop(int(done[1]), None)
            else:
                intact = False
        for number, entry in entries.items():
            self._expect(number, entry)
        return len(data) - len(torn)

    def _expect(self, number: int, entry: Entry) -> None:
        self.pending[number] = entry
        self._bodies.setdefault(entry.output, _Body(entry.path)).entries += 1

    def add(self, action: str, output: str, size: int, time_ns: int, path: str) -> int:
        """Record a put whose body is at ``path``; return its line number. Raises OSError."""
        if output in self._bodies:
            path = self._bodies[output].path
        elif size:
            path = _pin(path, f"{self.directory}/{output}")
        number = self._lines
        try:
            self._append(f"put {action} {output} {size} {time_ns}\n")
        except OSError:
            if output not in self._bodies:
                unlink_quietly(f"{self.directory}/{output}")
            raise
        self._expect(number, Entry(action, output, size, time_ns, path))
        return number

    def done(self, number: int) -> None:
        """Record that an entry was uploaded, or that it never can be."""
        entry = self.pending.pop(number)
        try:
            self._append(f"done {number}\n")
        except OSError:
            pass  # if this process is killed before its release, the entry is uploaded again
        body = self._bodies[entry.output]
        body.entries -= 1
        if not body.entries:
            del self._bodies[entry.output]
            unlink_quietly(f"{self.directory}/{entry.output}")

    def mark_ending(self) -> None:
        """Mark the session as one that only finishes uploads, so that ``flush`` waits for it."""
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            os.close(os.open(f"{self.directory}/{_ENDING}", flags, 0o644))
        except OSError:
            pass  # then ``flush`` does not wait

    def _append(self, line: str) -> None:
        data = line.encode()
        written = os.write(self._fd, data)
        if written < len(data):  # remove the partial line, or the next one would continue it
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._lines += 1

    def release(self) -> bool:
        """Unlock the session; remove it if nothing is pending. Returns whether that is so."""
        finished = not self.pending
        if finished:
            unlink_quietly(f"{self.directory}/{_JOURNAL}")
            shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._fd)
        return finished


def session_directories(root: str) -> list[tuple[str, str]]:
    """Return (target directory, session directory) of every session, of live and dead processes."""
    found: list[tuple[str, str]] = []
    for target in _directories(f"{root}/spool"):
        found += [(target, session) for session in _directories(target)]
    return found


def ending_journals(root: str) -> list[int]:
    """Open the journals of sessions marked as ending, for a caller that waits for their locks."""
    found = []
    for _, directory in session_directories(root):
        try:
            os.stat(f"{directory}/{_ENDING}")
            found.append(_open_trusted(f"{directory}/{_JOURNAL}", os.O_RDWR))
        except OSError:
            continue
    return found


def is_waiting(root: str) -> bool:
    """Return whether the spool holds a session of a dead process."""
    return any(_is_dead(directory) for _, directory in session_directories(root))


def _is_dead(directory: str) -> bool:
    """Return whether a session has a journal that no process locks."""
    try:
        fd = _open_trusted(f"{directory}/{_JOURNAL}", os.O_RDONLY)
    except OSError:
        return False
    try:
        return try_lock(fd, shared=True)
    except OSError:
        return False
    finally:
        os.close(fd)


def count_pending(store: Store) -> int:
    """Count the entries that still have to be uploaded, including those of live sessions."""
    return sum(
        len(SpoolSession.read(store, directory).pending)
        for _, directory in session_directories(store.root)
    )


def describe(store: Store) -> list[str]:
    """Describe, one line for each target, the entries that still have to be uploaded to it."""
    lines = []
    for target in _directories(f"{store.root}/spool"):
        sessions = _directories(target)
        count = sum(len(SpoolSession.read(store, session).pending) for session in sessions)
        if not count:
            continue
        try:
            fields = read_target(target)
            where = f"bucket {fields['bucket']}"
            if fields["endpoint_url"]:
                where += f" at {fields['endpoint_url']}"
        except (OSError, ValueError):
            where = "an unknown bucket (its file 'target' cannot be read)"
        note = "" if all(map(_is_dead, sessions)) else "; a session is still running"
        lines.append(f"{count} entries for {where} remain in {target}{note}")
    return lines


def read_target(directory: str) -> "dict[str, Any]":
    """Return the TARGET_FIELDS of a target directory. Raises OSError, ValueError."""
    from ..option_values import LAYOUTS  # here, because a build only writes targets

    with open(_open_trusted(f"{directory}/target", os.O_RDONLY), encoding="utf-8") as file:
        fields: dict[str, Any] = json.load(file)
    if (
        not isinstance(fields, dict)
        or set(fields) != set(TARGET_FIELDS)
        or fields["layout"] not in LAYOUTS
    ):
        raise ValueError(f"{directory}/target was written by another version of the program")
    return fields


def describe_foreign(root: str) -> list[str]:
    """Describe, one line for each user, the sessions that are left alone as they are another's."""
    found: dict[int, int] = {}
    for _, directory in session_directories(root):
        try:
            user = os.lstat(f"{directory}/{_JOURNAL}").st_uid
        except OSError:
            continue
        if not _is_trusted(user):
            found[user] = found.get(user, 0) + 1
    return [
        f"{count} sessions in {root}/spool belong to the user {user} and are left alone:"
        " run flush as that user"
        for user, count in found.items()
    ]


def _open_trusted(path: str, flags: int) -> int:
    """Open a regular file of this user or of root. Raises OSError, also for any other file."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and _is_trusted(status.st_uid):
        return fd
    os.close(fd)
    reason = "it is no regular file of this user or of root"
    raise PermissionError(errno.EACCES, reason, path)


def _is_trusted_file(path: str) -> bool:
    try:
        os.close(_open_trusted(path, os.O_RDONLY))
    except OSError:
        return False
    return True


def _is_trusted(user: int) -> bool:
    return user in (os.getuid(), 0)


def _pin(path: str, link: str) -> str:
    """Link or copy the body at ``path`` to ``link``; return ``link``, or ``path`` if both fail."""
    try:
        os.link(path, link)
        return link
    except FileExistsError:
        return link
    except OSError:
        pass
    try:
        shutil.copyfile(path, f"{link}.part")
        os.replace(f"{link}.part", link)
        return link
    except OSError:
        unlink_quietly(f"{link}.part")
        return path


def _remove_unborn(directory: str) -> None:
    """Remove a directory without a journal, unless its session may just be about to create it."""
    try:
        if os.stat(directory).st_mtime < time.time() - _BIRTH_S:
            shutil.rmtree(directory, ignore_errors=True)
    except OSError:
        pass


def _directories(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
