"""Prune: bound the store in age and size by removing what was not used for longest.

The clock of use is the mtime, so one pass of stat decides, and no record is read. There is one
cutoff: what was last used before it goes, actions first, so that no lookup meets a record whose
body prune took. Each file is looked at again right before its unlink, as a live build may have
used it since. Nothing else changes: wherever a prune is stopped, it leaves a valid store.

Files under ``module/`` and ``revproxy/`` count and go as outputs do; ``spool/`` is never touched,
and neither is any name that the store would not have made.
"""

import fcntl
import os
import re
import signal
import time
from array import array
from contextlib import contextmanager
from stat import S_ISREG
from typing import NamedTuple

from .tree import EMPTY_OUTPUT, MIN_AGE_S

# (tree, what its files are in a report), in the order of removal
TREES = (("action", "actions"), ("output", "outputs"), ("module", "other"), ("revproxy", "other"))
KINDS = ("actions", "outputs", "other")

LOCK_NAME = "prune.lock"
STAMP_NAME = "prune.stamp"
CLOSE_INTERVAL_S = 3600

_NEVER = -(1 << 63)  # a cutoff that nothing is older than
_BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's own is
_COARSE_BITS = 42  # of a time in nanoseconds: steps of 73 minutes
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Tally:
    """How many files, and the bytes of disk that they take."""

    __slots__ = ("bytes", "count")

    def __init__(self, count: int = 0, bytes: int = 0) -> None:
        self.count = count
        self.bytes = bytes

    def add(self, count: int, bytes: int) -> None:
        self.count += count
        self.bytes += bytes


class Result(NamedTuple):
    """What one prune did, or would do. ``kept`` and ``removed`` hold a Tally for each of KINDS.

    The bytes removed are those the disk got back: a body that the spool still links frees none.
    ``cutoff_ns`` is None where nothing could expire; ``failure`` is the first OSError, or None.
    """

    kept: dict
    removed: dict
    cutoff_ns: int
    seconds: float
    failures: int
    failure: OSError


class _Group(NamedTuple):
    """The files of one directory that may go; the names are joined to take little memory."""

    tree: str
    directory: str
    names: str
    mtimes: array
    blocks: array


def prune(
    root: str,
    expiry_s: float = 0,
    max_size_bytes: int = 0,
    min_age_s: float = MIN_AGE_S,
    dry_run: bool = False,
    progress=lambda text, done, total: None,
) -> Result:
    """Prune the store at ``root``; 0 for ``expiry_s`` and ``max_size_bytes`` is no such bound.

    What was used within ``min_age_s`` stays, even where it is more than ``max_size_bytes``. The
    caller holds the lock. Raises OSError where ``root`` cannot be read.
    """
    return _Prune(root, dry_run, progress).run(expiry_s, max_size_bytes, min_age_s)


