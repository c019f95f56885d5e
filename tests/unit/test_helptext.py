"""helptext.py: the usage, option_rows() and the table in options.py agree."""

import re

import docopt
import pytest

from cacheplugin import helptext
from cacheplugin.helptext import TOPICS, option_rows, usage
from cacheplugin.option_values import FORMATS
from cacheplugin.options import FLAGS, load

BY_SPELLING = {flag.spelling: flag for flag in FLAGS}


def usage_entries() -> dict:
    """{flag with dashes: (section title, placeholder or None, meaning, notes in brackets)}"""
    entries = {}
    title = ""
    for line in usage()[usage().index("\nOptions:") :].splitlines():
        if line.startswith("Options"):
            title = line
        elif line.startswith("  -"):
            match = re.fullmatch(r"  (--?[\w-]+)(?:[= ]([A-Z]+))?(?:  +(.*))?", line)
            spelling, placeholder, text = match.groups()
            assert spelling not in entries
            entries[spelling] = [title, placeholder, text or ""]
        elif line.startswith(" "):
            entries[spelling][2] += f" {line.strip()}"
    found = {}
    for spelling, (title, placeholder, text) in entries.items():
        meaning, notes = re.fullmatch(r"(.*?)(?: +\[([^\]]*)\])?", text.strip()).groups()
        found[spelling] = (title, placeholder, meaning.strip(), notes or "")
    return found


def test_rows_are_those_of_the_table():
    """There is one row for each flag, with its variable, format and commands."""
    assert [(row.flag, row.variable, row.format, row.commands) for row in option_rows()] == [
        (flag.spelling, flag.variable or "", FORMATS[flag.kind], flag.commands) for flag in FLAGS
    ]
    assert all(row.text and row.default for row in option_rows())


@pytest.mark.parametrize("row", option_rows(), ids=lambda row: row.flag)
def test_default_of_a_row_is_that_of_the_table(row):
    """The text of a default is one that the flag takes, and means the default of the table.

    Texts before a colon count. An empty default has words instead, such as "no limit".
    """
    flag = BY_SPELLING[row.flag]
    if flag.default in (None, "") or flag.kind == "port":
        assert not flag.default and row.default == helptext._EMPTY_DEFAULTS[flag.name]
        return
    words, chosen = load(
        [*flag.commands[:1], f"{row.flag}={row.default.partition(':')[0]}"], {"HOME": "/h"}
    )
    assert words == list(flag.commands[:1])
    assert getattr(chosen, flag.field) == flag.default


def test_texts_of_empty_defaults_are_used():
    """Words for an empty default belong to a flag with an empty default or one of 0."""
    assert all(not flag.default for flag in FLAGS if flag.name in helptext._EMPTY_DEFAULTS) and set(
        helptext._EMPTY_DEFAULTS
    ) <= {flag.name for flag in FLAGS}


def test_usage_agrees_with_the_rows():
    """The usage has each flag once, in its section, with meaning, variable and default."""
    entries = usage_entries()
    assert set(entries) == set(BY_SPELLING)
    for row in option_rows():
        flag = BY_SPELLING[row.flag]
        title, placeholder, meaning, notes = entries[row.flag]
        assert set(re.findall(r"\w+", title)) - {"Options", "of", "and"} == set(row.commands)
        assert (placeholder is None) == (flag.kind == "bool")
        assert meaning.startswith(row.text)
        stated = (row.variable, "" if flag.kind == "bool" else row.default)
        assert notes == "; ".join(filter(None, stated))


def test_docopt_reads_every_flag():
    """docopt finds the same flags in the usage, and which of them take a value."""
    argv = []
    for flag in FLAGS:
        argv += [flag.spelling] if flag.kind == "bool" else [flag.spelling, "7"]
    arguments = docopt.docopt(usage(), [*argv, "version"], False)
    found = {name: value for name, value in arguments.items() if name.startswith("-")}
    assert found == {flag.spelling: True if flag.kind == "bool" else "7" for flag in FLAGS}


def test_usage_is_not_wider_than_a_terminal():
    """No line of help is longer than 100 characters."""
    for text in (usage(), *(helptext.topic_text(topic) for topic in TOPICS)):
        assert all(len(line) <= 100 for line in text.splitlines())


def test_usage_names_the_topics():
    """The usage lists all topics."""
    assert f"Topics: {', '.join(TOPICS)}.\n" in usage()
