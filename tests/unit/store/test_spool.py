"""store/spool.py: entries to upload outlive their process; incomplete lines are ignored."""

import errno
import json
import multiprocessing
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheplugin.options import Options
from cacheplugin.store import spool
from cacheplugin.store.cache import LocalCache
from cacheplugin.store.spool import SpoolSession
from cacheplugin.store.tree import EMPTY_OUTPUT, Store
from entries import TIME_NS, action_id, output_id, put, read

BODY = b"what the build made" * 100
OUT = output_id(BODY)
OPTIONS = Options(bucket="bucket", endpoint_url="http://127.0.0.1:9", prefix="team", scope="a b c")
NO_LINKS = [errno.EMLINK, errno.EXDEV, errno.EPERM]


@pytest.fixture
def cache(tmp_path):
    return LocalCache(Store(str(tmp_path / "cache")))


@pytest.fixture
def sessions(cache):
    """sessions(options): a new session of this process, released after the test."""
    made = []

    def create(options=OPTIONS):
        made.append(SpoolSession.create(cache.store, options, options.scope))
        return made[-1]

    yield create
    for session in made:
        die(session)


def die(session) -> None:
    """Make a session look as if its process had died: unlocked, with its files in place."""
    try:
        os.close(session._fd)
    except OSError:
        pass
    session._fd = -1


def add(cache, session, name, body=BODY, time_ns=TIME_NS) -> int:
    """Put an entry and add it to the session, as the front does."""
    path = put(cache, name, body, time_ns)
    return session.add(action_id(name), output_id(body), len(body), time_ns, path)


def names(session) -> list:
    return sorted(os.listdir(session.directory))


def pending(session) -> list:
    """Return (action, output, size, time) of the pending entries in the order of the puts."""
    return [
        (entry.action, entry.output, entry.size, entry.time_ns)
        for _, entry in sorted(session.pending.items())
    ]


def entry(name, body=BODY, time_ns=TIME_NS) -> tuple:
    return action_id(name), output_id(body), len(body), time_ns


def append(session, data: bytes) -> None:
    with open(f"{session.directory}/journal", "ab") as file:
        file.write(data)


# -- the life of a session -------------------------------------------------------------------------


def test_a_dead_session_is_claimed_with_all_entries(cache, sessions):
    """Ids, sizes and times are those of the puts, in order, and the bodies are readable."""
    ours = sessions()
    add(cache, ours, "a")
    add(cache, ours, "b", b"other", TIME_NS + 1)
    die(ours)
    theirs = SpoolSession.claim(cache.store, ours.directory)
    assert pending(theirs) == [entry("a"), entry("b", b"other", TIME_NS + 1)]
    assert [read(theirs.pending[n].path) for n in (0, 1)] == [BODY, b"other"]
    assert not theirs.release()


def test_uploaded_entries_are_not_pending(cache, sessions):
    """An uploaded entry is neither in the session nor in one claimed later."""
    ours = sessions()
    numbers = [add(cache, ours, name) for name in "abc"]
    ours.done(numbers[1])
    assert pending(ours) == [entry("a"), entry("c")]
    die(ours)
    theirs = SpoolSession.claim(cache.store, ours.directory)
    assert pending(theirs) == [entry("a"), entry("c")]
    theirs.done(numbers[0])
    die(theirs)
    last = SpoolSession.claim(cache.store, ours.directory)
    assert pending(last) == [entry("c")]
    last.release()


def test_release_removes_a_finished_session(cache, sessions):
    """A session without pending entries leaves only its target; another one stays."""
    first, second = sessions(), sessions()
    first.done(add(cache, first, "a"))
    add(cache, second, "a")
    assert first.release() and not second.release()
    assert spool.session_directories(cache.store.root) == [
        (os.path.dirname(second.directory), second.directory)
    ]
    assert os.listdir(f"{cache.store.root}/tmp") == []


def test_a_finished_session_that_died_is_claimed_and_removed(cache, sessions):
    """A process killed between its last upload and its end leaves only files to remove."""
    ours = sessions()
    ours.done(add(cache, ours, "a"))
    die(ours)
    theirs = SpoolSession.claim(cache.store, ours.directory)
    assert theirs.pending == {} and theirs.release()
    assert not os.path.exists(ours.directory)


def _claim_elsewhere(root, directory, results) -> None:
    results.send(SpoolSession.claim(Store(root), directory) is None)


