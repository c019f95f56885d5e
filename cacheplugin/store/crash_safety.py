"""What a session leaves on disk so that an unclean shutdown of the machine can do no harm.

No put is synced: that costs half a millisecond each. The kernel writes what was put when it likes
and in the order it likes, so after a power cut a record may be there whose body is zeros or holes.
A process that dies alone does no such harm: what it wrote is the kernel's.

So a session that writes first makes a marker, ``open/<boot id>-<pid>-<random>``, has it synced, and
removes it at its clean end, after a sync of all: only then is what it wrote as durable as the
absence of its marker says. A marker of another boot means that the machine went down in
between, and what has changed since the marker's mtime, the session's start, is not served unread.

A marker's process holds a lock on it for as long as it lives, wherever it runs: a process id means
nothing in another container, or on another machine of a shared file system.
"""

import os
from _thread import start_new_thread  # threading is a dear import

from .tree import EMPTY_OUTPUT, Store, unlink_quietly

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def boot_id():
    """A text that is this boot's alone; None where the system has none: then nothing is marked."""
    try:
        fd = os.open(_BOOT_ID, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return _boot_session_uuid()
    try:
        return os.read(fd, 64).decode().strip() or None
    finally:
        os.close(fd)


def _boot_session_uuid():
    if os.uname().sysname != "Darwin":
        return None
    import subprocess

    command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode().strip() or None


def suspect_since(root: str):
    """Since when (seconds since the epoch) files may be wrong, or None: there was no such shutdown.

    On the way to the first hit of every session: one listdir where there is nothing to know.
    """
    stale = _left_behind(root, this_boot=False)
    return min((status.st_mtime for _, status in stale), default=None)


def guard(store: Store):
    """Make ``store`` check what an unclean shutdown may have harmed.

    Returns its Suspects, or None where nothing is suspect and the store is as it was.
    """
    since = suspect_since(store.root)
    if since is None:
        return None
    suspects = Suspects(store, since)
    store.lookup, store.publish_output = suspects.lookup, suspects.publish_output
    return suspects


class OpenMarker:
    """Says, durably, that this process writes to the store at ``root``; made before it does.

    Where it cannot be made the session goes on without: OSErrors are kept from the caller.
    """

    def __init__(self, root: str) -> None:
        self._temp = self._path = None
        boot = boot_id()
        if boot is not None:
            try:
                self._make(root, f"{boot}-{os.getpid()}-{os.urandom(8).hex()}")
            except OSError:
                self._let_go()

    def _make(self, root, name) -> None:
        import fcntl

        directory = f"{root}/open"
        is_new = not os.path.isdir(directory)
        dead = _left_behind(root, this_boot=True)
        self._temp = Store(root).temporary()
        fd = self._temp.fd
        # Before it has a name by which others look for it: unlocked, it is a dead one's.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # What the dead of this boot wrote was never synced: their start is ours now.
        start_ns = min([os.fstat(fd).st_mtime_ns, *(status.st_mtime_ns for _, status in dead)])
        os.utime(fd, ns=(start_ns, start_ns))
        self._temp.rename(f"{directory}/{name}")
        self._path = f"{directory}/{name}"
        # The first put does not wait for the disk: a journal keeps the order in which names were
        # made, so what this session writes before the marker is on disk goes down with it.
        try:
            start_new_thread(_sync, (os.dup(fd), directory, root if is_new else directory))
        except RuntimeError:
            pass  # no thread to be had: the kernel syncs it when it likes
        for path, _ in dead:
            unlink_quietly(path)

    def close(self) -> None:
        """The session's clean end, when nobody waits: sync what it wrote, remove the marker."""
        if self._path is not None:
            os.sync()
        self._let_go()

    def _let_go(self) -> None:
        if self._path is not None:
            unlink_quietly(self._path)
            self._path = None
        if self._temp is not None:
            self._temp.discard()
            self._temp = None


class Suspects:
    """Stands before ``store``: what has a ctime from ``since`` on is read before it is trusted."""

    def __init__(self, store: Store, since: float) -> None:
        self._store = store
        self._since = since
        self._lookup, self._publish_output = store.lookup, store.publish_output
        self._right = set()  # outputs whose body was read, or written, by this process

    def lookup(self, action: str):
        """As Store.lookup; an entry that turns out to be wrong is cleaned away and is a miss."""
        found = self._lookup(action)
        if found is None or found[0] in self._right or found[0] == EMPTY_OUTPUT:
            return found
        output, path = found[0], found[3]
        try:
            if not self._is_suspect(path) and not self._is_suspect(self._store.action_path(action)):
                return found
        except OSError:
            return None
        if not self._check(action, output, path):
            return None
        self._right.add(output)
        return found

    def publish_output(self, temp, output: str, size: int) -> str:
        """As Store.publish_output, but a suspect body gives way to the one just written."""
        path = self._store.output_path(output)
        try:
            suspect = output not in self._right and self._is_suspect(path)
        except OSError:
            suspect = False
        if suspect:
            temp.rename(path)
        else:
            path = self._publish_output(temp, output, size)
        self._right.add(output)
        return path

    def lift(self) -> None:
        """All was checked: the store is as it was."""
        self._store.lookup, self._store.publish_output = self._lookup, self._publish_output

    def _is_suspect(self, path) -> bool:
        return os.stat(path).st_ctime >= self._since

    def _check(self, action, output, path) -> bool:
        from . import record, verify

        record_path = self._store.action_path(action)
        try:
            with open(record_path, "rb", buffering=0) as file:
                fields = record.decode(action, file.read(record.MAX_BYTES))
            contents = verify.digest(path)
        except OSError:
            return False
        if fields is None or fields[0] != output:
            return False  # replaced meanwhile: a miss is always right
        if (contents.size, contents.xxh3) == (fields[1], fields[3]):
            return True
        unlink_quietly(record_path)
        try:
            verify.unlink_same(path, contents.identity)
        except OSError:
            pass
        return False

    @staticmethod
    def settle(root: str):
        """Check and repair all that is suspect, then remove the stale markers.

        For the end of a session, with nobody waiting. Returns verify's report, None where there
        was nothing to do or another process is at it; raises OSError.
        """
        import fcntl

        from . import verify

        try:
            directory = os.open(f"{root}/open", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return None
            stale = _left_behind(root, this_boot=False)
            if not stale:
                return None
            since = min(status.st_mtime for _, status in stale)
            report = verify.check(Store(root), since=since, repair=True)
            os.sync()  # what was removed stays removed if the machine goes down once more
            for path, _ in stale:
                unlink_quietly(path)
            return report
        finally:
            os.close(directory)


def _left_behind(root, this_boot) -> list:
    """[(path, os.stat's result)] of markers, of this boot or of others, whose process is gone."""
    try:
        names = os.listdir(f"{root}/open")
    except OSError:
        return []
    boot = boot_id() if names else None
    found = []
    for name in names if boot is not None else ():
        path = f"{root}/open/{name}"
        if name.startswith(f"{boot}-") == this_boot and not _is_held(path):
            try:
                found.append((path, os.stat(path)))
            except OSError:
                pass
    return found


def _is_held(path) -> bool:
    """Whether a marker's process lives, maybe on another machine. Shared: all may ask at once."""
    import fcntl

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def _sync(fd, *directories) -> None:
    """Make a file durable (its descriptor is closed), and the names in ``directories``."""
    try:
        os.fsync(fd)
        os.close(fd)
        for path in directories:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            os.fsync(fd)
            os.close(fd)
    except OSError:
        pass  # then an unclean shutdown may go unnoticed
