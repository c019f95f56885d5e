"""store/verify.py: it finds all kinds of damage, repairs them, and tolerates running builds."""

import errno
import os
import random
import socket

import pytest

from cacheplugin.store import contents, record, verify
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.tree import EMPTY_OUTPUT, Store
from cacheplugin.store.verify import check
from entries import TIME_NS, action_id, files, output_id, put, read

BODY = b"package main\n" * 50
LARGE = random.Random(1).randbytes(3 * contents.BUFFER_BYTES + 17)
ENTRIES = (("a", BODY), ("b", BODY), ("large", LARGE), ("empty", b""), ("other", b"xyz"))
A, OUT = action_id("a"), output_id(BODY)
A_PATH, BODY_PATH = f"action/{A[:2]}/{A}", f"output/{OUT[:2]}/{OUT}"


@pytest.fixture
def cache(tmp_path):
    """A store with a small body of two actions, a large one, an empty one and one more."""
    cache = LocalCache(Store(str(tmp_path / "cache")))
    for name, body in ENTRIES:
        put(cache, name, body)
    return cache


def overwrite(path, data, position=0) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        file.write(data)


def found(cache, **options) -> dict:
    """Return {path: what} of the faults, after comparing the report's counts with them."""
    faults = []
    report = check(cache.store, on_fault=faults.append, **options)
    assert report.faults == len(faults)
    assert report.removed == sum(fault.removed for fault in faults)
    assert len({fault.path for fault in faults}) == len(faults)
    return {fault.path: fault.what for fault in faults}


def expect_repaired(cache) -> None:
    """Check that repair removes every fault and that later hits have the right body."""
    before = found(cache)
    report = check(cache.store, repair=True)
    assert report.faults == report.removed == len(before) > 0
    assert found(cache, sha256=True) == {}
    for name, body in ENTRIES:
        got = cache.lookup(action_id(name))
        assert got is None or read(got[3]) == body


def test_a_good_store_has_no_faults(cache, monkeypatch):
    """Entries as put have no faults; a body that two records name is read once."""
    monkeypatch.setattr(verify, "digest", lambda path, sha256: pytest.fail("read once more"))
    assert found(cache) == found(cache, sha256=True) == {}
    report = check(cache.store)
    assert (report.records, report.bodies, report.unnamed) == (5, 4, 0)
    assert report.body_bytes == len(BODY) + len(LARGE) + 3
    before = files(cache.store.root)
    check(cache.store, repair=True)
    assert files(cache.store.root) == before


def test_an_empty_directory_is_a_good_store(tmp_path):
    report = check(Store(str(tmp_path)))
    assert (report.records, report.bodies, report.faults) == (0, 0, 0)


@pytest.mark.parametrize("body", [BODY, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("share", [0, 0.5, 1], ids=["first", "middle", "last"])
def test_a_flipped_bit_is_found(cache, body, share):
    """One changed bit is one fault; the body is removed with all records that name it."""
    path = cache.store.output_path(output_id(body))
    position = int(share * (len(body) - 1))
    overwrite(path, bytes([body[position] ^ 4]), position)
    assert list(found(cache)) == [os.path.relpath(path, cache.store.root)]
    expect_repaired(cache)
    assert not os.path.exists(path)
    if body is BODY:
        left = [name for name in files(cache.store.root) if name.startswith("action/")]
        assert len(left) == 3 and A_PATH not in left
    assert cache.lookup(action_id("other"))


@pytest.mark.parametrize("size", [0, 1, len(LARGE) - 1, len(LARGE) + 1, contents.BUFFER_BYTES])
def test_a_truncated_or_longer_body_is_found(cache, size):
    path = cache.store.output_path(output_id(LARGE))
    os.truncate(path, size)
    (what,) = found(cache).values()
    assert f"{size} bytes" in what
    expect_repaired(cache)
    assert cache.lookup(action_id("large")) is None


def test_zeros_of_the_right_size_are_found(cache):
    """A power cut may leave a body of the right size that is all zeros."""
    overwrite(cache.store.output_path(OUT), bytes(len(BODY)))
    assert list(found(cache)) == [BODY_PATH]
    expect_repaired(cache)


def test_swapped_bodies_are_found(cache):
    """Two bodies under exchanged names are two faults."""
    one, two = cache.store.output_path(OUT), cache.store.output_path(output_id(b"xyz"))
    os.rename(one, one + ".tmp")
    os.rename(two, one)
    os.rename(one + ".tmp", two)
    assert set(found(cache)) == {BODY_PATH, os.path.relpath(two, cache.store.root)}
    expect_repaired(cache)


def test_swapped_records_are_found(cache):
    """A record under the name of another action is not valid."""
    one, two = cache.store.action_path(A), cache.store.action_path(action_id("large"))
    first, second = read(one), read(two)
    overwrite(one, second)
    overwrite(two, first)
    assert len(found(cache)) == 2
    expect_repaired(cache)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: bytes(len(data)),
        lambda data: data[:60],
        lambda data: data.replace(b"v1", b"v2"),
        lambda data: bytes([data[0] ^ 1]) + data[1:],
    ],
    ids=["empty", "cut", "zeros", "half", "version", "bit"],
)
def test_a_damaged_record_is_found_and_removed_alone(cache, damage):
    path = cache.store.action_path(A)
    data = read(path)
    with open(path, "wb") as file:
        file.write(damage(data))
    assert list(found(cache)) == [A_PATH]
    expect_repaired(cache)
    assert cache.lookup(A) is None and cache.lookup(action_id("b"))


