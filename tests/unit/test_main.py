"""main.py: the ways to start the program, and what it says about errors."""

import errno
import os
import subprocess
import sys

import pytest

from cacheplugin import __version__

FAULT = "import sys, cacheplugin.cli as cli, cacheplugin.main as main; cli.run = lambda *_: 1 / 0; "


@pytest.fixture
def run(tmp_path):
    """Runs a command to its end, with a cache directory and no other variables."""

    def run(*command, **variables) -> subprocess.CompletedProcess:
        """``variables`` may have ``stdin``, a descriptor; without it stdin is empty."""
        stdin = variables.pop("stdin", subprocess.DEVNULL)
        environ = {"PYTHONPATH": ":".join(filter(None, sys.path)), "HOME": str(tmp_path)}
        return subprocess.run(
            command,
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=environ | variables,
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


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            "ImportError('no xxhash')",
            "a part of the program cannot be loaded: no xxhash; if it was ",
        ),
        (
            'RuntimeError("can\'t start new thread")',
            "the machine or a limit stops this process: can't start new thread; end other ",
        ),
        (
            "MemoryError()",
            "the machine or a limit stops this process: no memory is left; end other ",
        ),
        *(
            (
                f"OSError({number}, os.strerror({number}))",
                "the machine or a limit stops this process: "
                f"{os.strerror(number).lower()}; end other ",
            )
            for number in (errno.EAGAIN, errno.ENOMEM, errno.ENFILE, errno.EMFILE)
        ),
    ],
)
def test_what_the_machine_lacks_is_one_line(run, error, line):
    """An error for which the program is not to blame is one line that says what to do."""
    fault = f"import os, cacheplugin.cli as cli\ndef run(*_): raise {error}\ncli.run = run\n"
    done = run(sys.executable, "-c", f"{fault}from cacheplugin.main import main; main()", "version")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"go-cache-plugin: {line}") and done.stderr.count("\n") == 1


def test_a_line_is_printed_if_nothing_can_be_loaded(run):
    """Without descriptors no module can be imported; the last line is printed all the same."""
    fault = """
import os, resource, cacheplugin.cli as cli, cacheplugin.main as main
def run(*_):
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    open(os.devnull)
cli.run = run
main.main()
"""
    done = run(sys.executable, "-c", fault, "version")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "too many open files" in done.stderr


@pytest.mark.parametrize("argv", [[], ["--bucket=b"], ["connect", "5151"]])
def test_typed_at_a_terminal(run, argv, tmp_path):
    """With a terminal as stdin there is no go command to wait for: a hint, and status 2."""
    ours, terminal = os.openpty()
    try:
        done = run(sys.executable, "-m", "cacheplugin", *argv, stdin=terminal)
    finally:
        os.close(ours)
        os.close(terminal)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "set GOCACHEPROG" in done.stderr
    assert not any(tmp_path.iterdir())  # no cache directory was created


def test_help_at_a_terminal(run):
    """A command that reads nothing from stdin works at a terminal."""
    ours, terminal = os.openpty()
    try:
        for argv in (["version"], ["connect", "--help"]):
            done = run(sys.executable, "-m", "cacheplugin", *argv, stdin=terminal)
            assert (done.returncode, done.stderr) == (0, "")
    finally:
        os.close(ours)
        os.close(terminal)


def test_misspelt_variables_are_warned_of(run):
    """A variable that is none, but looks like one, is named once, with what was probably meant."""
    done = run(
        sys.executable, "-m", "cacheplugin", GOCACHE_BUCKET="b", GOCACHE_X="x", GOCACHE="off"
    )
    assert done.returncode == 0
    assert done.stderr == (
        "go-cache-plugin: the variable GOCACHE_BUCKET has no effect;"
        " did you mean GOCACHE_S3_BUCKET?\n"
    )
