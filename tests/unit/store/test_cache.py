"""store/cache.py: bodies are checked while written, and go elsewhere if the store is full."""

import errno
import io
import itertools
import os
import shutil
import time

import pytest

from cacheplugin.errors import BodyMismatch
from cacheplugin.store import cache as cache_module
from cacheplugin.store import full_disk, tree
from cacheplugin.store.cache import Draft, LocalCache
from cacheplugin.store.tree import EMPTY_OUTPUT, Store
from entries import TIME, TIME_NS, action_id, files, output_id, put, read

BODY = bytes(range(256)) * 400
A, OUT = action_id("a"), output_id(BODY)
FULL = [errno.ENOSPC, errno.EDQUOT]
ERRORS = [*FULL, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES]


@pytest.fixture
def cache(tmp_path):
    return LocalCache(Store(str(tmp_path / "cache")))


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A temporary directory of this test, in which session directories are created."""
    base = tmp_path / "tmpdir"
    base.mkdir()
    monkeypatch.setenv("TMPDIR", str(base))
    return base


def leftovers(*stores) -> list:
    """The names of the files in the stores' tmp/."""
    return [name for tree in stores if tree for name in files(f"{tree.root}/tmp")]


# -- wrong bodies ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "size", "text"),
    [
        (OUT, len(BODY) + 1, "102400 bytes in place of 102401"),
        (OUT, len(BODY) - 1, "longer than its 102399 bytes"),
        (OUT, 0, "longer than its 0 bytes"),
        (output_id(b"other"), len(BODY), "SHA-256"),
        ("ab" * 16, len(BODY), "SHA-256"),
    ],
)
def test_wrong_size_or_hash_is_not_stored(cache, output, size, text):
    """A body of another size or SHA-256 than announced is refused and leaves nothing behind."""
    with pytest.raises(BodyMismatch, match=text), cache.writer(A, output, size) as writer:
        writer.write(BODY[:1000])
        writer.write(BODY[1000:])
        writer.commit(TIME_NS)
    assert files(cache.store.root) == {}


def test_empty_body_under_another_name_is_not_stored(cache):
    """An empty body under the output id of another body is refused."""
    with pytest.raises(BodyMismatch, match="SHA-256"), cache.writer(A, OUT, 0) as writer:
        writer.commit(TIME_NS)
    assert files(cache.store.root) == {}


def test_bad_put_keeps_the_older_entry(cache):
    """A refused put leaves the action's older entry unchanged."""
    path = put(cache, "a", BODY)
    with pytest.raises(BodyMismatch), cache.writer(A, OUT, 4) as writer:
        writer.write(b"evil")
        writer.commit(TIME_NS + 1)
    assert cache.lookup(A)[2:4] == (TIME, path)
    assert read(path) == BODY


def test_writer_left_without_commit(cache):
    """A discarded put leaves nothing behind, and may be discarded twice."""
    with cache.writer(A, OUT, len(BODY)) as writer:
        writer.write(BODY)
        writer.discard()
    assert files(cache.store.root) == {}


@pytest.mark.parametrize("step", [1, 7, 4096, len(BODY)])
def test_body_in_pieces(cache, step):
    """Writes of any size produce the same entry."""
    body = BODY[:5000] if step < 100 else BODY
    with cache.writer(A, output_id(body), len(body)) as writer:
        for start in range(0, len(body), step):
            writer.write(body[start : start + step])
        assert read(writer.commit(TIME_NS)) == body


# -- fill ------------------------------------------------------------------------------------------


def test_fill_in_any_order(cache):
    """A download may write its parts out of order: it is hashed once it is complete."""

    def write_to(file):
        for start in (50_000, 0, 100_000):
            file.seek(start)
            file.write(BODY[start : start + 50_000])

    with cache.writer(A, OUT, len(BODY)) as writer:
        writer.fill(write_to)
        path = writer.commit(TIME_NS)
    assert read(path) == BODY
    assert cache.lookup(A)[:3] == (OUT, len(BODY), TIME)
    assert leftovers(cache.store) == []


