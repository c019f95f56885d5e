"""From exec to the loop: options, the cache directory, the hello line, and only then the rest."""

import os
import sys
from _signal import SIG_IGN, SIGINT, signal  # the signal module imports enum

from . import options
from .errors import UsageError


def main() -> None:
    """Run the program and leave with its exit status; the console program's only call."""
    signal(SIGINT, SIG_IGN)  # until the front has its own way with it
    chosen = None
    try:
        words, chosen = options.load(sys.argv[1:], os.environ)
        if words[:1] == ["connect"] and "help" not in words:
            from .server import connect

            status = connect.run(words[1:], chosen)
            if status is None:
                status = direct(chosen)
        elif words:
            from . import cli

            status = cli.run(words, sys.argv[1:], chosen)
        else:
            status = direct(chosen)
    except UsageError as error:
        text = str(error).replace("\n", "\\n")
        sys.stderr.write(f"go-cache-plugin: {text}\n")
        status = 2
    except Exception as error:
        sys.stderr.write(f"go-cache-plugin: internal error: {error!r}; --debug 1 shows where\n")
        if chosen is not None and chosen.debug:
            sys.excepthook(*sys.exc_info())
        status = 1
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        sys.stderr.write(f"go-cache-plugin: cannot write to stdout: {error}\n")
        status = status or 1
    # The go command waits for the end of stdout: leave without the interpreter's own farewells.
    os._exit(status)


def direct(chosen: options.Options) -> int:
    """Serve one go command on stdin and stdout; returns the exit status."""
    os.umask(0o022)  # a toolchain run by another user must be able to read what is stored
    from .store.tree import prepare

    writable = prepare(chosen.cache_dir, chosen.read_only)
    # stdout belongs to the protocol: whatever else prints, now or in a child, goes to stderr.
    out = _own_stdout()
    from .front.protocol import HELLO

    _write_all(out, HELLO)

    from .front.direct import Direct

    return Direct(chosen, writable, 0, out).run()


def _own_stdout():
    for fd in (0, 1, 2):  # a descriptor that is closed would be given to the next file opened
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    out = os.dup(1)
    os.dup2(2, 1, inheritable=False)
    return out


def _write_all(fd, data):
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        pass  # nobody reads: stdin will say so too
