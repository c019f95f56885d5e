"""What records say of their bodies, held until the bodies are checked."""

import struct

from ..tuples import NamedTuple
from .ids import is_hex, is_output

_LINK = struct.Struct("<32sQ8sB")  # output, size, xxh3, length of the action id that follows


class Link(NamedTuple):
    """What one record says of a body: size in bytes, xxh3 in hex; ``action`` names the record."""

    size: int
    xxh3: str
    action: str


class RecordLinks:
    """Links of many records, packed by the first byte of their output: about 90 bytes for each."""

    def __init__(self) -> None:
        self._packed: dict[str, bytearray] = {}

    def add(self, action: str, output: str, size: int, xxh3: str) -> bool:
        """Add a record's link; False if one of its fields is out of range."""
        if not is_output(output) or not 0 <= size < 2**63 or not is_hex(xxh3, 16):
            return False
        packed = self._packed.get(output[:2])
        if packed is None:
            packed = self._packed[output[:2]] = bytearray()
        packed += _LINK.pack(
            bytes.fromhex(output), size, bytes.fromhex(xxh3), len(action) // 2
        ) + bytes.fromhex(action)
        return True

    def take(self, xx: str) -> dict[str, list[Link]]:
        """Return and forget the links to outputs whose id begins with ``xx``, by output id."""
        packed = self._packed.pop(xx, bytearray())
        links: dict[str, list[Link]] = {}
        position = 0
        while position < len(packed):
            output, size, xxh3, length = _LINK.unpack_from(packed, position)
            position += _LINK.size
            action = packed[position : position + length].hex()
            position += length
            links.setdefault(output.hex(), []).append(Link(size, xxh3.hex(), action))
        return links
