"""--http: health and metrics, served by the HTTP process."""

import json
import os
import re
import socket

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cacheplugin.breaker import FAILURES_TO_OPEN
from cacheplugin.metrics import Counters
from helpers import DEADLINE_S, action_id, wait_until
from server_sessions import ask, ends, free_port

pytest_plugins = ["server_fixtures"]

BODY = b"what the build made" * 1000


@pytest.fixture
def http_port():
    return free_port()


def metrics(port) -> dict:
    """The samples of /metrics: {name with labels: value}."""
    status, headers, text = ask(port)
    assert status == 200 and headers["Content-Type"].startswith("text/plain")
    return {
        sample.name
        + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_client_is_counted(serve, tcp, http_port):
    """During its session and afterwards, in both formats."""
    server = serve(f"--http=:{http_port}")
    client = tcp(server.port).hello()
    client.expect_miss(action_id("a"))
    client.expect_stored(action_id("b"), BODY)
    during = metrics(http_port)
    client.finish()
    wait_until(lambda: metrics(http_port)["gocache_sessions"] == 0, "the end of the session")
    after = metrics(http_port)
    assert during["gocache_sessions"] == 1
    for found in (during, after):
        assert found["gocache_get_requests_total"] == 2 and found["gocache_get_misses_total"] == 1
        assert found["gocache_get_hits_total source=local"] == 1
        assert found["gocache_put_bytes_total"] == len(BODY)
        assert found["gocache_get_seconds_count source=local"] == 1
        assert found["gocache_sessions_begun_total way=tcp"] == 1
    status, headers, text = ask(http_port, "/debug/vars")
    assert status == 200 and headers["Content-Type"].startswith("application/json")
    variables = json.loads(text)
    for group, names in Counters().as_dict().items():
        assert variables[group].keys() == names.keys()
    assert variables["gocache_server"]["get_requests"] == 2


def test_metrics_of_the_pool(serve, tcp, http_port, fake_s3):
    """With a bucket there are its tasks, its breakers, and the entries in the spool."""
    fake_s3.hold = lambda method, key: method == "PUT"
    server = serve(*fake_s3.flags(), f"--http=:{http_port}")
    client = tcp(server.port).hello()
    client.expect_stored(action_id("a"), BODY)
    client.finish()
    wait_until(lambda: fake_s3.held, "an upload")
    found = metrics(http_port)
    assert found["gocache_pool_workers"] >= 1 and found["gocache_bucket_usable"] == 1
    assert found["gocache_pool_running direction=upload"] == 1
    assert found["gocache_breaker_state direction=fetch"] == 0
    assert found["gocache_spool_entries"] == 1 and found["gocache_uploads_pending"] == 1
    fake_s3.release()
    wait_until(lambda: metrics(http_port)["gocache_uploads_pending"] == 0, "the upload")
    assert metrics(http_port)["gocache_upload_seconds_count"] == 1
    assert metrics(http_port)["gocache_uploads_total result=sent"] == 1


def test_health(serve, tcp, http_port):
    """200 while the server serves, 503 while it stops."""
    server = serve(f"--http=127.0.0.1:{http_port}")
    client = tcp(server.port).hello()
    assert ask(http_port, "/healthz")[0] == 200
    assert ask(http_port, "/healthz", method="HEAD")[0] == 200
    server.signal(15)
    server.says("stopping")
    assert ask(http_port, "/healthz")[0] == 503
    client.finish()
    assert server.wait() == 0


def s3_state(port) -> tuple:
    """The second line of /healthz, and the state of S3 in /metrics with its seconds."""
    status, _, text = ask(port, "/healthz")
    first, second = text.splitlines()
    assert status == 200 and first == "ok"
    found = metrics(port)
    states = [
        state for state in ("good", "off", "unused") if found[f"gocache_s3_state state={state}"]
    ]
    return second, states, found["gocache_s3_off_seconds"]


def test_without_a_bucket_s3_is_unused(serve, http_port):
    serve(f"--http=:{http_port}")
    assert s3_state(http_port) == ("s3: unused", ["unused"], 0)


@pytest.mark.parametrize("layout", ["objects", "bundles"])
def test_the_state_of_s3(serve, tcp, http_port, fake_s3, layout):
    """It is good once S3 has answered, and the server is healthy whatever S3 does."""
    server = serve(*fake_s3.flags(layout=layout), f"--http=:{http_port}")
    assert s3_state(http_port) == ("s3: unused", ["unused"], 0)
    tcp(server.port).hello().expect_miss(action_id("a"))
    assert s3_state(http_port) == ("s3: good", ["good"], 0)


@pytest.mark.parametrize("layout", ["objects", "bundles"])
@pytest.mark.parametrize("fault", ["refuse", "403", "503"])
def test_s3_that_never_answers_is_off(serve, tcp, http_port, fake_s3, layout, fault):
    """After the first get already."""
    fake_s3.fail(fault)
    server = serve(*fake_s3.flags(layout=layout), f"--http=:{http_port}")
    tcp(server.port).hello().expect_miss(action_id("a"))
    line, states, _ = s3_state(http_port)
    assert re.fullmatch(r"s3: off for \d+ s", line) and states == ["off"]


def test_s3_that_fails_later_is_off(serve, tcp, http_port, fake_s3):
    """Once it has failed so often that it is not asked."""
    server = serve(*fake_s3.flags(layout="objects"), f"--http=:{http_port}")
    client = tcp(server.port).hello()
    client.expect_miss(action_id("a"))
    fake_s3.fail("503")
    for number in range(FAILURES_TO_OPEN):
        client.expect_miss(action_id(number))
    line, states, seconds = s3_state(http_port)
    assert re.fullmatch(r"s3: off for \d+ s", line) and states == ["off"] and seconds > 0


def test_a_server_that_does_not_answer_is_not_healthy(serve, http_port):
    """The HTTP process answers 503 while the server is stopped by SIGSTOP."""
    server = serve(f"--http=:{http_port}")
    assert ask(http_port, "/healthz")[0] == 200
    server.signal(19)  # SIGSTOP
    assert ask(http_port, "/healthz")[0] == 503
    server.signal(18)  # SIGCONT
    wait_until(lambda: ask(http_port, "/healthz")[0] == 200, "the server's answers")


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/", 404),
        ("GET", "/mod/example.com/@v/list", 404),
        ("POST", "/metrics", 405),
        ("GET", "http://example.com/", 502),
        ("CONNECT", "example.com:443", 502),
    ],
)
def test_requests_that_are_refused(serve, http_port, method, path, status):
    """404 for an unknown path, 405 for the method, 502 for a proxy request; others are served."""
    serve(f"--http=:{http_port}")
    with socket.create_connection(("127.0.0.1", http_port), DEADLINE_S) as client:
        client.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.recv(12) == b"HTTP/1.1 %d" % status
    assert ask(http_port, "/healthz")[0] == 200


def test_a_request_of_random_bytes(serve, http_port):
    """The connection is closed, and other requests are served."""
    serve(f"--http=:{http_port}")
    with socket.create_connection(("127.0.0.1", http_port), DEADLINE_S) as client:
        client.sendall(os.urandom(1 << 16) + b"\r\n\r\n")
        assert ends(client)
    assert ask(http_port, "/healthz")[0] == 200


def test_a_port_without_a_host_is_on_the_loopback_address(serve, http_port):
    """The same port is still free on other addresses."""
    serve(f"--http=:{http_port}").says(f"HTTP on 127.0.0.1:{http_port}")
    with socket.socket() as other:
        other.bind(("127.0.0.2", http_port))
