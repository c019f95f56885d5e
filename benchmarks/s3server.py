"""An S3 server for a measurement: versitygw where it is on PATH, else moto."""
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

KEY, SECRET, BUCKET = "bench", "benchbench", "bench"


@contextmanager
def s3_server(work: str):
    """(name of the server, flags for the plugin) while it runs, on loopback, with an empty bucket."""
    with s3_server_on_port(work) as (name, port):
        yield name, plugin_flags(port)


def plugin_flags(port: int) -> list:
    """The plugin's flags for the server's bucket, at ``port`` of loopback."""
    return [f"--bucket={BUCKET}", f"--s3-endpoint-url={_endpoint(port)}", "--s3-path-style"]


def _endpoint(port: int) -> str:
    return f"http://127.0.0.1:{port}"


@contextmanager
def s3_server_on_port(work: str):
    """(name of the server, its port) while it runs, on loopback, with an empty bucket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }
    data = os.path.join(work, "s3")
    os.makedirs(data)
    if shutil.which("versitygw"):
        name = "versitygw"
        command = ["versitygw", "--port", f"127.0.0.1:{port}", "--quiet", "--keep-alive", "posix", data]
        env = os.environ | {"ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET}
    else:
        name = "moto"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        env = None
    server = subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _await_port(port, server)
        import boto3

        client = boto3.client("s3", endpoint_url=_endpoint(port), region_name="us-east-1")
        client.create_bucket(Bucket=BUCKET)
        yield name, port
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(data, ignore_errors=True)


def _await_port(port: int, server) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the S3 server did not start") from None
            time.sleep(0.05)  # a server says nothing when it is ready
