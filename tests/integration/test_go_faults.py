"""A build passes whatever S3 does; faults are counted and no wrong body is stored."""

import shutil

import pytest

from fakes3 import DAMAGE, FAILURES
from helpers import KEYS, counters, kill, output_id, stored_bodies, temporaries, wait_until


@pytest.fixture
def filled(go_with_std, fake_s3, std_cache):
    """A Go whose packages are in the bucket and not in its cache directory, which has std."""
    go = go_with_std
    go.plugin += fake_s3.flags()
    go.build()
    assert fake_s3.objects
    shutil.rmtree(go.cache_dir)
    shutil.copytree(std_cache, go.cache_dir)
    return go


@pytest.mark.parametrize("fault", FAILURES)
def test_a_build_passes_while_s3_fails(filled, fake_s3, fault):
    fake_s3.fail(fault)
    done = filled.build()
    counts = counters(done.stderr)
    assert counts["get_fault_error"] >= 1 and "get_fault_hit" not in counts
    assert counts["get_misses"] == counts["get_requests"] - counts["get_local_hit"] > 0
    assert len([line for line in done.stderr.splitlines() if "failed repeatedly" in line]) <= 2
    bodies = stored_bodies(filled.cache_dir)
    assert all(output_id(body) == name for name, body in bodies.items())


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_build_passes_while_s3_damages_bodies(filled, fake_s3, fault):
    fake_s3.faulty = lambda method, key: key.startswith("output/")
    fake_s3.fail(fault)
    counts = counters(filled.build().stderr)
    assert counts.get("get_fault_damaged", 0) + counts.get("get_fault_error", 0) > 0
    bodies = stored_bodies(filled.cache_dir)
    assert all(output_id(body) == name for name, body in bodies.items())
    assert not temporaries(filled.cache_dir)


def test_a_build_passes_without_credentials(go_with_std, fake_s3):
    go = go_with_std
    go.plugin = fake_s3.flags()
    done = go.run("build", "./...", **dict.fromkeys(KEYS, ""))
    assert len(done.stderr.splitlines()) == 1 and "credentials" in done.stderr
    assert not fake_s3.requests


def test_a_build_passes_when_its_workers_are_killed(filled, fake_s3):
    fake_s3.hold = lambda method, key: True
    build = filled.start("build", "./...")
    wait_until(lambda: fake_s3.held, "a fetch")
    for pid in filled.processes.workers():
        kill(pid)
    fake_s3.release()
    _, stderr = build.communicate(timeout=60)
    assert build.returncode == 0, stderr
    assert counters(stderr)["get_fault_error"] >= 1
