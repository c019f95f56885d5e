"""The end of a server: signals and time-outs; and the death of each kind of process."""

import base64
import signal
import sys
import time

import pytest

from bundle_sessions import expect_all, put_all, some
from cacheplugin.store.spool import count_pending
from cacheplugin.store.tree import Store
from helpers import action_id, kill, output_id, temporaries, wait_until
from server_sessions import ask, free_port, web_process

pytest_plugins = ["server_fixtures"]

BODY = b"what the build made" * 1000
CUT_OFF = "the server is stopping, and --stop-timeout is over; run the build again"


def lost(server) -> str:
    """What connect prints when the connection ends without an exit status."""
    return (
        f"go-cache-plugin: the server on port {server.port} has closed the connection; see its log"
    )


@pytest.fixture
def flush(flush_of):
    """flush(): run the command on the cache directory: (exit status, uploaded, remaining)."""
    return lambda: flush_of("cache")


@pytest.fixture
def holding(serve, fake_s3):
    """A server whose uploads do not end."""
    fake_s3.hold = lambda method, key: method == "PUT"
    return serve(*fake_s3.flags(), "--http=127.0.0.1:" + str(free_port()))


def refuses(tcp, port) -> bool:
    """Whether no connection to a port is accepted."""
    try:
        tcp(port).kill()
        return False
    except ConnectionRefusedError:
        return True


# -- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_after_a_signal_clients_finish_and_uploads_are_flushed(
    serve, connect, tcp, fake_s3, processes, number
):
    """No new client is accepted. The exit status is 0, and no process is left."""
    fake_s3.hold = lambda method, key: method == "PUT"
    server = serve(*fake_s3.flags())
    clients = [connect(server.port).hello(), tcp(server.port).hello()]
    for n, client in enumerate(clients):
        client.expect_stored(action_id(n), BODY + b"%d" % n)
    server.signal(number)
    server.says("stopping")
    wait_until(lambda: refuses(tcp, server.port), "the end of the TCP listener")
    late = connect(server.port)
    assert late.wait() == 1 and "no server on port" in late.stderr
    for n, client in enumerate(clients):
        client.expect_hit(action_id(n), BODY + b"%d" % n)
        client.expect_stored(action_id(f"late {n}"), BODY + b"late %d" % n)
        client.finish()
    wait_until(lambda: fake_s3.held == 4, "the uploads")
    assert server.process.poll() is None and not fake_s3.objects
    fake_s3.release()
    assert server.wait() == 0
    assert len(fake_s3.objects) == 8
    processes.expect_none()


# The program, whose loop has a short time to act on SIGTERM. Before its arguments is its path.
HASTY = """
import sys
from cacheplugin import main
from cacheplugin.front import front
front.STUCK_S = 0.3
del sys.argv[1]
main.main()
"""


def test_a_server_that_acts_on_sigterm_may_take_longer(serve, tcp):
    """Only one whose loop is stuck is ended before its clients have finished."""
    server = serve(program=(sys.executable, "-c", HASTY))
    client = tcp(server.port).hello()
    server.signal(signal.SIGTERM)
    server.says("stopping")
    time.sleep(0.9)
    client.expect_miss(action_id("a"))
    client.finish()
    assert server.wait() == 0


def test_sigterm_without_clients_ends_at_once(serve, processes):
    server = serve(f"--http=:{free_port()}")
    begin = time.monotonic()
    assert server.stop() == 0 and time.monotonic() - begin < 2
    processes.expect_none()


def test_drain_timeout_bounds_the_wait_for_uploads(serve, connect, fake_s3, flush, cache_dir):
    """The rest is logged as a warning and stays in the spool."""
    fake_s3.hold = lambda method, key: method == "PUT"
    server = serve(*fake_s3.flags(), "--drain-timeout=300ms")
    put_all(plugin := connect(server.port).hello(), {action_id("a"): BODY})
    plugin.finish()
    assert server.stop() == 0
    server.says("1 uploads not finished within --drain-timeout")
    assert count_pending(Store(str(cache_dir))) == 1
    fake_s3.release()
    assert flush() == (0, 1, 0)


