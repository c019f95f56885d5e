"""store/session_log.py: one line for each session, a bounded file, and no exceptions."""

import fcntl
import os
import time

import pytest

from cacheplugin.metrics import Counters
from cacheplugin.store.session_log import append_session, read_sessions
from entries import read


def counters(gets=10, **more) -> Counters:
    made = Counters()
    for name, count in {"get_requests": gets, **more}.items():
        setattr(made, name, count)
    return made


def test_a_session_is_a_line(tmp_path):
    """Every counter is read back under its name, with the time of the session's end."""
    before = time.time() - 1
    append_session(
        str(tmp_path),
        counters(
            10,
            get_local_hit=5,
            get_fault_hit=3,
            get_misses=2,
            put_requests=4,
            get_fault_bytes=700,
            put_s3_bytes=900,
            drain_s=1.25,
        ),
    )
    (session,) = read_sessions(str(tmp_path))
    assert before < session.pop("end") < time.time() + 1
    assert session == {
        "gets": 10,
        "local_hits": 5,
        "s3_hits": 3,
        "misses": 2,
        "puts": 4,
        "bytes_down": 700,
        "bytes_up": 900,
        "waited_s": 1.25,
    }


def test_the_oldest_come_first_and_idle_sessions_are_left_out(tmp_path):
    """A session without gets and puts, such as that of go list, leaves no line."""
    for gets in (1, 0, 2):
        append_session(str(tmp_path), counters(gets))
    assert [session["gets"] for session in read_sessions(str(tmp_path))] == [1, 2]


def test_damaged_lines_are_skipped(tmp_path):
    append_session(str(tmp_path), counters(1))
    line = read(tmp_path / "sessions.jsonl")
    with open(tmp_path / "sessions.jsonl", "ab") as file:
        file.write(b'\x00\xff{\n[]\n{"gets": 5}\nnull\n\n')
        file.write(line.replace(b'"gets":1', b'"gets":"x"'))
        file.write(line[:40])
    append_session(str(tmp_path), counters(2))  # lost, as it continues the incomplete line
    append_session(str(tmp_path), counters(3))
    assert [session["gets"] for session in read_sessions(str(tmp_path))] == [1, 3]


def test_the_file_is_cut_to_the_last_thousand_lines(tmp_path):
    """It is cut once it exceeds two thousand lines; no temporary file is left."""
    root = str(tmp_path)
    for gets in range(1, 2001):
        append_session(root, counters(gets))
    assert len(read_sessions(root)) == 2000
    append_session(root, counters(2001))
    assert [session["gets"] for session in read_sessions(root)] == list(range(1002, 2002))
    append_session(root, counters(5))
    assert len(read_sessions(root)) == 1001
    assert os.listdir(tmp_path / "tmp") == []


def test_a_cut_under_way_is_not_waited_for(tmp_path):
    """If another session holds the lock, this one only adds its line."""
    root = str(tmp_path)
    append_session(root, counters(1))
    line = read(tmp_path / "sessions.jsonl")
    with open(tmp_path / "sessions.jsonl", "ab") as file:
        file.write(line * 2500)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        append_session(root, counters(7))
    assert len(read_sessions(root)) == 2502 and read_sessions(root)[-1]["gets"] == 7


@pytest.mark.parametrize("root", ["none", "file"])
def test_a_directory_that_is_not_writable_raises_nothing(tmp_path, root):
    (tmp_path / "file").write_text("x")
    append_session(str(tmp_path / root), counters())
    assert read_sessions(str(tmp_path / root)) == []
    assert os.listdir(tmp_path) == ["file"]
