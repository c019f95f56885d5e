"""benchmarks/workloads.py: workloads are deterministic, can be built, and can be changed."""

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import workloads

LIGHT_SEED = 5  # makes a monorepo of 6 packages that imports no large package of std


def files(directory) -> dict:
    return {
        os.path.relpath(os.path.join(parent, name), directory): Path(parent, name).read_text()
        for parent, _, names in os.walk(directory)
        for name in names
    }


def test_a_seed_always_gives_the_same_monorepo(tmp_path):
    first, again, other = (
        files(workloads.make("monorepo:60", str(tmp_path / name), seed).directory)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again != other
    assert len({os.path.dirname(path) for path in first}) == 61


@pytest.mark.parametrize("text", ["monorepo:6", "std:errors"])
def test_workloads_build_before_and_after_a_change(tmp_path, go_build_cache, text):
    made = workloads.make(text, str(tmp_path), LIGHT_SEED)
    before = files(made.directory)
    env = os.environ | {"GOCACHE": str(go_build_cache), "GOTOOLCHAIN": "local", "GOFLAGS": ""}
    env["CGO_ENABLED"] = "0"
    for change in (made.reset, lambda: made.change("edit 1")):
        change()
        subprocess.run(["go", "vet", "./..."], cwd=made.directory, env=env, check=True, timeout=100)
    assert files(made.directory) != before
    made.reset()
    assert files(made.directory) == before


def test_a_directory_is_copied(tmp_path):
    own = tmp_path / "own"
    workloads.write(str(own / "go.mod"), "module example.com/own\n")
    workloads.write(str(own / "a.go"), "package own\n")
    made = workloads.make(str(own), str(tmp_path / "work"))
    made.change("edit")
    assert files(own)["a.go"] == "package own\n" != files(made.directory)["a.go"]


@pytest.mark.parametrize("text", ["monorepo:0", "monorepo:x", "nowhere", "stdx"])
def test_wrong_workloads_are_refused(tmp_path, text):
    with pytest.raises(ValueError):
        workloads.make(text, str(tmp_path))
