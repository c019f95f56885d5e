"""Ends of a session: signals, stdin that ends without close, and which descriptors stay open."""

import base64
import os
import select
import signal
import subprocess
import time

import pytest

from helpers import DEADLINE_S, PROGRAM, action_id, b64, kill, output_id, temporaries, wait_until

BODY = b"what the build made" * 1000


@pytest.fixture
def uploading(start, fake_s3):
    """A session with one put, whose upload hangs."""
    fake_s3.hold = lambda method, key: method == "PUT"
    plugin = start(*fake_s3.flags()).hello()
    plugin.expect_stored(action_id("a"), BODY)
    wait_until(lambda: fake_s3.held, "the upload")
    return plugin


def interrupt(plugin) -> None:
    """Ctrl-C: SIGINT to the process group."""
    os.killpg(plugin.pid, signal.SIGINT)


def test_after_an_end_without_close_uploads_go_on_with_stdout_and_stderr_closed(
    processes, fake_s3, cache_dir
):
    fake_s3.hold = lambda method, key: method == "PUT"
    process = subprocess.Popen(
        [PROGRAM, f"--cache-dir={cache_dir}", *fake_s3.flags(), "--metrics"],
        env=processes.environ(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    encoded = base64.b64encode(BODY).decode()
    process.stdin.write(
        f'{{"ID":1,"Command":"put","ActionID":"{b64(action_id("a"))}",'
        f'"OutputID":"{b64(output_id(BODY))}","BodySize":{len(BODY)}}}\n\n"{encoded}"\n'.encode()
    )
    process.stdin.flush()
    wait_until(lambda: fake_s3.held, "the upload")
    process.stdin.close()
    texts = []
    for pipe in (process.stdout, process.stderr):
        data = b""
        while True:
            assert select.select([pipe], [], [], DEADLINE_S)[0], "held open"
            piece = os.read(pipe.fileno(), 65536)
            if not piece:
                break
            data += piece
        pipe.close()
        texts.append(data.decode())
    # Both have ended while the upload hangs and the process lives.
    assert process.poll() is None and not fake_s3.objects
    assert texts[0].count("DiskPath") == 1 and "put_requests=1" in texts[1]
    fake_s3.release()
    assert process.wait(DEADLINE_S) == 0
    assert len(fake_s3.objects) == 2


def test_drain_timeout_bounds_an_end_without_close(start, fake_s3):
    fake_s3.hold = lambda method, key: method == "PUT"
    plugin = start(*fake_s3.flags(), "--drain-timeout=100ms").hello()
    plugin.expect_stored(action_id("a"), BODY)
    wait_until(lambda: fake_s3.held, "the upload")
    plugin.end_input()
    assert plugin.wait() == 0 and not fake_s3.objects
    fake_s3.release()  # for the uploader of the rest


@pytest.mark.parametrize("last", ["close", "end"])
def test_after_sigint_the_session_goes_on_and_close_does_not_wait(
    uploading, fake_s3, processes, last
):
    pool = processes.pool()
    interrupt(uploading)
    uploading.expect_hit(action_id("a"), BODY)
    uploading.expect_stored(action_id("b"), b"after the signal")
    assert processes.pool() == pool
    if last == "close":
        uploading.finish()
    else:
        uploading.end_input()
        assert uploading.wait() == 0
    processes.expect_none()
    assert not fake_s3.objects and uploading.stderr == ""


def test_sigint_ends_a_close_that_waits(uploading, fake_s3, processes):
    number = uploading.close()
    assert uploading.silent(0.2)
    interrupt(uploading)
    assert uploading.answer(number) == {"ID": number}
    assert uploading.wait() == 0
    assert not fake_s3.objects


def test_sigint_while_the_pool_starts(start, fake_s3, processes):
    plugin = start(*fake_s3.flags()).hello()
    number = plugin.get(action_id("a"))
    for pid in wait_until(lambda: processes.running("cacheplugin.pool.supervisor"), "the pool"):
        kill(pid, signal.SIGINT)
    assert plugin.answer(number)["Miss"]
    plugin.finish()
    assert plugin.stderr == ""


def test_sigint_in_the_middle_of_a_request_prints_nothing(start, cache_dir):
    plugin = start().hello()
    plugin.begin_put(action_id("a"), output_id(BODY), len(BODY))
    plugin.send(b'"' + base64.b64encode(BODY)[:12000])
    wait_until(lambda: temporaries(cache_dir), "half a body")
    interrupt(plugin)
    plugin.end_input()
    plugin.wait()
    assert plugin.stderr == "" and not temporaries(cache_dir)


def test_sigterm_ends_at_once(uploading, fake_s3, processes, cache_dir):
    uploading.begin_put(action_id("b"), output_id(BODY), len(BODY))
    uploading.send(b'"' + base64.b64encode(BODY)[:12000])
    wait_until(lambda: temporaries(cache_dir), "half a body")
    began = time.monotonic()
    kill(uploading.pid, signal.SIGTERM)
    assert uploading.wait() == 128 + signal.SIGTERM
    assert time.monotonic() - began < 5
    processes.expect_none()
    assert uploading.stderr == "" and not temporaries(cache_dir)


def test_after_the_death_of_the_go_command_no_process_remains(start, fake_s3, processes):
    fake_s3.hold = lambda method, key: method == "GET"
    plugin = start(*fake_s3.flags()).hello()
    plugin.get(action_id("a"))
    wait_until(lambda: fake_s3.held, "the fetch")
    plugin.process.stdout.close()
    plugin.end_input()
    assert plugin.wait() == 0
    processes.expect_none()


def test_a_client_that_reads_late_gets_all_answers(start):
    plugin = start().hello()
    plugin.expect_stored(action_id("a"), BODY)
    numbers = [plugin.get(action_id("a")) for _ in range(2000)]  # more than a pipe holds
    assert all(plugin.answer(number)["Size"] == len(BODY) for number in numbers)
    plugin.finish()
