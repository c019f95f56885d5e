"""store/tree.py: the layout, atomic publication, and damaged entries, which are misses."""

import errno
import multiprocessing
import os
import stat
import tempfile
import threading
import time

import pytest

from cacheplugin import main
from cacheplugin.options import Options
from cacheplugin.store import record
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.tree import EMPTY_OUTPUT, Store
from entries import TIME, TIME_NS, action_id, files, output_id, put, read

BODY = b"package main\n" * 50
A = action_id("a")
OUT = output_id(BODY)
LONG_AGO = 1_000_000_000
# What link says on file systems without hard links, or with enough of them.
NO_LINKS = [
    *(errno.EMLINK, errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL),
    *(errno.EACCES, errno.ENOTTY),
]


@pytest.fixture
def cache(tmp_path):
    return LocalCache(Store(str(tmp_path / "cache")))


def tmp_files(cache) -> list:
    return os.listdir(f"{cache.store.root}/tmp")


def age(path) -> None:
    os.utime(path, (LONG_AGO, LONG_AGO))


def test_layout(cache):
    """action/xx/id holds the record, output/xx/id the body, and tmp/ is empty afterwards."""
    path = put(cache, "a", BODY)
    root = cache.store.root
    assert path == f"{root}/output/{OUT[:2]}/{OUT}"
    found = files(root)
    data = found.pop(f"action/{A[:2]}/{A}")
    assert found == {f"output/{OUT[:2]}/{OUT}": BODY}
    assert record.decode(A, data)[:3] == (OUT, len(BODY), TIME)
    assert tmp_files(cache) == []


def test_lookup(cache):
    """A hit returns output, size, time, absolute path and the time of last use."""
    path = put(cache, "a", BODY)
    age(path)
    assert cache.lookup(A) == (OUT, len(BODY), TIME, path, LONG_AGO)
    assert os.path.isabs(path) and os.path.splitext(path)[1] == ""
    assert cache.lookup(action_id("b")) is None


def test_names(cache):
    """names returns all records and bodies, and two empty sets for an empty store."""
    assert cache.store.names() == (set(), set())
    put(cache, "a", b"body")
    put(cache, "b", b"body")
    assert cache.store.names() == ({action_id("a"), action_id("b")}, {output_id(b"body")})


def test_lookup_creates_nothing(tmp_path):
    """A miss in a missing directory does not create it."""
    assert Store(str(tmp_path / "none")).lookup(A) is None
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [1, 64])
def test_ids_of_any_length(cache, size):
    """Ids may have 1 to 64 bytes."""
    action = "ab" * size
    with cache.writer(action, OUT, len(BODY)) as writer:
        writer.write(BODY)
        path = writer.commit(TIME_NS)
    assert cache.lookup(action)[3] == path


def test_empty_body(cache):
    """The empty body is one file without further hard links."""
    path = put(cache, "a", b"")
    first = os.stat(path)
    age(path)
    assert put(cache, "b", b"") == path
    assert cache.lookup(action_id("b"))[:2] == (EMPTY_OUTPUT, 0)
    again = os.stat(path)
    assert (again.st_ino, again.st_nlink, again.st_size) == (first.st_ino, 1, 0)
    assert again.st_mtime > LONG_AGO
    with open(path, "wb") as file:
        file.write(b"x")
    assert put(cache, "a", b"") == path
    assert read(path) == b""


def test_modes_under_a_strict_umask(tmp_path):
    """With any umask directories and bodies are 0755, other files 0644, for other users."""
    requests_out, requests_in = os.pipe()
    answers_out, answers_in = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.umask(0o077)
            os.dup2(requests_out, 0)
            os.dup2(answers_in, 1)
            os.closerange(3, 256)
            main.direct(Options(cache_dir=str(tmp_path / "new" / "cache")))
        finally:
            os._exit(0)
    os.close(requests_out)
    os.close(answers_in)
    os.write(
        requests_in,
        b'{"ID":1,"Command":"put","ActionID":"AAAA","OutputID":"'
        b'ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=","BodySize":3}\n\n"YWJj"\n'
        b'{"ID":2,"Command":"put","ActionID":"AAAB","OutputID":"'
        b'47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="}\n\n{"ID":3,"Command":"close"}\n\n',
    )
    os.close(requests_in)
    with open(answers_out) as answers:
        text = answers.read()
    os.waitpid(child, 0)
    assert '"ID":1,"DiskPath":"/' in text and '"ID":2,"DiskPath":"/' in text
    modes = {"dir": set(), "file": set(), "body": set()}
    for directory, _, names in os.walk(tmp_path / "new"):
        modes["dir"].add(stat.S_IMODE(os.stat(directory).st_mode))
        for name in names:
            kind = "body" if "/output/" in directory else "file"
            modes[kind].add(stat.S_IMODE(os.stat(os.path.join(directory, name)).st_mode))
    assert modes == {"dir": {0o755}, "file": {0o644}, "body": {0o755}}


