"""Server mode: clients by every way, what each is told, what they share, and their scopes."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from bundle_sessions import expect_all, keys, put_all, some, take_requests
from helpers import DEADLINE_S, PROGRAM, action_id, counters, wait_until
from server_sessions import ask, free_port, unix_name

pytest_plugins = ["server_fixtures"]

BODY = b"what the build made" * 1000

# -- clients ---------------------------------------------------------------------------------------


def test_a_tcp_client_is_served(serve, tcp, cache_dir):
    """Without connect: the protocol runs on the socket."""
    client = tcp(serve().port).hello()
    client.expect_miss(action_id("a"))
    got = client.expect_stored(action_id("a"), BODY)
    assert got["DiskPath"].startswith(str(cache_dir))
    client.expect_stored(action_id("empty"), b"")
    client.finish()


def test_connect_serves_a_go_command(serve, connect, way):
    """By each way: the hello line, answers, exit status 0 after close, nothing on stderr."""
    server = serve(unix=way == "unix")
    plugin = connect(server.port).hello()
    plugin.expect_miss(action_id("a"))
    plugin.expect_stored(action_id("a"), BODY)
    plugin.expect_stored(action_id("big"), os.urandom(3 << 20))
    plugin.finish()
    assert plugin.stderr == ""
    assert ("no Unix socket" in server.stderr) == (way == "tcp")
    assert "Traceback" not in server.stderr


def test_a_close_request_may_contain_spaces(serve, connect, way):
    """By TCP, connect has to recognise it too."""
    plugin = connect(serve(unix=way == "unix").port).hello()
    plugin.send(b'{"ID": 7, "Command": "close"}\n\n')
    assert plugin.answer(7) == {"ID": 7}
    assert plugin.wait() == 0 and plugin.stderr == ""


def test_clients_share_their_puts(serve, connect, tcp):
    """Each of eight clients gets what the others have put at the same time."""
    server = serve()
    clients = [connect(server.port) for _ in range(4)] + [tcp(server.port) for _ in range(4)]
    puts = {}
    for n, client in enumerate(clients):
        client.hello()
        puts[action_id(n)] = b"body %d" % n * 1000
    numbers = [client.put(*put) for client, put in zip(clients, puts.items())]
    for client, number in zip(clients, numbers):
        client.answer(number)
    for client in clients:
        expect_all(client, puts)
    for client in clients:
        client.finish()
    assert server.stop() == 0


def test_close_ends_one_session_only(serve, connect, tcp, way):
    server = serve(unix=way == "unix")
    stays, goes, other = (
        connect(server.port).hello(),
        connect(server.port).hello(),
        tcp(server.port),
    )
    other.hello()
    goes.expect_stored(action_id("a"), BODY)
    goes.finish()
    stays.expect_hit(action_id("a"), BODY)
    other.expect_hit(action_id("a"), BODY)
    other.finish()
    stays.expect_hit(action_id("a"), BODY)
    stays.finish()


def test_an_end_without_close_is_not_an_error(serve, connect, way):
    """A go command may be killed between two requests."""
    server = serve(unix=way == "unix")
    plugin = connect(server.port).hello()
    plugin.expect_stored(action_id("a"), BODY)
    plugin.end_input()
    assert plugin.wait() == 0 and plugin.line() is None and plugin.stderr == ""


def test_an_end_in_the_middle_of_a_request_leaves_no_file(serve, connect, way, cache_dir):
    server = serve(unix=way == "unix")
    plugin = connect(server.port).hello()
    plugin.begin_put(action_id("a"), action_id("b"), 1000)
    plugin.send(b'"AAAA')
    wait_until(lambda: list(cache_dir.glob("tmp/*")), "the temporary file")
    plugin.end_input()
    assert plugin.wait() == (1 if way == "unix" else 0) and plugin.line() is None
    assert not list(cache_dir.glob("tmp/*"))
    assert len(plugin.stderr.splitlines()) == (way == "unix")


def test_input_that_is_not_the_protocol_is_one_line_and_exit_1(serve, connect, way):
    server = serve(unix=way == "unix")
    plugin = connect(server.port).hello()
    plugin.send(b"GET / HTTP/1.1\r\n\r\n")
    assert plugin.wait() == 1 and plugin.line() is None
    (line,) = plugin.stderr.splitlines()
    assert line.startswith("go-cache-plugin: ")
    assert ("expected a JSON object" in line) == (way == "unix")
    server.says("a session failed: expected a JSON object")


def test_requests_before_a_close_are_answered(serve, connect, tcp):
    """Also if the client sends all in one piece and reads the answers later."""
    server = serve()
    for client in (connect(server.port).hello(), tcp(server.port).hello()):
        client.expect_stored(action_id("a"), BODY)
        numbers = [client.get(action_id("a")) for _ in range(2000)]
        client.close()
        assert all(client.answer(number)["Size"] == len(BODY) for number in numbers)
        client.kill()


def test_metrics_of_connect_are_those_of_its_session(serve, connect):
    """They are printed on its own stderr."""
    server = serve("--metrics")
    quiet = connect(server.port).hello()
    quiet.expect_stored(action_id("a"), BODY)
    plugin = connect(server.port, "--metrics").hello()
    plugin.expect_hit(action_id("a"), BODY)
    plugin.expect_miss(action_id("b"))
    assert plugin.finish() == {
        "get_requests": 2,
        "get_hits": 1,
        "get_hit_bytes": len(BODY),
        "get_misses": 1,
        "get_local_hit": 1,
    }
    assert quiet.finish() == {}
    assert server.stop() == 0
    total = counters(server.stderr)
    assert (total["get_requests"], total["put_requests"]) == (3, 1)


def test_each_session_is_a_line_of_the_session_log(serve, connect, tcp, cache_dir):
    server = serve()
    for client in (connect(server.port).hello(), tcp(server.port).hello()):
        client.expect_stored(action_id("a"), BODY)
        client.finish()
    log = cache_dir / "sessions.jsonl"
    wait_until(lambda: len(log.read_text().splitlines()) == 2, "two lines")
    for line in log.read_text().splitlines():
        assert json.loads(line)["puts"] == json.loads(line)["gets"] == 1


def test_a_direct_session_beside_a_server_sees_the_same_store(serve, connect, start):
    plugin, direct = connect(serve().port).hello(), start().hello()
    plugin.expect_stored(action_id("a"), BODY)
    direct.expect_hit(action_id("a"), BODY)
    direct.expect_stored(action_id("b"), b"of direct mode")
    plugin.expect_hit(action_id("b"), b"of direct mode")
    direct.finish()
    plugin.finish()


# -- without a server ------------------------------------------------------------------------------


def test_connect_without_a_server_is_one_line_and_exit_1(connect):
    port = free_port()
    plugin = connect(port)
    assert plugin.wait() == 1 and plugin.line() is None
    assert plugin.stderr == (
        f"go-cache-plugin: no server on port {port}: connection refused;"
        " start one, or give --cache-dir to do without\n"
    )


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_connect_with_a_cache_directory_serves_without_a_server(connect, cache_dir, by):
    """It serves by itself, after one line on stderr."""
    port = free_port()
    flags = [f"--cache-dir={cache_dir}"] if by == "flag" else []
    environ = {"GOCACHE_DIR": str(cache_dir)} if by == "variable" else {}
    plugin = connect(port, *flags, environ=environ).hello()
    plugin.expect_stored(action_id("a"), BODY)
    plugin.finish()
    assert plugin.stderr == (
        f"go-cache-plugin: no server on port {port}: connection refused; serving from {cache_dir}\n"
    )
    assert (cache_dir / "output").is_dir()


def run(processes, *argv, **environ):
    return subprocess.run(
        [PROGRAM, *argv],
        env=processes.environ(**environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["connect"],
        ["connect", "x"],
        ["connect", "0"],
        ["connect", "65536"],
        ["connect", "-1"],
        ["connect", "1", "2"],
        ["connect", "²"],
        ["connect", ""],
        ["connect", "999999"],
        ["connect", "--plugin=1234", "1234"],
        ["serve"],
        ["serve", "--plugin=x"],
        ["serve", "--plugin=0"],
        ["serve", "--plugin=65536"],
        ["serve", "--plugin=1234", "more"],
        ["serve", "--plugin=1234", "--http=8080"],
        ["serve", "--plugin=1234", "--http=:x"],
        ["serve", "--plugin=1234", "--http=host.invalid:80"],
        ["serve", "--http=:1234"],
        ["serve", "--plugin=1234", "--idle-exit=soon"],
        ["--plugin=1234"],
        ["serve", "--plugin=1234", "--cache-dir=/dev/null"],
        ["serve", "--plugin=1234", "--revproxy=x"],
    ],
    ids=" ".join,
)
def test_a_usage_error_is_one_line_and_exit_2(processes, argv):
    done = run(processes, *argv)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "go-cache-plugin: " in line


@pytest.mark.parametrize("flag", ["--plugin", "--http"])
def test_a_port_in_use_is_one_line_and_exit_2(processes, cache_dir, flag):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"--plugin": free_port(), "--http": f":{free_port()}"}
        number = taken.getsockname()[1]
        ports[flag] = number if flag == "--plugin" else f":{number}"
        argv = [f"{name}={value}" for name, value in ports.items()]
        done = run(processes, "serve", f"--cache-dir={cache_dir}", *argv)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == (
        f"go-cache-plugin: {flag}: cannot listen on 127.0.0.1 port {number}: address already in use"
    )


def test_idle_exit_ends_a_server_without_clients(serve, connect, cache_dir):
    """The exit status is 0; the time counts from the end of the last client."""
    server = serve("--idle-exit=700ms")
    plugin = connect(server.port).hello()
    time.sleep(1)  # longer than --idle-exit
    plugin.expect_stored(action_id("a"), BODY)
    plugin.finish()
    begin = time.monotonic()
    assert server.wait() == 0 and time.monotonic() - begin > 0.4
    server.says("no client for 0.7 s")


# -- the bucket ------------------------------------------------------------------------------------


def flags_of(fake_s3, layout="objects"):
    return fake_s3.flags(layout=layout)


@pytest.mark.parametrize("layout", ["objects", "bundles"])
def test_another_machine_hits_the_uploads_of_a_server(
    serve, connect, tcp, fake_s3, tmp_path, layout
):
    """By connect and by TCP; the session of connect counts them as S3 hits."""
    puts = some(8)
    first = serve(*flags_of(fake_s3, layout), "--scope=ours", cache_dir=tmp_path / "a")
    put_all(plugin := connect(first.port).hello(), puts)
    plugin.finish()
    assert first.stop() == 0  # it has uploaded everything
    second = serve(*flags_of(fake_s3, layout), "--scope=ours", cache_dir=tmp_path / "b")
    plugin = connect(second.port, "--metrics").hello()
    expect_all(plugin, puts)
    assert plugin.finish()["get_fault_hit"] == len(puts)
    client = tcp(second.port).hello()
    expect_all(client, puts)
    client.finish()
    take_requests(fake_s3)
    assert second.stop() == 0


def manifests(fake_s3) -> list:
    """The scopes that have manifests, as their keys name them."""
    return sorted({key.split("/")[1] for key in keys(fake_s3, "manifest")})


def module(path, name):
    """A directory with a go.mod, from which connect derives a scope."""
    path.mkdir()
    (path / "go.mod").write_text(f"module example.com/{name}\n")
    return path


def session(client, word) -> None:
    """Put some entries and close."""
    put_all(client, some(3, word))
    client.finish()


def test_connects_in_two_modules_leave_manifests_of_two_scopes(
    serve, connect, tcp, fake_s3, tmp_path, way
):
    """By the Unix socket. Clients by TCP, connect among them, have the server's own scope."""
    ours, theirs = module(tmp_path / "ours", "ours"), module(tmp_path / "theirs", "theirs")
    server = serve(*flags_of(fake_s3, "bundles"), unix=way == "unix", cwd=ours)
    session(tcp(server.port).hello(), "tcp")
    wait_until(lambda: len(manifests(fake_s3)) == 1, "the server's own scope")
    session(connect(server.port, cwd=ours).hello(), "ours")
    session(connect(server.port, cwd=theirs).hello(), "theirs")
    assert server.stop() == 0
    assert len(manifests(fake_s3)) == (2 if way == "unix" else 1)
    other = serve(*flags_of(fake_s3, "bundles"), cache_dir=tmp_path / "other", cwd=ours)
    client = tcp(other.port).hello()
    expect_all(client, some(3, "tcp") | some(3, "ours"))
    if way == "unix":
        client.expect_miss(action_id("theirs 1"))
    client.finish()


