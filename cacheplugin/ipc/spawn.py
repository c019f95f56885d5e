"""Starts a module of this package in a process of its own.

posix_spawn, because subprocess would cost the front 8 ms to import.
"""

import os
import sys

LISTENER_FD = 3  # where the HTTP process finds the socket that it listens on


def spawn(module: str, argument: str, file_actions) -> int:
    """Start ``main(argument)`` of a module of this package in a process; returns its id.

    It finds the same modules as this one, and not what lies in the working directory. SIGINT is
    blocked until it says what it does about it. Raises OSError.
    """
    boot = f"import sys; sys.path[:] = sys.argv[3:]; from {module} import main; main(sys.argv[2])"
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", boot, module, argument, *sys.path],
        os.environ,
        file_actions=file_actions,
        setsigmask=(2,),
    )


def spawn_apart(module: str, argument: str, nothing_at) -> int:
    """As ``spawn``, with /dev/null at the descriptors ``nothing_at``."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        return spawn(module, argument, [(os.POSIX_SPAWN_DUP2, null, at) for at in nothing_at])
    finally:
        os.close(null)
