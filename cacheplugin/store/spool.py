"""What is still to be uploaded, kept where no crash of a process loses it.

::

    spool/<target>/target              JSON: where it goes (TARGET_FIELDS of Options)
    spool/<target>/<session>/journal   a line for each put, and one for each that S3 has
    spool/<target>/<session>/ending    there once nobody waits for the session, and it still uploads
    spool/<target>/<session>/<output>  hard link to a body, which prune may unlink meanwhile

A session's journal is locked while its process lives; what is left of a dead one is any uploader's.
Journal lines are ``put <action> <output> <size> <unix nanoseconds>`` and ``done <line number>``,
each one write. What a kill leaves of one has no newline at its end and counts for nothing.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import time

import xxhash

from ..options import LAYOUTS
from .tree import Store, unlink_quietly

TARGET_FIELDS = ("endpoint_url", "bucket", "prefix", "region", "path_style", "layout", "scope")
_JOURNAL = "journal"
_ENDING = "ending"
_PUT = re.compile(rb"put ([0-9a-f]{2,128}) ([0-9a-f]{64}) ([0-9]{1,19}) ([0-9]{1,19})")
_DONE = re.compile(rb"done ([0-9]{1,19})")
_BIRTH_S = 60  # from a session's directory to its journal it takes no longer, by far


class Entry:
    """One put: hex ids, size in bytes, time in nanoseconds since the epoch, where its body is."""

    __slots__ = ("action", "output", "path", "size", "time_ns")

    def __init__(self, action, output, size, time_ns, path) -> None:
        self.action, self.output, self.size = action, output, size
        self.time_ns, self.path = time_ns, path


class SpoolSession:
    """One session's entries: this process's own (``create``), or a dead one's (``claim``).

    ``pending`` maps line numbers to entries that S3 does not have yet. Not for two threads.
    """

    def __init__(self, directory: str, journal_fd: int) -> None:
        self.directory = directory
        self.pending = {}
        self._fd = journal_fd
        self._lines = 0
        self._bodies = {}  # output: [how many pending entries have it, where it is]

    @classmethod
    def create(cls, store: Store, options, scope: str) -> "SpoolSession":
        """A new session of this process; raises OSError. ``scope``: its own, "" where it has none."""
        fields = {field: getattr(options, field) for field in TARGET_FIELDS} | {"scope": scope}
        target = json.dumps(fields, sort_keys=True)
        home = f"{store.root}/spool/{xxhash.xxh3_64_hexdigest(target.encode())}"
        directory = f"{home}/{os.getpid()}-{os.urandom(8).hex()}"
        os.makedirs(directory, 0o755)
        if not os.path.exists(f"{home}/target"):
            with store.temporary() as temp:
                temp.write(target.encode())
                temp.rename(f"{home}/target")
        with store.temporary() as temp:
            fd = os.open(temp.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)  # before it has the name by which others look for it
            temp.rename(f"{directory}/{_JOURNAL}")
        return cls(directory, fd)

    @classmethod
    def claim(cls, store: Store, directory: str):
        """What a dead process left in ``directory``; None where it lives or cannot be read."""
        try:
            fd = os.open(f"{directory}/{_JOURNAL}", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            _remove_unborn(directory)
            return None
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(fd).st_nlink:
                raise BlockingIOError  # it ended between the two calls
            session = cls(directory, fd)
            os.ftruncate(fd, session._replay(store))  # or what is appended went on with a torn line
        except OSError:
            os.close(fd)
            return None
        return session

    @classmethod
    def read(cls, store: Store, directory: str) -> "SpoolSession":
        """A session as its journal stands, dead or alive, to look at only."""
        try:
            fd = os.open(f"{directory}/{_JOURNAL}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return cls(directory, -1)
        session = cls(directory, fd)
        session._replay(store)
        os.close(fd)
        return session

    def _replay(self, store) -> int:
        """Read the journal; returns how many bytes of it are whole lines."""
        with open(self._fd, "rb", closefd=False) as file:
            data = file.read()
        *lines, torn = data.split(b"\n")
        self._lines = len(lines)
        entries, intact = {}, True
        for number, line in enumerate(lines):
            if put := _PUT.fullmatch(line):
                action, output, size, time_ns = put.groups()
                output = output.decode()
                path = f"{self.directory}/{output}"
                if not os.path.exists(path):
                    path = store.output_path(output)
                entries[number] = Entry(action.decode(), output, int(size), int(time_ns), path)
            elif done := _DONE.fullmatch(line):
                # Behind what a power cut garbled, lines are no longer those that it counts.
                if intact:
                    entries.pop(int(done[1]), None)
            else:
                intact = False
        for number, entry in entries.items():
            self._expect(number, entry)
        return len(data) - len(torn)

    def _expect(self, number, entry) -> None:
        self.pending[number] = entry
        self._bodies.setdefault(entry.output, [0, entry.path])[0] += 1

    def add(self, action: str, output: str, size: int, time_ns: int, path: str) -> int:
        """Note a put whose body is at ``path``; returns its number. Raises OSError."""
        if output in self._bodies:
            path = self._bodies[output][1]
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
        """Note that S3 has an entry, or that nobody can ever upload it."""
        entry = self.pending.pop(number)
        try:
            self._append(f"done {number}\n")
        except OSError:
            pass  # if nobody gets to release this session, it is uploaded once more
        body = self._bodies[entry.output]
        body[0] -= 1
        if not body[0]:
            del self._bodies[entry.output]
            unlink_quietly(f"{self.directory}/{entry.output}")

    def mark_ending(self) -> None:
        """Say that the session goes on only to upload, so that it is worth waiting for."""
        try:
            open(f"{self.directory}/{_ENDING}", "wb").close()
        except OSError:
            pass  # then nobody waits

    def _append(self, line: str) -> None:
        data = line.encode()
        written = os.write(self._fd, data)
        if written < len(data):  # and the next line would go on with this one
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._lines += 1

    def release(self) -> bool:
        """Let go of it, removing it where nothing is pending; returns whether nothing is."""
        finished = not self.pending
        if finished:
            unlink_quietly(f"{self.directory}/{_JOURNAL}")
            shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._fd)
        return finished


def session_directories(root: str) -> list:
    """(target directory, session directory) of every session in the spool, alive or dead."""
    found = []
    for target in _directories(f"{root}/spool"):
        found += [(target, session) for session in _directories(target)]
    return found


def ending_journals(root: str) -> list:
    """Descriptors of the journals of sessions that are ending, to wait for their locks."""
    found = []
    for _, directory in session_directories(root):
        try:
            os.stat(f"{directory}/{_ENDING}")
            found.append(os.open(f"{directory}/{_JOURNAL}", os.O_RDWR | os.O_CLOEXEC))
        except OSError:
            continue
    return found


def is_waiting(root: str) -> bool:
    """Whether the spool holds what a dead session left."""
    return any(_is_dead(directory) for _, directory in session_directories(root))


def _is_dead(directory: str) -> bool:
    try:
        fd = os.open(f"{directory}/{_JOURNAL}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def count_pending(store: Store) -> int:
    """Entries that wait in the spool, those of live sessions among them."""
    return sum(
        len(SpoolSession.read(store, directory).pending)
        for _, directory in session_directories(store.root)
    )


def describe(store: Store) -> list:
    """A line for each target that entries wait for: how many, where to, and whose they still are."""
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
            where = "a target that cannot be read"
        alive = "" if all(map(_is_dead, sessions)) else "; a session is still running"
        lines.append(f"{count} entries for {where} remain in {target}{alive}")
    return lines


def read_target(directory: str) -> dict:
    """The fields of Options that say where a target's entries go; raises OSError, ValueError."""
    with open(f"{directory}/target", encoding="utf-8") as file:
        fields = json.load(file)
    if (
        not isinstance(fields, dict)
        or set(fields) != set(TARGET_FIELDS)
        or fields["layout"] not in LAYOUTS
    ):
        raise ValueError(f"{directory}/target is of another version")
    return fields


def _pin(path: str, link: str) -> str:
    """Make ``link`` hold the body at ``path``; where that cannot be, the body itself has to do."""
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
    """Remove a session's directory whose process died before it had a journal, or after."""
    try:
        if os.stat(directory).st_mtime < time.time() - _BIRTH_S:
            shutil.rmtree(directory, ignore_errors=True)
    except OSError:
        pass


def _directories(path: str) -> list:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
