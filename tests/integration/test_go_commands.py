"""go build, test, vet and list through the program: cold, warm, and from S3 alone."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers import counters, output_id, stored_bodies, temporaries

CGO = """package main

// int two(void) { return 2; }
import "C"

func main() {
	if C.two() != 2 {
		panic("C counts otherwise")
	}
}
"""


def test_cold_then_warm_then_from_s3_alone(go_of_many, bucket):
    """The first build fills the bucket; the last build takes everything from the bucket."""
    go = go_of_many
    go.plugin += bucket.flags
    cold = counters(go.build().stderr)
    assert cold["put_requests"] > 50 and "get_hits" not in cold
    assert cold["put_s3_action"] == cold["put_requests"] and "put_s3_error" not in cold

    warm = counters(go.build().stderr)
    assert warm["get_local_hit"] == warm["get_requests"] > 20 and "put_requests" not in warm

    shutil.rmtree(go.cache_dir)
    remote = counters(go.build().stderr)
    assert remote["get_fault_hit"] == remote["get_requests"] == warm["get_requests"]
    assert not {"get_misses", "put_requests", "put_s3_action"} & set(remote)

    bodies = stored_bodies(go.cache_dir)
    assert bodies and all(output_id(body) == name for name, body in bodies.items())
    assert not temporaries(go.cache_dir)


def test_the_bucket_reads_back_as_described(go_with_std, bucket):
    go = go_with_std
    go.plugin += [*bucket.flags, "--prefix=team/x"]
    puts = counters(go.build().stderr)["put_requests"]
    keys = bucket.keys()
    actions = [key for key in keys if key.startswith("team/x/action/")]
    assert len(actions) == puts > 0
    for key in actions:
        output, time_ns = bucket.read(key).decode().split(" ")
        assert time_ns.isdigit() and len(time_ns) == 19
        body = bucket.read(f"team/x/output/{output[:2]}/{output}")
        assert hashlib.sha256(body).hexdigest() == output
        assert body == stored_bodies(go.cache_dir)[output]


def test_a_warm_build_starts_no_pool(go_with_std, fake_s3):
    go = go_with_std
    go.build()
    go.plugin += fake_s3.flags()
    counts = counters(go.build().stderr)
    assert counts["get_local_hit"] == counts["get_requests"] > 20
    assert not fake_s3.requests


def test_test_results_are_cached_also_from_s3(go_with_test_std, fake_s3, test_std_cache):
    go = go_with_test_std
    go.plugin += fake_s3.flags()
    assert "(cached)" not in go.run("test", "./words").stdout
    assert "(cached)" in go.run("test", "./words").stdout
    shutil.rmtree(go.cache_dir)
    shutil.copytree(test_std_cache, go.cache_dir)
    again = go.run("test", "./words")
    assert "(cached)" in again.stdout and counters(again.stderr)["get_fault_hit"] > 0


def test_clean_testcache_then_test_twice_is_run_then_cached(go_with_test_std, fake_s3):
    go = go_with_test_std
    go.plugin += fake_s3.flags()
    go.run("test", "./words")
    assert "(cached)" in go.run("test", "./words").stdout
    go.run("clean", "-testcache")
    assert "(cached)" not in go.run("test", "./words").stdout
    assert "(cached)" in go.run("test", "./words").stdout


def test_vet(go_with_test_std, fake_s3):
    go = go_with_test_std
    go.plugin += fake_s3.flags()
    go.run("vet", "./...")
    again = counters(go.run("vet", "./...").stderr)
    assert "put_requests" not in again  # the vet tool always misses: it is never put
    (go.module / "words" / "bad.go").write_text(
        'package words\n\nimport "fmt"\n\nfunc Bad() { fmt.Printf("%d", "x") }\n'
    )
    found = subprocess.run(
        ["go", "vet", "./words"], cwd=go.module, env=go.environ(), capture_output=True, text=True
    )
    assert found.returncode and "Printf format %d" in found.stderr


def test_the_paths_of_list_export_exist_after_exit(go_with_std, fake_s3, std_cache):
    go = go_with_std
    go.plugin += fake_s3.flags()
    listing = ["list", "-export", "-deps", "-f", "{{if .Export}}{{.Export}}{{end}}", "./..."]
    paths = go.run(*listing).stdout.split()
    assert len(paths) > 20 and all(Path(path).stat().st_size for path in paths)
    go.processes.expect_none()  # uploads go on after the go command has exited
    put = {
        key for method, key in fake_s3.requests if method == "PUT"
    }  # a set: a request may be retried
    assert put and put == set(fake_s3.objects)
    shutil.rmtree(go.cache_dir)
    shutil.copytree(std_cache, go.cache_dir)
    again = go.run(*listing)
    assert again.stdout.split() == paths and all(Path(path).is_file() for path in paths)
    assert "get_misses" not in counters(again.stderr)


def test_cgo(go_with_std):
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    go = go_with_std
    (go.module / "tool.go").write_text(CGO)
    environ = {"CGO_ENABLED": "1", "CC": compiler}
    tool = go.module.parent / "cgo-tool"
    go.run("build", "-o", tool, ".", **environ)
    subprocess.run([tool], check=True, timeout=30)
    tool.unlink()
    again = counters(go.run("build", "-o", tool, ".", **environ).stderr)
    subprocess.run([tool], check=True, timeout=30)
    # The linked program always misses, and so does an index of sources younger than two seconds.
    assert again["get_local_hit"] > 100 and again["get_misses"] <= 2


def test_two_builds_at_once_on_one_cache_directory(go_of_many, fake_s3):
    go = go_of_many
    go.plugin += fake_s3.flags()
    builds = [go.start("build", "./...") for _ in range(2)]
    for build in builds:
        _, stderr = build.communicate(timeout=90)
        assert build.returncode == 0, stderr
        assert "put_errors" not in counters(stderr)
    counts = counters(go.build().stderr)
    assert counts["get_local_hit"] == counts["get_requests"]
    bodies = stored_bodies(go.cache_dir)
    assert all(output_id(body) == name for name, body in bodies.items())
    assert not temporaries(go.cache_dir)