def test_a_live_session_is_not_claimed(cache, sessions):
    """No process can claim it; its pending entries can still be counted."""
    ours = sessions()
    add(cache, ours, "a")
    assert SpoolSession.claim(cache.store, ours.directory) is None
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    other = context.Process(
        target=_claim_elsewhere, args=(cache.store.root, ours.directory, sender)
    )
    other.start()
    other.join(30)
    assert receiver.poll() and receiver.recv()
    assert not spool.is_waiting(cache.store.root)
    assert spool.count_pending(cache.store) == 1
    add(cache, ours, "b")  # it still works
    assert spool.count_pending(cache.store) == 2


def test_a_claimed_session_is_claimed_once(cache, sessions):
    """While one uploader has claimed a dead session, another cannot."""
    ours = sessions()
    add(cache, ours, "a")
    die(ours)
    assert spool.is_waiting(cache.store.root)
    first = SpoolSession.claim(cache.store, ours.directory)
    assert SpoolSession.claim(cache.store, ours.directory) is None
    assert not spool.is_waiting(cache.store.root)
    first.release()
    assert spool.is_waiting(cache.store.root)


def test_read_changes_nothing(cache, sessions):
    """read claims nothing; a missing session has no entries."""
    ours = sessions()
    add(cache, ours, "a")
    append(ours, b"put half")
    before = read(f"{ours.directory}/journal")
    assert pending(SpoolSession.read(cache.store, ours.directory)) == [entry("a")]
    assert read(f"{ours.directory}/journal") == before
    assert SpoolSession.read(cache.store, f"{ours.directory}-not").pending == {}


def test_a_missing_spool_is_empty(cache):
    """Without spool/ nothing waits, and asking does not create it."""
    assert spool.session_directories(cache.store.root) == []
    assert not spool.is_waiting(cache.store.root) and spool.count_pending(cache.store) == 0
    assert not os.path.exists(cache.store.root)


def test_an_old_directory_without_a_journal_is_removed(cache, sessions):
    """A recent one stays, because its session may be about to create the journal."""
    ours = sessions()
    unborn = f"{os.path.dirname(ours.directory)}/123-abc"
    os.mkdir(unborn)
    with open(f"{unborn}/{OUT}", "wb") as file:  # a power cut may leave this
        file.write(BODY)
    assert SpoolSession.claim(cache.store, unborn) is None and os.path.isdir(unborn)
    assert spool.count_pending(cache.store) == 0 and not spool.is_waiting(cache.store.root)
    os.utime(unborn, (0, 0))
    assert SpoolSession.claim(cache.store, unborn) is None and not os.path.exists(unborn)


# -- bodies ----------------------------------------------------------------------------------------


def test_one_link_for_each_body(cache, sessions):
    """Actions with the same body share its link, which is removed with the last of them."""
    ours = sessions()
    numbers = [add(cache, ours, name) for name in "abc"]
    path = cache.store.output_path(OUT)
    assert names(ours) == sorted([OUT, "journal"])
    assert os.stat(path).st_nlink == 2
    for number in numbers:
        assert os.path.samefile(ours.pending[number].path, path) and names(ours)[0] == OUT
        ours.done(number)
    assert names(ours) == ["journal"] and os.stat(path).st_nlink == 1


def test_a_body_is_linked_again_after_its_upload(cache, sessions):
    """A body that is put again after its upload is linked again."""
    ours = sessions()
    ours.done(add(cache, ours, "a"))
    number = add(cache, ours, "a", time_ns=TIME_NS + 1)
    os.unlink(cache.store.output_path(OUT))
    assert read(ours.pending[number].path) == BODY


def test_a_claimed_session_removes_a_shared_link_with_the_last_entry(cache, sessions):
    """After a claim, too, a link is removed with the last pending entry that needs it."""
    ours = sessions()
    numbers = [add(cache, ours, name) for name in "abc"]
    ours.done(numbers[0])
    die(ours)
    theirs = SpoolSession.claim(cache.store, ours.directory)
    theirs.done(numbers[1])
    assert OUT in names(theirs)
    theirs.done(numbers[2])
    assert OUT not in names(theirs)
    assert theirs.release()


def test_a_link_survives_its_output(cache, sessions):
    """A body pruned from the store can still be uploaded by this session and the next."""
    ours = sessions()
    number = add(cache, ours, "a")
    shutil.rmtree(f"{cache.store.root}/output")
    assert read(ours.pending[number].path) == BODY
    die(ours)
    theirs = SpoolSession.claim(cache.store, ours.directory)
    assert read(theirs.pending[number].path) == BODY
    theirs.release()


