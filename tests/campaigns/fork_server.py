"""Starts runs of the program by forking a process that has loaded it, and strikes calls of theirs.

A program of its own: ``python fork_server.py FD``, where FD is a SOCK_SEQPACKET socket. An order is
JSON with the descriptors of stdin, stdout and stderr; the answers are JSON: ``{"pid": …}``, then
``{"status": …}`` when that process has ended (as of os.waitpid), then ``{"gone": true}`` when all
its descendants have, too. Orders are served one after the other.

A start of the program and its pool costs 0.6 s of processor time, mostly for imports; here it costs
a tenth of that. What a run does after its imports is the same.
"""

import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback

import injection

_PR_SET_CHILD_SUBREAPER = 36
_PROGRAM = ("main", "front.direct", "cli", "pool.supervisor", "pool.uploader")
_COMMANDS = ("commands.flush", "commands.prune", "commands.stats", "commands.verify")
_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGHUP)


def main(fd: int) -> None:
    os.posix_spawn = _fork_module
    injection.install()
    for name in (*_PROGRAM, *_COMMANDS):
        importlib.import_module(f"cacheplugin.{name}")
    _prepare_botocore()
    gc.freeze()  # forks then copy fewer pages of memory
    # Processes whose parents have ended become children of this one, which can wait for them.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    connection = socket.socket(fileno=fd)
    while True:
        data, fds, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        if not data:
            return
        pid = os.fork()
        if not pid:
            _in_child(_run, json.loads(data), fds)
        for passed in fds:
            os.close(passed)
        connection.send(json.dumps({"pid": pid}).encode())
        _reap(connection, pid)


def _prepare_botocore() -> None:
    """Have every process use one session of botocore, which has read its data files already."""
    import botocore.session

    session = botocore.session.get_session()
    session.get_credentials()
    session.create_client("s3", region_name="us-east-1")
    botocore.session.get_session = lambda *_: session


def _reap(connection, pid) -> None:
    """Wait for a process and all its descendants."""
    while True:
        try:
            ended, status = os.waitpid(-1, 0)
        except ChildProcessError:
            connection.send(b'{"gone": true}')
            return
        if ended == pid:
            connection.send(json.dumps({"status": status}).encode())


def _in_child(function, *args) -> None:
    """Call the function in a process that has just been forked, and end that process."""
    try:
        function(*args)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _run(order, fds) -> None:
    """Run the program, in a process of its own; does not return."""
    os.setsid()
    for target, passed in enumerate(fds):
        os.dup2(passed, target)
    _close_private_descriptors()
    os.environ.clear()
    os.environ.update(order["environ"])
    sys.argv = ["go-cache-plugin", *order["argv"]]
    if order["trace"]:
        point = injection.Point.parse(order["point"]) if order["point"] else None
        injection.begin(order["home"], order["trace"], "front", point)
    from cacheplugin.main import main

    main()


def _fork_module(_path, argv, _environ, file_actions=(), setsigmask=()) -> int:
    """In place of os.posix_spawn, for the calls of cacheplugin.ipc.spawn.

    Forks, and goes on as the new process would after its imports.
    """
    _, _, _, module, argument, *_ = argv
    pid = injection.plain_fork()
    if not pid:
        _in_child(_enter, module, argument, file_actions, setsigmask)
    return pid


def _enter(module, argument, file_actions, setsigmask) -> None:
    injection.set_role("uploader" if module.endswith("uploader") else "pool")
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, setsigmask)
    for number in _HANDLED:
        signal.signal(number, signal.SIG_DFL)
    for _, fd, target in file_actions:
        os.dup2(fd, target)
    _close_private_descriptors()
    importlib.import_module(module).main(argument)


def _close_private_descriptors() -> None:
    """Close what exec would close."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.get_inheritable(int(name)):
                os.close(int(name))
        except OSError:
            pass  # the descriptor of the listing itself


if __name__ == "__main__":
    main(int(sys.argv[1]))
