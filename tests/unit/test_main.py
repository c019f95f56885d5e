"""main.py: the ways to start the program, and what it says about errors."""

import subprocess
import sys

import pytest

from cacheplugin import __version__

FAULT = "import sys, cacheplugin.cli as cli, cacheplugin.main as main; cli.run = lambda *_: 1 / 0; "


@pytest.fixture
def run(tmp_path):
    """Runs a command to its end, with a cache directory and no other variables."""

    def run(*command) -> subprocess.CompletedProcess:
        environ = {"PYTHONPATH": ":".join(filter(None, sys.path)), "HOME": str(tmp_path)}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=environ, input=""
        )

    return run


@pytest.mark.parametrize("argv", [["version"], ["help", "debug"], ["nonsense"], []])
def test_python_m_is_the_console_script(run, argv):
    """``python -m cacheplugin`` and the console script give the same output and status."""
    script = "from cacheplugin.main import main; main()"
    module = run(sys.executable, "-m", "cacheplugin", *argv)
    console = run(sys.executable, "-c", script, *argv)
    assert (module.returncode, module.stdout, module.stderr) == (
        console.returncode,
        console.stdout,
        console.stderr,
    )
    assert module.returncode == (2 if argv == ["nonsense"] else 0)
    if argv == ["version"]:
        assert module.stdout == f"go-cache-plugin {__version__}\n"


def test_usage_errors_are_one_line(run):
    """A usage error is one line on stderr with the program's name; the exit status is 2."""
    done = run(sys.executable, "-m", "cacheplugin", "--bucket", "b", "a\nb")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("go-cache-plugin: unknown command ")
    assert done.stderr.count("\n") == 1


def test_unexpected_errors_are_one_line(run):
    """An unexpected exception is one line that says how to get a traceback; the status is 1."""
    done = run(sys.executable, "-c", f"{FAULT} main.main()", "version")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "go-cache-plugin: internal error: ZeroDivisionError('division by zero');"
        " run again with --debug 1 for a traceback\n"
    )


def test_unexpected_errors_with_debug(run):
    """With --debug there is a traceback after the line."""
    done = run(sys.executable, "-c", f"{FAULT} main.main()", "version", "--debug=1")
    first, _, rest = done.stderr.partition("\n")
    assert done.returncode == 1
    assert first == "go-cache-plugin: internal error: ZeroDivisionError('division by zero')"
    assert rest.startswith("Traceback") and rest.endswith("ZeroDivisionError: division by zero\n")
