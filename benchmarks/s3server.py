"""The S3 server of a measurement: --endpoint, else versitygw if it is on PATH, else moto."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

KEY, SECRET, BUCKET = "bench", "benchbench", "bench"
_LOOPBACK = ("127.0.0.1", "localhost")


class Server(NamedTuple):
    """A running S3 server."""

    name: str
    endpoint: str
    bucket: str
    port: int | None  # on loopback; None for a server on another machine

    @property
    def address(self) -> dict:
        """{bucket, endpoint} for Lab.remote."""
        return {"bucket": self.bucket, "endpoint": self.endpoint}


@contextmanager
def s3_server(work: str, arguments):
    """A Server that runs for the context.

    ``arguments`` has ``endpoint``, ``bucket`` and ``moto``. A server that is started here is on
    loopback and has an empty bucket; its data is below ``work`` and is deleted at the end.
    """
    if arguments.endpoint:
        parts = urlsplit(arguments.endpoint)
        is_near = parts.scheme == "http" and parts.hostname in _LOOPBACK
        port = parts.port or 80 if is_near else None
        yield Server(arguments.endpoint, arguments.endpoint, arguments.bucket or BUCKET, port)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }
    endpoint, data = f"http://127.0.0.1:{port}", os.path.join(work, "s3")
    os.makedirs(data)
    if shutil.which("versitygw") and not arguments.moto:
        name = "versitygw"
        command = [
            "versitygw",
            "--port",
            f"127.0.0.1:{port}",
            "--quiet",
            "--keep-alive",
            "posix",
            data,
        ]
        env = os.environ | {"ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET}
    else:
        name = "moto"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        env = None
    with open(os.path.join(work, "s3.log"), "wb") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        _await_port(port, server)
        import boto3

        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        client.create_bucket(Bucket=BUCKET)
        yield Server(name, endpoint, BUCKET, port)
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
            time.sleep(0.05)  # the servers do not report when they are ready
