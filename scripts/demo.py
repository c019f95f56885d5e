"""Build a Go program three times through go-cache-plugin and show what each build did.

The bucket is a moto server on 127.0.0.1, or a real one with --bucket. Run it as scripts/demo.
"""

import argparse
import hashlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import boto3
import botocore.exceptions
from botocore.config import Config

PROGRAM = """\
package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	{unused}
)

func main() {{
	hello := func(w http.ResponseWriter, r *http.Request) {{
		json.NewEncoder(w).Encode(map[string]string{{"path": r.URL.Path}})
	}}
	recorder := httptest.NewRecorder()
	http.HandlerFunc(hello).ServeHTTP(recorder, httptest.NewRequest("GET", "/demo", nil))
	fmt.Print(recorder.Body)
}}
"""
PROGRAM_PRINTS = b'{"path":"/demo"}\n'

# With these imports the build has about 230 packages.
UNUSED = [
    "archive/tar",
    "archive/zip",
    "bufio",
    "compress/bzip2",
    "compress/zlib",
    "container/heap",
    "crypto/ed25519",
    "database/sql",
    "encoding/asn1",
    "encoding/csv",
    "encoding/gob",
    "encoding/xml",
    "expvar",
    "go/ast",
    "go/parser",
    "go/printer",
    "hash/fnv",
    "html/template",
    "image/gif",
    "image/jpeg",
    "image/png",
    "index/suffixarray",
    "log/slog",
    "math/big",
    "net/mail",
    "net/rpc",
    "net/smtp",
    "os/exec",
    "os/signal",
    "regexp",
    "text/scanner",
    "text/tabwriter",
    "text/template",
]

BUILDS = ("cold", "local cache warm", "local cache gone")
KEPT_GO_VARIABLES = ("GOPROXY", "GONOPROXY", "GOPRIVATE", "GOSUMDB", "GONOSUMDB")
COLUMNS = {
    "gets": lambda n: n["get_requests"],
    "local hits": lambda n: n["get_local_hit"],
    "S3 hits": lambda n: n["get_fault_hit"],
    "puts": lambda n: n["put_requests"],
    "uploads": lambda n: n["put_s3_action"],
    "MB up": lambda n: f"{n['put_s3_bytes'] / 1e6:.1f}",
    "MB down": lambda n: f"{n['get_fault_bytes'] / 1e6:.1f}",
}


def main() -> None:
    """Run the demo and exit."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        sys.exit(demo(parse_arguments()))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (OSError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        sys.exit(f"scripts/demo: {error}")


def parse_arguments():
    """The parsed command line; exits with 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        allow_abbrev=False,
        description="Build a Go program three times through go-cache-plugin: cold, with the local"
        " cache warm, and with the local cache gone and the bucket warm.",
    )
    parser.add_argument("--bucket", help="a real bucket; without it, a moto server on 127.0.0.1")
    parser.add_argument("--region")
    parser.add_argument("--s3-endpoint-url", metavar="URL")
    parser.add_argument("--s3-path-style", action="store_true")
    arguments = parser.parse_args()
    if not arguments.bucket and (
        arguments.region or arguments.s3_endpoint_url or arguments.s3_path_style
    ):
        parser.error("--region, --s3-endpoint-url and --s3-path-style need --bucket")
    return arguments


def demo(arguments) -> int:
    """Run the three builds, print the table and the checks; returns the exit status.

    All files and objects that it made are removed at the end.
    """
    with ExitStack() as stack:
        top = stack.enter_context(temporary_directory())
        bucket = stack.enter_context(real_bucket(arguments) if arguments.bucket else moto_bucket())
        environment = go_environment(top, private_home=not arguments.bucket) | bucket
        write_program(top)
        rows, programs, ok = [], set(), True
        for name in BUILDS:
            if name == "local cache gone":
                shutil.rmtree(top / "cache")
            print(f"go build, {name} ...", flush=True)
            seconds, counters, program = build(top, environment)
            rows.append((name, seconds, counters))
            programs.add(program)
        print_table(rows)
        cold, warm, gone = (counters for _, _, counters in rows)
        for holds, claim in (
            (len(programs) == 1, "the three builds made the same program"),
            (cold["put_s3_action"] > 0, "the first build filled the bucket"),
            (mostly(warm, "get_local_hit"), "the second was served from the local cache"),
            (mostly(gone, "get_fault_hit"), "the third was served from S3"),
        ):
            print(f"{'ok    ' if holds else 'FAILED'} {claim}")
            ok = ok and holds
        return 0 if ok else 1


