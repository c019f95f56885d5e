"""The real go command with the layout bundles: one machine fills the bucket, others use it."""

import os
import shutil
import subprocess

import pytest

from cacheplugin.remote.bundles.uploading import IDLE_S
from helpers import PROGRAM, counters, kill, output_id, stored_bodies, temporaries, wait_until


def flags_of(bucket) -> list:
    return bucket.server.flags(bucket.name, layout="bundles")


def flush(go) -> str:
    """Run the command flush; returns its output."""
    done = subprocess.run(
        [PROGRAM, "flush", f"--cache-dir={go.cache_dir}"],
        env=go.environ(),
        text=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def reset(go, std) -> None:
    """Make a fresh machine with std alone, once the processes of the last build have ended."""
    go.processes.expect_none()
    shutil.rmtree(go.cache_dir)
    shutil.copytree(std, go.cache_dir)


def expect_from_bundles(counts) -> None:
    """No miss, no put, and at least one hit from the bucket."""
    assert counts["get_fault_hit"] > 0
    assert counts["get_hits"] == counts["get_requests"]
    assert not {"get_misses", "put_requests", "put_s3_action", "get_fault_damaged"} & set(counts)


# -- all packages ---------------------------------------------------------------------------------


def test_a_cold_build_fills_the_bucket(cold):
    """Many entries are stored in one bundle and one manifest, compressed."""
    counts = cold.cold
    assert counts["put_requests"] > 50 and "get_hits" not in counts
    assert counts["put_s3_action"] == counts["put_requests"] and "put_s3_error" not in counts
    kinds = [key.partition("/")[0] for key in cold.objects]
    # A slow compilation may exceed IDLE_S without a put, which closes a bundle.
    assert kinds.count("manifest") == 1
    assert 1 <= kinds.count("bundle") == len(kinds) - 1 <= 1 + cold.seconds // IDLE_S
    assert sum(map(len, cold.objects.values())) < counts["put_bytes"] / 2
    assert cold.warm["get_local_hit"] == cold.warm["get_requests"]
    assert "put_requests" not in cold.warm


def test_a_fresh_machine_is_served_by_the_bucket_alone(go, cold, bucket):
    for key, body in cold.objects.items():
        bucket.write(key, body)
    go.module = cold.module
    go.plugin += flags_of(bucket)
    counts = counters(go.build().stderr)
    expect_from_bundles(counts)
    assert counts["get_fault_hit"] == counts["get_requests"] == cold.warm["get_requests"]
    assert sorted(bucket.keys()) == sorted(cold.objects)
    bodies = stored_bodies(go.cache_dir)
    assert bodies and all(output_id(body) == name for name, body in bodies.items())
    assert not temporaries(go.cache_dir)


@pytest.mark.parametrize("layout", ["bundles", "auto"])
def test_a_fresh_machine_needs_few_requests(go, cold, fake_s3, layout):
    """At most 12 requests for hundreds of entries, and none for a second build."""
    fake_s3.objects.update(cold.objects)
    go.module = cold.module
    go.plugin += fake_s3.flags(layout=layout)
    expect_from_bundles(counters(go.build().stderr))
    assert len(fake_s3.requests) <= 12 and fake_s3.count("PUT") == 0
    asked = len(fake_s3.requests)
    counts = counters(go.build().stderr)
    assert counts["get_local_hit"] == counts["get_requests"]
    assert len(fake_s3.requests) == asked


# -- a module's own packages -----------------------------------------------------------------------


def change(go, name, text="// A further line.\n") -> None:
    path = go.module / name
    path.write_text(path.read_text() + text)
    os.utime(path, (1e9, 1e9))


def test_after_a_change_only_what_depends_on_it_is_put(go_with_std, std_cache, bucket):
    """A change of the leaf affects all packages, a change of the root only itself."""
    go = go_with_std
    go.plugin += flags_of(bucket)
    first = counters(go.build().stderr)
    assert first["put_s3_action"] == first["put_requests"] > 0

    reset(go, std_cache)
    expect_from_bundles(counters(go.build().stderr))

    reset(go, std_cache)
    change(go, "tool.go", "\n// Answer is exported.\nfunc Answer() int { return 42 }\n")
    root = counters(go.build().stderr)
    assert root["get_fault_hit"] > 0 < root["put_requests"] < first["put_requests"]

    reset(go, std_cache)
    change(go, "words/number/number.go", "\n// Zero is exported.\nfunc Zero() int { return 0 }\n")
    leaf = counters(go.build().stderr)
    assert root["put_requests"] < leaf["put_requests"] <= first["put_requests"]
    assert leaf["put_s3_action"] == leaf["put_requests"]

    reset(go, std_cache)
    expect_from_bundles(counters(go.build().stderr))


def on_branch(go, name) -> None:
    (go.module / ".git").mkdir(exist_ok=True)
    (go.module / ".git" / "HEAD").write_text(f"ref: refs/heads/{name}\n")


def manifests(fake_s3) -> dict:
    """{scope, as in keys: number of its manifests}"""
    scopes = [key.split("/")[1] for key in fake_s3.objects if key.startswith("manifest/")]
    return {scope: scopes.count(scope) for scope in scopes}


def test_a_new_branch_starts_from_the_set_of_the_default_branch(go_with_std, std_cache, fake_s3):
    """Its first build hits all. Its changes go to its own manifests, which main does not use."""
    go = go_with_std
    go.plugin += fake_s3.flags(layout="bundles")
    on_branch(go, "main")
    go.build()
    (main,) = manifests(fake_s3)

    on_branch(go, "feature/x")
    reset(go, std_cache)
    expect_from_bundles(counters(go.build().stderr))
    assert fake_s3.count("PUT", "bundle/") == 1
    (feature,) = set(manifests(fake_s3)) - {main}

    change(go, "words/words.go")
    reset(go, std_cache)
    counts = counters(go.build().stderr)
    assert counts["get_fault_hit"] > 0 < counts["put_s3_object"]
    assert manifests(fake_s3) == {main: 1, feature: 2}

    reset(go, std_cache)
    expect_from_bundles(counters(go.build().stderr))
    on_branch(go, "main")
    reset(go, std_cache)
    counts = counters(go.build().stderr)
    assert counts["get_misses"] > 0 < counts["put_requests"]


def test_results_of_go_test_and_go_vet_come_from_bundles(go_with_test_std, test_std_cache, fake_s3):
    go = go_with_test_std
    go.plugin += fake_s3.flags(layout="auto")
    assert "(cached)" not in go.run("test", "./...").stdout
    go.run("vet", "./...")
    reset(go, test_std_cache)
    again = go.run("test", "./...")
    assert "(cached)" in again.stdout
    counts = counters(again.stderr)
    assert counts["get_fault_hit"] > 0 and "put_requests" not in counts
    reset(go, test_std_cache)
    counts = counters(go.run("vet", "./...").stderr)
    assert counts["get_fault_hit"] > 0
    assert "put_requests" not in counts  # the vet tool always misses: it is never put


def test_a_job_that_ends_with_a_flush(go_with_std, std_cache, fake_s3):
    """With --upload=background no go command waits, and flush uploads all entries."""
    go = go_with_std
    go.plugin += [*fake_s3.flags(layout="bundles"), "--upload=background"]
    fake_s3.hold = lambda method, key: method == "PUT"
    go.build()
    go.run("list", "-export", "./...")
    assert not fake_s3.objects
    fake_s3.release()
    assert flush(go).endswith(" 0 remain\n")
    go.processes.expect_none()
    reset(go, std_cache)
    expect_from_bundles(counters(go.build().stderr))


def test_sigkill_in_the_middle_of_a_build(go_with_std, std_cache, fake_s3):
    """The build fails; the next build, a flush and a fresh machine are not affected."""
    go = go_with_std
    go.plugin += fake_s3.flags(layout="bundles")
    build = go.start("build", "./...")
    wait_until(lambda: list(go.cache_dir.glob("spool/*/*/journal")), "the first put")
    for pid in go.processes.running(PROGRAM):
        kill(pid)
    build.communicate(timeout=60)
    assert build.returncode != 0
    go.processes.expect_none()
    assert not manifests(fake_s3)
    go.build()
    flush(go)
    go.processes.expect_none()
    reset(go, std_cache)
    expect_from_bundles(counters(go.build().stderr))