@pytest.mark.parametrize(
    "output, size, xxh3",
    [
        (OUT, len(BODY), 1),
        (OUT, len(BODY) + 1, None),
        ("abcd", 3, 1),
        (OUT.upper(), len(BODY), None),
    ],
    ids=["xxh3", "size", "short output", "upper case"],
)
def test_a_valid_record_with_wrong_fields_is_removed_alone(cache, output, size, xxh3):
    """If the body's SHA-256 is its name, a record that disagrees is the fault."""
    xxh3 = int(contents._xxh3(BODY), 16) if xxh3 is None else xxh3
    with open(cache.store.action_path(A), "wb") as file:
        file.write(record.encode(A, output, size, TIME_NS, xxh3))
    assert list(found(cache)) == [A_PATH]
    expect_repaired(cache)
    assert not os.path.exists(cache.store.action_path(A)) and cache.lookup(action_id("b"))


def test_a_record_whose_body_is_missing_is_found(cache):
    os.unlink(cache.store.output_path(OUT))
    assert len(found(cache)) == 2 and all("is missing" in what for what in found(cache).values())
    expect_repaired(cache)


def test_a_missing_empty_body_is_not_a_fault(cache):
    """A get creates the empty body if it is missing."""
    os.unlink(cache.store.output_path(EMPTY_OUTPUT))
    assert found(cache) == {}
    assert cache.lookup(action_id("empty"))


def test_a_body_that_no_record_names_is_checked_by_its_name(cache):
    """Without a record the body is compared with its name, also without sha256=True."""
    for name in ("a", "b"):
        os.unlink(cache.store.action_path(action_id(name)))
    assert found(cache) == {} and check(cache.store).unnamed == 1
    overwrite(cache.store.output_path(OUT), b"P")
    assert list(found(cache)) == [BODY_PATH]
    expect_repaired(cache)


def test_sha256_finds_what_xxh3_cannot(cache):
    """Body and records may agree and still be wrong: the name tells."""
    os.rename(cache.store.output_path(output_id(b"xyz")), cache.store.output_path(OUT))
    for name in ("a", "b"):
        cache.store.publish_record(
            action_id(name), OUT, 3, TIME_NS, int(contents._xxh3(b"xyz"), 16)
        )
    os.unlink(cache.store.action_path(action_id("other")))
    assert found(cache) == {}
    assert list(found(cache, sha256=True)) == [BODY_PATH]
    check(cache.store, sha256=True, repair=True)
    assert found(cache, sha256=True) == {} and cache.lookup(A) is None


def test_foreign_files_are_found(cache):
    """Names that are not ids and entries in a wrong directory are removed; other files stay."""
    root = cache.store.root
    other = "00" if OUT[:2] != "00" else "01"
    os.makedirs(f"{root}/output/{other}", exist_ok=True)
    os.makedirs(f"{root}/action/{other}", exist_ok=True)
    strays = [
        f"action/{A[:2]}/notes",
        "action/README",
        f"output/{OUT[:2]}/{OUT[:-1]}",
        "output/zz",
        f"output/{OUT[:2]}/{OUT}.part",
        f"output/{other}/{OUT}",
        f"action/{other}/{A}",
        f"action/{A[:2]}/{A.upper()}0",
        "output/ff\nff",
    ]
    for stray in strays:
        with open(f"{root}/{stray}", "wb") as file:
            file.write(BODY)
    os.makedirs(f"{root}/tmp", exist_ok=True)
    for path in ("tmp/1-2", "sessions.jsonl"):
        with open(f"{root}/{path}", "wb") as file:
            file.write(b"x")
    assert set(found(cache)) == set(strays)
    expect_repaired(cache)
    assert cache.lookup(A) and {"tmp/1-2", "sessions.jsonl"} < set(files(root))