# -- publication -----------------------------------------------------------------------------------


def test_output_is_never_rewritten(cache):
    """A second put of the same body keeps the file and updates its mtime: go may have mapped it."""
    path = put(cache, "a", BODY)
    before = os.stat(path)
    age(path)
    assert put(cache, "b", BODY) == put(cache, "a", BODY) == path
    after = os.stat(path)
    assert after.st_ino == before.st_ino
    assert after.st_mtime > LONG_AGO
    assert after.st_nlink == 1
    assert tmp_files(cache) == []


def test_damaged_output_is_replaced_not_rewritten(cache):
    """A truncated body is replaced by a new file; a process that has it open keeps the old one."""
    path = put(cache, "a", BODY)
    os.truncate(path, 5)
    with open(path, "rb") as reader:
        assert put(cache, "a", BODY) == path
        assert reader.read() == BODY[:5]
    assert read(path) == BODY


def test_incomplete_entries_are_not_visible(cache):
    """Until body and record are complete, no lookup finds them and no final name exists."""
    with cache.writer(A, OUT, len(BODY)) as writer:
        writer.write(BODY[:100])
        assert cache.lookup(A) is None
        assert [path.split("/")[0] for path in files(cache.store.root)] == ["tmp"]
        writer.write(BODY[100:])
        assert cache.lookup(A) is None
        writer.commit(TIME_NS)
    assert cache.lookup(A)[:2] == (OUT, len(BODY))


def test_record_is_replaced_atomically(cache):
    """Readers of an action that is put repeatedly always see a complete record."""
    bodies = [b"first", b"the second body"]
    for body in bodies:
        put(cache, "a", body)
    expected = {(output_id(body), len(body)) for body in bodies}
    stop = threading.Event()

    def put_again():
        while not stop.is_set():
            for body in bodies:
                put(LocalCache(cache.store), "a", body)

    writer = threading.Thread(target=put_again)
    writer.start()
    try:
        seen = [cache.store.lookup(A) for _ in range(2000)]
    finally:
        stop.set()
        writer.join()
    assert None not in seen
    assert {found[:2] for found in seen} <= expected


@pytest.mark.parametrize("time_ns", [0, 1, 999_999_999, TIME_NS, TIME_NS + 1, record.MAX_TIME_NS])
def test_time_is_kept_to_the_nanosecond(cache, time_ns):
    """The time of the put is returned exactly."""
    put(cache, "a", BODY, time_ns)
    assert cache.lookup(A)[2] == record.timestamp(time_ns)


def test_later_put_replaces_time_and_output(cache):
    """An action has the output and the time of its latest put."""
    put(cache, "a", BODY, TIME_NS)
    put(cache, "a", BODY, TIME_NS + 1)
    assert cache.lookup(A)[:3] == (OUT, len(BODY), TIME.replace("789Z", "790Z"))
    put(cache, "a", b"other", TIME_NS + 2)
    assert cache.lookup(A)[:3] == (output_id(b"other"), 5, TIME.replace("789Z", "791Z"))


