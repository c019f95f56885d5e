"""scripts/lint: it passes a clean tree and fails on a fault that any of its three checks finds."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
CLEAN = (
    '"""A module without faults."""\n\n\ndef double(number: int) -> int:\n    return 2 * number\n'
)


@pytest.fixture
def tree(tmp_path):
    """A checkout with our scripts/lint and configuration, .venv, and a package of one module.

    Its scripts/prepare.sh does nothing, because .venv is there and is not to be made anew.
    """
    if not (BIN / "ruff").exists() or not (BIN / "mypy").exists():
        pytest.skip("ruff and mypy are not installed beside Python: scripts/test installs them")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "cacheplugin").mkdir()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/bin").symlink_to(BIN)
    shutil.copy(ROOT / "scripts/lint", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "scripts/prepare.sh").write_text("have_go=no\n")
    (tmp_path / "cacheplugin/__init__.py").write_text(CLEAN)
    return tmp_path


def lint(tree, planted=""):
    """(exit status, output) of scripts/lint in ``tree``, with ``planted`` added to the package."""
    (tree / "cacheplugin/__init__.py").write_text(CLEAN + planted)
    done = subprocess.run(
        [tree / "scripts/lint"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ("import os\n", "F401"),
        ("\n\ndef half( number: int )->float:\n    return number/2\n", "would be reformatted"),
    ],
    ids=["unused import", "format"],
)
def test_a_fault_of_style_or_format(tree, planted, said):
    status, output = lint(tree, planted)
    assert status != 0 and said in output, output


def test_a_clean_tree_passes_and_a_wrong_type_does_not(tree):
    status, output = lint(tree)
    assert status == 0 and "no issues found in 1 source file" in output, output
    status, output = lint(tree, "\n\nWORDS: list[str] = [double(1)]\n")
    assert status != 0 and "[list-item]" in output, output


def test_ci_lints_before_it_tests():
    text = (ROOT / ".ci/run").read_text()
    assert 0 < text.index("\nscripts/lint\n") < text.index("\nexec scripts/test ")