@pytest.mark.parametrize("part", ["action", "output"])
@pytest.mark.parametrize("kind", ["symlink", "dangling", "pipe", "socket", "directory"])
def test_other_kinds_of_file_are_found(cache, part, kind, tmp_path, monkeypatch):
    """Links, pipes and the like are found without following them or waiting for them."""
    path = cache.store.action_path(A) if part == "action" else cache.store.output_path(OUT)
    kept = tmp_path / "kept"
    os.rename(path, kept)
    if kind == "symlink":
        os.symlink(kept, path)
    elif kind == "dangling":
        os.symlink(tmp_path / "none", path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        os.mkdir(path)
    else:
        server = socket.socket(socket.AF_UNIX)
        monkeypatch.chdir(os.path.dirname(path))  # the full path is too long for a socket address
        server.bind(os.path.basename(path))
        server.close()
    assert list(found(cache)) == [os.path.relpath(path, cache.store.root)]
    expect_repaired(cache)
    assert not os.path.lexists(path) and kept.exists()


def test_a_pipe_in_place_of_the_empty_body_is_found(cache):
    """A pipe reads like an empty file."""
    path = cache.store.output_path(EMPTY_OUTPUT)
    os.unlink(path)
    os.mkfifo(path)
    assert list(found(cache)) == [os.path.relpath(path, cache.store.root)]


def test_a_directory_with_files_is_reported_and_stays(cache):
    """Repair removes files and empty directories only."""
    path = cache.store.action_path(A)
    os.unlink(path)
    os.mkdir(path)
    open(f"{path}/mine", "w").close()
    faults = []
    report = check(cache.store, on_fault=faults.append, repair=True)
    assert (report.faults, report.removed) == (1, 0)
    assert "not removed" in faults[0].what and os.path.exists(f"{path}/mine")


@pytest.mark.parametrize("code, goes", [("EIO", True), ("EACCES", False), ("EMFILE", False)])
def test_an_unreadable_body_is_removed_only_if_the_disk_is_at_fault(cache, monkeypatch, code, goes):
    """A permission or a limit of this process is no reason to remove a body."""
    number, real = getattr(errno, code), os.open

    def fail(path, *arguments, **options):
        if path == cache.store.output_path(OUT):
            raise OSError(number, os.strerror(number))
        return real(path, *arguments, **options)

    monkeypatch.setattr(contents, "_open", fail)
    assert list(found(cache)) == [BODY_PATH]
    report = check(cache.store, repair=True)
    assert (report.faults, report.removed) == (1, int(goes))
    assert os.path.exists(cache.store.output_path(OUT)) != goes


# -- since -----------------------------------------------------------------------------------------


def test_since_skips_earlier_files(cache):
    """Files that have not changed since are not read, so damage in them is not found."""
    overwrite(cache.store.output_path(OUT), b"P")
    late = os.stat(cache.store.output_path(OUT)).st_ctime + 100
    report = check(cache.store, since=late)
    assert (report.records, report.bodies, report.faults) == (0, 0, 0)
    report = check(cache.store, since=0)
    assert (report.records, report.bodies, report.faults) == (5, 4, 1)


def test_since_includes_its_own_time(cache, monkeypatch):
    """A body whose ctime equals ``since`` is read, even if its records are skipped."""
    overwrite(cache.store.output_path(OUT), b"P")
    since = os.stat(cache.store.output_path(OUT)).st_ctime
    earlier = verify._Check._is_skipped
    monkeypatch.setattr(
        verify._Check, "_is_skipped", lambda self, path: "/action/" in path or earlier(self, path)
    )
    assert BODY_PATH in found(cache, since=since)


def test_since_looks_for_the_bodies_of_later_records(cache, monkeypatch):
    """The earlier body of a later record must exist with the right size; it is not read."""
    monkeypatch.setattr(verify._Check, "_is_skipped", lambda self, path: "/output/" in path)
    assert found(cache, since=1) == {} and check(cache.store, since=1).bodies == 0
    os.truncate(cache.store.output_path(OUT), 5)
    assert list(found(cache, since=1)) == [BODY_PATH]
    os.unlink(cache.store.output_path(OUT))
    assert len(found(cache, since=1)) == 2


# -- the spool -------------------------------------------------------------------------------------


@pytest.fixture
def pinned(cache):
    """A hard link to a body in the spool, as a put creates it."""
    directory = f"{cache.store.root}/spool/target/session"
    os.makedirs(directory)
    os.link(cache.store.output_path(OUT), f"{directory}/{OUT}")
    for name in (f"{directory}/journal", f"{directory}/../target"):
        with open(name, "w") as file:
            file.write("not for verify")
    return f"{directory}/{OUT}"


def test_a_body_linked_in_the_spool_is_read_once(cache, pinned):
    assert check(cache.store).bodies == 4


def test_a_body_only_in_the_spool_is_checked(cache, pinned):
    """A pruned body that awaits upload is compared with its name, and removed if it is wrong."""
    os.unlink(cache.store.output_path(OUT))
    check(cache.store, repair=True)  # removes the two records without a body
    assert found(cache) == {} and check(cache.store).unnamed == 1
    overwrite(pinned, b"P")
    assert list(found(cache)) == [os.path.relpath(pinned, cache.store.root)]
    expect_repaired(cache)
    assert sorted(os.listdir(os.path.dirname(pinned))) == ["journal"]


def test_a_bad_body_is_removed_from_the_spool_too(cache, pinned):
    """The spool's link to a bad body is removed too, so that it is never uploaded."""
    overwrite(pinned, b"P")
    report = check(cache.store, repair=True)
    assert report.removed == 2 and not os.path.exists(pinned)


# -- concurrent changes ----------------------------------------------------------------------------


def during(monkeypatch, path, act) -> None:
    """Run ``act`` once, right before verify first opens ``path``."""
    real, waiting = os.open, [act]

    def hook(name, *arguments, **options):
        if name == path and waiting:
            waiting.pop()()
        return real(name, *arguments, **options)

    monkeypatch.setattr(contents, "_open", hook)


def test_a_body_removed_meanwhile_is_not_a_fault(cache, monkeypatch):
    """A body pruned between listing and reading is not reported, nor are its records."""
    path = cache.store.output_path(OUT)
    during(monkeypatch, path, lambda: os.unlink(path))
    assert found(cache) == {}


def test_a_body_removed_before_its_directory_is_listed_is_not_a_fault(cache, monkeypatch):
    """It existed when verify began, so it was removed since."""
    path = cache.store.output_path(OUT)
    during(monkeypatch, cache.store.action_path(action_id("large")), lambda: os.unlink(path))
    assert found(cache) == {}


def test_a_record_replaced_meanwhile_is_not_a_fault(cache, monkeypatch):
    """A record that names another body by now is left alone."""
    os.unlink(cache.store.output_path(OUT))
    os.unlink(cache.store.action_path(action_id("b")))
    directory, real = f"{cache.store.root}/output/{OUT[:2]}/", os.listdir

    def listdir(path):
        if path == directory:
            put(cache, "a", b"a new body")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    assert found(cache) == {}
    assert cache.lookup(A)[0] == output_id(b"a new body")


def test_a_bad_body_replaced_meanwhile_is_not_a_fault(cache, monkeypatch):
    """A put replaces a truncated body between the first and the second examination."""
    path = cache.store.output_path(OUT)
    os.truncate(path, 5)
    digest = verify.digest

    def replace_first(*arguments, **options):
        put(cache, "a", BODY)
        return digest(*arguments, **options)

    monkeypatch.setattr(verify, "digest", replace_first)
    assert found(cache, repair=True) == {}
    assert read(cache.lookup(A)[3]) == BODY


def test_repair_keeps_a_body_that_replaced_the_bad_one(cache, monkeypatch):
    """A body published after the second examination stays, as a build may hold its path."""
    path = cache.store.output_path(OUT)
    os.truncate(path, 5)
    real = verify.unlink_same

    def replace_first(*arguments):
        put(cache, "a", BODY)
        return real(*arguments)

    monkeypatch.setattr(verify, "unlink_same", replace_first)
    faults = []
    report = check(cache.store, on_fault=faults.append, repair=True)
    assert (report.faults, report.removed) == (1, 0)
    assert read(cache.lookup(A)[3]) == BODY


def test_ids_of_any_length_are_checked(tmp_path):
    """Action ids have 1 to 64 bytes; with a damaged body their records are removed."""
    cache = LocalCache(Store(str(tmp_path)))
    for action in ("ab", "cd" * 64):
        with cache.writer(action, OUT, len(BODY)) as writer:
            writer.write(BODY)
            writer.commit(TIME_NS)
    assert check(cache.store).records == 2 and found(cache) == {}
    overwrite(cache.store.output_path(OUT), b"P")
    assert list(found(cache)) == [BODY_PATH]
    check(cache.store, repair=True)
    assert files(str(tmp_path)) == {}


def test_progress_grows_to_the_end(cache):
    """``done`` never decreases and stays between 0 and 1."""
    seen = []
    check(cache.store, on_progress=lambda report, done: seen.append(done))
    assert len(seen) == 9 and seen == sorted(seen) and seen[0] >= 0 and seen[-1] <= 1
