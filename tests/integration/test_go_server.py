"""The real go command with ``connect`` and a server: build, test, vet, kills, shutdown."""

import os
import shutil
import signal
import subprocess

import pytest

from helpers import PROGRAM, counters, kill, wait_until, write_module
from server_sessions import Server, free_port, hold_unix_name

# It imports only packages of std_cache: package os alone takes seconds to compile.
MAIN = """package main

import "example.com/tool/words/number"

func main() { print(number.Text(NUMBER)) }
"""


class Served:
    """A Go that uses a server on its cache directory; ``way``: how connect reaches it."""

    def __init__(self, go, way="unix") -> None:
        self.go = go
        self._holder = None
        self.port = free_port()
        if way == "tcp":
            self._holder = hold_unix_name(self.port)
        self._servers = []

    def serve(self, *flags, cache_dir=None) -> Server:
        """Start a server. The previous one must have ended."""
        server = Server(
            [f"--cache-dir={cache_dir or self.go.cache_dir}", f"--plugin={self.port}", *flags],
            self.go.processes.environ(),
            self.go.module.parent / f"serve-{len(self._servers)}",
            self.port,
        )
        self._servers.append(server)
        return server.ready()

    def environ(self, **more) -> dict:
        environ = self.go.environ(**more)
        return environ | {"GOCACHEPROG": f"{PROGRAM} connect --metrics {self.port}"}

    def start(self, *argv, cwd=None, **environ) -> subprocess.Popen:
        return subprocess.Popen(
            ["go", *argv],
            cwd=cwd or self.go.module,
            env=self.environ(**environ),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, *argv, **more) -> str:
        """Run a go command, which must pass; returns its stdout and stderr."""
        return passes(self.start(*argv, **more))

    def close(self) -> None:
        for server in self._servers:
            server.kill()
        if self._holder is not None:
            self._holder.close()


def passes(process) -> str:
    """Wait for a process, which must exit with 0; returns its stdout and stderr."""
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    return out + err


@pytest.fixture
def served():
    """served(go, way="unix"): a Served."""
    made = []

    def served(*arguments):
        made.append(Served(*arguments))
        return made[-1]

    yield served
    for one in made:
        one.close()


def write_programs(module, count) -> list:
    """Add ``count`` programs to the module; each prints its number. Returns their directories."""
    names = [f"print{number}" for number in range(count)]
    sources = {
        f"{name}/main.go": MAIN.replace("NUMBER", str(number)) for number, name in enumerate(names)
    }
    write_module(module, sources)
    return names


@pytest.mark.parametrize("way", ["unix", "tcp"])
def test_build_test_and_vet(go_with_test_std, served, tmp_path, way):
    """The second time everything is a hit, test results included."""
    through = served(go_with_test_std, way)
    server = through.serve()
    assert ("no Unix socket" in server.stderr) == (way == "tcp")
    first = through.run("build", "./...")
    assert "fmt" not in first
    through.run("test", "./...")
    through.run("vet", "./...")
    shutil.rmtree(through.go.environ()["GOCACHE"], ignore_errors=True)
    again = through.run("build", "./...")
    if way == "unix":  # over TCP connect cannot ask for counters
        counts = counters(again)
        assert counts["get_local_hit"] == counts["get_requests"] and not counts.get("put_requests")
    assert "(cached)" in through.run("test", "./...")
    assert server.stop() == 0


def test_eight_builds_at_once(go_with_std, std_cache, served, fake_s3, tmp_path):
    """Each builds its program, and a fresh machine finds the packages in the bucket."""
    through = served(go_with_std)
    server = through.serve(*fake_s3.flags(layout="bundles"), "--scope=s")
    names = write_programs(through.go.module, 8)
    builds = [through.start("build", "-o", str(tmp_path / name), f"./{name}") for name in names]
    for number, (name, build) in enumerate(zip(names, builds)):
        passes(build)
        printed = subprocess.run([tmp_path / name], capture_output=True, check=True).stderr
        assert printed == b"%d" % number
    assert server.stop() == 0
    assert not list(through.go.cache_dir.glob("spool/*/*/journal"))
    fresh = shutil.copytree(std_cache, tmp_path / "fresh")
    server = through.serve(*fake_s3.flags(layout="bundles"), "--scope=s", cache_dir=fresh)
    text = through.run("build", "./words/...")
    counts = counters(text)
    assert counts["get_fault_hit"] > 0 and server.stop() == 0