def test_the_servers_scope_overrides_a_derived_scope_but_not_a_given_one(
    serve, connect, start, fake_s3, tmp_path
):
    there = module(tmp_path / "there", "there")
    server = serve(*flags_of(fake_s3, "bundles"), "--scope=server")
    session(connect(server.port, cwd=there).hello(), "derived")
    wait_until(lambda: len(manifests(fake_s3)) == 1, "the server's scope")
    session(connect(server.port, "--scope=told", cwd=there).hello(), "told")
    session(connect(server.port, environ={"GOCACHE_SCOPE": "by variable"}).hello(), "variable")
    assert server.stop() == 0
    assert len(manifests(fake_s3)) == 3
    for name in ("server", "told", "by variable"):  # direct mode uses the same keys
        other = start(
            *flags_of(fake_s3, "bundles"), f"--scope={name}", cache_dir=tmp_path / name
        ).hello()
        session(other, name)
    assert len(manifests(fake_s3)) == 3


def test_close_does_not_wait_for_uploads(serve, connect, tcp, fake_s3):
    """They go on after the client has gone."""
    fake_s3.hold = lambda method, key: method == "PUT"
    server = serve(*flags_of(fake_s3))
    for n, client in enumerate([connect(server.port).hello(), tcp(server.port).hello()]):
        client.expect_stored(action_id(n), BODY + bytes([n]))
        client.finish()
    wait_until(lambda: fake_s3.held == 2, "the uploads")
    assert not fake_s3.objects
    fake_s3.release()
    wait_until(lambda: len(fake_s3.objects) == 4, "all uploads")