def test_empty_bodies_are_not_linked(cache, sessions):
    """A quarter of all actions have the empty body; no link is made for it."""
    ours = sessions()
    number = add(cache, ours, "a", b"")
    assert names(ours) == ["journal"]
    assert os.stat(cache.store.output_path(EMPTY_OUTPUT)).st_nlink == 1
    die(ours)
    theirs = SpoolSession.claim(cache.store, ours.directory)
    assert pending(theirs) == [entry("a", b"")]
    theirs.done(number)
    assert theirs.release() and os.path.exists(cache.store.output_path(EMPTY_OUTPUT))


@pytest.mark.parametrize("code", NO_LINKS)
def test_without_links_the_body_is_copied(cache, sessions, monkeypatch, code):
    """If the file system cannot link, the body is copied."""
    ours = sessions()
    path = put(cache, "a", BODY)

    def no_link(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_link)
    number = ours.add(action_id("a"), OUT, len(BODY), TIME_NS, path)
    os.unlink(path)
    assert names(ours) == sorted([OUT, "journal"])
    assert read(ours.pending[number].path) == BODY


def test_on_a_full_disk_the_entry_names_the_stored_body(cache, sessions, monkeypatch):
    """If neither link nor copy works, no partial copy stays and the entry names the stored body."""
    ours = sessions()
    path = put(cache, "a", BODY)

    def no_link(*_):
        raise OSError(errno.ENOSPC, "full")

    def half_a_copy(_, to):
        with open(to, "wb") as file:
            file.write(BODY[:10])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(shutil, "copyfile", half_a_copy)
    number = ours.add(action_id("a"), OUT, len(BODY), TIME_NS, path)
    assert names(ours) == ["journal"]
    assert ours.pending[number].path == path
    die(ours)
    theirs = SpoolSession.claim(cache.store, ours.directory)
    assert theirs.pending[number].path == path
    theirs.release()


# -- incomplete and damaged journals ---------------------------------------------------------------


def test_a_full_disk_leaves_no_partial_line(cache, sessions, monkeypatch):
    """A put whose line cannot be written is not in the journal; later puts are."""
    ours = sessions()
    first = add(cache, ours, "a")
    path = put(cache, "b", b"other")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
    with pytest.raises(OSError, match="space"):
        ours.add(action_id("b"), output_id(b"other"), 5, TIME_NS, path)
    ours.done(first)  # its line is not written either, which is no error
    monkeypatch.undo()
    assert names(ours) == ["journal"] and ours.pending == {}
    add(cache, ours, "c", b"third")
    die(ours)
    theirs = SpoolSession.claim(cache.store, ours.directory)
    assert pending(theirs) == [
        entry("a"),
        entry("c", b"third"),
    ]  # "a" is uploaded again, which does no harm
    theirs.release()


def test_a_done_that_cannot_be_written_raises_nothing(cache, sessions, monkeypatch):
    """The front works on a full disk, and the session still leaves no files."""
    ours = sessions()
    number = add(cache, ours, "a")

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    ours.done(number)
    monkeypatch.undo()
    assert ours.release() and not os.path.exists(ours.directory)


def journal_of_six_lines(cache, session) -> bytes:
    """Write three puts, two of them done; one line number is a prefix of another."""
    for n in range(12):
        add(cache, session, f"filler {n}", b"filler")
    for n in range(12):
        session.done(n)
    numbers = [add(cache, session, name) for name in "abc"]
    session.done(numbers[2])
    return read(f"{session.directory}/journal")


