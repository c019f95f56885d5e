"""The commands verify and stats: output, exit status, and use beside running sessions."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from helpers import DEADLINE_S, PROGRAM, action_id, output_id

BODY = b"package main\n" * 50


@pytest.fixture
def run(processes, cache_dir):
    def run(*argv, **popen):
        return subprocess.run(
            [PROGRAM, f"--cache-dir={cache_dir}", *argv],
            env=processes.environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            **popen,
        )

    return run


@pytest.fixture
def filled(start, cache_dir):
    """A cache directory with thirty entries: {action id: body}."""
    entries = {action_id(number): f"body {number}\n".encode() * 100 for number in range(30)}
    plugin = start().hello()
    for action, body in entries.items():
        plugin.expect_stored(action, body)
    plugin.finish()
    return entries


def body_path(cache_dir, body):
    return cache_dir / "output" / output_id(body)[:2] / output_id(body)


def test_a_good_store_is_one_line_and_exit_0(run, filled):
    for flags in ([], ["--sha256"], ["--repair"]):
        done = run("verify", *flags)
        assert done.returncode == 0 and done.stderr == ""
        (line,) = done.stdout.splitlines()
        assert line.startswith("30 records, 30 bodies") and line.endswith("all right")


def test_damage_is_reported_then_removed_and_not_served(run, filled, cache_dir, start):
    """A changed byte, a truncation, zeros and an exchange are a line each and exit 1, also with
    --repair; afterwards verify exits with 0, and a get returns the right body or a miss."""
    bodies = list(filled.values())
    paths = [body_path(cache_dir, body) for body in bodies[:5]]
    paths[0].write_bytes(b"B" + bodies[0][1:])
    os.truncate(paths[1], 7)
    paths[2].write_bytes(bytes(len(bodies[2])))
    os.rename(paths[3], cache_dir / "swap")
    os.rename(paths[4], paths[3])
    os.rename(cache_dir / "swap", paths[4])
    wrong = sorted(str(path.relative_to(cache_dir)) for path in paths)
    done = run("verify")
    *lines, summary = done.stdout.splitlines()
    assert done.returncode == 1 and done.stderr == ""
    assert sorted(line.partition(":")[0] for line in lines) == wrong
    assert summary.endswith("5 wrong, 0 removed") and all(path.exists() for path in paths)
    done = run("verify", "--repair")
    *lines, summary = done.stdout.splitlines()
    assert done.returncode == 1 and all(line.endswith("; removed") for line in lines)
    assert summary.endswith("5 wrong, 5 removed") and not any(path.exists() for path in paths)
    assert run("verify", "--sha256").returncode == 0
    plugin = start().hello()
    for number, (action, body) in enumerate(filled.items()):
        if number < 5:
            plugin.expect_miss(action)
            plugin.expect_stored(action, body)
        else:
            plugin.expect_hit(action, body)
    plugin.finish()


def test_json_is_one_object(run, filled, cache_dir):
    assert json.loads(run("verify", "--json").stdout)["wrong"] == []
    path = body_path(cache_dir, filled[action_id(3)])
    os.truncate(path, 7)
    done = run("verify", "--json", "--repair")
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert (found["records"], found["bodies"], found["faults"], found["removed"]) == (30, 30, 1, 1)
    (fault,) = found["wrong"]
    assert fault["path"] == str(path.relative_to(cache_dir)) and fault["removed"] is True
    assert "7 bytes" in fault["what"]


@pytest.mark.parametrize("command", ["verify", "stats"])
def test_a_missing_directory_is_one_line_and_exit_2(run, cache_dir, command):
    done = run(command)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert str(cache_dir) in line and not cache_dir.exists()


def test_an_unprintable_name_is_printed_on_one_line(run, filled, cache_dir):
    with open(os.fsencode(cache_dir) + b"/action/a\n\xff", "w"):
        pass
    done = run("verify")
    assert done.returncode == 1 and len(done.stdout.splitlines()) == 2
    assert json.loads(run("verify", "--json").stdout)["faults"] == 1


def test_a_pipe_in_the_store_does_not_block(run, filled, cache_dir):
    path = body_path(cache_dir, filled[action_id(3)])
    path.unlink()
    os.mkfifo(path)
    assert run("verify").returncode == 1


def test_progress_is_for_terminals(filled, cache_dir, processes, tmp_path):
    """On a terminal stderr shows a bar, which is erased at the end; stdout has only the report."""
    ours, theirs = os.openpty()
    with open(tmp_path / "out", "w+") as out:
        process = subprocess.Popen(
            [PROGRAM, f"--cache-dir={cache_dir}", "verify"],
            env=processes.environ(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=theirs,
        )
        os.close(theirs)
        assert process.wait(DEADLINE_S) == 0
        shown = os.read(ours, 1 << 16).decode()
        out.seek(0)
        assert len(out.read().splitlines()) == 1
    os.close(ours)
    assert shown.startswith("\r0 bodies, 0 MB   0 % |") and shown.endswith("\r")
    assert shown.split("\r")[-2].isspace()  # the last drawing blanks the line


def test_verify_beside_a_session_that_puts_and_a_prune(run, start, cache_dir):
    """Entries are put, replaced and removed while verify --repair runs in a loop: it finds no fault
    and disturbs no session."""
    plugin = start().hello()
    end, wrong = time.monotonic() + 4, []

    def verify():
        while time.monotonic() < end:
            done = run("verify", "--repair", "--sha256")
            if done.returncode:
                wrong.append(done.stdout + done.stderr)

    plugin.expect_stored(action_id("first"), BODY)
    thread = threading.Thread(target=verify)
    thread.start()
    try:
        number = 0
        while time.monotonic() < end:
            number += 1
            body = f"{number}\n".encode() * (1 + number % 977)
            action = action_id(number % 40)
            plugin.expect_stored(action, body)
            if number % 3 == 0:  # in the order of prune: the action, then its output
                name = action_id((number - 7) % 40)
                record = cache_dir / "action" / name[:2] / name
                if record.exists():
                    output = record.read_text().split()[1]
                    record.unlink()
                    (cache_dir / "output" / output[:2] / output).unlink(missing_ok=True)
    finally:
        thread.join()
    assert not wrong and number > 50
    plugin.finish()
    assert run("verify", "--sha256").returncode == 0


def test_verify_can_be_interrupted(processes, cache_dir, filled):
    """Ctrl-C ends it, although sessions ignore SIGINT; the store stays valid."""
    path = body_path(cache_dir, filled[action_id(3)])
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(200 << 30)  # a sparse file that takes very long to read
    process = subprocess.Popen(
        [PROGRAM, f"--cache-dir={cache_dir}", "verify"],
        env=processes.environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    io = Path(f"/proc/{process.pid}/io")
    end = time.monotonic() + DEADLINE_S
    while int(io.read_text().split()[1]) < 50 << 20 and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == -signal.SIGINT


def test_stats_prints_text_and_json(run, filled, cache_dir):
    shutil.rmtree(cache_dir / "tmp")
    done = run("stats")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("30 entries, 30 outputs\n")
    found = json.loads(run("stats", "--json").stdout)
    assert (found["entries"], found["outputs"]) == (30, 30)
    (session,) = found["sessions"]
    assert (session["gets"], session["local_hits"], session["puts"]) == (30, 30, 30)
    assert found["spool"] == {"entries": 0, "outputs": 0, "bytes": 0}
    assert not (cache_dir / "tmp").exists()