def test_an_unusable_bucket_breaks_no_session(serve, connect, tcp, fake_s3):
    fake_s3.fail("403")
    server = serve(*flags_of(fake_s3))
    for n in range(3):
        for client in (connect(server.port).hello(), tcp(server.port).hello()):
            client.expect_miss(action_id("nowhere"))
            client.expect_stored(action_id(n), BODY)
            client.finish()
    assert server.stop() == 0


# -- the service manager ---------------------------------------------------------------------------

ACTIVATE = """
import fcntl, os, sys
fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[1].split(",")]
for at, fd in enumerate(fds):
    os.dup2(fd, 3 + at)
os.environ |= {"LISTEN_FDS": str(len(fds)), "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture
def activate(serve):
    """activate(*flags, sockets, names, **serve's): a server that inherits listening sockets."""

    def activate(*flags, sockets, names="", port=None, **more):
        fds = [sock.fileno() for sock in sockets]
        wrapper = [sys.executable, "-c", ACTIVATE, ",".join(map(str, fds))]
        return serve(
            *flags,
            plugin=False,
            program=wrapper,
            pass_fds=fds,
            port=port,
            environ={"LISTEN_FDNAMES": names},
            **more,
        )

    return activate


def test_notifications_of_readiness_and_stopping(serve, connect, tmp_path):
    """sd_notify: READY=1 once clients are served, STOPPING=1 once no more are accepted."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(DEADLINE_S)
        server = serve(environ={"NOTIFY_SOCKET": path}, ready=False)
        assert manager.recv(100) == b"READY=1"
        plugin = connect(server.port).hello()
        server.signal(15)
        assert manager.recv(100) == b"STOPPING=1"
        plugin.finish()
        assert server.wait() == 0


def test_passed_listeners_are_used(activate, connect, tcp):
    """One for go commands, one named "http"; the Unix socket is made for the TCP port."""
    with (
        socket.create_server(("127.0.0.1", 0)) as go,
        socket.create_server(("127.0.0.1", 0)) as web,
    ):
        port = go.getsockname()[1]
        server = activate(sockets=[go, web], names="go:http", port=port)
        tcp(port).hello().finish()
        connect(port).hello().finish()
        server.says(f"Unix socket @go-cache-plugin-{port}")
        assert ask(web.getsockname()[1], "/healthz")[0] == 200
        assert server.stop() == 0
        with socket.create_connection(("127.0.0.1", port)):  # the manager's socket still listens
            pass


def test_a_passed_unix_socket_alone_serves_connect(activate, connect):
    port = free_port()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(unix_name(port))
        listener.listen()
        activate(sockets=[listener], port=port)
        connect(port).hello().finish()


def test_a_passed_socket_of_both_families_serves_ipv4_and_ipv6(activate, tcp):
    """systemd passes such a socket for ListenStream=PORT."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6")
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as go:
        port = go.getsockname()[1]
        activate(sockets=[go], port=port)
        tcp(port).hello().finish()
        tcp(port, host="::1").hello().finish()


def test_a_socket_that_does_not_listen_is_refused(activate, tmp_path):
    with socket.socket() as sock:
        server = activate(sockets=[sock], ready=False)
        assert server.wait() == 2
    assert "descriptor 3" in server.stderr
