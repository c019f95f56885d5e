"""systemd.py: sockets from the service manager, and notifications to it."""

import json
import logging
import os
import socket
import subprocess
import sys

import pytest

from cacheplugin.server import systemd

# Runs in a process of its own, as the descriptors begin with 3: makes a socket for each kind in
# argv[1], calls listeners(), prints its result and the variables that are left.
PASSED = """
import json, os, socket, sys
sys.path[:0] = json.loads(sys.argv[2])
from cacheplugin.server import systemd
from cacheplugin.errors import UsageError
os.closerange(3, 50)
kinds = {
    "tcp": (socket.AF_INET, socket.SOCK_STREAM), "udp": (socket.AF_INET, socket.SOCK_DGRAM),
    "unix": (socket.AF_UNIX, socket.SOCK_SEQPACKET),
    "not listening": (socket.AF_INET, socket.SOCK_STREAM),
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
    """The result of listeners() for sockets of these kinds; children see none of its variables."""
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
    """Each listener has its name, and children do not inherit it."""
    found = passed(["tcp", "unix", "tcp"], LISTEN_FDNAMES="plugin:connect:http")
    assert found == [
        [3, "AF_INET", "SOCK_STREAM", "plugin", False],
        [4, "AF_UNIX", "SOCK_SEQPACKET", "connect", False],
        [5, "AF_INET", "SOCK_STREAM", "http", False],
    ]


@pytest.mark.parametrize("names", ["", "one", "one:", ":"])
def test_too_few_names(names):
    """A listener without a name has an empty one."""
    found = passed(["tcp", "tcp"], LISTEN_FDNAMES=names)
    assert [one[3] for one in found] == [names.partition(":")[0], ""]


def test_more_names_than_listeners():
    """A name without a listener is ignored."""
    assert [one[3] for one in passed(["tcp"], LISTEN_FDNAMES="one:two")] == ["one"]


@pytest.mark.parametrize(
    "kinds", [["udp"], ["not listening"], ["file"], ["tcp", "udp"], ["tcp", None]]
)
def test_a_descriptor_that_is_not_a_listening_socket(kinds):
    """The error gives its number, also if that descriptor is closed."""
    number = 2 + len(kinds)
    expected = (
        f"descriptor {number}, passed by the service manager, is not a listening socket; "
        "see ListenStream= in its socket unit"
    )
    assert passed(kinds) == expected


def test_more_listeners_than_descriptors():
    """The first missing descriptor is an error, however large the number is."""
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
def test_variables_for_another_process_or_without_a_number(variables):
    """No listener was passed, and descriptor 3 is left alone."""
    assert passed(["tcp"], PYTHONUTF8="1", **variables) == []


def test_no_variables(monkeypatch):
    """Without the variables no listener was passed."""
    for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        monkeypatch.delenv(name, raising=False)
    assert systemd.listeners() == []


# -- notifications ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "is_abstract",
    [
        False,
        pytest.param(True, marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux only")),
    ],
)
def test_each_state_is_one_datagram(monkeypatch, tmp_path, is_abstract):
    """The address may be a path or an abstract name."""
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
def test_no_address_for_notifications(monkeypatch, caplog, path):
    """No address, or one of an unknown kind, is not worth a warning."""
    if path is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", path)
    systemd.notify("READY=1")
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["gone", "x" * 200])
def test_a_notification_that_cannot_be_sent(monkeypatch, caplog, tmp_path, name):
    """It is a warning, not an error: the service goes on."""
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/{name}")
    with caplog.at_level(logging.WARNING):
        systemd.notify("READY=1")
    assert "cannot tell the service manager READY=1 at NOTIFY_SOCKET=" in caplog.text