def mostly(counters, kind) -> bool:
    """Whether more than 99 % of the gets count under ``kind``."""
    return counters[kind] > 0.99 * counters["get_requests"]


@contextmanager
def temporary_directory():
    """A Path that is removed at the end."""
    top = Path(tempfile.mkdtemp(prefix="go-cache-plugin-demo-"))
    try:
        yield top
    finally:
        # After an interruption, a process that is about to end may still write a file.
        deadline = time.monotonic() + 5
        while top.exists() and time.monotonic() < deadline:
            shutil.rmtree(top, ignore_errors=True)


# -- the bucket ------------------------------------------------------------------------------------


@contextmanager
def moto_bucket():
    """A moto server with a bucket; yields the environment variables that select it."""
    from moto.server import ThreadedMotoServer

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]  # boto3 in this process reads them too
    # Requests to this machine must not go through the user's HTTP proxy.
    hosts = [os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "", "127.0.0.1"]
    own = {
        "AWS_ACCESS_KEY_ID": "demo",
        "AWS_SECRET_ACCESS_KEY": "demo",
        "AWS_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "no_proxy": ",".join(filter(None, hosts)),
        "NO_PROXY": ",".join(filter(None, hosts)),
    }
    os.environ.update(own)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would log each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=url, region_name="us-east-1").create_bucket(Bucket="demo")
        print(f"bucket: s3://demo on a moto server at {url}", flush=True)
        yield own | {
            "GOCACHE_S3_BUCKET": "demo",
            "GOCACHE_S3_ENDPOINT_URL": url,
            "GOCACHE_S3_PATH_STYLE": "true",
        }
    finally:
        server.stop()


@contextmanager
def real_bucket(arguments):
    """A fresh prefix in the user's bucket, deleted at the end; yields the plugin's variables."""
    prefix = f"go-cache-plugin-demo-{secrets.token_hex(8)}"
    where = f"s3://{arguments.bucket}/{prefix}/"
    session = boto3.session.Session()
    region = arguments.region or os.environ.get("AWS_REGION") or session.region_name
    client = session.client(
        "s3",
        region_name=region or "us-east-1",
        endpoint_url=arguments.s3_endpoint_url,
        config=Config(
            connect_timeout=5,
            retries={"mode": "standard", "total_max_attempts": 3},
            max_pool_connections=16,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if arguments.s3_path_style else "auto"},
        ),
    )
    client.list_objects_v2(Bucket=arguments.bucket, Prefix=f"{prefix}/")  # fails early
    print(f"bucket: {where} (a fresh prefix, deleted at the end)", flush=True)
    try:
        yield {
            "GOCACHE_S3_BUCKET": arguments.bucket,
            "GOCACHE_S3_REGION": region or "",
            "GOCACHE_S3_ENDPOINT_URL": arguments.s3_endpoint_url or "",
            "GOCACHE_S3_PATH_STYLE": str(arguments.s3_path_style).lower(),
            "GOCACHE_KEY_PREFIX": prefix,
        }
    finally:
        try:
            count = delete_all(client, arguments.bucket, f"{prefix}/")
        except BaseException:
            print(f"scripts/demo: please delete the objects left under {where}", file=sys.stderr)
            raise
        print(f"{count} objects deleted under {where}")


def delete_all(client, bucket, prefix) -> int:
    """Delete all objects below a prefix, one request each; returns their number.

    Not all S3 stores support the deletion of many objects in one request.
    """
    count = 0
    with ThreadPoolExecutor(16) as pool:
        while True:
            listed = client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ())
            if not listed:
                return count
            keys = [entry["Key"] for entry in listed]
            for _ in pool.map(lambda key: client.delete_object(Bucket=bucket, Key=key), keys):
                count += 1


