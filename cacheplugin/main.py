"""The entry point. Answers the go command's hello before it loads the rest of the program."""

import os
import sys

from . import options
from .errors import UsageError, is_exhausted, reason_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from signal import SIG_IGN, SIGINT, signal
else:
    from _signal import SIG_IGN, SIGINT, signal  # the signal module would import enum


def main() -> None:
    """Run the program and end the process with its exit status."""
    signal(SIGINT, SIG_IGN)  # until the front installs its handler
    chosen = None
    try:
        words, chosen = options.load(sys.argv[1:], os.environ)
        unknown = options.unknown_variables(os.environ)
        if unknown:
            _say_misspelt(unknown)
        status = _run(words, chosen)
    except UsageError as error:
        _say(str(error).replace("\n", "\\n"))
        status = 2
    except Exception as error:
        _say_internal_error(error, chosen)
        status = 1
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        _say(f"cannot write to stdout: {error}")
        status = status or 1
    # The go command waits until stdout is closed, so skip the interpreter's own cleanup.
    os._exit(status)


def _say(text: str) -> None:
    try:
        from .console import say  # here, because the go command waits for imports at the top
    except Exception:  # no descriptor or memory is left, or the program's files are gone
        os.write(2, f"go-cache-plugin: {text}\n".encode(errors="backslashreplace"))
    else:
        say(text)


def _say_misspelt(unknown: "list[str]") -> None:
    from .misspelt import warnings  # here, because it imports difflib

    for line in warnings(unknown, sys.argv[1:], os.environ):
        _say(line)


def _say_internal_error(error: Exception, chosen: "options.Options | None") -> None:
    if isinstance(error, ImportError):
        _say(
            f"a part of the program cannot be loaded: {error}; if it was upgraded or removed while"
            " it ran, run it again, else install it again"
        )
    elif is_exhausted(error):
        _say(
            f"the machine or a limit stops this process: {reason_of(error)}; end"
            " other processes, or raise the limit (see ulimit -a)"
        )
    elif chosen is not None and not chosen.debug:
        _say(f"internal error: {error!r}; run again with --debug 1 for a traceback")
    else:
        _say(f"internal error: {error!r}")
        sys.excepthook(type(error), error, error.__traceback__)


def _run(words: "list[str]", chosen: options.Options) -> int:
    """Run the command in ``words``, direct mode if there is none; returns the exit status."""
    if (not words or words[0] == "connect") and "help" not in words and os.isatty(0):
        raise UsageError(
            "the go command starts this and speaks to it on stdin, which is a terminal here; set"
            " GOCACHEPROG and run 'go build', or see 'go-cache-plugin help'"
        )
    if words[:1] == ["connect"] and "help" not in words:
        from .server import connect

        status = connect.run(words[1:], chosen)
        return direct(chosen) if status is None else status
    if words:
        from . import cli

        return cli.run(words, sys.argv[1:], chosen)
    return direct(chosen)


def direct(chosen: options.Options) -> int:
    """Serve one go command on stdin and stdout; returns the exit status."""
    os.umask(0o022)  # other users' toolchains must be able to read what is stored
    from .store.tree import prepare

    writable = prepare(chosen.cache_dir, chosen.read_only)
    # stdout belongs to the protocol: everything else that prints, also in children, goes to stderr.
    out = _own_stdout()
    from .front.protocol import HELLO

    _write_all(out, HELLO)

    from .front.direct import Direct

    return Direct(chosen, writable, 0, out).run()


def _own_stdout() -> int:
    """Move stdout to a new descriptor, which is returned, and make descriptor 1 mean stderr."""
    for fd in (0, 1, 2):  # open closed ones, or the next file that is opened would become stdout
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    out = os.dup(1)
    os.dup2(2, 1, inheritable=False)
    return out


def _write_all(fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        pass  # the reader is gone, so the end of stdin follows
