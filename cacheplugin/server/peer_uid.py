"""Whose process is at the other end of a TCP connection on this machine (Linux)."""

import socket
import sys

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_MAPPED = b"\0" * 10 + b"\xff\xff"  # how an IPv6 address begins that stands for an IPv4 one


def uid(peer, own):
    """The user id of the socket ``peer``, (host, port, …), that is connected to ``own``.

    None where this system does not tell. Raises ValueError where it has no such socket.
    """
    if sys.platform != "linux":
        return None
    # Either end of a connection may be an IPv6 socket that speaks IPv4.
    wanted = {b" ".join(pair) for pair in zip(_texts(peer), _texts(own))}
    known = False
    for table in _TABLES:
        try:
            with open(table, "rb") as file:
                known = True
                for line in file:
                    fields = line.split()
                    if b" ".join(fields[1:3]) in wanted:
                        if fields[9] == b"0":  # no inode: closed already, and then it is nobody's
                            raise ValueError("the client is gone already")
                        return int(fields[7])
        except OSError:
            continue
    if not known:
        return None
    raise ValueError("no process of this machine is at the other end")


def _texts(address) -> list:
    """How the tables may write an address: each 32 bits in the machine's byte order, in hex."""
    host, port = address[:2]
    if ":" in host:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    else:
        packed = _MAPPED + socket.inet_pton(socket.AF_INET, host)
    forms = [packed, packed[12:]] if packed.startswith(_MAPPED) else [packed]
    return [f"{_hex(form)}:{port:04X}".encode() for form in forms]


def _hex(packed) -> str:
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