def test_a_journal_cut_anywhere(cache, sessions):
    """At any byte: complete lines count; an incomplete line is ignored and cut off."""
    ours = sessions()
    data = journal_of_six_lines(cache, ours)
    die(ours)
    lines = data.splitlines(keepends=True)
    start = len(b"".join(lines[:12]))  # the puts before it need no cutting
    for cut in range(start, len(data) + 1):
        with open(f"{ours.directory}/journal", "wb") as file:
            file.write(data[:cut])
        whole = data[:cut].count(b"\n")
        expected = set(range(12)) - set(range(whole - 12))
        expected |= {n for n in (24, 25, 26) if n < whole}
        expected -= {26} if whole == 28 else set()
        theirs = SpoolSession.claim(cache.store, ours.directory)
        assert set(theirs.pending) == expected
        if expected:
            number = min(expected)
            theirs.done(number)
            die(theirs)
            again = SpoolSession.read(cache.store, ours.directory)
            assert set(again.pending) == expected - {number}
        die(theirs)


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_garbage_lines(tmp_path_factory, garbage):
    """With any bytes between the lines, each put is still read and no other entry appears."""
    cache = LocalCache(Store(str(tmp_path_factory.mktemp("cache"))))
    ours = SpoolSession.create(cache.store, OPTIONS, OPTIONS.scope)
    try:
        add(cache, ours, "a")
        append(ours, b"\n".join([*garbage, b""]))
        add(cache, ours, "b")
    finally:
        die(ours)
    theirs = SpoolSession.claim(cache.store, ours.directory)
    assert pending(theirs) == [entry("a"), entry("b")]
    theirs.release()


@pytest.mark.parametrize(
    "line",
    [
        "put ../../etc/passwd {out} 5 1",
        "put {action} ../../../etc/passwd 5 1",
        "put {action} {out} -5 1",
        "put {action} {out} 5 ²",
        "put {action} {out} 5",
        "put {action} {out} 5 1 more",
        "put {action}\r{out} 5 1",
        "put {action} {out} " + "9" * 5000 + " 1",
        "done -1",
        "done ²",
        "\0" * 200,
        "",
    ],
)
def test_invalid_lines(cache, sessions, line):
    """Lines of another form add no entry, name no other file and finish no entry."""
    ours = sessions()
    add(cache, ours, "a")
    append(ours, line.format(action=action_id("x"), out=OUT).encode() + b"\n")
    assert pending(SpoolSession.read(cache.store, ours.directory)) == [entry("a")]


def test_done_lines_after_a_damaged_line_are_ignored(cache, sessions):
    """A power cut that loses newlines shifts line numbers, so later done lines are ignored."""
    ours = sessions()
    for name in "abcd":
        add(cache, ours, name)
    ours.done(3)
    die(ours)
    lines = read(f"{ours.directory}/journal").splitlines(keepends=True)
    # Without this rule the done line of "d" would finish no entry or another one.
    lines[1:3] = [b"\0" * (len(lines[1]) + len(lines[2]) - 1) + b"\n"]
    with open(f"{ours.directory}/journal", "wb") as file:
        file.writelines(lines)
    assert pending(SpoolSession.read(cache.store, ours.directory)) == [entry("a"), entry("d")]


# -- targets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        {"endpoint_url": "http://127.0.0.1:10"},
        {"bucket": "another"},
        {"prefix": "another"},
        {"region": "eu-west-1"},
        {"path_style": True},
        {"layout": "bundles"},
        {"scope": "another"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_targets_are_kept_apart(cache, sessions, other):
    """Another endpoint, bucket, prefix, region or address style has another directory."""
    options = Options(**OPTIONS.as_dict() | other)
    homes = [os.path.dirname(sessions(o).directory) for o in (OPTIONS, options, OPTIONS)]
    assert homes[0] == homes[2] != homes[1]
    assert spool.read_target(homes[1]) == spool.read_target(homes[0]) | other
    assert spool.read_target(homes[0]) == {f: getattr(OPTIONS, f) for f in spool.TARGET_FIELDS}


def test_other_options_share_a_target(cache, sessions):
    """Limits and logging may differ between sessions of one target."""
    options = Options(**OPTIONS.as_dict() | {"uploads_at_once": 1, "verbose": True})
    assert len({os.path.dirname(sessions(o).directory) for o in (OPTIONS, options)}) == 1


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(dict.fromkeys(spool.TARGET_FIELDS, "") | {"layout": "newer"}),
        json.dumps(dict.fromkeys(spool.TARGET_FIELDS, "") | {"layout": "objects", "more": "x"}),
        json.dumps({"layout": "objects", "bucket": "bucket"}),
        json.dumps({"bucket": "bucket"}),
        "[]",
        "null",
        "not json",
        "",
    ],
)
def test_a_target_of_another_version_is_left_alone(cache, sessions, text):
    """Entries are not uploaded if their target is not fully known."""
    home = os.path.dirname(sessions().directory)
    with open(f"{home}/target", "w") as file:
        file.write(text)
    with pytest.raises(ValueError):
        spool.read_target(home)
