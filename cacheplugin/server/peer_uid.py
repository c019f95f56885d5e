"""Finds the user of the other end of a TCP connection on this machine (Linux).

The kernel is asked for that one connection; where it does not answer such questions, its tables of
all connections are read, which takes milliseconds. connect uses this too, so it imports _socket,
the C module behind socket.
"""

import _socket
import errno
import sys

from . import sock_diag

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_MAPPED = b"\0" * 10 + b"\xff\xff"  # the first bytes of an IPv6 address that stands for an IPv4 one
# A table may be missing; every other error could be brought about by the user who is looked for.
_NO_TABLE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM)


def find(peer: "tuple[str, int]", own: "tuple[str, int]") -> "int | None":
    """The user id of the process that owns the other end of a connection.

    ``peer``: the address of the other end (host, port, …); ``own``: that of the end of this
    process. None if this system has no way to find it. Raises ValueError if no socket of this
    machine is the other end, and OSError if it cannot be looked for now.
    """
    if sys.platform != "linux":
        return None
    other, this = (_packed(peer), peer[1]), (_packed(own), own[1])
    try:
        found = sock_diag.find(other, this)
    except OSError:
        if not _has_tables():
            return None
        found = _find_in_tables(other, this)
    if found is None:
        raise ValueError("the other end of the connection is not on this machine")
    uid, inode = found
    # A closed socket has no inode, and some kernels call it root's.
    if not inode:
        raise ValueError("the other end has closed the connection")
    return uid


def _packed(address: "tuple[str, int]") -> bytes:
    """The host of an address as bytes: 4 for IPv4, also where an IPv6 address stands for it."""
    host = address[0]
    if ":" not in host:
        return _socket.inet_pton(_socket.AF_INET, host)
    packed = _socket.inet_pton(_socket.AF_INET6, host.partition("%")[0])
    return packed[12:] if packed.startswith(_MAPPED) else packed


def _has_tables() -> bool:
    """Whether this system has one of the tables; raises OSError if that cannot be found out."""
    for table in _TABLES:
        try:
            open(table, "rb").close()
            return True
        except OSError as error:
            if error.errno not in _NO_TABLE:
                raise
    return False


def _find_in_tables(
    end: "tuple[bytes, int]", other: "tuple[bytes, int]"
) -> "tuple[int, int] | None":
    """As sock_diag.find, from the kernel's tables of all connections."""
    # Either end of an IPv4 connection may be an IPv6 socket, and is then in the other table.
    wanted = {b" ".join(pair) for pair in zip(_texts(*end), _texts(*other), strict=True)}
    for table in _TABLES:
        try:
            with open(table, "rb") as file:
                for line in file:
                    fields = line.split()
                    if b" ".join(fields[1:3]) in wanted:
                        return int(fields[7]), int(fields[9])
        except OSError as error:
            if error.errno not in _NO_TABLE:
                raise
    return None


def _texts(packed: bytes, port: int) -> "list[bytes]":
    """How the tables may write an address: hex, each 32 bits in the machine's byte order."""
    forms = [packed, _MAPPED + packed] if len(packed) == 4 else [packed]
    return [f"{_hex(form)}:{port:04X}".encode() for form in forms]


def _hex(packed: bytes) -> str:
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
