"""Prune: limit the age and size of the store by removing the least recently used files.

The mtime of a file is the time of its last use, so one pass of stat over all files is enough and
no record is read. It yields one cutoff: every file last used before it is removed. Actions go
first, so that no lookup finds a record whose body is gone. Each file is examined again right before
its removal, and a body once more after it (removal.py), because a running build may have used it
since. A prune may be stopped at any point; the store stays valid.

Files under ``module/`` and ``revproxy/`` are treated as outputs are. ``spool/`` is never touched,
nor is any file whose name the store would not have chosen.
"""

import os
import re
import signal
import time
from array import array
from contextlib import contextmanager
from stat import S_ISREG

from ..tuples import NamedTuple
from .locks import try_lock
from .removal import Remover
from .tree import EMPTY_OUTPUT, MIN_AGE_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..options import Options

# (directory below the root, kind of its files in a report), in the order of removal
TREES = (("action", "actions"), ("output", "outputs"), ("module", "other"), ("revproxy", "other"))
KINDS = ("actions", "outputs", "other")

LOCK_NAME = "prune.lock"
STAMP_NAME = "prune.stamp"
CLOSE_INTERVAL_S = 3600

_NEVER = -(1 << 63)  # a cutoff in nanoseconds that no file is older than
_BLOCK_BYTES = 512  # the unit of st_blocks on every file system
_COARSE_BITS = 42  # low bits of a time in nanoseconds to drop: the rest counts steps of 73 minutes
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Tally:
    """A number of files and the bytes they occupy on disk."""

    __slots__ = ("bytes", "count")

    def __init__(self, count: int = 0, bytes: int = 0) -> None:
        self.count = count
        self.bytes = bytes

    def add(self, count: int, bytes: int) -> None:
        self.count += count
        self.bytes += bytes


class Result(NamedTuple):
    """What one prune did, or would do in a dry run.

    ``kept`` and ``removed`` hold a Tally for each of KINDS. The bytes removed are those freed on
    disk: a body that the spool still links frees none. ``cutoff_ns`` is None if no limit of age or
    size applied. ``failure`` is the first OSError of ``failures``, or None.
    """

    kept: dict[str, Tally]
    removed: dict[str, Tally]
    cutoff_ns: "int | None"
    seconds: float
    failures: int
    failure: "OSError | None"


class _Group(NamedTuple):
    """The files of one directory that may be removed; names are joined by "/" to save memory."""

    tree: str
    directory: str
    names: str
    mtimes: "array[int]"
    blocks: "array[int]"


def prune(
    root: str,
    expiry_s: float = 0,
    max_size_bytes: int = 0,
    min_age_s: float = MIN_AGE_S,
    dry_run: bool = False,
    progress: "Callable[[str, int, int], None]" = lambda text, done, total: None,
) -> Result:
    """Prune the store at ``root``; 0 for ``expiry_s`` or ``max_size_bytes`` means no such limit.

    Files used within ``min_age_s`` stay, even if they exceed ``max_size_bytes``. The caller holds
    the lock (see ``lock``). ``progress`` is called with a text, the steps done and their total.
    Raises OSError if ``root`` cannot be read.
    """
    return _Prune(root, dry_run, progress).run(expiry_s, max_size_bytes, min_age_s)