@pytest.mark.parametrize("body", [BODY[:-1], BODY + b"x", b"", BODY[:-1] + b"x"])
def test_fill_with_a_wrong_body(cache, body):
    """A filled body of the wrong size or hash is refused and leaves nothing behind."""
    with pytest.raises(BodyMismatch), cache.writer(A, OUT, len(BODY)) as writer:
        writer.fill(lambda file: file.write(body))
        writer.commit(TIME_NS)
    assert files(cache.store.root) == {}


def test_fill_that_fails(cache):
    """An exception of the caller's function is passed on, and no file is left behind."""

    def write_to(file):
        file.write(BODY[:100])
        raise io.UnsupportedOperation("broken off")

    with pytest.raises(io.UnsupportedOperation), cache.writer(A, OUT, len(BODY)) as writer:
        writer.fill(write_to)
    assert files(cache.store.root) == {}


# -- adopt -----------------------------------------------------------------------------------------


def test_adopt(cache):
    """A body stored for another action gets a record for this one; it is not copied."""
    path = put(cache, "a", BODY)
    inode = os.stat(path).st_ino
    assert cache.adopt(action_id("b"), OUT, TIME_NS + 1) == (len(BODY), path)
    assert cache.lookup(action_id("b"))[:4] == (OUT, len(BODY), TIME.replace("789Z", "790Z"), path)
    assert os.stat(path).st_ino == inode
    assert cache.lookup(A)[2] == TIME


def test_adopt_a_missing_body(cache):
    """A missing body is not adopted and no record is written."""
    assert cache.adopt(A, OUT, TIME_NS) is None
    assert cache.lookup(A) is None


def test_adopt_the_empty_body(cache):
    """The empty body can always be adopted."""
    size, path = cache.adopt(A, EMPTY_OUTPUT, TIME_NS)
    assert (size, read(path)) == (0, b"")
    assert cache.lookup(A)[:2] == (EMPTY_OUTPUT, 0)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"x" + b[1:], lambda b: b""])
def test_adopt_a_damaged_body(cache, damage):
    """A body whose SHA-256 is not its name is removed, not adopted."""
    path = put(cache, "a", BODY)
    with open(path, "wb") as file:
        file.write(damage(BODY))
    assert cache.adopt(action_id("b"), OUT, TIME_NS) is None
    assert cache.lookup(action_id("b")) is None
    assert not os.path.exists(path)


# -- failing and full disks ------------------------------------------------------------------------


os_open, os_mkdir, os_pwrite = os.open, os.mkdir, os.pwrite


class Disk:
    """Makes calls that write below a directory fail with the error ``number``.

    ``failing`` is {directory: range of the calls that fail, counted from 0}.
    """

    def __init__(self, monkeypatch, number, failing) -> None:
        self.calls = dict.fromkeys(failing, 0)
        self.failed = 0
        self._number = number
        self._failing = failing
        self._descriptors = {}  # file descriptor: its root
        monkeypatch.setattr(tree, "_open", self._wrap(os_open))
        for name in ("mkdir", "pwrite", "link", "replace"):
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))

    def _root(self, call, args):
        """Return the root that a call writes to, or None."""
        if call is os_pwrite:
            return self._descriptors.get(args[0])
        if (call is os_open and not args[1] & os.O_CREAT) or (
            call is os_mkdir and os.path.isdir(args[0])
        ):
            return None
        return next((root for root in self.calls if args[0].startswith(f"{root}/")), None)

    def _wrap(self, call):
        def wrapped(*args, **options):
            root = self._root(call, args)
            if root is not None:
                self.calls[root] += 1
                if self.calls[root] - 1 in self._failing[root]:
                    self.failed += 1
                    raise OSError(self._number, os.strerror(self._number))
            result = call(*args, **options)
            if call is os_open:
                self._descriptors[result] = root
            return result

        return wrapped


def calls(first, count=1 << 30):
    return range(first, first + count)


def put_in_pieces(cache, body=BODY) -> str:
    with cache.writer(A, output_id(body), len(body)) as writer:
        for start in range(0, len(body), 30_000):
            writer.write(body[start : start + 30_000])
        return writer.commit(TIME_NS)


