"""What connect does where no server of its own user answers: one line, or direct mode."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from helpers import DEADLINE_S, NOBODY, action_id
from server_sessions import BODY, Connect, ask, free_port, unix_name

pytest_plugins = ["server_fixtures"]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Unix sockets of Linux")

HELLO = b'{"ID":0,"KnownCommands":["get","put","close"]}\n'
# The program, which waits a short time for an answer.
IMPATIENT = """
import sys
from cacheplugin import main
from cacheplugin.server import connect
connect.ANSWER_S = 1
main.main()
"""
# Another user's server. argv: its port, the kinds of its sockets.
STRANGER = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
port, sockets = int(sys.argv[1]), []
if "unix" in sys.argv:
    sockets.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    sockets[-1].bind(b"\\0go-cache-plugin-%d" % port)
if "tcp" in sys.argv:
    sockets.append(socket.socket())
    sockets[-1].bind(("127.0.0.1", port))
for sock in sockets:
    sock.listen()
print(flush=True)
sock, _ = sockets[-1].accept()
if "tcp" in sys.argv:
    sock.sendall(b'{"ID":0,"KnownCommands":["get","put","close"]}\\n')
    sock.sendall(b'{"ID":1,"Miss":true}\\n')
try:
    print(sock.recv(1000))
except ConnectionResetError:  # connect has not read the second line
    print(b"")
"""


class Impatient(Connect):
    """connect that waits 1 s for an answer."""

    program = (sys.executable, "-c", IMPATIENT)


@pytest.fixture
def impatient(processes, tmp_path):
    """impatient(port, *flags): start an Impatient."""
    plugins = []

    def impatient(port, *flags):
        plugins.append(
            Impatient([*flags, "connect", str(port)], processes.environ(), tmp_path / "stderr")
        )
        return plugins[-1]

    yield impatient
    for plugin in plugins:
        plugin.kill()


@pytest.fixture
def stranger():
    """stranger(port, *kinds): another user's server, listening."""
    begun = []

    def stranger(port, *kinds):
        argv = [sys.executable, "-c", STRANGER, str(port), *kinds]
        begun.append(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True))
        assert begun[-1].stdout.readline() == "\n"
        return begun[-1]

    yield stranger
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture
def listening():
    """A TCP socket that listens, as any program's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def port_of(listener) -> int:
    return listener.getsockname()[1]


def expect_refusal(plugin, port, reason) -> None:
    """One line with the reason, exit status 1, and not a byte for the go command."""
    assert plugin.wait() == 1 and plugin.line() is None
    assert plugin.stderr == (
        f"go-cache-plugin: no server on port {port}: {reason};"
        " start one, or give --cache-dir to do without\n"
    )


def expect_direct_mode(plugin, port, reason, cache_dir) -> None:
    """One line with the reason; then the go command is served without a server."""
    plugin.hello()
    plugin.expect_stored(action_id("a"), BODY)
    plugin.finish()
    assert plugin.stderr == (
        f"go-cache-plugin: no server on port {port}: {reason}; serving from {cache_dir}\n"
    )


# -- another user's server -------------------------------------------------------------------------

OF_ANOTHER = (
    f"user {NOBODY} listens there, who is neither root nor the user of this build;"
    " see --allow-other-users"
)
KINDS = [("tcp",), ("unix",), ("unix", "tcp")]


@as_root
@linux_only
@pytest.mark.parametrize("kinds", KINDS, ids=" ".join)
def test_the_server_of_another_user_is_not_used(connect, stranger, kinds):
    """By either way, it gets nothing and the go command hears nothing of it."""
    port = free_port()
    other = stranger(port, *kinds)
    expect_refusal(connect(port), port, OF_ANOTHER)
    if kinds != ("unix", "tcp"):  # else connect leaves its TCP socket alone
        assert other.communicate(timeout=DEADLINE_S)[0] == "b''\n"


@as_root
@linux_only
def test_tcp_is_not_used_beside_the_unix_socket_of_another_user(serve, connect, stranger):
    """Even if the server on the TCP port is the right one."""
    port = free_port()
    stranger(port, "unix")
    serve(port=port)
    expect_refusal(connect(port), port, OF_ANOTHER)


@as_root
@linux_only
def test_direct_mode_in_place_of_another_users_server(connect, stranger, cache_dir):
    port = free_port()
    stranger(port, "tcp")
    plugin = connect(port, f"--cache-dir={cache_dir}")
    expect_direct_mode(plugin, port, OF_ANOTHER, cache_dir)


@as_root
@linux_only
@pytest.mark.parametrize("by", ["flag", "variable"])
def test_another_users_server_is_used_if_that_is_allowed(connect, stranger, by):
    port = free_port()
    stranger(port, "tcp")
    flags = ["--allow-other-users"] if by == "flag" else []
    environ = {"GOCACHE_ALLOW_OTHER_USERS": "1"} if by == "variable" else {}
    plugin = connect(port, *flags, environ=environ).hello()
    plugin.expect_miss(action_id("a"))


# -- what is no server -----------------------------------------------------------------------------

SILENT = "what listens there has not answered within 1 s"


def test_a_port_where_something_else_listens(impatient, listening):
    """A server speaks first; most other programs wait for a request."""
    expect_refusal(impatient(port_of(listening)), port_of(listening), SILENT)


def test_direct_mode_in_place_of_something_else(impatient, listening, cache_dir):
    plugin = impatient(port_of(listening), f"--cache-dir={cache_dir}")
    expect_direct_mode(plugin, port_of(listening), SILENT, cache_dir)


def test_a_port_whose_program_accepts_nothing(impatient):
    """connect itself would wait for two minutes."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        expect_refusal(impatient(port_of(listener)), port_of(listener), SILENT)
        for sock in waiting:
            sock.close()


