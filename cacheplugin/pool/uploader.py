"""Uploads the entries that ended sessions left in the spool; also as a detached process."""

import fcntl
import os
import signal
import time
from collections import deque

from ..console import say
from ..errors import reason_of
from ..ipc import jobs
from ..ipc.spawn import spawn_apart
from ..loop import Loop
from ..options import Options
from ..store import spool, spool_target
from ..store.locks import try_lock
from ..store.tree import Store
from ..tuples import NamedTuple
from .client import PoolClient

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

_PAUSE_S = 60  # after an uploader that achieved nothing, before the next one is started
_PROGRESS_S = 0.5
# Another user may have put a pipe or a link there: neither wait nor follow.
_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SLICE_BYTES = 256 << 20  # of bodies; the entries of a slice are done when its bundles are written


class _SpooledPut(NamedTuple):
    """A pending put: ``number`` is its line in the journal of ``session``."""

    session: spool.SpoolSession
    number: int

    def entry(self) -> spool.Entry:
        return self.session.pending[self.number]


def start_detached(options: Options) -> "int | None":
    """Start an uploader process, which ends when the spool is empty.

    Returns its process id. None if the spool has nothing for it, or if an uploader achieved nothing
    within the last minute. Raises OSError.
    """
    if not spool.is_waiting(options.cache_dir):
        return None
    try:
        if time.time() - os.stat(_failed_path(options.cache_dir)).st_mtime < _PAUSE_S:
            return None
    except FileNotFoundError:
        pass
    return spawn_apart("cacheplugin.pool.uploader", options.cache_dir, null_fds=range(3))