def test_stop_timeout_ends_clients_that_do_not_finish(serve, connect, tcp, cache_dir, way):
    """Each connect prints a line on stderr, and no temporary file is left."""
    server = serve("--stop-timeout=300ms", unix=way == "unix")
    plugin, client = connect(server.port).hello(), tcp(server.port).hello()
    plugin.expect_stored(action_id("a"), BODY)
    client.begin_put(action_id("b"), output_id(BODY), len(BODY))
    client.send(b'"' + base64.b64encode(BODY)[:12000])
    wait_until(lambda: temporaries(cache_dir), "half a body")
    assert server.stop() == 0
    assert plugin.wait() == 1 and plugin.line() is None and client.is_given_up()
    (line,) = plugin.stderr.splitlines()
    if way == "unix":
        assert line == f"go-cache-plugin: {CUT_OFF}"
    else:
        assert line == lost(server)
    assert not temporaries(cache_dir)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_at_once_and_loses_nothing(
    holding, connect, tcp, fake_s3, flush, cache_dir, processes, number
):
    """Entries that were not uploaded are in the spool, and a flush uploads them."""
    first, second = connect(holding.port).hello(), connect(holding.port).hello()
    first.expect_stored(action_id("a"), BODY)
    first.finish()
    second.expect_stored(action_id("b"), BODY * 2)
    wait_until(lambda: fake_s3.held == 2, "the uploads")
    holding.signal(number)
    holding.says("stopping")
    begin = time.monotonic()
    assert holding.stop(number) == 128 + number and time.monotonic() - begin < 3
    assert second.wait() == 1 and len(second.stderr.splitlines()) == 1
    processes.expect_none()
    assert count_pending(Store(str(cache_dir))) == 2 and not fake_s3.objects
    fake_s3.release()
    assert flush() == (0, 2, 0)
    assert len(fake_s3.objects) == 4


# -- SIGKILL of the server -------------------------------------------------------------------------


def test_connect_ends_when_the_server_is_killed(serve, connect, way, processes):
    """Promptly, with one line on stderr and exit status 1; the go command's stdin ends."""
    server = serve(f"--http=:{free_port()}", unix=way == "unix")
    plugin = connect(server.port).hello()
    plugin.expect_stored(action_id("a"), BODY)
    begin = time.monotonic()
    server.kill()
    assert plugin.wait() == 1 and plugin.line() is None
    assert time.monotonic() - begin < 2
    assert plugin.stderr == f"{lost(server)}\n"
    processes.expect_none()


def test_the_next_server_serves_at_once_and_uploads_the_spool_of_a_killed_one(
    holding, serve, connect, tcp, fake_s3, cache_dir
):
    """On the same port and directory, while a client of the killed server still lives."""
    puts = some(5)
    plugin, client = connect(holding.port).hello(), tcp(holding.port).hello()
    put_all(plugin, puts)
    client.expect_stored(action_id("tcp"), BODY)
    wait_until(lambda: fake_s3.held, "an upload")
    holding.kill()
    server = serve(*fake_s3.flags(), port=holding.port)
    again = connect(server.port).hello()
    expect_all(again, puts | {action_id("tcp"): BODY})
    again.finish()
    assert count_pending(Store(str(cache_dir))) == 6
    fake_s3.release()
    wait_until(lambda: not count_pending(Store(str(cache_dir))), "an empty spool")
    for action in [*puts, action_id("tcp")]:
        assert f"action/{action[:2]}/{action}" in fake_s3.objects


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_the_next_server_has_the_http_port_at_once(serve, number):
    """Although the HTTP process of the server before may live for a moment."""
    flag = f"--http=:{free_port()}"
    server = serve(flag)
    for _ in range(3):
        assert ask(int(flag[8:]), "/healthz")[0] == 200
        server.stop(number)
        server = serve(flag, port=server.port)