def calls_of_a_put(tmp_path, body) -> int:
    with pytest.MonkeyPatch.context() as patch:
        root = str(tmp_path / "count")
        disk = Disk(patch, 0, {root: ()})
        put_in_pieces(LocalCache(Store(root)), body)
        return disk.calls[root]


@pytest.mark.parametrize("body", [BODY, b""], ids=["body", "empty"])
@pytest.mark.parametrize("count", [1, 1 << 30], ids=["once", "for ever"])
@pytest.mark.parametrize("number", ERRORS, ids=lambda number: errno.errorcode[number])
def test_store_that_fails_anywhere(tmp_path, base, number, count, body):
    """If any call of a put fails, once or from then on, the complete entry is stored elsewhere."""
    total = calls_of_a_put(tmp_path, body)
    assert total >= 5
    for first in range(total):
        cache = LocalCache(Store(str(tmp_path / f"cache-{first}")))
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, number, {cache.store.root: calls(first, count)})
            path = put_in_pieces(cache, body)
        assert disk.failed
        assert read(path) == body
        assert cache.lookup(A)[:4] == (output_id(body), len(body), TIME, path)
        if (number, count) == (errno.EACCES, 1) and cache.session_store is None:
            assert path.startswith(cache.store.root)  # it was a link, and a rename worked
            continue
        assert cache.session_store is not None and path.startswith(cache.session_store.root)
        assert leftovers(cache.store, cache.session_store) == []
        os.close(cache._session_dir._lock)


@pytest.mark.parametrize("number", ERRORS, ids=lambda number: errno.errorcode[number])
def test_store_and_session_that_fail_anywhere(tmp_path, base, monkeypatch, number):
    """If neither store accepts the entry, the put raises OSError and leaves nothing behind."""
    session = str(tmp_path / "tmpdir" / "session")

    class OneSession:
        path = session

    monkeypatch.setattr(full_disk, "SessionDir", OneSession)
    total = calls_of_a_put(tmp_path, BODY)
    for first, second in itertools.product(range(total), repeat=2):
        cache = LocalCache(Store(str(tmp_path / f"cache-{first}-{second}")))
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, number, {cache.store.root: calls(first), session: calls(second)})
            try:
                put_in_pieces(cache)
                failed = False
            except OSError as error:
                failed = error.errno == number
        assert failed == (disk.calls[session] > second)
        assert (cache.lookup(A) is None) == failed
        assert leftovers(cache.store, cache.session_store) == []
        shutil.rmtree(session, ignore_errors=True)


@pytest.mark.parametrize("number", ERRORS)
def test_no_session_directory(cache, monkeypatch, number):
    """If no session directory can be created, the put raises the error of the store."""

    def refuse():
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(full_disk, "SessionDir", refuse)
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, number, {cache.store.root: calls(4)})
        with pytest.raises(OSError) as caught:
            put_in_pieces(cache)
    assert caught.value.errno == number
    assert leftovers(cache.store) == []


@pytest.mark.parametrize("number", FULL)
def test_old_bodies_are_removed_first(tmp_path, base, monkeypatch, number):
    """On a full disk the least recently used body is removed, and the put succeeds in the store."""
    for first in range(calls_of_a_put(tmp_path, BODY)):
        cache = LocalCache(Store(str(tmp_path / f"cache-{first}")))
        old = put(cache, "old", os.urandom(5000))
        os.utime(old, (1, 1))
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, number, {cache.store.root: calls(first, 1)})
            path = put_in_pieces(cache)
        if disk.failed:
            assert not os.path.exists(old)
            assert cache.lookup(action_id("old")) is None
        assert cache.session_store is None
        assert path == cache.store.output_path(OUT)
        assert cache.lookup(A)[3] == path
        assert leftovers(cache.store) == []


def test_old_bodies_are_removed_until_none_is_left(cache, base, monkeypatch):
    """While bodies can be removed the store is tried again; then the session store is used."""
    freed = iter([4096, 4096, 0])
    searches = []

    def free_space(root, wanted, min_age_s):
        searches.append(root)
        return next(freed)

    monkeypatch.setattr(full_disk, "free_space", free_space)
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, errno.ENOSPC, {cache.store.root: calls(4)})
        path = put_in_pieces(cache)
    assert searches == [cache.store.root] * 3
    assert path.startswith(cache.session_store.root)
    os.close(cache._session_dir._lock)


