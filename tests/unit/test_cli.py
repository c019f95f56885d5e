"""cli.py and helptext.py: help, topics, version, and one list of flags."""

import re

import pytest

from cacheplugin import __version__, cli
from cacheplugin.errors import UsageError
from cacheplugin.helptext import TOPICS, USAGE
from cacheplugin.options import FLAGS, load, parse_amount, parse_duration

HOME = {"HOME": "/home/gopher"}
MACHINE_DEFAULTS = ("cache-dir", "region", "scope", "modproxy-upstream", "nosumdb")


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
    """help prints the usage with the list of topics, whatever flags stand by."""
    assert run(capsys, *argv) == USAGE.format(topics=", ".join(TOPICS))


@pytest.mark.parametrize(
    "argv", [["version"], ["--version"], ["-version"], ["-metrics=0", "version"]]
)
def test_version(capsys, argv):
    """version prints one line."""
    assert run(capsys, *argv) == f"go-cache-plugin {__version__}\n"


def test_topics_are_those_of_the_reference():
    """All help topics of the Go program are there."""
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
    """help TOPIC prints that topic, with nothing left to be filled in."""
    for argv in (["help", topic], ["--bucket=b", "help", topic], ["help", topic, "-bucket", "b"]):
        text = run(capsys, *argv)
        assert text.endswith("\n") and "{" not in text


def test_environment_topic_names_every_variable(capsys):
    """help environment has a line for each variable with its flag."""
    text = run(capsys, "help", "environment")
    for flag, variable, *_ in FLAGS:
        dashes = "-" if len(flag) == 1 else "--"
        assert not variable or re.search(rf"^{variable} +{dashes}{flag}$", text, re.M)
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
    """Words that are no command, and topics that are none, are one clear line."""
    words, chosen = load(argv, HOME)
    with pytest.raises(UsageError) as caught:
        cli.run(words, argv, chosen)
    text = str(caught.value)
    assert "\n" not in text
    assert any(word in text for word in words)


def test_canonical_command_line():
    """docopt gets one spelling: no boolean with a value, no -cache-dir that reads as -c."""
    argv = ["-cache-dir=/x", "help", "--v", "-metrics=false", "-c=4", "debug", "--prefix="]
    assert cli.canonical(argv, ["help", "debug"]) == [
        "--cache-dir=/x",
        "--prefix=",
        "-c",
        "4",
        "help",
        "debug",
    ]


def usage_entries() -> dict:
    """{flag: (as it is spelled, its argument or None, [variable, default] as far as stated)}"""
    starts = [match.start() for match in re.finditer(r"^  -", USAGE, re.M)]
    entries = {}
    for start in starts:
        lines = re.match(r".*(?:\n {10}.*)*", USAGE[start:])[0]
        text = " ".join(lines.split())
        spelled, argument = re.match(r"(--?[\w-]+)(?:[= ]([A-Z]+)\b)?", text).groups()
        bracket = re.search(r"\[([^\]]*)\]$", text)
        entries[spelled.lstrip("-")] = (
            spelled,
            argument,
            bracket[1].split("; ") if bracket else [],
        )
    assert len(entries) == len(starts)
    return entries


def test_usage_and_table_agree():
    """The usage text names the flags, variables and defaults of options.FLAGS, and no others."""
    entries = usage_entries()
    assert set(entries) == {row[0] for row in FLAGS}
    for flag, variable, _, kind, default in FLAGS:
        spelled, argument, stated = entries[flag]
        assert spelled == (f"--{flag}" if len(flag) > 1 else f"-{flag}")
        assert (argument is None) == (kind == "bool")
        if variable:
            assert stated.pop(0) == variable
        if flag in MACHINE_DEFAULTS:
            continue
        if not default:
            assert not stated or stated[0].startswith(("0", "no limit"))
        elif kind == "duration":
            assert parse_duration(stated[0]) == default
        elif kind == "amount":
            assert parse_amount(stated[0]) == default
        else:
            assert stated == [str(default)]


def test_usage_names_the_topics(capsys):
    """Every topic is found from the usage."""
    assert all(topic in run(capsys, "help") for topic in TOPICS)