def main(cache_dir: str) -> None:
    """The detached process. It ends at once if another uploader has the lock of the directory."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o022)
    options = Options(cache_dir=cache_dir)
    try:
        # Again: a session that ended while this held the lock could not start an uploader.
        while spool.is_waiting(cache_dir):
            with UploaderLock(cache_dir, time.monotonic()):
                uploader = Uploader(options)
                uploader.run()
            if not uploader.progress and spool.is_waiting(cache_dir):
                _note_failure(cache_dir)
                break
    except (OSError, TimeoutError):
        pass
    os._exit(0)


def _failed_path(root: str) -> str:
    """A file whose mtime is when an uploader last achieved nothing."""
    return f"{root}/spool/failed"


def _note_failure(root: str) -> None:
    fd = os.open(_failed_path(root), _OPEN, 0o644)
    try:
        os.utime(fd)
    finally:
        os.close(fd)


def lock_until(fd: int, deadline: "float | None") -> None:
    """Lock a file, waiting until ``deadline`` (monotonic; None: for ever).

    Raises TimeoutError, and OSError if the file cannot be locked. Uses SIGALRM, so only the main
    thread may call it.
    """
    if try_lock(fd):
        return

    def on_alarm(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        if deadline is not None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            signal.setitimer(signal.ITIMER_REAL, left_s)
        fcntl.flock(fd, fcntl.LOCK_EX)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class UploaderLock:
    """Context manager: at most one uploader for a cache directory.

    Raises TimeoutError if another one still has the lock at ``deadline`` (monotonic; None: wait for
    ever), and OSError.
    """

    def __init__(self, root: str, deadline: "float | None" = None) -> None:
        os.makedirs(f"{root}/spool", 0o755, exist_ok=True)
        self._fd = os.open(f"{root}/spool/lock", _OPEN, 0o644)
        try:
            lock_until(self._fd, deadline)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> "UploaderLock":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


class Uploader:
    """Uploads what dead sessions left in the spool, one target after another.

    A target is a bucket with its settings; each has a pool of its own. ``deadline`` is monotonic,
    None for no limit. ``on_progress(done, left)`` is called now and then with numbers of entries.
    ``uploaded`` and ``dropped`` count entries that left the spool, the latter because their bodies
    are damaged or missing. Entries whose bodies cannot be read stay there; the pool warns of them.
    ``before_print()`` is called before anything is written to stderr. ``failure`` says why the last
    upload failed that did, "" if that was said already.
    """

    def __init__(
        self,
        options: Options,
        deadline: "float | None" = None,
        on_progress: "Callable[[int, int], None] | None" = None,
        before_print: "Callable[[], object]" = lambda: None,
    ) -> None:
        self.uploaded = self.dropped = 0
        self.failure = ""
        self._is_told = False  # of a failure
        self._before_print = before_print
        self._options = options
        self._store = Store(options.cache_dir)
        self._deadline = deadline
        self._on_progress = on_progress
        self._progress_at = time.monotonic() if on_progress else None
        self._loop = Loop()
        self._pool: PoolClient | None = None  # of the current target
        # By number of the upload job: the put that it uploads, then older puts of the same action.
        self._puts: dict[int, list[_SpooledPut]] = {}
        # Directory and number of puts whose bodies cannot be read. They are tried once in a run.
        self._unreadable: set[tuple[str, int]] = set()

    @property
    def progress(self) -> int:
        """The number of entries that left the spool."""
        return self.uploaded + self.dropped

    def run(self) -> None:
        """Upload until the spool is empty, a pass achieves nothing, or the deadline has passed.

        Raises OSError.
        """
        before = -1
        while self.progress != before and not self._is_late():
            before = self.progress
            targets: dict[str, list[spool.SpoolSession]] = {}
            for target, directory in spool.session_directories(self._options.cache_dir):
                session = spool.SpoolSession.claim(self._store, directory)
                if session is not None:
                    targets.setdefault(target, []).append(session)
            for target, sessions in targets.items():
                environ = dict(os.environ)
                try:
                    self._upload(target, sessions)
                finally:
                    os.environ.clear()
                    os.environ.update(environ)
                    for session in sessions:
                        session.release()

    def _upload(self, target: str, sessions: list[spool.SpoolSession]) -> None:
        """Upload the pending puts of the sessions of one target, a directory of the spool.

        Changes os.environ, which the pool inherits, to what the target needs.
        """
        puts = deque(_by_action(sessions, self._unreadable))
        if not puts:
            return
        try:
            fields = spool_target.restore(
                target, spool.read_target(target), self._options, os.environ
            )
        except (OSError, ValueError, KeyError) as error:
            self._before_print()
            say(f"uploads skipped: {error}")
            return
        try:
            pool = PoolClient((fields,), self._loop, self._on_message, self._before_print)
        except OSError as error:
            self._note_failure(f"{reason_of(error)}; see ulimit -a")
            return
        self._pool = pool
        scopes = (fields["scope"],)
        session = pool.begin(scopes)
        while puts and not self._is_late():
            # With bundles, puts leave the spool slice by slice: a killed uploader repeats one.
            size = 0
            # The next session begins before this one ends: the pool then keeps what it has read.
            uploading, session = session, pool.begin(scopes)
            while puts and size < _SLICE_BYTES:
                same_action = puts.popleft()
                entry = same_action[0].entry()
                job = pool.upload(uploading, entry, recovered=True)
                self._puts[job] = same_action
                size += entry.size
            pool.finish(uploading, [])
            while pool.uploads_pending and not self._is_late():
                self._loop.turn(self._timeout_ms())
                self._show_progress(pool.uploads_pending + len(puts))
        pool.close()
        self._puts.clear()

    def _on_message(self, message: "jobs.JobResult | jobs.Notice") -> None:
        """Take puts out of the spool whose upload has succeeded, or can never succeed."""
        if isinstance(message, jobs.Failed):
            self._note_failure(message.reason, message.told)
        elif isinstance(message, jobs.Disabled):
            # A living pool has logged it.
            self._note_failure(message.reason, self._pool is not None and self._pool.alive)
        elif isinstance(message, jobs.UploadResult):
            puts = self._puts.pop(message.number)
            if message.status == jobs.STORED:
                self.uploaded += len(puts)
            elif message.status == jobs.DAMAGED:
                del puts[1:]  # the body of an older put may be intact
                self.dropped += 1
            elif message.status == jobs.LOCAL:
                self._unreadable.add((puts[0].session.directory, puts[0].number))
                return
            else:
                return
            for put in puts:
                put.session.done(put.number)

    def _note_failure(self, reason: str, told: bool = False) -> None:
        self._is_told |= told
        self.failure = "" if self._is_told else reason

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _timeout_ms(self) -> "float | None":
        ends = [end for end in (self._deadline, self._progress_at) if end is not None]
        return max(0, min(ends) - time.monotonic()) * 1000 + 1 if ends else None

    def _show_progress(self, left: int) -> None:
        now = time.monotonic()
        if (
            self._on_progress is not None
            and self._progress_at is not None
            and now >= self._progress_at
        ):
            self._progress_at = now + _PROGRESS_S
            self._on_progress(self.uploaded, left)


def _by_action(
    sessions: "Iterable[spool.SpoolSession]", without: "Collection[tuple[str, int]]"
) -> "Iterator[list[_SpooledPut]]":
    """The pending puts of each action, the latest put first.

    ``without``: directories of sessions and numbers of puts to leave out.
    """
    found: dict[str, list[_SpooledPut]] = {}
    for session in sessions:
        for number, entry in session.pending.items():
            if (session.directory, number) not in without:
                found.setdefault(entry.action, []).append(_SpooledPut(session, number))
    for puts in found.values():
        puts.sort(key=lambda put: (put.entry().time_ns, put.number), reverse=True)
        yield puts