def test_full_disk_is_not_searched_at_every_put(cache, base, monkeypatch):
    """A search that freed nothing is not repeated for some time."""
    searches = []
    now = [1000.0]
    monkeypatch.setattr(full_disk, "free_space", lambda *args: searches.append(args) or 0)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, errno.ENOSPC, {cache.store.root: calls(0)})
        for _ in range(3):
            put_in_pieces(cache)
        assert len(searches) == 1
        now[0] += cache_module._SEARCH_INTERVAL_S
        put_in_pieces(cache)
        assert len(searches) == 2
    os.close(cache._session_dir._lock)


def test_a_partial_write_is_not_copied(cache, base, monkeypatch):
    """Bytes of a failed write are not copied to the session store."""
    pwrite, taken = os.pwrite, []

    def fills_up(fd, data, offset):
        taken.append(offset)
        if len(taken) == 3:
            raise OSError(errno.ENOSPC, "no space")
        return pwrite(fd, data[:100] if len(taken) == 2 else data, offset)

    monkeypatch.setattr(os, "pwrite", fills_up)
    path = put_in_pieces(cache)
    assert taken[1:3] == [30_000, 30_100]
    assert path.startswith(cache.session_store.root)
    assert read(path) == BODY
    os.close(cache._session_dir._lock)


def test_other_errors_remove_no_bodies(cache, base, monkeypatch):
    """Old entries are removed for a full disk only, not for a failing one."""
    monkeypatch.setattr(full_disk, "free_space", lambda *_: pytest.fail("searched"))
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, errno.EIO, {cache.store.root: calls(4, 1)})
        put_in_pieces(cache)
    os.close(cache._session_dir._lock)


def test_session_serves_both_stores(cache, base):
    """Entries of the session store and of the store are both found."""
    stored = put(cache, "b", b"stored before")
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, errno.EROFS, {cache.store.root: calls(0)})
        spilled = put_in_pieces(cache)
    assert cache.lookup(action_id("b"))[3] == stored
    assert cache.lookup(A)[3] == spilled
    os.close(cache._session_dir._lock)


def test_store_that_is_not_writable(tmp_path, base):
    """A store that is not writable serves hits; puts go to the session store."""
    stored = put(LocalCache(Store(str(tmp_path / "cache"))), "b", b"stored before")
    cache = LocalCache(Store(str(tmp_path / "cache")), writable=False)
    before = files(tmp_path / "cache")
    assert cache.lookup(action_id("b"))[3] == stored
    path = put(cache, "a", BODY)
    assert path.startswith(f"{base}/")
    assert cache.lookup(A)[3] == path
    assert files(tmp_path / "cache") == before
    os.close(cache._session_dir._lock)


def test_cache_without_spill(tmp_path, base):
    """The cache of a worker creates no session directory: its bodies can be fetched again."""
    cache = LocalCache(Store(str(tmp_path / "cache")), spill=False)
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, errno.ENOSPC, {cache.store.root: calls(4)})
        with pytest.raises(OSError) as caught:
            put_in_pieces(cache)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(base) == []
    assert leftovers(cache.store) == []


# -- drafts ----------------------------------------------------------------------------------------


def contents(draft) -> bytes:
    return os.pread(draft.temp.fd, 1 << 20, 0)


def test_draft_without_a_write(cache):
    """Before the first write there is no file, and nothing to discard."""
    with Draft(cache) as draft:
        assert draft.temp is None and draft.store is cache.store
    assert files(cache.store.root) == {}


def test_draft(cache):
    """A draft is written under tmp/ and removed unless it is renamed."""
    with Draft(cache) as draft:
        draft.write(BODY[:1000])
        draft.write(BODY[1000:])
        assert leftovers(cache.store) == [os.path.basename(draft.temp.path)]
        assert read(draft.temp.path) == BODY and draft.temp.size == len(BODY)
        assert draft.open() is draft.temp
    assert draft.temp is None and leftovers(cache.store) == []
    draft.discard()