def test_kills_of_a_go_command_a_worker_and_the_pool_affect_no_other_build(
    go_with_std, served, fake_s3
):
    """Builds pass beside a build that is killed, and after its pool and workers are killed."""
    through = served(go_with_std)
    names = write_programs(through.go.module, 3)
    fake_s3.hold = lambda method, key: method == "GET"
    server = through.serve(*fake_s3.flags())
    victim = through.start("build", "-o", os.devnull, f"./{names[0]}")
    wait_until(lambda: fake_s3.held, "a get that waits for S3")
    good = through.start("build", "-o", os.devnull, f"./{names[1]}")
    os.killpg(victim.pid, signal.SIGKILL)
    victim.communicate()
    for pid in through.go.processes.workers():
        kill(pid)
    fake_s3.release()
    passes(good)
    for pid in through.go.processes.pool():
        kill(pid)
    through.run("build", "-o", os.devnull, f"./{names[2]}")
    assert server.stop() == 0


def test_a_killed_server_is_reported_and_the_next_one_uploads_its_entries(
    go_with_std, served, fake_s3
):
    """The running build fails with an error of connect; the next server does its uploads."""
    through = served(go_with_std)
    flags = fake_s3.flags()
    fake_s3.hold = lambda method, key: method == "PUT"
    server = through.serve(*flags)
    through.run("build", "./...")
    wait_until(lambda: fake_s3.held, "an upload")
    fake_s3.hold = lambda method, key: method in ("GET", "PUT")
    write_programs(through.go.module, 1)
    build = through.start("build", "-o", os.devnull, "./print0")
    wait_until(lambda: through.go.processes.running("connect"), "connect")
    held = fake_s3.held
    wait_until(lambda: fake_s3.held > held, "a get that waits for S3")
    server.kill()
    _, err = build.communicate(timeout=20)
    assert build.returncode != 0
    assert f"the server on port {through.port} has closed the connection" in err
    fake_s3.release()
    fake_s3.hold = lambda method, key: False
    server = through.serve(*flags)
    through.run("build", "./...")
    wait_until(lambda: not list(through.go.cache_dir.glob("spool/*/*/journal")), "the uploads")
    assert any("action/" in key for key in fake_s3.objects)
    assert server.stop() == 0
    wait_until(lambda: not through.go.processes.running(), "the uploader")


def test_sigterm_in_the_middle_of_builds(go_with_std, std_cache, served, fake_s3, tmp_path):
    """Running builds finish, their entries are uploaded, and the server exits with 0."""
    through = served(go_with_std)
    fake_s3.hold = lambda method, key: method == "GET"
    server = through.serve(*fake_s3.flags())
    names = write_programs(through.go.module, 2)
    builds = [through.start("build", "-o", os.devnull, f"./{name}") for name in names]
    wait_until(lambda: fake_s3.held >= 2, "gets that wait for S3")
    server.signal(signal.SIGTERM)
    server.says("stopping")
    fake_s3.release()
    for build in builds:
        passes(build)
    assert server.wait() == 0
    assert not list(through.go.cache_dir.glob("spool/*/*/journal"))
    fresh = shutil.copytree(std_cache, tmp_path / "fresh")
    server = through.serve(*fake_s3.flags(), cache_dir=fresh)
    counts = counters(through.run("build", "./words/..."))
    assert counts["get_fault_hit"] > 0 and server.stop() == 0
