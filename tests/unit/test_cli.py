"""cli.py: help, its topics, version, and commands that do not exist."""

import re

import pytest

from cacheplugin import __version__, cli
from cacheplugin.errors import UsageError
from cacheplugin.helptext import TOPICS, usage
from cacheplugin.options import FLAGS, load

HOME = {"HOME": "/home/gopher"}


def run(capsys, *argv) -> str:
    words, chosen = load(argv, HOME)
    assert cli.run(words, argv, chosen) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize(
    "argv", [["help"], ["-h"], ["--help"], ["-v", "help"], ["help", "-c", "4"]]
)
def test_help(capsys, argv):
    """help prints the usage, also with other flags beside it."""
    assert run(capsys, *argv) == usage()


@pytest.mark.parametrize("command", ["connect", *cli.COMMANDS])
def test_help_with_a_command(capsys, command):
    """help COMMAND and COMMAND --help print the usage too, which has the flags of all commands."""
    assert run(capsys, command, "--help") == run(capsys, "help", command) == usage()


@pytest.mark.parametrize(
    "argv", [["version"], ["--version"], ["-version"], ["-metrics=0", "version"]]
)
def test_version(capsys, argv):
    """version prints one line."""
    assert run(capsys, *argv) == f"go-cache-plugin {__version__}\n"


def test_topics_are_those_of_the_go_program():
    """Every help topic of the Go program exists."""
    assert list(TOPICS) == [
        "configure",
        "environment",
        "direct-mode",
        "serve-mode",
        "module-proxy",
        "reverse-proxy",
        "debug",
    ]


@pytest.mark.parametrize("topic", TOPICS)
def test_topic(capsys, topic):
    """help TOPIC prints the text of that topic, with all placeholders filled in."""
    for argv in (["help", topic], ["--bucket=b", "help", topic], ["help", topic, "-bucket", "b"]):
        text = run(capsys, *argv)
        assert text.endswith("\n") and "{" not in text


def test_environment_topic_names_every_variable(capsys):
    """help environment has a line for each variable, with its flag."""
    text = run(capsys, "help", "environment")
    for flag in FLAGS:
        assert not flag.variable or re.search(rf"^{flag.variable} +{flag.spelling}$", text, re.M)
    assert "None" not in text


@pytest.mark.parametrize(
    "argv",
    [
        ["help", "nonsense"],
        ["help", "help"],
        ["help", "configure", "debug"],
        ["helP"],
        ["vers"],
        ["build"],
        ["version", "now"],
        ["help", "version", "x"],
        ["-"],
        ["--", "--buck=b", "build"],
        [""],
    ],
)
def test_unknown_words(argv):
    """An unknown command, argument or topic is an error of one line that names it."""
    words, chosen = load(argv, HOME)
    with pytest.raises(UsageError) as caught:
        cli.run(words, argv, chosen)
    text = str(caught.value)
    assert "\n" not in text
    assert any(word in text for word in words)


def test_canonical_command_line():
    """docopt gets no booleans with a value, and no -cache-dir, which it would read as -c."""
    argv = ["-cache-dir=/x", "help", "--v", "-metrics=false", "-c=4", "debug", "--prefix="]
    assert cli.canonical(argv, ["help", "debug"]) == [
        "--cache-dir=/x",
        "--prefix=",
        "-c",
        "4",
        "help",
        "debug",
    ]
