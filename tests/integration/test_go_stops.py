"""Ctrl-C during go commands, and shells that wait for the output of one."""

import os
import signal
import subprocess

import pytest

from helpers import GO_TIMEOUT_S, wait_until

LONG_TEST = """package words

import (
	"os"
	"testing"
	"time"
)

func TestLong(t *testing.T) {
	if err := os.WriteFile(os.Getenv("STARTED"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Minute)
}
"""


def interrupt(process) -> None:
    """Press Ctrl-C: SIGINT for the process group. The go command fails without noise."""
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=GO_TIMEOUT_S)
    assert process.returncode != 0
    for word in ("broken pipe", "pre-Close", "Traceback", "KeyboardInterrupt"):
        assert word not in stdout + stderr


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_ctrl_c_in_go_build(go_with_std, fake_s3, method):
    """While a get waits for S3, and while close waits for uploads."""
    fake_s3.hold = lambda method_, key: method_ == method
    go = go_with_std
    go.plugin = fake_s3.flags()
    build = go.start("build", "./...", start_new_session=True)
    wait_until(lambda: fake_s3.held, "a request to S3")
    interrupt(build)
    go.processes.expect_none()
    assert not fake_s3.objects
    fake_s3.release()
    go.build()  # the next build is not affected


def test_ctrl_c_in_a_compilation_of_go_build(go):
    build = go.start("build", "./...", start_new_session=True)
    wait_until(lambda: list(go.cache_dir.glob("output/*/*")), "the first outputs")
    interrupt(build)
    go.processes.expect_none()


def test_ctrl_c_in_go_test(go_with_test_std, fake_s3, tmp_path):
    go = go_with_test_std
    (go.module / "words" / "words_test.go").write_text(LONG_TEST)
    fake_s3.hold = lambda method, key: method == "PUT"
    go.plugin = fake_s3.flags()
    started = tmp_path / "started"
    environ = {**go.environ(), "STARTED": str(started)}
    test = subprocess.Popen(
        ["go", "test", "./words"],
        cwd=go.module,
        env=environ,
        text=True,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_until(started.exists, "the test")
    interrupt(test)
    go.processes.expect_none()


@pytest.mark.parametrize("command", ["list -export", "build"])
def test_a_shell_does_not_wait_for_uploads_after_the_go_command(go_with_std, fake_s3, command):
    """out=$(go ... 2>&1) returns while uploads still wait for S3."""
    fake_s3.hold = lambda method, key: method == "PUT"
    go = go_with_std
    go.plugin = fake_s3.flags()
    if command == "build":
        go.plugin.append("--drain-timeout=200ms")  # else the go command itself waits, in close
    done = subprocess.run(
        ["sh", "-c", f"out=$(go {command} ./... 2>&1) && echo done"],
        cwd=go.module,
        env=go.environ(),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout == "done\n"
    assert not fake_s3.objects and fake_s3.count("PUT")
    if command != "build":
        assert go.processes.pool()  # it still uploads, and does not hold the pipe of the shell
    fake_s3.release()
    go.processes.expect_none()
    assert fake_s3.objects or command == "build"
