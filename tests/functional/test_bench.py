"""The benchmarks in their smallest size: reports, failures, and correct counts of requests."""

import json
import os
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.network import network
from benchmarks.s3server import KEY, SECRET, s3_server

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("go") is None, reason="no go command")
PNG = b"\x89PNG\r\n\x1a\n"


def bench(tmp_path, *arguments):
    """Run benchmarks of the size "smoke"; returns (exit status, output, JSON report)."""
    out = tmp_path / "out"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks",
            "--size=smoke",
            "--moto",
            f"--out={out}",
            f"--work={tmp_path / 'work'}",
            *arguments,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
    )
    path = out / "report.json"
    assert path.exists(), done.stderr
    return done.returncode, done.stdout, json.loads(path.read_text())


def test_a_report(tmp_path):
    """Each scenario gives a figure, a table, plots, and leaves no file in its work directory."""
    scenarios = ["hit", "startup", "remote-build", "large", "prune", "modproxy"]
    status, text, found = bench(tmp_path, *scenarios)
    assert status == 0, text
    assert list(dict.fromkeys(one["scenario"] for one in found["results"])) == scenarios
    for result in found["results"]:
        for case in result["cases"]:
            assert case["failed"] is None and len(case["runs"]) == 1
            assert case["median"] == case["runs"][0][result["metric"]] > 0
    assert found["s3"] == "moto" and found["machine"]["cores"] >= 1
    assert found["versions"]["go"].startswith("go1.") and re.fullmatch(
        "[0-9a-f]{40}|", found["commit"]
    )
    (restored,) = (one for one in found["results"] if one["variant"] == "20 ms")
    (ours,) = (one for one in restored["cases"] if one["name"] == "go-cache-plugin")
    assert 0 < ours["runs"][0]["requests"] < 50 and ours["runs"][0]["down_bytes"] > 100_000
    for name in scenarios:
        assert f"\n{name}" in text
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(PNG)
        assert "</svg>" in (tmp_path / "out" / f"{name}.svg").read_text()
    assert (tmp_path / "out" / "report.txt").read_text() == text
    assert os.listdir(tmp_path / "work") == []


def test_a_failing_peer_is_reported_as_failed(tmp_path):
    """A program that does not start, says nothing or exits early has no runs and no median."""
    peers = {
        "missing": "/nonexistent {cache}",
        "silent": "true {cache}",
        "failing": "sh -c exit\\ 3 {cache}",
    }
    given = [f"--peer={name}={command}" for name, command in peers.items()]
    status, text, found = bench(tmp_path, *given, "--no-plots", "hit", "startup")
    assert status == 1 and text.count("FAILED") == 9
    for result in found["results"]:
        by_name = {case["name"]: case for case in result["cases"]}
        for name in peers:
            assert by_name[name]["failed"] and by_name[name]["runs"] == []
            assert by_name[name]["median"] is None
        assert by_name["go-cache-plugin"]["runs"]
    assert not (tmp_path / "out" / "hit.png").exists()


def test_requests_are_counted_as_the_server_logs_them(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "")  # s3_server sets them; monkeypatch restores them
    import botocore.session

    with s3_server(str(tmp_path), Namespace(endpoint=None, bucket=None, moto=True)) as server:
        log = tmp_path / "s3.log"
        before = len(re.findall(r'"[A-Z]+ /\S* HTTP/1.1"', log.read_text()))
        with network(server.port, 1) as net:
            client = botocore.session.Session().create_client(
                "s3",
                endpoint_url=f"http://127.0.0.1:{net.port}",
                region_name="us-east-1",
                aws_access_key_id=KEY,
                aws_secret_access_key=SECRET,
            )
            for number in range(5):
                client.put_object(Bucket=server.bucket, Key=f"key{number}", Body=b"x" * 10_000)
                client.get_object(Bucket=server.bucket, Key=f"key{number}")["Body"].read()
            client.list_objects_v2(Bucket=server.bucket)
            counts = net.counts()
        logged = re.findall(r'"([A-Z]+) /\S* HTTP/1.1"', log.read_text())[before:]
    assert counts["requests"] == len(logged) == 11
    assert counts["by_method"] == {name: logged.count(name) for name in set(logged)}
    assert counts["bytes_up"] > 50_000 and counts["bytes_down"] > 50_000
