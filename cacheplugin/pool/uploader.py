"""Uploads what sessions left in the spool; also as a process of its own that outlives them."""

import fcntl
import os
import signal
import time
from collections import deque

from ..console import say
from ..ipc import jobs
from ..ipc.spawn import spawn_apart
from ..loop import Loop
from ..options import Options
from ..store import spool
from ..store.locks import try_lock
from ..store.tree import Store
from .client import PoolClient

_PAUSE_S = 60
_PROGRESS_S = 0.5
_SLICE_BYTES = 256 << 20  # of bodies: bundles are done when a manifest names them


def start_detached(options):
    """Start an uploader, which ends when the spool is empty, if there is something for it.

    It is left alone for a while after one that got nothing done. Returns its process id, None where
    none was started; raises OSError.
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
    """The detached uploader's: one for each directory."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o022)
    options = Options(cache_dir=cache_dir)
    try:
        while spool.is_waiting(cache_dir):
            with UploaderLock(cache_dir, time.monotonic()):
                uploader = Uploader(options)
                uploader.run()
            # Whoever ended in the meantime found the lock taken, so the spool is looked at again.
            if not uploader.progress and spool.is_waiting(cache_dir):
                open(_failed_path(cache_dir), "w").close()
                break
    except (OSError, TimeoutError):
        pass
    os._exit(0)


def _failed_path(root: str) -> str:
    return f"{root}/spool/failed"


def lock_until(fd: int, deadline) -> None:
    """Take the lock of a file; raises TimeoutError at ``deadline`` (monotonic, None: never)."""
    if try_lock(fd):
        return

    def give_up(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    try:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            signal.setitimer(signal.ITIMER_REAL, left)
        fcntl.flock(fd, fcntl.LOCK_EX)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class UploaderLock:
    """One uploader at a time for a directory; raises TimeoutError at ``deadline`` (monotonic)."""

    def __init__(self, root: str, deadline=None) -> None:
        os.makedirs(f"{root}/spool", 0o755, exist_ok=True)
        self._fd = os.open(f"{root}/spool/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            lock_until(self._fd, deadline)
        except TimeoutError:
            os.close(self._fd)
            raise

    def __enter__(self) -> "UploaderLock":
        return self

    def __exit__(self, *_) -> None:
        os.close(self._fd)


class Uploader:
    """Uploads what dead sessions left, target by target, through a pool of its own for each."""

    def __init__(self, options, deadline=None, on_progress=None) -> None:
        self.uploaded = self.dropped = 0
        self._options = options
        self._store = Store(options.cache_dir)
        self._deadline = deadline
        self._on_progress = on_progress
        self._progress_at = time.monotonic() if on_progress else None
        self._loop = Loop()
        self._jobs = {}  # number of a job: [(session, number)] of its entry and of older ones

    @property
    def progress(self) -> int:
        """How many entries less there are in the spool."""
        return self.uploaded + self.dropped

    def run(self) -> None:
        """Go on as long as that gets something done."""
        before = -1
        while self.progress != before and not self._late():
            before = self.progress
            targets = {}
            for target, directory in spool.session_directories(self._options.cache_dir):
                session = spool.SpoolSession.claim(self._store, directory)
                if session is not None:
                    targets.setdefault(target, []).append(session)
            for target, sessions in targets.items():
                try:
                    self._upload(target, sessions)
                finally:
                    for session in sessions:
                        session.release()

    def _upload(self, target, sessions) -> None:
        sessions = [session for session in sessions if session.pending]
        if not sessions:
            return
        try:
            fields = self._options.as_dict() | spool.read_target(target)
        except (OSError, ValueError, KeyError) as error:
            say(str(error))
            return
        link = PoolClient((fields,), self._loop, self._on_message)
        scopes = (fields["scope"],)
        session = link.begin(scopes)
        entries = deque(_by_action(sessions))
        while entries and not self._late():
            # What is done is noted after each slice, so that the next try has less to do.
            size = 0
            # The next one begins before this one ends, so that what the pool has read is of use to it.
            uploading, session = session, link.begin(scopes)
            while entries and size < _SLICE_BYTES:
                (owner, number), *older = entries.popleft()
                entry = owner.pending[number]
                job = link.upload(uploading, entry, recovered=True)
                self._jobs[job] = [(owner, number), *older]
                size += entry.size
            link.finish(uploading, [])
            while link.uploads_pending and not self._late():
                self._loop.turn(self._timeout_ms())
                self._show_progress(link.uploads_pending + len(entries))
        link.close()
        self._jobs.clear()

    def _on_message(self, message) -> None:
        if isinstance(message, jobs.UploadResult):
            entries = self._jobs.pop(message.number)
            if message.status == jobs.STORED:
                self.uploaded += len(entries)
            elif message.status == jobs.DAMAGED:
                del entries[1:]  # an older put may be right
                self.dropped += 1
            else:
                return
            for session, number in entries:
                session.done(number)

    def _late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _timeout_ms(self):
        ends = [end for end in (self._deadline, self._progress_at) if end is not None]
        return max(0, min(ends) - time.monotonic()) * 1000 + 1 if ends else None

    def _show_progress(self, left: int) -> None:
        if self._progress_at is not None and time.monotonic() >= self._progress_at:
            self._progress_at = time.monotonic() + _PROGRESS_S
            self._on_progress(self.uploaded, left)


def _by_action(sessions):
    """Lists of (session, number) of the entries of one action, the latest put first."""
    found = {}
    for session in sessions:
        for number, entry in session.pending.items():
            found.setdefault(entry.action, []).append((entry.time_ns, number, session))
    for entries in found.values():
        entries.sort(key=lambda entry: entry[:2], reverse=True)
        yield [(session, number) for _, number, session in entries]
