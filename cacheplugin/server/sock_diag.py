"""Asks Linux for one TCP connection of this machine: sock_diag(7), in constant time.

The kernel looks into the table that it uses for packets, so the number of connections does not
matter. connect uses this too, so it imports _socket, the C module behind socket.
"""

import _socket
import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _ERROR = 20, 2  # types of messages
_REQUEST = 1  # a flag of messages: asks for one answer
_LISTENING = 10  # the state of a socket without a peer
_LOOPBACK = 1  # the number of that interface, in each network namespace
_NO_COOKIE = b"\xff" * 8
_HEADER_BYTES = 16
# Where the answer has its fields, and its length.
_STATE, _PEER_PORT, _UID, _INODE, _ANSWER_BYTES = 17, 22, 80, 84, 88


def find(end: "tuple[bytes, int]", other: "tuple[bytes, int]") -> "tuple[int, int] | None":
    """(user id, inode) of the socket whose own address is ``end`` and whose peer's is ``other``.

    An address is 4 or 16 bytes and a port; both have the same length, 4 for IPv4 on an IPv6 socket.
    The inode is 0 once the socket is closed. None if there is no such socket. Raises OSError if the
    kernel does not answer such questions.
    """
    sock = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    try:
        for request in _requests(end, other):
            sock.send(request)
            found = _parse(sock.recv(4096, _socket.MSG_DONTWAIT), other[1])  # it has been sent
            if found is not None:
                return found
    finally:
        sock.close()
    return None


def _requests(end: "tuple[bytes, int]", other: "tuple[bytes, int]") -> "Iterator[bytes]":
    """The question, for sockets bound to no interface, then for those bound to the loopback one."""
    family = _socket.AF_INET if len(end[0]) == 4 else _socket.AF_INET6
    ports = end[1].to_bytes(2, "big") + other[1].to_bytes(2, "big")
    addresses = end[0].ljust(16, b"\0") + other[0].ljust(16, b"\0")
    for interface in (0, _LOOPBACK):
        body = (
            bytes((family, _socket.IPPROTO_TCP, 0, 0))
            + b"\xff" * 4  # any state
            + ports
            + addresses
            + _bytes(interface, 4)
            + _NO_COOKIE
        )
        yield (
            _bytes(_HEADER_BYTES + len(body), 4)
            + _bytes(_SOCK_DIAG_BY_FAMILY, 2)
            + _bytes(_REQUEST, 2)
            + bytes(8)
            + body
        )


def _parse(answer: bytes, peer_port: int) -> "tuple[int, int] | None":
    """What ``find`` returns, of an answer; raises OSError."""
    kind = _number(answer[4:6])
    if kind == _ERROR:
        code = 2**32 - _number(answer[_HEADER_BYTES : _HEADER_BYTES + 4])
        if code == errno.ENOENT:
            return None
        raise OSError(code, os.strerror(code))
    if kind != _SOCK_DIAG_BY_FAMILY or len(answer) < _ANSWER_BYTES:
        raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
    # Where there is no such connection, the kernel tells of a socket that listens on that address.
    port = int.from_bytes(answer[_PEER_PORT : _PEER_PORT + 2], "big")
    if answer[_STATE] == _LISTENING or port != peer_port:
        return None
    return _number(answer[_UID : _UID + 4]), _number(answer[_INODE : _INODE + 4])


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


def _bytes(number: int, length: int) -> bytes:
    return number.to_bytes(length, sys.byteorder)