class _Prune:
    """One run of ``prune``."""

    def __init__(
        self, root: str, dry_run: bool, progress: "Callable[[str, int, int], None]"
    ) -> None:
        self.root = root
        self.dry_run = dry_run
        self.progress = progress
        self.seen = {kind: Tally() for kind in KINDS}
        self.removed = {kind: Tally() for kind in KINDS}
        self.failures = 0
        self.failure: OSError | None = None

    def run(self, expiry_s: float, max_size_bytes: int, min_age_s: float) -> Result:
        begin, now_ns = time.monotonic(), time.time_ns()
        os.close(os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        youngest = now_ns - int(min_age_s * 1e9)
        cutoff = min(youngest, now_ns - int(expiry_s * 1e9)) if expiry_s else _NEVER
        groups = self._scan(youngest if max_size_bytes else cutoff)
        if max_size_bytes:
            excess = sum(tally.bytes for tally in self.seen.values()) - max_size_bytes
            cutoff = max(cutoff, _cutoff_for(-(-excess // _BLOCK_BYTES), groups, youngest))
        self._clean_tmp(now_ns - int(max(min_age_s, MIN_AGE_S) * 1e9))
        remover = Remover(self.root)
        for done, group in enumerate(groups):
            self.progress("removing", done, len(groups))
            self._remove(group, cutoff, remover if group.tree == "output" else None)
        kept = {
            kind: Tally(
                self.seen[kind].count - self.removed[kind].count,
                self.seen[kind].bytes - self.removed[kind].bytes,
            )
            for kind in KINDS
        }
        return Result(
            kept,
            self.removed,
            None if cutoff == _NEVER else cutoff,
            time.monotonic() - begin,
            self.failures,
            self.failure,
        )

    def _scan(self, limit_ns: int) -> list[_Group]:
        """Count all files; return a _Group of each directory with files older than ``limit_ns``."""
        groups = []
        directories = [
            (tree, kind, name)
            for tree, kind in TREES
            for name in self._list(tree)
            if re.fullmatch("[0-9a-f]{2}", name)
        ]
        for done, (tree, kind, name) in enumerate(directories):
            self.progress("looking", done, len(directories))
            with self._open(tree, name) as fd:
                if fd is not None:
                    group = self._scan_directory(fd, tree, kind, name, limit_ns)
                    if group.mtimes:
                        groups.append(group)
        return groups

    def _scan_directory(
        self, fd: int, tree: str, kind: str, directory: str, limit_ns: int
    ) -> _Group:
        names: list[str] = []
        mtimes, blocks = array("q"), array("q")
        count = total = 0
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if not S_ISREG(status.st_mode):
                    continue
                count += 1
                total += status.st_blocks
                mtime = status.st_mtime_ns
                if mtime < limit_ns:
                    names.append(entry.name)
                    mtimes.append(max(mtime, _NEVER))
                    blocks.append(status.st_blocks)
        self.seen[kind].add(count, total * _BLOCK_BYTES)
        return _Group(tree, directory, "/".join(names), mtimes, blocks)

    def _remove(self, group: _Group, cutoff: int, remover: "Remover | None") -> None:
        """Remove the files of a group that are older than ``cutoff``, in nanoseconds."""
        kind = dict(TREES)[group.tree]
        is_store_name = re.compile(f"{group.directory}[0-9a-f]*").fullmatch
        with self._open(group.tree, group.directory) as fd:
            if fd is not None:
                for name, mtime in zip(group.names.split("/"), group.mtimes, strict=True):
                    if mtime < cutoff and is_store_name(name) and name != EMPTY_OUTPUT:
                        self._remove_file(fd, name, kind, cutoff, remover)

    def _remove_file(
        self, fd: int, name: str, kind: str, cutoff: int, remover: "Remover | None" = None
    ) -> None:
        """Remove a file of the directory ``fd`` if it is still older than the cutoff.

        Bodies need the ``remover``, because builds hold their paths.
        """
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if status.st_mtime_ns >= cutoff:
                return
            if not self.dry_run:
                if remover is None:
                    os.unlink(name, dir_fd=fd)
                elif not remover.remove(name, cutoff, fd):
                    return
        except FileNotFoundError:
            return
        except OSError as error:
            self._fail(error)
            return
        self.removed[kind].add(1, status.st_blocks * _BLOCK_BYTES if status.st_nlink == 1 else 0)

    def _clean_tmp(self, cutoff: int) -> None:
        """Remove what dead processes left in tmp/; younger files are still being written."""
        with self._open("tmp") as fd:
            if fd is None:
                return
            for name in os.listdir(fd):
                try:
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if S_ISREG(status.st_mode) and status.st_mtime_ns < cutoff:
                    single = status.st_nlink == 1  # else it is counted under its final name
                    self.seen["other"].add(1, status.st_blocks * _BLOCK_BYTES if single else 0)
                    self._remove_file(fd, name, "other", cutoff)

    # -- directories: a symbolic link below the root is never followed ---------------------------

    @contextmanager
    def _open(self, tree: str, name: "str | None" = None) -> "Iterator[int | None]":
        """Open ``<root>/<tree>[/<name>]``; the block gets None if there is no such directory.

        An OSError in the block ends the block and is counted as a failure.
        """
        fds: list[int] = []
        found = None
        try:
            fds.append(os.open(f"{self.root}/{tree}", _OPEN_DIR))
            if name is not None:
                fds.append(os.open(name, _OPEN_DIR, dir_fd=fds[0]))
            found = fds[-1]
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            self._fail(error)
        try:
            yield found
        except OSError as error:
            self._fail(error)
        finally:
            for fd in fds:
                os.close(fd)

    def _list(self, tree: str) -> list[str]:
        with self._open(tree) as fd:
            if fd is not None:
                return sorted(os.listdir(fd))
        return []

    def _fail(self, error: OSError) -> None:
        self.failures += 1
        self.failure = self.failure or error


def _cutoff_for(excess_blocks: int, groups: list[_Group], youngest: int) -> int:
    """Return the lowest cutoff that removes ``excess_blocks``; ``youngest`` if none does."""
    if excess_blocks <= 0:
        return _NEVER
    # First a sum of blocks for each coarse step of time, then the exact times within the step that
    # holds the cutoff: sorting all times would take more memory than the names do.
    sums: dict[int, int] = {}
    for group in groups:
        for mtime, blocks in zip(group.mtimes, group.blocks, strict=True):
            step = mtime >> _COARSE_BITS
            sums[step] = sums.get(step, 0) + blocks
    for step in sorted(sums):
        if sums[step] >= excess_blocks:
            break
        excess_blocks -= sums[step]
    else:
        return youngest
    within = sorted(
        (mtime, blocks)
        for group in groups
        for mtime, blocks in zip(group.mtimes, group.blocks, strict=True)
        if mtime >> _COARSE_BITS == step
    )
    for mtime, blocks in within:
        excess_blocks -= blocks
        if excess_blocks <= 0:
            return mtime + 1
    raise AssertionError("the chosen step holds fewer blocks than its sum")


# -- one prune at a time --------------------------------------------------------------------------


@contextmanager
def lock(root: str) -> "Iterator[bool]":
    """Lock ``root`` for the block; it gets False if another prune is running. Raises OSError."""
    path = f"{root}/{LOCK_NAME}"
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | os.O_RDWR, 0o644)  # NFS can lock only files open for writing
    except PermissionError:
        fd = os.open(path, flags & ~os.O_CREAT | os.O_RDONLY)  # of another user
    try:
        yield try_lock(fd)
    finally:
        os.close(fd)


def prune_at_close(options: "Options") -> None:
    """Prune at the end of a session by its options, at most once an hour for a directory.

    Never raises OSError. The caller has closed stdout and stderr and does nothing afterwards:
    SIGINT and SIGTERM end the process during the prune.
    """
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        for number, _ in handlers:
            signal.signal(number, signal.SIG_DFL)
        with lock(options.cache_dir) as alone:
            if alone and _stamp_is_due(options.cache_dir):
                os.nice(10)  # the next build may already run
                prune(
                    options.cache_dir, options.expiry_s, options.max_size_bytes, options.min_age_s
                )
    except OSError:
        pass
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)


def _stamp_is_due(root: str) -> bool:
    """Return whether the last prune at close was an hour ago; if so, set the time to now.

    Raises OSError.
    """
    path = f"{root}/{STAMP_NAME}"
    try:
        if 0 <= time.time() - os.stat(path).st_mtime < CLOSE_INTERVAL_S:
            return False
    except FileNotFoundError:
        pass
    fd = os.open(
        path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644
    )
    try:
        os.utime(fd)
    finally:
        os.close(fd)
    return True
