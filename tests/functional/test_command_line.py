"""Flags, variables, help and version: output and exit status."""

import subprocess

import pytest

from helpers import DEADLINE_S, PROGRAM, action_id


@pytest.fixture
def run(processes):
    def run(*argv, **environ):
        return subprocess.run(
            [PROGRAM, *argv],
            env=processes.environ(**environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )

    return run


@pytest.mark.parametrize(
    "argv",
    [
        ["--no-such-flag"],
        ["--cache=/x"],
        ["-c", "none"],
        ["-c"],
        ["--bucket"],
        ["--metrics=perhaps"],
        ["--drain-timeout=5"],
        ["--debug=0b2"],
        ["--min-upload-size=1k"],
        ["--s3-endpoint-url=localhost"],
        ["--expiry=soon"],
        ["--bucket=arn:aws:s3:::bucket"],
        ["--bucket=s3://bucket/a", "--prefix=b"],
        ["--s3-sse=kms"],
        ["--cache-dir=/dev/null"],
        ["--cache-dir=/dev/null/below"],
        ["--cache-dir=/proc/none"],
        ["serve"],
        ["connect", "70000"],
        ["frobnicate"],
        ["help", "nothing"],
        ["version", "more"],
    ],
    ids=" ".join,
)
def test_a_usage_error_is_one_line_and_exit_2(run, argv):
    done = run(*argv)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("go-cache-plugin: ")


@pytest.mark.parametrize(
    "name, value",
    [
        ("GOCACHE_CONCURRENCY", "many"),
        ("GOCACHE_S3_CONCURRENCY", "08"),
        ("GOCACHE_METRICS", "2"),
        ("GOCACHE_MIN_SIZE", "-1k"),
        ("GOCACHE_DEBUG", "x"),
        ("GOCACHE_DRAIN_TIMEOUT", "soon"),
        ("GOCACHE_S3_PATH_STYLE", "yes"),
    ],
)
def test_a_bad_variable_is_named_in_one_line_and_exit_2(run, name, value):
    done = run(**{name: value})
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert name in line


def test_help_and_version_go_to_stdout_and_exit_0(run):
    topics = (
        "configure",
        "environment",
        "direct-mode",
        "serve-mode",
        "module-proxy",
        "reverse-proxy",
        "debug",
    )
    usages = [run(*argv) for argv in (["help"], ["--help"], ["-h"], ["-v", "help"])]
    assert len({done.stdout for done in usages}) == 1
    assert all(topic in usages[0].stdout for topic in topics)
    texts = [run("help", topic) for topic in topics]
    assert len({done.stdout for done in texts}) == len(topics)
    versions = [run("version"), run("--version"), run("version", "-v")]
    for done in usages + texts + versions:
        assert done.returncode == 0 and done.stdout and done.stderr == ""


def test_a_flag_overrides_its_variable_and_an_empty_variable_is_unset(start, cache_dir, tmp_path):
    other = str(tmp_path / "other")
    plugin = start(environ={"GOCACHE_DIR": other, "GOCACHE_DEBUG": ""}).hello()
    plugin.expect_stored(action_id("a"), b"body")
    plugin.finish()
    assert (cache_dir / "output").is_dir() and not (tmp_path / "other").exists()
    assert plugin.stderr == ""


@pytest.mark.parametrize(
    "flags, shown",
    [
        (["--metrics"], True),
        (["-metrics"], True),
        (["--metrics=t"], True),
        (["-v=1"], True),
        (["--v"], True),
        (["--metrics=false"], False),
        (["-metrics=0", "-u", "3"], False),
    ],
)
def test_the_spellings_of_a_boolean(start, flags, shown):
    plugin = start(*flags).hello()
    plugin.finish()
    assert ("gocache_server:" in plugin.stderr) == shown
