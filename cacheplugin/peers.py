"""Whose process is at the other end of a TCP connection on this machine (Linux)."""
import socket
import sys

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


def uid(peer, own):
    """The user id of the socket ``peer``, (host, port), that is connected to ``own``.

    None where this system does not tell. Raises ValueError where it has no such socket.
    """
    if sys.platform != "linux":
        return None
    wanted = {
        f"{local} {remote}".encode()
        for local, remote in (
            (_hex(peer), _hex(own)),
            (_hex_mapped(peer), _hex_mapped(own)),  # an IPv6 socket that speaks IPv4
        )
    }
    known = False
    for table in _TABLES:
        try:
            with open(table, "rb") as file:
                known = True
                for line in file:
                    fields = line.split()
                    if b" ".join(fields[1:3]) in wanted:
                        return int(fields[7])
        except OSError:
            continue
    if not known:
        return None
    raise ValueError("no process of this machine is at the other end")


def _hex(address) -> str:
    host, port = address[:2]
    number = int.from_bytes(socket.inet_aton(host), sys.byteorder)
    return f"{number:08X}:{port:04X}"


def _hex_mapped(address) -> str:
    words = b"\0" * 8 + b"\0\0\xff\xff"
    head = "".join(
        f"{int.from_bytes(words[at : at + 4], sys.byteorder):08X}" for at in range(0, 12, 4)
    )
    return head + _hex(address)
