"""front.py: SIGTERM ends a process whose loop does not act on it, and no other."""

import signal
import subprocess
import sys

import pytest

from cacheplugin.front.front import EXIT_TERMINATED

TIMEOUT_S = 30

# A front that waits in a system call, in its handler of the signal, or in its loop. argv: a cache
# directory, which of these.
FRONT = """
import os, sys
from cacheplugin.front import front
from cacheplugin.options import Options
front.STUCK_S = 0.3
reader, writer = os.pipe()
class Waiting(front.Front):
    def on_signal(self):
        if sys.argv[2] == "handler":
            os.read(reader, 1)
        self.may_go_on()
        self.loop.after(3 * front.STUCK_S, lambda: os._exit(0))
waiting = Waiting(Options(cache_dir=sys.argv[1]), False)
waiting.catch_signals()
print(flush=True)
if sys.argv[2] == "call":
    os.read(reader, 1)
while True:
    waiting.loop.turn()
"""


@pytest.mark.parametrize(
    "where, status", [("call", EXIT_TERMINATED), ("handler", EXIT_TERMINATED), ("loop", 0)]
)
def test_sigterm_ends_a_process_whatever_it_waits_for(tmp_path, where, status):
    """One that waits in a system call is ended after a time; one whose loop acts goes on."""
    argv = [sys.executable, "-c", FRONT, str(tmp_path), where]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"\n"
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(TIMEOUT_S) == status
        finally:
            process.kill()
