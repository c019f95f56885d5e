"""How ``connect`` finds a server on Linux, and hands it the go command's stdin and stdout.

The server listens on an abstract Unix socket of type SOCK_SEQPACKET: its name is derived from the
TCP port, belongs to the same network namespace as that port, and leaves no file behind. The client
sends one message, an Offer with two descriptors. The server sends text for the client's stderr, and
at the end of the session ``\\0`` and the exit status, one byte. Each side first checks the user of
the other side's process.

The go command waits for this, so it imports _socket, the C module behind socket.
"""

import _socket
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_BYTES = 32768  # of a message
_FIRST_LINE = "go-cache-plugin connect 1"
_NO_OFFER = "the first message is not an offer of connect"


class Offer:
    """What the client sends with its descriptors.

    ``wants_summary``: print the counters at the end; ``is_explicit``: the user has named the scope;
    ``scopes``: those of scope.find. (A named tuple would double what connect imports.)
    """

    __slots__ = ("is_explicit", "scopes", "wants_summary")

    def __init__(self, wants_summary: bool, is_explicit: bool, scopes: "Sequence[str]") -> None:
        self.wants_summary, self.is_explicit, self.scopes = wants_summary, is_explicit, scopes


def is_possible() -> bool:
    """Whether this system has abstract Unix sockets."""
    return sys.platform == "linux"


def address(port: int) -> bytes:
    """The name of the Unix socket of the server on a TCP port."""
    return b"\0go-cache-plugin-%d" % port


def make_socket() -> _socket.socket:
    """A socket of the right type, not connected."""
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)


def peer_uid(sock: _socket.socket) -> int:
    """The effective user id of the other process when it connected, or began to listen."""
    credentials = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], sys.byteorder)


def is_trusted(uid: int) -> bool:
    """Whether a user may use this process's descriptors and cache: the same user, or root."""
    return uid in (0, os.geteuid())


def send_offer(sock: _socket.socket, offer: Offer, fds: "Sequence[int]") -> None:
    """Send an Offer with descriptors; raises OSError."""
    lines = (_FIRST_LINE, str(int(offer.wants_summary)), str(int(offer.is_explicit)), *offer.scopes)
    rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
    data = "\n".join(lines).encode()
    sock.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])


def receive_offer(sock: _socket.socket) -> "tuple[Offer, list[int]]":
    """The Offer that the client sent, and its descriptors, for the caller to close.

    Raises BlockingIOError if nothing has arrived yet, and ValueError or OSError if the message is
    not an offer; then no descriptor stays open.
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


def _parse(data: bytes) -> Offer:
    try:
        first, summary, explicit, *scopes = data.decode().split("\n")
    except ValueError:
        raise ValueError(_NO_OFFER) from None
    if first != _FIRST_LINE:
        raise ValueError("the client is another version of go-cache-plugin than the server")
    if not scopes:
        raise ValueError(_NO_OFFER)
    return Offer(summary == "1", explicit == "1", tuple(scopes))


def send_end(sock: _socket.socket, text: str, status: int) -> None:
    """Send text for the client's stderr, then its exit status; a client that is gone is ignored."""
    try:
        if text:
            sock.send(text.encode(errors="backslashreplace")[:MAX_BYTES])
        sock.send(b"\0" + bytes([status]))
    except OSError:
        pass
