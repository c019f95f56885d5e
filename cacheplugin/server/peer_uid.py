"""Finds the user of a TCP client on this machine, in Linux's tables of connections."""

import socket
import sys

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_MAPPED = b"\0" * 10 + b"\xff\xff"  # the first bytes of an IPv6 address that stands for an IPv4 one


def find(peer: tuple[str, int], own: tuple[str, int]) -> "int | None":
    """The user id of the process that owns the client's end of a connection.

    ``peer``: the client's address (host, port, …); ``own``: the server's. None if this system has
    no such tables. Raises ValueError if no socket of this machine is the client's end.
    """
    if sys.platform != "linux":
        return None
    # Either end of an IPv4 connection may be an IPv6 socket, and is then in the other table.
    wanted = {b" ".join(pair) for pair in zip(_texts(peer), _texts(own), strict=False)}
    has_table = False
    for table in _TABLES:
        try:
            with open(table, "rb") as file:
                has_table = True
                for line in file:
                    fields = line.split()
                    if b" ".join(fields[1:3]) in wanted:
                        # A closed socket has no inode, and some kernels call it root's.
                        if fields[9] == b"0":
                            raise ValueError("the client has closed the connection")
                        return int(fields[7])
        except OSError:
            continue
    if not has_table:
        return None
    raise ValueError("the client's end of the connection is not on this machine")


def _texts(address: tuple[str, int]) -> list[bytes]:
    """How the tables may write an address: hex, each 32 bits in the machine's byte order."""
    host, port = address[:2]
    if ":" in host:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    else:
        packed = _MAPPED + socket.inet_pton(socket.AF_INET, host)
    forms = [packed, packed[12:]] if packed.startswith(_MAPPED) else [packed]
    return [f"{_hex(form)}:{port:04X}".encode() for form in forms]


def _hex(packed: bytes) -> str:
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
