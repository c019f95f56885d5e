"""Runs a command of the command line: every command but connect, which main runs.

It may be slow to import: the go command does not wait for these commands.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import docopt

from . import __version__
from .errors import UsageError
from .helptext import TOPICS, topic_text, usage
from .options import FLAGS, Options, split

if TYPE_CHECKING:
    from collections.abc import Sequence

# {command: a module of this package with ``run(options) -> exit status``}
COMMANDS = {
    "serve": "server.serve",
    "prune": "commands.prune",
    "verify": "commands.verify",
    "stats": "commands.stats",
    "flush": "commands.flush",
}


def run(words: list[str], argv: Sequence[str], options: Options) -> int:
    """Run the command in ``words``; returns the exit status.

    ``words`` and ``options`` are what options.load made of ``argv``. Raises UsageError.
    """
    if len(words) == 2 and "help" in words and set(words) & {"connect", *COMMANDS}:
        words = ["help"]  # "prune --help" and "help prune": one page has the flags of all commands
    try:
        # The third argument turns off docopt's own --help, by position because its name differs
        # between docopt and docopt-ng.
        arguments = docopt.docopt(usage(), canonical(argv, words), False)
    except docopt.DocoptExit:
        if words[0] in (*COMMANDS, "help", "version"):
            problem = f"{words[0]} does not take the argument {words[-1]!r}"
        else:
            problem = f"unknown command {' '.join(words)!r}"
        raise UsageError(f"{problem}; see 'go-cache-plugin help'") from None
    for command, module in COMMANDS.items():
        if arguments[command]:
            return int(importlib.import_module(f".{module}", __package__).run(options))
    topic = arguments["<topic>"]
    if arguments["version"]:
        sys.stdout.write(f"go-cache-plugin {__version__}\n")
    elif topic is None:
        sys.stdout.write(usage())
    elif topic in TOPICS:
        sys.stdout.write(topic_text(topic))
    else:
        raise UsageError(f"no help topic {topic!r}; the topics are {', '.join(TOPICS)}")
    return 0


def canonical(argv: Sequence[str], words: list[str]) -> list[str]:
    """``argv`` with flags in a spelling that docopt reads in one way only, followed by ``words``.

    docopt takes abbreviations, and ``-cache-dir`` for ``-c ache-dir``. Booleans are left out,
    because docopt allows them no value; options.load has read them all.
    """
    _, texts = split(argv)
    flags: list[str] = []
    for flag in FLAGS:
        if flag.name in texts and flag.kind != "bool":
            text = texts[flag.name]
            flags += ["-" + flag.name, text] if len(flag.name) == 1 else [f"--{flag.name}={text}"]
    return flags + words
