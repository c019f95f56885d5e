"""Every command but direct mode. Has docopt and may be slow."""

import importlib
import sys

import docopt

from . import __version__
from .errors import UsageError
from .helptext import TOPICS, USAGE
from .options import FLAGS, split

# Each names a module of this package with ``run(options) -> exit status``.
COMMANDS = {
    "serve": "server.serve",
    "prune": "commands.prune",
    "verify": "commands.verify",
    "stats": "commands.stats",
    "flush": "commands.flush",
}


def run(words, argv, options) -> int:
    """Run the command among ``words``; returns the exit status, raises UsageError."""
    usage = USAGE.format(topics=", ".join(TOPICS))
    if len(words) == 2 and set(words) & {"help"} and set(words) & {"connect", *COMMANDS}:
        words = ["help"]  # prune --help, help prune: all flags are on one page
    try:
        arguments = docopt.docopt(usage, canonical(argv, words), default_help=False)
    except docopt.DocoptExit:
        if words[0] in (*COMMANDS, "help", "version"):
            problem = f"{words[0]} takes no argument {words[-1]!r}"
        else:
            problem = f"unknown command {' '.join(words)!r}"
        raise UsageError(f"{problem}; see 'go-cache-plugin help'") from None
    for command, module in COMMANDS.items():
        if arguments[command]:
            return importlib.import_module(f".{module}", __package__).run(options)
    if arguments["version"]:
        sys.stdout.write(f"go-cache-plugin {__version__}\n")
    elif arguments["<topic>"] is None:
        sys.stdout.write(usage)
    elif arguments["<topic>"] in TOPICS:
        sys.stdout.write(TOPICS[arguments["<topic>"]].format(variables=_variables()))
    else:
        raise UsageError(f"no help topic {arguments['<topic>']!r}; there are {', '.join(TOPICS)}")
    return 0


def canonical(argv, words) -> list:
    """The flags of ``argv`` in the one spelling that docopt neither guesses at nor abbreviates."""
    _, texts = split(argv)
    flags = []
    for flag, _, _, kind, _ in FLAGS:
        if flag in texts and kind != "bool":
            flags += [f"-{flag}", texts[flag]] if len(flag) == 1 else [f"--{flag}={texts[flag]}"]
    return flags + words


def _variables() -> str:
    width = max(len(row[1] or "") for row in FLAGS)
    return "".join(
        f"{variable:<{width}}  {'--' if len(flag) > 1 else '-'}{flag}\n"
        for flag, variable, *_ in FLAGS
        if variable
    )