class _Prune:
    def __init__(self, root, dry_run, progress) -> None:
        self.root = root
        self.dry_run = dry_run
        self.progress = progress
        self.seen = {kind: Tally() for kind in KINDS}
        self.removed = {kind: Tally() for kind in KINDS}
        self.failures = 0
        self.failure = None

    def run(self, expiry_s, max_size_bytes, min_age_s) -> Result:
        begin, now_ns = time.monotonic(), time.time_ns()
        os.close(os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        youngest = now_ns - int(min_age_s * 1e9)
        cutoff = min(youngest, now_ns - int(expiry_s * 1e9)) if expiry_s else _NEVER
        groups = self._look(youngest if max_size_bytes else cutoff)
        if max_size_bytes:
            excess = sum(tally.bytes for tally in self.seen.values()) - max_size_bytes
            cutoff = max(cutoff, _cutoff_for(-(-excess // _BLOCK_BYTES), groups, youngest))
        self._clean_tmp(now_ns - int(max(min_age_s, MIN_AGE_S) * 1e9))
        for done, group in enumerate(groups):
            self.progress("removing", done, len(groups))
            self._remove(group, cutoff)
        kept = {
            kind: Tally(seen.count - gone.count, seen.bytes - gone.bytes)
            for (kind, seen), gone in zip(self.seen.items(), self.removed.values())
        }
        return Result(
            kept,
            self.removed,
            None if cutoff == _NEVER else cutoff,
            time.monotonic() - begin,
            self.failures,
            self.failure,
        )

    def _look(self, limit_ns) -> list:
        """Count all; a _Group for each directory with files last used before ``limit_ns``."""
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
                    group = self._look_into(fd, tree, kind, name, limit_ns)
                    if group.mtimes:
                        groups.append(group)
        return groups

    def _look_into(self, fd, tree, kind, directory, limit_ns) -> _Group:
        names, mtimes, blocks = [], array("q"), array("q")
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

    def _remove(self, group, cutoff) -> None:
        kind = dict(TREES)[group.tree]
        ours = re.compile(f"{group.directory}[0-9a-f]*").fullmatch
        with self._open(group.tree, group.directory) as fd:
            if fd is not None:
                for name, mtime in zip(group.names.split("/"), group.mtimes):
                    if mtime < cutoff and ours(name) and name != EMPTY_OUTPUT:
                        self._remove_file(fd, name, kind, cutoff)

    def _remove_file(self, fd, name, kind, cutoff) -> None:
        """Unlink a file that is still older than the cutoff."""
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if status.st_mtime_ns >= cutoff:
                return
            if not self.dry_run:
                os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            return
        except OSError as error:
            self._fail(error)
            return
        self.removed[kind].add(1, status.st_blocks * _BLOCK_BYTES if status.st_nlink == 1 else 0)

    def _clean_tmp(self, cutoff) -> None:
        """Remove what dead processes left in tmp/; what is younger is being written."""
        with self._open("tmp") as fd:
            if fd is None:
                return
            for name in os.listdir(fd):
                try:
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if S_ISREG(status.st_mode) and status.st_mtime_ns < cutoff:
                    single = status.st_nlink == 1  # else it counts under the name that it was given
                    self.seen["other"].add(1, status.st_blocks * _BLOCK_BYTES if single else 0)
                    self._remove_file(fd, name, "other", cutoff)

    # -- directories: a symlink below the root is never followed ---------------------------------

    @contextmanager
    def _open(self, tree, name=None):
        """A descriptor of ``<root>/<tree>[/<name>]``; None where there is no such directory.

        An OSError in the block ends the block only, and is counted.
        """
        fds = []
        try:
            fds.append(os.open(f"{self.root}/{tree}", _OPEN_DIR))
            if name is not None:
                fds.append(os.open(name, _OPEN_DIR, dir_fd=fds[0]))
        except (FileNotFoundError, NotADirectoryError):
            found = None
        except OSError as error:
            self._fail(error)
            found = None
        else:
            found = fds[-1]
        try:
            yield found
        except OSError as error:
            self._fail(error)
        finally:
            for fd in fds:
                os.close(fd)

    def _list(self, tree) -> list:
        with self._open(tree) as fd:
            if fd is not None:
                return sorted(os.listdir(fd))
        return []

    def _fail(self, error) -> None:
        self.failures += 1
        self.failure = self.failure or error


def _cutoff_for(excess_blocks, groups, youngest) -> int:
    """The least cutoff with ``excess_blocks`` before it; ``youngest`` where there are fewer."""
    if excess_blocks <= 0:
        return _NEVER
    # A sum for each coarse step, then the times within the one step that holds the cutoff: sorting
    # them all would take more memory than the names do.
    sums = {}
    for group in groups:
        for mtime, blocks in zip(group.mtimes, group.blocks):
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
        for mtime, blocks in zip(group.mtimes, group.blocks)
        if mtime >> _COARSE_BITS == step
    )
    for mtime, blocks in within:
        excess_blocks -= blocks
        if excess_blocks <= 0:
            return mtime + 1
    raise AssertionError("the step holds what it was chosen for")


# -- one prune at a time --------------------------------------------------------------------------


@contextmanager
def lock(root):
    """Whether this is the only prune of ``root``, while the block runs. Raises OSError."""
    path = f"{root}/{LOCK_NAME}"
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | os.O_RDWR, 0o644)  # NFS locks only what is open for writing
    except PermissionError:
        fd = os.open(path, flags & ~os.O_CREAT | os.O_RDONLY)  # another user's
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        yield alone
    finally:
        os.close(fd)


def prune_at_close(options) -> None:
    """Prune as a session's options say, at most once an hour for a directory; never raises OSError.

    The caller has let go of stdout and stderr, and has nothing to do after this but to leave: a
    signal ends the process.
    """
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        for number, _ in handlers:
            signal.signal(number, signal.SIG_DFL)
        with lock(options.cache_dir) as alone:
            if alone and _stamp_is_due(options.cache_dir):
                os.nice(10)  # the next build may have begun
                prune(
                    options.cache_dir, options.expiry_s, options.max_size_bytes, options.min_age_s
                )
    except OSError:
        pass
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)


def _stamp_is_due(root) -> bool:
    """Whether the last prune at close was long ago; if so, this one is noted. Raises OSError."""
    path = f"{root}/{STAMP_NAME}"
    try:
        if 0 <= time.time() - os.stat(path).st_mtime < CLOSE_INTERVAL_S:
            return False
    except FileNotFoundError:
        pass
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        os.utime(fd)
    finally:
        os.close(fd)
    return True
