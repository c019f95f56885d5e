"""Random histories of the local store and the spool, with crashes and errors at any system call.

The model knows all bodies ever put for an action, which actions must be hits, and which puts have
to be uploaded. It expects: a get returns a body that was put for its action, or a miss; an entry
that nothing has touched since its put is a hit; every answered put is in the spool or the bucket.
"""

import errno
import os
import shutil
import tempfile
import threading
import time

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cacheplugin.options import Options
from cacheplugin.store import prune, spool, tree
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.spool import SpoolSession
from cacheplugin.store.tree import EMPTY_OUTPUT, MIN_AGE_S, Store
from entries import action_id, output_id, read

OPTIONS = Options(bucket="bucket")
HOUR = 3600
ACTIONS = [action_id(str(n)) for n in range(5)]


class Body(bytes):
    """A body with a short text, for printed histories."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


actions = st.sampled_from(ACTIONS)
bodies = st.sampled_from([Body(), Body(b"x"), Body(b"y" * 3000), Body(bytes(range(256)) * 300)])
# The fault and the number of the system call: the process dies before the call (within a write) or
# after it, the call fails, a write is short, or before it another process prunes or adopts.
faults = st.none() | st.tuples(
    st.sampled_from(["die", "die after", "short", "beside", errno.ENOSPC, errno.EIO]),
    st.integers(1, 30),
)

_CALLS = (
    "open",
    "read",
    "write",
    "pwrite",
    "pread",
    "stat",
    "lstat",
    "fstat",
    "link",
    "replace",
    "unlink",
    "mkdir",
    "rmdir",
    "utime",
    "ftruncate",
    "listdir",
)
_ALIASES = {"_open": "open", "_read": "read", "_lstat": "lstat", "_close": "close"}  # of tree.py


class Death(BaseException):
    """The process is dead: after it even ``finally`` blocks have no effect on the system."""


class Kernel:
    """Intercepts the system calls of the modules. As a context manager it counts them.

    Only calls of its own thread count: servers of other tests may live in this process.
    """

    def __init__(self) -> None:
        self._real = {name: getattr(os, name) for name in (*_CALLS, "close")}
        self._open = set()
        self._thread = threading.get_ident()
        self.fault = None
        self.beside = lambda: None  # what another process does at the system call of the fault
        self._is_beside = False
        self.dead = False
        self.struck = False

    def __enter__(self) -> None:
        self._count, self.dead, self.struck = 0, False, False
        for name in _CALLS:
            setattr(os, name, lambda *args, _name=name, **named: self._call(_name, args, named))
        os.close = self._close
        for alias, name in _ALIASES.items():
            setattr(tree, alias, getattr(os, name))

    def __exit__(self, *_) -> None:
        for name, call in self._real.items():
            setattr(os, name, call)
        for alias, name in _ALIASES.items():
            setattr(tree, alias, self._real[name])

    def _call(self, name, args, named):
        if threading.get_ident() != self._thread or self._is_beside:
            return self._real[name](*args, **named)
        if self.dead:
            raise Death
        self._count += 1
        kind, at = self.fault or (None, 0)
        call = self._real[name]
        if self._count == at and kind == "beside":
            self._is_beside = True
            self.beside()
            self._is_beside = False
        elif self._count == at:
            self.struck = True
            is_write = name in ("write", "pwrite")
            if kind == "die":
                if is_write:
                    self._half(call, args)
                self.dead = True
                raise Death
            if kind == "short" and is_write:
                return self._half(call, args)
            if isinstance(kind, int):
                raise OSError(kind, os.strerror(kind))
        result = call(*args, **named)
        if name == "open":
            self._open.add(result)
        if self._count == at and kind == "die after":
            self.dead = True
            raise Death
        return result

    @staticmethod
    def _half(call, args):
        fd, data, *rest = args
        return call(fd, data[: len(data) // 2], *rest) if len(data) > 1 else call(*args)

    def _close(self, fd) -> None:
        if threading.get_ident() == self._thread:
            self._open.discard(fd)
        self._real["close"](fd)

    def end_process(self) -> None:
        """Close the descriptors of the process, which releases its locks."""
        for fd in self._open:
            self._real["close"](fd)
        self._open.clear()


def _clock(path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.base = tempfile.mkdtemp(prefix="histories-")
        self.tmpdir_before = os.environ.get("TMPDIR")
        os.environ["TMPDIR"] = self.base
        self.root = f"{self.base}/cache"
        os.mkdir(self.root)
        self.kernel = Kernel()
        self.put_for = {action: set() for action in ACTIONS}  # every body put, answered or not
        self.sure = {}  # action: the body that a get must return
        self.to_upload = set()  # (action, output, time) of answered puts to be uploaded
        self.bucket = set()
        self.unpinned = set()  # outputs whose body in the spool may be damaged or missing
        self.cache = None
        self.clock_ns = 1_700_000_000_000_000_000
        self.start_process()

    def teardown(self) -> None:
        try:
            self.expect_all_uploaded()
        finally:
            self.kernel.end_process()
            os.environ.pop("TMPDIR")
            if self.tmpdir_before is not None:
                os.environ["TMPDIR"] = self.tmpdir_before
            shutil.rmtree(self.base)

    def start_process(self) -> None:
        self.kernel.end_process()
        if self.cache is not None and self.cache.session_store is not None:
            self.sure.clear()  # entries of the session store are gone, and older puts are back
        self.cache = LocalCache(Store(self.root))
        self.session = None

    def run(self, fault, step, beside=None):
        """Return ``step()``; None after an error, or after a death, which starts a new process."""
        self.kernel.fault, self.kernel.beside = fault, beside or self.prune_beside
        try:
            with self.kernel:
                return step()
        except Death:
            pass
        except OSError:
            assert self.kernel.struck, "an error without a cause"
        finally:
            if self.kernel.struck:
                self.doubt_what_is_old()  # a full disk removes old bodies
            if self.kernel.dead:
                self.start_process()

    def prune_beside(self) -> None:
        """Another process prunes what was not used for two hours."""
        limit = time.time_ns() - 2 * HOUR * 10**9
        before = {action: min(self.clocks(action, body)) for action, body in self.sure.items()}
        prune.prune(self.root, 2 * HOUR)
        self.doubt(lambda action, _: before[action] <= limit + HOUR * 10**9)

    def expect_in_use(self, path, body) -> None:
        """The file at an answered path is there, and no prune takes it within MIN_AGE_S / 2."""
        assert read(path) == body
        if body:
            assert os.stat(path).st_mtime > time.time() - 60

    def doubt(self, is_doubtful) -> None:
        self.sure = {a: body for a, body in self.sure.items() if not is_doubtful(a, body)}

    def clocks(self, action, body):
        """Return the mtimes of an entry's record and body; 0 for a missing file."""
        disk = Store(self.root)
        yield _clock(disk.action_path(action))
        if body:
            yield _clock(disk.output_path(output_id(body)))

    def doubt_what_is_old(self) -> None:
        limit = time.time_ns() - (MIN_AGE_S - 60) * 10**9
        self.doubt(lambda action, body: any(at < limit for at in self.clocks(action, body)))

    # -- the go command's part ---------------------------------------------------------------------

    @rule(action=actions, body=bodies, fault=faults)
    def put(self, action, body, fault):
        """Put as the front does: store, spool, answer."""
        self.clock_ns += 1
        output, time_ns = output_id(body), self.clock_ns
        self.put_for[action].add(body)
        self.sure.pop(action, None)

        def step():
            with self.cache.writer(action, output, len(body)) as writer:
                for at in range(0, len(body), 50_000):
                    writer.write(body[at : at + 50_000])
                path = writer.commit(time_ns)
            self.expect_in_use(path, body)
            try:
                if self.session is None:
                    self.session = SpoolSession.create(self.cache.store, OPTIONS, "")
                number = self.session.add(action, output, len(body), time_ns, path)
                return self.session.pending[number], True
            except OSError:
                assert self.kernel.struck
                return spool.Entry(action, output, len(body), time_ns, path), False

        answer = self.run(fault, step)
        if answer is not None:
            entry, is_spooled = answer
            self.sure[action] = body
            if is_spooled:
                self.to_upload.add((action, output, time_ns))
                if body and not entry.path.startswith(f"{self.root}/spool/"):
                    assert self.kernel.struck or output in self.unpinned
                    self.unpinned.add(output)

    @rule(action=actions, fault=faults)
    def get(self, action, fault):
        def step():
            found = self.cache.lookup(action)
            if found is not None:
                is_spilled = not found[3].startswith(self.root)  # so it was used recently
                if not is_spilled and not self.cache.store.hold(found[0]):
                    return "miss"
                self.cache.store.touch(action)
            return found or "miss"

        found = self.run(fault, step)
        if found in (None, "miss"):
            assert action not in self.sure or self.kernel.struck
            self.sure.pop(action, None)
        else:
            output, size, _, path, _ = found
            body = read(path)
            self.expect_in_use(path, body)
            assert body in self.put_for[action]
            assert body == self.sure.get(action, body)
            assert output_id(body) == output and len(body) == size

    @rule(action=actions, body=bodies, fault=faults)
    def adopt(self, action, body, fault):
        """Fetch an action whose body is already stored."""
        self.clock_ns += 1
        self.sure.pop(action, None)
        self.put_for[action].add(body)  # another session has put it into the bucket
        found = self.run(fault, lambda: self.cache.adopt(action, output_id(body), self.clock_ns))
        if found is not None:
            assert found[0] == len(body)
            self.expect_in_use(found[1], body)
            self.sure[action] = body

    # -- damage and age of files -------------------------------------------------------------------

    @rule(action=actions, at=st.integers(0, 10**6))
    def flip_a_bit_of_a_record(self, action, at):
        path = self.cache.store.action_path(action)
        if os.path.exists(path):
            data = bytearray(read(path))
            data[at % len(data)] ^= 1 << at % 8
            with open(path, "wb") as file:
                file.write(data)
            self.doubt(lambda other, _: other == action)

    @rule(action=actions, body=bodies)
    def swap_a_record(self, action, body):
        """Copy the record of one action to the name of another."""
        disk = self.cache.store
        others = [disk.action_path(a) for a in ACTIONS if os.path.exists(disk.action_path(a))]
        if others and os.path.exists(disk.action_path(action)):
            shutil.copyfile(others[0], f"{self.base}/copy")
            os.replace(f"{self.base}/copy", disk.action_path(action))
            self.doubt(lambda other, _: other == action)

    @rule(body=bodies, size=st.integers(0, 10**6))
    def cut_a_body(self, body, size):
        path = self.cache.store.output_path(output_id(body))
        if body and os.path.exists(path):
            os.truncate(path, size % len(body))
            self.unpinned.add(output_id(body))  # the spool's link is the same file
            self.doubt(lambda _, other: other == body)

    @rule(body=bodies)
    def delete_a_body(self, body):
        path = self.cache.store.output_path(output_id(body))
        if body and os.path.exists(path):
            os.unlink(path)
            self.doubt(lambda _, other: other == body)

    @rule(action=actions)
    def delete_a_record(self, action):
        path = self.cache.store.action_path(action)
        if os.path.exists(path):
            os.unlink(path)
            self.doubt(lambda other, _: other == action)

    @rule(action=actions, body=bodies, hours=st.integers(0, 100))
    def let_time_pass(self, action, body, hours):
        """Let time pass by setting all mtimes back."""
        then = time.time() - hours * HOUR
        disk = self.cache.store
        for path in (disk.action_path(action), disk.output_path(output_id(body))):
            if os.path.exists(path):
                os.utime(path, (then, then))

    # -- prune -------------------------------------------------------------------------------------

    def adopt_beside(self, action, body) -> None:
        """Another process fetches an action whose body is stored, and answers its path."""
        self.clock_ns += 1
        self.put_for[action].add(body)
        self.sure.pop(action, None)
        found = LocalCache(Store(self.root)).adopt(action, output_id(body), self.clock_ns)
        if found is not None:
            self.in_use = (found[1], body)

    @rule(
        hours=st.integers(0, 100),
        size=st.sampled_from([0, 4096, 20_000, 100_000]),
        fault=faults,
        action=actions,
        body=bodies,
    )
    def prune(self, hours, size, fault, action, body):
        self.in_use = None
        before = {action: min(self.clocks(action, body)) for action, body in self.sure.items()}
        result = self.run(
            fault,
            lambda: prune.prune(self.root, hours * HOUR, size),
            lambda: self.adopt_beside(action, body),
        )
        if self.in_use is not None:
            self.expect_in_use(*self.in_use)
        if result is None or result.failures:
            assert self.kernel.struck
            self.doubt_what_is_old()
            return
        cutoff = result.cutoff_ns if result.cutoff_ns is not None else -1
        self.doubt(lambda action, _: before[action] < cutoff)
        if self.kernel.struck:
            return
        left = [
            os.stat(path)
            for tree in ("action", "output")
            for directory, _, names in os.walk(f"{self.root}/{tree}")
            for path in (os.path.join(directory, name) for name in names if name != EMPTY_OUTPUT)
        ]
        now = time.time()
        if hours:
            limit = now - max(hours * HOUR, MIN_AGE_S)
            assert all(status.st_mtime >= limit - 1 for status in left)
        if size and sum(status.st_blocks * 512 for status in left) > size:
            assert all(status.st_mtime >= now - MIN_AGE_S - 60 for status in left)

    # -- uploads -----------------------------------------------------------------------------------

    @rule(count=st.integers(1, 4), fault=faults)
    def upload_ours(self, count, fault):
        """Upload as the pool does while the session lives."""
        if self.session is not None:
            self.run(fault, lambda: self.upload(self.session, count))

    @rule(count=st.integers(1, 10), fault=faults)
    def flush(self, count, fault):
        """Upload as an uploader does the entries of dead sessions, until it is stopped."""
        self.run(fault, lambda: self.claim_and_upload(count))

    def claim_and_upload(self, count) -> None:
        for _, directory in spool.session_directories(self.root):
            session = SpoolSession.claim(self.cache.store, directory)
            if session is not None:
                assert self.session is None or directory != self.session.directory
                self.upload(session, count)
                session.release()

    def upload(self, session, count) -> None:
        for number, entry in list(session.pending.items())[:count]:
            if self.is_right(entry):
                self.bucket.add((entry.action, entry.output, entry.time_ns))
            elif self.kernel.struck:
                continue  # an error does not prove that the body is gone
            session.done(number)

    def is_right(self, entry) -> bool:
        """Return whether an entry's body can be uploaded; check that there is a cause if not."""
        if entry.output == EMPTY_OUTPUT:
            return True
        try:
            right = output_id(read(entry.path)) == entry.output
        except FileNotFoundError:
            right = False
        uploaded = (
            entry.action,
            entry.output,
            entry.time_ns,
        ) in self.bucket  # but the journal does not say so
        assert right or uploaded or entry.output in self.unpinned or self.kernel.struck
        return right

    # -- the ends of a session ---------------------------------------------------------------------

    @rule()
    def die(self):
        self.start_process()

    @rule(fault=faults)
    def end(self, fault):
        if self.session is not None:
            self.run(fault, lambda: self.session.release())
        self.start_process()

    # -- what always holds -------------------------------------------------------------------------

    @invariant()
    def what_was_answered_is_in_the_spool_or_in_the_bucket(self):
        self.kernel.struck = False
        waiting = set()
        for _, directory in spool.session_directories(self.root):
            for entry in SpoolSession.read(self.cache.store, directory).pending.values():
                self.is_right(entry)
                waiting.add((entry.action, entry.output, entry.time_ns))
        lost = self.to_upload - waiting - self.bucket
        assert all(output in self.unpinned for _, output, _ in lost)

    def expect_all_uploaded(self) -> None:
        """At the end of every history flush uploads all entries and leaves none."""
        self.start_process()
        self.kernel.fault, self.kernel.struck = None, False
        for _, directory in spool.session_directories(self.root):
            if not os.path.exists(f"{directory}/journal"):
                os.utime(directory, (0, 0))
        self.claim_and_upload(10**6)
        assert spool.session_directories(self.root) == []
        lost = self.to_upload - self.bucket
        assert all(output in self.unpinned for _, output, _ in lost)
        for action in ACTIONS:
            self.get(action, None)


Histories.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestHistories = Histories.TestCase
