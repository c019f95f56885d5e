"""ipc/spawn.py: what a spawned process says when it cannot go on."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("cacheplugin.absent", "No module named 'cacheplugin.absent'"),
        ("out_of_memory", "no memory is left"),
        ("out_of_processes", "resource temporarily unavailable"),
    ],
)
def test_one_line_in_place_of_a_traceback(tmp_path, module, reason):
    """The exit status is 1."""
    (tmp_path / "out_of_memory.py").write_text("raise MemoryError")
    (tmp_path / "out_of_processes.py").write_text(
        "def main(_): raise OSError(11, 'Resource temporarily unavailable')"
    )
    code = f"from cacheplugin.ipc.spawn import run; run({module!r}, '')"
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(tmp_path)!r}); {code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"go-cache-plugin: a process of the program cannot go on: {reason}; see ulimit -a\n"
    )
