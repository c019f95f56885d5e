"""The service manager: sockets from it, sd_listen_fds(3), and states to it, sd_notify(3)."""

import logging
import os
import socket

from ..errors import UsageError, reason_of

log = logging.getLogger(__name__)

_FIRST_FD = 3


def listeners() -> list[tuple[socket.socket, str]]:
    """The listening sockets that were passed, each with its name or "".

    Removes the variables, so that children do not take the sockets for theirs. Raises UsageError
    if a descriptor is not a listening socket.
    """
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    count, process_id = os.environ.pop("LISTEN_FDS", "0"), os.environ.pop("LISTEN_PID", "")
    if process_id != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return []
    found = []
    for fd in range(_FIRST_FD, _FIRST_FD + int(count)):
        try:
            os.set_inheritable(fd, False)
            listener = socket.socket(fileno=fd)
            is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            is_listening = False
        if not is_listening:
            raise UsageError(
                f"descriptor {fd}, passed by the service manager, is not a listening socket;"
                " see ListenStream= in its socket unit"
            )
        found.append((listener, "".join(names[fd - _FIRST_FD :][:1])))
    return found


def notify(text: str) -> None:
    """Send a state such as READY=1 to the service manager, if it has asked for it."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(f"\0{path[1:]}" if path[0] == "@" else path)
            sock.send(text.encode())
    except OSError as error:
        log.warning(
            "cannot tell the service manager %s at NOTIFY_SOCKET=%s: %s",
            text,
            path,
            reason_of(error),
        )