def test_the_servers_own_http_port(serve, impatient):
    """It is one digit away from the right one."""
    port = free_port()
    serve(f"--http=:{port}")
    assert ask(port, "/healthz")[0] == 200
    expect_refusal(impatient(port), port, SILENT)


def test_a_program_that_speaks_first(connect, listening):
    """Such as sshd: none of it reaches the go command."""
    plugin = connect(port_of(listening))
    sock, _ = listening.accept()
    with sock:
        sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        expect_refusal(plugin, port_of(listening), "what listens there speaks another protocol")


def test_a_connection_that_is_closed_without_a_word(connect, listening):
    plugin = connect(port_of(listening))
    listening.accept()[0].close()
    reason = "it has closed the connection; see its log"
    expect_refusal(plugin, port_of(listening), reason)


def test_a_slow_server_is_waited_for(connect, listening):
    """Its hello line reaches the go command, and what follows."""
    plugin = connect(port_of(listening))
    sock, _ = listening.accept()
    with sock:
        time.sleep(0.3)
        sock.sendall(HELLO)
        plugin.hello()
        number = plugin.get(action_id("a"))
        assert sock.recv(1000)
        sock.sendall(b'{"ID":%d,"Miss":true}\n' % number)
        assert plugin.answer(number)["Miss"]


@linux_only
@pytest.mark.parametrize("is_full", [False, True], ids=["one client", "full backlog"])
def test_a_server_that_takes_no_clients(impatient, is_full):
    """Its process is stopped, say. connect cannot take its offer back, and ends."""
    port = free_port()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(unix_name(port))
        listener.listen(0 if is_full else 5)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as waiting:
            waiting.connect(unix_name(port))
            plugin = impatient(port)
            assert plugin.wait() == 1
    if is_full:
        expect_refusal(plugin, port, "it has taken no client for 1 s; see its log")
    else:
        assert plugin.stderr == (
            f"go-cache-plugin: the server on port {port} has not taken this client within 1 s: it"
            " is stopped, or has as many clients as it can have; see its log\n"
        )


@linux_only
def test_a_long_session_is_not_given_up(serve, impatient):
    """A build may be silent for longer than a server may take to answer."""
    plugin = impatient(serve().port).hello()
    time.sleep(1.3)
    plugin.expect_miss(action_id("a"))
    plugin.finish()


def test_sigterm_ends_the_wait_for_an_answer(connect, listening):
    plugin = connect(port_of(listening))
    with listening.accept()[0]:
        plugin.process.send_signal(signal.SIGTERM)
        assert plugin.wait() == -signal.SIGTERM
