"""systemd.py: what a service manager passes and hears."""

import json
import logging
import os
import socket
import subprocess
import sys

import pytest

from cacheplugin.server import systemd

# In a process of its own, as descriptors are from 3 up: sockets as ``argv`` says, then listeners().
PASSED = """
import json, os, socket, sys
sys.path[:0] = json.loads(sys.argv[2])
from cacheplugin.server import systemd
from cacheplugin.errors import UsageError
os.closerange(3, 50)
kinds = {
    "tcp": (socket.AF_INET, socket.SOCK_STREAM), "udp": (socket.AF_INET, socket.SOCK_DGRAM),
    "unix": (socket.AF_UNIX, socket.SOCK_SEQPACKET), "deaf": (socket.AF_INET, socket.SOCK_STREAM),
}
made = []
for at, kind in enumerate(json.loads(sys.argv[1])):
    if kind == "file":
        made.append(open(os.devnull))
        assert made[-1].fileno() == 3 + at
    elif kind:
        made.append(socket.socket(*kinds[kind]))
        assert made[-1].fileno() == 3 + at
        made[-1].set_inheritable(True)
        if kind in ("tcp", "unix"):
            made[-1].listen(1) if kind == "tcp" else (made[-1].bind(""), made[-1].listen(1))
if os.environ["LISTEN_PID"] == "own":
    os.environ["LISTEN_PID"] = str(os.getpid())
try:
    found = [
        [one.fileno(), one.family.name, one.type.name, name, one.get_inheritable()]
        for one, name in systemd.listeners()
    ]
except UsageError as error:
    found = str(error)
left = sorted(name for name in os.environ if name.startswith("LISTEN_"))
print(json.dumps([found, left]), flush=True)
os._exit(0)
"""


def passed(kinds, **variables):
    """What listeners() finds of descriptors from 3 up; no variable is left to children."""
    environ = {"LISTEN_PID": "own", "LISTEN_FDS": str(len(kinds))} | variables
    done = subprocess.run(
        [sys.executable, "-c", PASSED, json.dumps(kinds), json.dumps(sys.path)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found, left = json.loads(done.stdout)
    assert left == []
    return found


def test_listeners_with_names():
    """Each with its name, and none for children."""
    found = passed(["tcp", "unix", "tcp"], LISTEN_FDNAMES="plugin:connect:http")
    assert found == [
        [3, "AF_INET", "SOCK_STREAM", "plugin", False],
        [4, "AF_UNIX", "SOCK_SEQPACKET", "connect", False],
        [5, "AF_INET", "SOCK_STREAM", "http", False],
    ]


@pytest.mark.parametrize("names", ["", "one", "one:", ":"])
def test_too_few_names(names):
    """What has no name has an empty one."""
    found = passed(["tcp", "tcp"], LISTEN_FDNAMES=names)
    assert [one[3] for one in found] == [names.partition(":")[0], ""]


def test_more_names_than_listeners():
    """Names alone pass nothing."""
    assert [one[3] for one in passed(["tcp"], LISTEN_FDNAMES="one:two")] == ["one"]


@pytest.mark.parametrize("kinds", [["udp"], ["deaf"], ["file"], ["tcp", "udp"], ["tcp", None]])
def test_what_is_no_listening_socket(kinds):
    """It is named by its number, also where nothing is there."""
    number = 2 + len(kinds)
    expected = (
        f"descriptor {number}, passed by the service manager, is not a listening socket; "
        "see ListenStream= in its socket unit"
    )
    assert passed(kinds) == expected


def test_more_listeners_than_there_are_descriptors():
    """A number beyond all reason ends at the first that is not there."""
    assert passed(["tcp"], LISTEN_FDS="1000000000").startswith("descriptor 4, ")


@pytest.mark.parametrize(
    "variables",
    [
        {"LISTEN_PID": "1"},
        {"LISTEN_PID": ""},
        {"LISTEN_PID": "x"},
        {"LISTEN_FDS": ""},
        {"LISTEN_FDS": "x"},
        {"LISTEN_FDS": "-1"},
        {"LISTEN_FDS": "0"},
        {"LISTEN_FDS": "1.0"},
        {"LISTEN_FDS": "²"},
    ],
)
def test_what_is_for_another_process_or_no_number(variables):
    """Nothing was passed, and descriptor 3 is somebody else's."""
    assert passed(["tcp"], PYTHONUTF8="1", **variables) == []


def test_nothing_passed(monkeypatch):
    """Nor is anything there without the variables."""
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        monkeypatch.delenv(name, raising=False)
    assert systemd.listeners() == []


# -- what it hears ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "is_abstract",
    [
        False,
        pytest.param(True, marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux only")),
    ],
)
def test_the_service_manager_hears(monkeypatch, tmp_path, is_abstract):
    """One datagram each, on a path or an abstract name, again and again."""
    path = f"@{tmp_path.name}-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{path[1:]}" if is_abstract else path)
        manager.setblocking(False)
        for text in ("READY=1", "STOPPING=1"):
            systemd.notify(text)
            assert manager.recv(100) == text.encode()
        with pytest.raises(BlockingIOError):
            manager.recv(100)


@pytest.mark.parametrize("path", [None, "", "relative", "vsock:2:1234"])
def test_nobody_wants_to_hear(monkeypatch, caplog, path):
    """No path, or none that we know, is no trouble."""
    if path is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", path)
    systemd.notify("READY=1")
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["gone", "x" * 200])
def test_a_service_manager_that_cannot_be_told(monkeypatch, caplog, tmp_path, name):
    """It is a warning: the service goes on."""
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/{name}")
    with caplog.at_level(logging.WARNING):
        systemd.notify("READY=1")
    assert "cannot tell the service manager READY=1 at NOTIFY_SOCKET=" in caplog.text
