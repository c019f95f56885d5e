"""Detection and repair of entries that an unclean shutdown of the machine may have damaged.

No put is synced to disk: that would cost half a millisecond each. The kernel writes data back later
and in any order, so after a power cut a record may exist whose body is all zeros or has holes. A
process that crashes alone causes no such damage: the kernel keeps what the process wrote.

Therefore a session that writes first creates a marker, ``open/<boot id>-<pid>-<random>``, and syncs
it. At its clean end it syncs everything and then removes the marker. A marker of an earlier boot
means that the machine went down during that session. Files changed since the session began (the
mtime of its marker) are suspect: they are read and checked before they are served.

The process of a marker locks it as long as it lives. A lock works where a process id does not: from
another container, or from another machine that shares the file system.
"""

import os
from _thread import start_new_thread  # the threading module is slow to import
from stat import S_ISREG

from .tree import EMPTY_OUTPUT, Store, TempFile, unlink_quietly

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .faults import Report
    from .tree import Hit

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def boot_id() -> "str | None":
    """Return a text that identifies this boot of the machine; None if the system offers none."""
    try:
        fd = os.open(_BOOT_ID, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return _boot_session_uuid()
    try:
        return os.read(fd, 64).decode().strip() or None
    finally:
        os.close(fd)


def _boot_session_uuid() -> "str | None":
    """Return what macOS has in place of a boot id."""
    if os.uname().sysname != "Darwin":
        return None
    import subprocess

    command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode().strip() or None


def suspect_since(root: str) -> "float | None":
    """Return the time (seconds since the epoch) from which files are suspect; None if none are.

    Runs before the first hit of every session; without markers it is one listdir.
    """
    stale = _abandoned_markers(root, this_boot=False)
    return min((status.st_mtime for _, status in stale), default=None)


def open_store(root: str) -> Store:
    """Return a Store, or a CheckedStore if an unclean shutdown may have damaged entries."""
    since = suspect_since(root)
    return Store(root) if since is None else CheckedStore(root, since)


class OpenMarker:
    """Marks on disk that this process writes to the store at ``root``; create it before writing.

    If it cannot be created, the session works without it: no OSError is raised.
    """

    def __init__(self, root: str) -> None:
        self.has_no_locks = False  # the file system has none, so there is no marker either
        self._temp: TempFile | None = None
        self._path = ""
        boot = boot_id()
        if boot is not None:
            try:
                self._create(root, f"{boot}-{os.getpid()}-{os.urandom(8).hex()}")
            except OSError as error:
                from .locks import NoLocks

                self.has_no_locks = isinstance(error, NoLocks)
                self._remove()

    def _create(self, root: str, name: str) -> None:
        from .locks import try_lock

        directory = f"{root}/open"
        is_new = not os.path.isdir(directory)
        abandoned = _abandoned_markers(root, this_boot=True)
        self._temp = Store(root).temporary()
        fd = self._temp.fd
        # Lock the file before it gets its name: an unlocked marker counts as abandoned.
        try_lock(fd)
        # Processes of this boot that were killed synced nothing: take over their start time.
        start_ns = min([os.fstat(fd).st_mtime_ns, *(status.st_mtime_ns for _, status in abandoned)])
        os.utime(fd, ns=(start_ns, start_ns))
        self._temp.rename(f"{directory}/{name}")
        self._path = f"{directory}/{name}"
        # The first put does not wait for this sync. A journaling file system keeps the order in
        # which names were created: if the marker is lost, so is everything written after it.
        try:
            start_new_thread(_sync, (os.dup(fd), directory, root if is_new else directory))
        except RuntimeError:
            pass  # no thread could be started: the kernel syncs the marker at a time of its choice
        for path, _ in abandoned:
            unlink_quietly(path)

    def close(self) -> None:
        """Sync what the session wrote and remove the marker; call it when no client waits."""
        if self._path:
            os.sync()
        self._remove()

    def _remove(self) -> None:
        if self._path:
            unlink_quietly(self._path)
            self._path = ""
        if self._temp is not None:
            self._temp.discard()
            self._temp = None


class CheckedStore(Store):
    """A store that reads and checks a suspect entry before its first use.

    Suspect is a body or record with a ctime of ``since`` (seconds since the epoch) or later.
    """

    is_checked = True

    def __init__(self, root: str, since: float) -> None:
        super().__init__(root)
        self._since = since
        self._good: set[str] = set()  # outputs whose body this process has read or written

    def lookup(self, action: str) -> "Hit | None":
        """As Store.lookup; a damaged entry is a miss and is removed."""
        found = super().lookup(action)
        if found is None:
            return None
        output, _, _, path, _ = found
        if output in self._good or output == EMPTY_OUTPUT:
            return found
        try:
            if not self._is_suspect(path) and not self._is_suspect(self.action_path(action)):
                return found
        except OSError:
            return None
        if not self._check(action, output, path):
            return None
        self._good.add(output)
        return found

    def publish_output(self, temp: TempFile, output: str, size: int) -> str:
        """As Store.publish_output, but the new body replaces a suspect one."""
        path = self.output_path(output)
        try:
            suspect = output not in self._good and self._is_suspect(path)
        except OSError:
            suspect = False
        if suspect:
            temp.rename(path)
        else:
            path = super().publish_output(temp, output, size)
        self._good.add(output)
        return path

    def _is_suspect(self, path: str) -> bool:
        return os.lstat(path).st_ctime >= self._since

    def _check(self, action: str, output: str, path: str) -> bool:
        """Return whether the body matches its record; remove both if it does not."""
        from . import contents
        from .faults import read_record

        record_path = self.action_path(action)
        try:
            fields = read_record(self, action)
            body = contents.digest(path)
        except OSError:
            return False
        if fields is None:
            return False
        recorded_output, size, _, xxh3 = fields
        if recorded_output != output:
            return False  # the record was replaced since the lookup: a miss is always safe
        if (body.size, body.xxh3) == (size, xxh3):
            return True
        unlink_quietly(record_path)
        try:
            contents.unlink_same(path, body.identity)
        except OSError:
            pass
        return False


def settle(root: str) -> "Report | None":
    """Check and repair all suspect files, then remove the markers that made them suspect.

    Takes long; call it when no client waits. Returns the report of the check; None if nothing is
    suspect or another process is doing this already. Raises OSError.
    """
    from . import verify
    from .locks import try_lock

    try:
        directory = os.open(f"{root}/open", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        try:
            if not try_lock(directory):
                return None
        except OSError:
            return None  # the file system has no locks
        stale = _abandoned_markers(root, this_boot=False)
        if not stale:
            return None
        since = min(status.st_mtime for _, status in stale)
        report = verify.check(Store(root), since=since, repair=True)
        os.sync()  # the removals must be on disk before the markers go
        for path, _ in stale:
            unlink_quietly(path)
        return report
    finally:
        os.close(directory)


def _abandoned_markers(root: str, this_boot: bool) -> list[tuple[str, os.stat_result]]:
    """Return (path, status) of each marker without a live process, of this boot or of others."""
    try:
        names = os.listdir(f"{root}/open")
    except OSError:
        return []
    boot = boot_id() if names else None
    found: list[tuple[str, os.stat_result]] = []
    for name in names if boot is not None else ():
        path = f"{root}/open/{name}"
        try:
            status = os.lstat(path)
        except OSError:
            continue
        # No session makes a pipe or a link: it would be no marker of a shutdown.
        if (
            S_ISREG(status.st_mode)
            and name.startswith(f"{boot}-") == this_boot
            and not _is_held(path)
        ):
            found.append((path, status))
    return found


def _is_held(path: str) -> bool:
    """Return whether a live process, maybe of another machine, locks the marker."""
    from .locks import try_lock

    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not try_lock(fd, shared=True)  # shared: several processes may ask at the same time
    except OSError:
        return False
    finally:
        os.close(fd)


def _sync(fd: int, *directories: str) -> None:
    """Sync a file and close its descriptor, then sync the directories."""
    try:
        os.fsync(fd)
        os.close(fd)
        for path in directories:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            os.fsync(fd)
            os.close(fd)
    except OSError:
        pass  # then an unclean shutdown may go undetected
