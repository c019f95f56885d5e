"""Real S3 servers for the tests: moto, and versitygw if it is installed."""

import shutil
import socket
import subprocess
from collections import namedtuple

import botocore.session
import pytest
from botocore.config import Config

from helpers import DEADLINE_S, KEYS, wait_until
from server_sessions import free_port


class Server(namedtuple("Server", "url")):
    """The URL of an S3 server that accepts ``helpers.KEYS``."""

    def flags(self, bucket: str, layout: str = "objects") -> list:
        return [
            f"--bucket={bucket}",
            f"--s3-endpoint-url={self.url}",
            "--s3-path-style",
            f"--layout={layout}",
        ]

    def client(self):
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            config=Config(s3={"addressing_style": "path"}),
        )


class Bucket:
    """A new bucket of a server, read and written by an S3 client of the tests."""

    def __init__(self, server: Server, name: str) -> None:
        self.flags = server.flags(name)  # of the objects layout
        self.server = server
        self.name = name
        self.client = server.client()
        self.client.create_bucket(Bucket=name)

    def write(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=body)

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def keys(self) -> list:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]


def moto():
    """The body of a fixture: moto in a thread of this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield Server(f"http://{host}:{port}")
    finally:
        server.stop()


def versitygw(directory):
    """The body of a fixture: versitygw, with its data in ``directory``."""
    program = shutil.which("versitygw")
    if not program:
        pytest.skip("versitygw is not on PATH")
    port = free_port()
    for name in ("data", "metadata"):
        (directory / name).mkdir()
    process = subprocess.Popen(
        [
            program,
            "--quiet",
            "--port",
            f"127.0.0.1:{port}",
            "--access",
            KEYS["AWS_ACCESS_KEY_ID"],
            "--secret",
            KEYS["AWS_SECRET_ACCESS_KEY"],
            "posix",
            "--sidecar",
            str(directory / "metadata"),
            str(directory / "data"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: process.poll() is not None or _listens(port), "versitygw's port")
        assert process.poll() is None, f"versitygw exits with {process.returncode}"
        yield Server(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait(DEADLINE_S)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