# -- the builds ------------------------------------------------------------------------------------


def go_environment(top, private_home) -> dict:
    """The environment of a go command, without the user's own settings for go."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GO", "CGO_")) or name in KEPT_GO_VARIABLES
    }
    if private_home or not environment.get("HOME"):  # a real bucket needs ~/.aws
        environment["HOME"] = str(top / "home")
    # PATH may have the Go program of the same name: this program must come first.
    environment["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    return environment | {
        "CGO_ENABLED": "0",
        "GOCACHE": str(top / "gocache"),
        "GOCACHEPROG": "go-cache-plugin",
        "GOCACHE_DIR": str(top / "cache"),
        "GOCACHE_METRICS": "true",
        "GOENV": "off",
        "GOFLAGS": "",
        "GOPATH": str(top / "gopath"),
        "GOTELEMETRY": "off",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "TMPDIR": str(top / "tmp"),
    }


def write_program(top) -> None:
    """Write the Go program, and make the directories that the builds use."""
    for name in ("home", "tmp", "program"):
        (top / name).mkdir()
    unused = "\n\t".join(f'_ "{package}"' for package in UNUSED)
    (top / "program" / "main.go").write_text(PROGRAM.format(unused=unused))
    (top / "program" / "go.mod").write_text("module demo\n\ngo 1.24\n")
    for path in (top / "program").iterdir():
        os.utime(path, (0, 0))  # the go command caches nothing about files that just changed


def build(top, environment):
    """(seconds, {counter: count}, SHA-256 of the program) of one go build."""
    program = top / "demo"
    command = ["go", "build", "-trimpath", "-buildvcs=false", "-o", str(program), "."]
    start = time.monotonic()
    status, errors = run_group(command, top / "program", environment)
    seconds = time.monotonic() - start
    counters, rest = read_metrics(errors)
    if rest:
        print(rest, file=sys.stderr, flush=True)
    if status:
        sys.exit(f"scripts/demo: {' '.join(command)}: exit status {status}")
    printed = subprocess.run([program], stdout=subprocess.PIPE, check=True).stdout
    if printed != PROGRAM_PRINTS:
        sys.exit(f"scripts/demo: the program that was built prints {printed!r}")
    return seconds, counters, hashlib.sha256(program.read_bytes()).hexdigest()


def run_group(command, directory, environment):
    """(exit status, stderr) of a command, when all processes of its group have ended."""
    process = subprocess.Popen(
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=sys.stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        _, errors = process.communicate()
    except BaseException:
        signal_group(process.pid, signal.SIGINT)
        process.wait()
        raise
    finally:
        deadline = time.monotonic() + 5
        while signal_group(process.pid, 0):
            if time.monotonic() > deadline:
                signal_group(process.pid, signal.SIGKILL)
            time.sleep(0.01)
    return process.returncode, errors


def signal_group(group, number) -> bool:
    """Send a signal (0: none) to a process group; returns whether the group exists."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def read_metrics(errors):
    """({counter: count}, the other lines) of the stderr of the go command and the plugin."""
    counters, rest = (
        dict.fromkeys(
            (
                "get_requests",
                "get_misses",
                "get_local_hit",
                "get_fault_hit",
                "get_fault_bytes",
                "put_requests",
                "put_s3_action",
                "put_s3_bytes",
            ),
            0,
        ),
        [],
    )
    for line in errors.splitlines():
        if line.startswith(("gocache_server: ", "gocache_host: ")):
            for word in line.split():
                name, is_count, count = word.partition("=")
                if is_count:
                    counters[name] = int(count)
        elif not (line.startswith("go-cache-plugin: ") and " gets, " in line):
            rest.append(line)
    return counters, "\n".join(rest)


def print_table(rows) -> None:
    """Print a line for each (name of a build, seconds, counters)."""
    lines = [("build", "seconds", *COLUMNS)]
    for name, seconds, counters in rows:
        cells = (str(column(counters)) for column in COLUMNS.values())
        lines.append((name, f"{seconds:.1f}", *cells))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print()
    for name, *cells in lines:
        right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        print("  ".join((name.ljust(widths[0]), *right)))
    print()


if __name__ == "__main__":
    main()