def test_a_put_interrupted_by_a_kill_leaves_no_entry(serve, connect, cache_dir):
    server = serve()
    plugin = connect(server.port).hello()
    plugin.begin_put(action_id("a"), output_id(BODY), len(BODY))
    plugin.send(b'"' + base64.b64encode(BODY)[:12000])
    wait_until(lambda: [p for p in cache_dir.glob("tmp/*") if p.stat().st_size], "half a body")
    server.kill()
    assert plugin.wait() == 1
    plugin = connect(serve(port=server.port).port).hello()
    plugin.expect_miss(action_id("a"))
    plugin.expect_stored(action_id("a"), BODY)
    plugin.finish()


# -- SIGKILL of others -----------------------------------------------------------------------------


def test_killing_connect_ends_its_session_alone(serve, connect, cache_dir, way):
    """The go command's stdin ends, and the put under way is dropped."""
    server = serve(unix=way == "unix")
    victim, other = connect(server.port).hello(), connect(server.port).hello()
    victim.expect_stored(action_id("a"), BODY)
    victim.begin_put(action_id("b"), output_id(BODY), len(BODY))
    victim.send(b'"' + base64.b64encode(BODY)[:12000])
    wait_until(lambda: temporaries(cache_dir), "half a body")
    kill(victim.pid)
    assert victim.line() is None
    wait_until(lambda: not temporaries(cache_dir), "the end of the session")
    other.expect_hit(action_id("a"), BODY)
    other.finish()
    server.says("a session failed: ")


def test_dead_clients_leave_no_descriptor_open(serve, connect, tcp):
    """The server closes the descriptors of go commands that die with their connect."""
    server = serve()
    tcp(server.port).hello().finish()
    before = wait_until(server.descriptors, "a number")
    for _ in range(5):
        plugin = connect(server.port).hello()
        plugin.get(action_id("a"))
        plugin.kill()
    wait_until(lambda: server.descriptors() <= before, "their end")


@pytest.mark.parametrize("victims", ["workers", "pool"])
def test_a_killed_worker_or_pool_harms_no_session(serve, connect, tcp, fake_s3, processes, victims):
    """The fetch under way is a miss, the upload is repeated, hits go on."""
    fake_s3.hold = lambda method, key: method == "PUT" or key.endswith(action_id("missed"))
    server = serve(*fake_s3.flags())
    plugin, client = connect(server.port).hello(), tcp(server.port).hello()
    plugin.expect_stored(action_id("a"), BODY)
    number = client.get(action_id("missed"))
    wait_until(lambda: fake_s3.held == 2, "an upload and a fetch")
    for pid in getattr(processes, victims)():
        kill(pid)
    assert client.answer(number)["Miss"]
    for one in (plugin, client):
        one.expect_hit(action_id("a"), BODY)
    fake_s3.release()
    for n, one in enumerate((plugin, client)):
        one.expect_stored(action_id(n), BODY + bytes([n]))
        one.finish()
    assert server.stop() == 0
    assert len(fake_s3.objects) == 6


def test_the_http_process_is_restarted_on_the_same_port(serve, tcp, processes):
    """Each time that it dies; go commands do not notice."""
    port = free_port()
    server = serve(f"--http=127.0.0.1:{port}")
    client = tcp(server.port).hello()
    for restarts in range(1, 3):
        assert ask(port, "/healthz")[0] == 200
        victim = web_process(processes)
        kill(victim)
        client.expect_stored(action_id(restarts), BODY)
        assert ask(port, "/healthz")[0] == 200  # the connection waits in the backlog
        assert web_process(processes) != victim
        assert f"gocache_http_restarts_total {restarts}.0" in ask(port)[2]
    client.finish()
    assert server.stop() == 0
    processes.expect_none()