def test_draft_after_it_was_discarded(cache):
    """It starts again in another file."""
    draft = Draft(cache)
    draft.write(b"old")
    first = draft.temp.path
    draft.discard()
    with draft:
        draft.write(b"new")
        assert draft.temp.path != first and contents(draft) == b"new"


def test_draft_with_a_name(cache):
    """A renamed draft stays."""
    with Draft(cache) as draft:
        draft.write(BODY)
        draft.temp.rename(f"{cache.store.root}/module/ab/abcd")
        assert contents(draft) == BODY
    assert files(cache.store.root) == {"module/ab/abcd": BODY}


@pytest.mark.parametrize("count", [1, 1 << 30], ids=["once", "for ever"])
@pytest.mark.parametrize("number", ERRORS, ids=lambda number: errno.errorcode[number])
def test_draft_whose_store_fails_anywhere(tmp_path, base, number, count):
    """If any call fails, all data is in the next store and none is left in the first."""

    def fill(cache, draft):
        for start in range(0, len(BODY), 30_000):
            draft.write(BODY[start : start + 30_000])
        draft.attempt(lambda: draft.temp.rename(f"{draft.store.root}/module/ab/abcd"))

    with pytest.MonkeyPatch.context() as patch:
        counting = LocalCache(Store(str(tmp_path / "count")))
        disk = Disk(patch, 0, {counting.store.root: ()})
        with Draft(counting) as draft:
            fill(counting, draft)
        total = disk.calls[counting.store.root]
    assert total >= 5
    for first in range(total):
        cache = LocalCache(Store(str(tmp_path / f"cache-{first}")))
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, number, {cache.store.root: calls(first, count)})
            with Draft(cache) as draft:
                fill(cache, draft)
                assert draft.store is cache.session_store
        assert disk.failed and leftovers(cache.store, cache.session_store) == []
        assert read(f"{cache.session_store.root}/module/ab/abcd") == BODY
        os.close(cache._session_dir._lock)


def test_draft_on_a_disk_full_from_the_start(cache, base):
    """Without a file yet there is nothing to copy."""
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, errno.EROFS, {cache.store.root: calls(0)})
        with Draft(cache) as draft:
            path = draft.attempt(draft.open).path
            assert path.startswith(f"{cache.session_store.root}/tmp/") and draft.temp.size == 0
    os.close(cache._session_dir._lock)


def test_draft_copies_only_what_was_written(cache, base, monkeypatch):
    """Bytes after the written size belong to a failed write and are not copied."""
    with Draft(cache) as draft:
        draft.write(b"written")
        os.pwrite(draft.temp.fd, b" and more", 7)
        failures = [OSError(errno.EROFS, "read-only")]

        def step():
            if failures:
                raise failures.pop()
            return "done"

        assert draft.attempt(step) == "done"
        assert draft.store is cache.session_store and contents(draft) == b"written"
        assert leftovers(cache.store) == []
    os.close(cache._session_dir._lock)


@pytest.mark.parametrize("number", ERRORS)
def test_draft_without_another_store(tmp_path, number):
    """Without another store the draft raises the error of the store and leaves no file."""
    cache = LocalCache(Store(str(tmp_path / "cache")), spill=False)
    with Draft(cache) as draft:
        draft.write(b"written")
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, number, {cache.store.root: calls(0)})
            with pytest.raises(OSError) as caught:
                draft.attempt(lambda: draft.temp.rename(f"{cache.store.root}/module/ab/abcd"))
        assert caught.value.errno == number and contents(draft) == b"written"
    assert files(cache.store.root) == {}


def test_draft_of_a_store_that_is_not_writable(tmp_path, base):
    """It starts in the session store."""
    cache = LocalCache(Store(str(tmp_path / "cache")), writable=False)
    with Draft(cache) as draft:
        draft.write(b"x")
        assert draft.store is cache.session_store
    assert not os.path.exists(cache.store.root)
    os.close(cache._session_dir._lock)
