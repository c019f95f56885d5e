"""How ``connect`` finds a server on Linux, and hands it the go command's stdin and stdout.

It is an abstract Unix socket, which is in the same namespace as the server's TCP port and leaves
nothing behind. Messages keep their bounds (SOCK_SEQPACKET). The client sends one, an Offer with the
two descriptors; the server sends lines for the client's stderr, and at the end of the session ``\\0``
and the exit status, one byte. Each looks first whose process is at the other end.

This is on the way to the go command's first answer, so it imports the C module behind socket.
"""

import _socket
import os
import sys

MAX_BYTES = 32768
_FIRST_LINE = "go-cache-plugin connect 1"
_NO_OFFER = "no offer of connect"


class Offer:
    """What comes with the descriptors.

    ``wants_summary``: the counters are to be printed at the end; ``is_explicit``: the user has named
    the scope; ``scopes``: those of scope.find. (A named tuple would double what connect imports.)
    """

    __slots__ = ("is_explicit", "scopes", "wants_summary")

    def __init__(self, wants_summary: bool, is_explicit: bool, scopes) -> None:
        self.wants_summary, self.is_explicit, self.scopes = wants_summary, is_explicit, scopes


def is_possible() -> bool:
    """Whether this system has what it takes."""
    return sys.platform == "linux"


def address(port: int) -> bytes:
    """Where the server of a TCP port listens."""
    return b"\0go-cache-plugin-%d" % port


def make_socket():
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)


def peer_uid(sock) -> int:
    """The effective user id that the process at the other end had when it connected, or listened."""
    credentials = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], sys.byteorder)


def is_trusted(uid: int) -> bool:
    """Whether a user may have what is ours, and may serve us."""
    return uid in (0, os.geteuid())


def offer(sock, offer: Offer, fds) -> None:
    """Send an Offer with descriptors; raises OSError."""
    lines = (_FIRST_LINE, str(int(offer.wants_summary)), str(int(offer.is_explicit)), *offer.scopes)
    rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
    data = "\n".join(lines).encode()
    sock.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])


def receive(sock):
    """(Offer, descriptors) that the client sent. The descriptors are the caller's to close.

    Raises BlockingIOError where nothing came yet, and ValueError or OSError where what came is no
    offer; then nothing is left open.
    """
    data, ancillary, flags, _ = sock.recvmsg(
        MAX_BYTES, _socket.CMSG_SPACE(8 * 4), _socket.MSG_CMSG_CLOEXEC
    )
    fds = [
        int.from_bytes(rights[at : at + 4], sys.byteorder)
        for level, kind, rights in ancillary
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS
        for at in range(0, len(rights) // 4 * 4, 4)
    ]
    try:
        offer = _parse(data)
        if len(fds) != 2 or flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
            raise ValueError(_NO_OFFER)
        return offer, fds
    except ValueError:
        for fd in fds:
            os.close(fd)
        raise


def _parse(data) -> Offer:
    try:
        first, summary, explicit, *scopes = data.decode().split("\n")
    except ValueError:
        raise ValueError(_NO_OFFER) from None
    if first != _FIRST_LINE:
        raise ValueError("a client of another version")
    if not scopes:
        raise ValueError(_NO_OFFER)
    return Offer(summary == "1", explicit == "1", tuple(scopes))


def tell(sock, text: str, status: int) -> None:
    """Send lines for the client's stderr, then the end; none who listens is no trouble."""
    try:
        if text:
            sock.send(text.encode(errors="backslashreplace")[:MAX_BYTES])
        sock.send(b"\0" + bytes([status]))
    except OSError:
        pass