@pytest.mark.parametrize("number", NO_LINKS)
def test_without_hard_links(cache, monkeypatch, number):
    """On a file system without hard links the body is published by a rename."""

    def link(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    path = put(cache, "a", BODY)
    assert read(path) == BODY
    assert cache.lookup(A)[3] == path
    assert cache.session_store is None
    inode = os.stat(path).st_ino
    assert put(cache, "b", BODY) == path
    assert os.stat(path).st_ino == inode  # go may have mapped it
    assert tmp_files(cache) == []


def test_missing_directories_are_created_again(cache):
    """A store works on after its directories were deleted."""
    put(cache, "a", BODY)
    os.rename(cache.store.root, cache.store.root + ".gone")
    assert cache.lookup(A) is None
    path = put(cache, "a", BODY)
    assert cache.lookup(A)[3] == path


# -- damaged entries -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: bytes(len(data)),
        lambda data: data.replace(b"v1", b"v2"),
        lambda data: data[:20] + b"\0" + data[21:],
        lambda data: data + b"\n",
        lambda data: data * 10,
        lambda data: os.urandom(100),
    ],
)
def test_bad_record_is_a_miss_and_removed(cache, damage):
    """A truncated or damaged record is a miss and is removed; its body stays."""
    body = put(cache, "a", BODY)
    path = cache.store.action_path(A)
    data = read(path)
    with open(path, "wb") as file:
        file.write(damage(data))
    assert cache.lookup(A) is None
    assert not os.path.exists(path)
    assert read(body) == BODY
    put(cache, "a", BODY)
    assert cache.lookup(A)[3] == body


def test_record_of_another_action_is_a_miss(cache):
    """A record that was copied to the name of another action is a miss."""
    put(cache, "a", BODY)
    put(cache, "b", b"other")
    os.replace(cache.store.action_path(A), cache.store.action_path(action_id("b")))
    assert cache.lookup(action_id("b")) is None


def test_missing_body_is_a_miss_and_its_record_removed(cache):
    """A record without its body is a miss and is removed."""
    os.unlink(put(cache, "a", BODY))
    assert cache.lookup(A) is None
    assert files(cache.store.root) == {}


@pytest.mark.parametrize("size", [0, 1, len(BODY) - 1, len(BODY) + 1])
def test_body_of_another_size_is_a_miss_and_removed(cache, size):
    """A body of another size than its record says is a miss; both are removed."""
    os.truncate(put(cache, "a", BODY), size)
    assert cache.lookup(A) is None
    assert files(cache.store.root) == {}


def test_directory_in_place_of_a_file_is_a_miss(cache):
    """A directory in place of a record or body is a miss, not an exception."""
    body = put(cache, "a", BODY)
    os.unlink(cache.store.action_path(A))
    os.mkdir(cache.store.action_path(A))
    assert cache.lookup(A) is None
    os.rmdir(cache.store.action_path(A))
    put(cache, "a", BODY)
    os.unlink(body)
    os.mkdir(body)
    assert cache.lookup(A) is None


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_pipe_or_link_in_place_of_a_file_is_a_miss(cache, make):
    """A pipe or a link in place of a record or body is a miss without a wait; a put replaces it."""
    body, record_path = put(cache, "a", BODY), cache.store.action_path(A)
    for path in (record_path, body):
        os.unlink(path)
        make(path)
        assert cache.lookup(A) is None
        assert put(cache, "a", BODY) == body
        assert cache.lookup(A)[3] == body


def test_pipe_in_place_of_a_body_of_a_put(cache):
    """A put replaces a pipe in place of its body, or of the empty body."""
    for body in (BODY, b""):
        path = put(cache, "a", body)
        os.unlink(path)
        os.mkfifo(path)
        assert put(cache, "a", body) == path
        assert read(path) == body


def test_planted_record_removes_nothing_outside(cache, tmp_path):
    """A record that names a path in place of an output is a miss and is removed; no more."""
    precious = tmp_path / "cache" / "keys" / "id_ed25519"
    precious.parent.mkdir(parents=True)
    precious.write_text("precious")
    put(cache, "a", BODY)
    with open(cache.store.action_path(A), "wb") as file:
        file.write(record.encode(A, "../keys/id_ed25519", 3, TIME_NS, 0))
    assert cache.lookup(A) is None
    assert precious.read_text() == "precious"


# -- bodies are executable -------------------------------------------------------------------------


