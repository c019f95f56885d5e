"""Starts a module of this package in another process.

It uses posix_spawn, because importing subprocess would delay the go command by 8 ms.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LISTENER_FD = 3  # the descriptor at which the HTTP process finds its listening socket
_SIGINT = 2  # the signal module is slow to import


def spawn(module: str, argument: str, file_actions: "Sequence[tuple[int, int, int]]") -> int:
    """Run ``main(argument)`` of a module in a new process; returns the process id.

    ``module`` is a dotted name; ``file_actions`` are (POSIX_SPAWN_DUP2, descriptor here, there).
    The process has the same sys.path as this one, without the working directory. SIGINT is blocked
    until ``main`` unblocks it. Raises OSError.
    """
    boot = (
        f"import sys; sys.path[:] = sys.argv[3:]; from {__name__} import run; run(*sys.argv[1:3])"
    )
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", boot, module, argument, *sys.path],
        os.environ,
        file_actions=file_actions,
        setsigmask=(_SIGINT,),
    )


def run(module: str, argument: str) -> None:
    """Run ``main(argument)`` of a module, in the new process."""
    from ..errors import LOCAL_TROUBLE, reason_of

    try:
        __import__(module, fromlist=["main"]).main(argument)
    except LOCAL_TROUBLE as error:
        text = f"a process of the program cannot go on: {reason_of(error)}; see ulimit -a\n"
        try:
            os.write(2, f"go-cache-plugin: {text}".encode(errors="backslashreplace"))
        finally:
            os._exit(1)


def spawn_apart(module: str, argument: str, null_fds: "Iterable[int]") -> int:
    """``spawn`` with the descriptors ``null_fds`` open on /dev/null. Raises OSError."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        return spawn(module, argument, [(os.POSIX_SPAWN_DUP2, null, fd) for fd in null_fds])
    finally:
        os.close(null)
