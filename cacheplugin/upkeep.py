"""What a server has done beside its work: the check after an unclean shutdown, prunes.

It is a process of its own, as both read much; direct mode does the same when nobody waits any more.
"""
import json
import os
import signal

from .options import Options
from .poollink import spawn
from .prune import prune_at_close
from .shutdown import Suspects


def start(options) -> int:
    """Start it; returns the process id, raises OSError. Exit status 0: nothing is suspect any more."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null, at) for at in (0, 1)]
        return spawn("cacheplugin.upkeep", json.dumps(options.as_dict()), actions)
    finally:
        os.close(null)


def main(text: str) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o022)
    options = Options(**json.loads(text))
    status = 0
    try:
        Suspects.settle(options.cache_dir)
        if options.expiry_s or options.max_size_bytes:
            prune_at_close(options)
    except OSError:
        status = 1  # it is tried again
    os._exit(status)