def mode(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize(
    "use",
    [
        lambda cache: cache.lookup(A),
        lambda cache: put(cache, "b", BODY),
        lambda cache: cache.adopt(action_id("b"), OUT, TIME_NS),
    ],
    ids=["get", "put", "adopt"],
)
@pytest.mark.parametrize(("before", "after"), [(0o644, 0o755), (0o600, 0o700), (0o444, 0o555)])
def test_body_of_an_older_version_becomes_executable(cache, use, before, after):
    """A body without the permission gets it for all who may read it; its mtime stays."""
    path = put(cache, "a", BODY)
    assert mode(path) == 0o755
    os.chmod(path, before)
    assert use(cache) is not None
    assert mode(path) == after
    assert read(path) == BODY


def test_body_that_cannot_be_made_executable(cache, monkeypatch):
    """On a read-only file system a hit is answered as before, after one attempt."""
    put(cache, "a", BODY)
    os.chmod(cache.store.output_path(OUT), 0o644)
    attempts = []

    def refuse(*args):
        attempts.append(args)
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(os, "fchmod", refuse)
    assert cache.lookup(A)[0] == cache.lookup(A)[0] == OUT
    assert len(attempts) == 1


def test_store_under_a_file_is_a_miss(tmp_path):
    """A file in place of the root is a miss, not an exception."""
    (tmp_path / "file").write_text("x")
    assert Store(str(tmp_path / "file")).lookup(A) is None


# -- the time of last use --------------------------------------------------------------------------


def test_touch(cache):
    """hold and touch set the mtimes of body and record; hold is False for a pruned body."""
    path, action_path = put(cache, "a", BODY), cache.store.action_path(A)
    age(path)
    age(action_path)
    assert cache.store.hold(OUT) is True
    cache.store.touch(A)
    assert min(os.stat(path).st_mtime, os.stat(action_path).st_mtime) > time.time() - 60
    os.unlink(path)
    os.unlink(action_path)
    assert cache.store.hold(OUT) is False
    cache.store.touch(A)
    assert files(cache.store.root) == {}


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_another_users_files():
    """Another user's store is read; files that may not be changed are left alone."""
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        use_as_another_user(LocalCache(Store(root)))


def use_as_another_user(cache):
    path, action_path = put(cache, "a", BODY), cache.store.action_path(A)
    put(cache, "bad", b"body")
    bad = cache.store.action_path(action_id("bad"))
    with open(bad, "wb") as file:
        file.write(b"garbled")
    for name in (path, action_path):
        age(name)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            found = cache.lookup(A)
            cache.store.hold(OUT)
            cache.store.touch(A)
            missed = cache.lookup(action_id("bad"))
            status = 0 if found[3] == path and read(path) == BODY and missed is None else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert os.stat(path).st_mtime == os.stat(action_path).st_mtime == LONG_AGO
    assert os.path.exists(bad)


# -- many processes --------------------------------------------------------------------------------

ENTRIES = [(f"action {index}", f"body {index} ".encode() * (index * 37)) for index in range(30)]


def put_all(root, start, results):
    """Runs in one of many processes: put every entry and check each one after its put."""
    cache = LocalCache(Store(root))
    start.wait()
    wrong = 0
    for _ in range(3):
        for name, body in ENTRIES:
            path = put(cache, name, body, time.time_ns())
            found = cache.lookup(action_id(name))
            wrong += found is None or found[3] != path or read(path) != body
    results.put(wrong)


def test_many_processes_put_the_same_entries(tmp_path):
    """Eight processes that put the same entries never see a partial entry, a miss or an error."""
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(8), context.Queue()
    root = str(tmp_path)
    processes = [
        context.Process(target=put_all, args=(root, start, results), daemon=True) for _ in range(8)
    ]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [0] * 8
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert os.listdir(f"{root}/tmp") == []
    outputs = {name: body for name, body in files(root).items() if name.startswith("output/")}
    assert outputs == {
        f"output/{output_id(body)[:2]}/{output_id(body)}": body for _, body in ENTRIES
    }
    for path in outputs:
        assert os.stat(f"{root}/{path}").st_nlink == 1


# -- temporary files -------------------------------------------------------------------------------


def test_temporary_file_takes_short_writes(cache, monkeypatch):
    """Short writes, and writes repeated after an error, produce the complete file."""
    pwrite = os.pwrite
    calls = []

    def short(fd, data, offset):
        calls.append(offset)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "no space")
        return pwrite(fd, data[:7], offset)

    monkeypatch.setattr(os, "pwrite", short)
    with cache.store.temporary() as temp:
        temp.write(b"0123456789")
        with pytest.raises(OSError):
            temp.write(b"abcdefghij")
        temp.write(b"abcdefghij")
        assert read(temp.path) == b"0123456789abcdefghij"
        path, fd = temp.path, temp.fd
    assert not os.path.exists(path)
    with pytest.raises(OSError):
        os.fstat(fd)
