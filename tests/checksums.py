"""A fake checksum database for Go modules: a transparency log with its own signing key.

Formats: golang.org/x/mod/sumdb, its tlog and note; https://go.dev/ref/mod#checksum-database.
"""

import base64
import hashlib
import re
import threading

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from modules import escape

TILE_HEIGHT = 8
_ED25519 = b"\x01"  # the number of the algorithm, in front of the public key
_TILE = re.compile(
    rf"tile/{TILE_HEIGHT}/(data|0|[1-9]\d*)/((?:x\d{{3}}/)*\d{{3}})(?:\.p/([1-9]\d*))?"
)


class ChecksumDatabase:
    """``name``: a host name, perhaps with a path. ``vkey``: the value for GOSUMDB.

    The same name and seed (32 bytes) give the same key: two databases with different modules are
    then a fork of one log.
    """

    def __init__(self, name="sum.example.test", seed=b"checksums" + bytes(23)) -> None:
        self.name = name
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self._key_hash = hashlib.sha256(f"{name}\n".encode() + _ED25519 + public).digest()[:4]
        self.vkey = f"{name}+{self._key_hash.hex()}+{_base64(_ED25519 + public)}"
        self.records = []  # texts
        self._ids = {}  # {escaped path@version: record number}
        self._levels = [[]]  # by level: the hashes of complete subtrees of 2**level records
        self._lock = threading.Lock()
        self._sign()

    def add(self, *modules) -> None:
        """Append a record of each module, with its present hashes."""
        with self._lock:
            for module in modules:
                about = f"{module.path} {module.version}"
                self._ids[escape(repr(module))] = len(self.records)
                self._append(f"{about} {module.zip_hash}\n{about}/go.mod {module.mod_hash}\n")
            self._sign()

    def latest(self) -> bytes:
        """The signed tree."""
        return self._latest

    def lookup(self, escaped: str):
        """The database's answer for an escaped "path@version", or None."""
        with self._lock:
            number = self._ids.get(escaped)
            if number is None:
                return None
            return f"{number}\n{self.records[number]}\n".encode() + self._latest

    def tile(self, path: str):
        """The tile at the path "tile/8/<level or data>/<number>[.p/<width>]", or None."""
        found = _TILE.fullmatch(path)
        if not found:
            return None
        level, digits, width = found.groups()
        number = int(re.sub("[x/]", "", digits))
        width = int(width or 1 << TILE_HEIGHT)
        start = number << TILE_HEIGHT
        with self._lock:
            if level == "data":
                row = [f"{record}\n".encode() for record in self.records[start : start + width]]
            elif TILE_HEIGHT * int(level) < len(self._levels):
                row = self._levels[TILE_HEIGHT * int(level)][start : start + width]
            else:
                row = []
        whole = len(row) == width and path == _tile_path(level, number, width)
        return b"".join(row) if whole else None

    def _append(self, record) -> None:
        self.records.append(record)
        level, node = 0, hashlib.sha256(b"\0" + record.encode()).digest()
        self._levels[0].append(node)
        while len(self._levels[level]) % 2 == 0:
            node = _node_hash(*self._levels[level][-2:])
            level += 1
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(node)

    def _sign(self) -> None:
        root = None
        for level in self._levels:  # from the right, the subtrees that are not half of a larger one
            if len(level) % 2:
                root = level[-1] if root is None else _node_hash(level[-1], root)
        root = root or hashlib.sha256(b"").digest()
        text = f"go.sum database tree\n{len(self.records)}\n{_base64(root)}\n"
        signature = _base64(self._key_hash + self._key.sign(text.encode()))
        self._latest = f"{text}\n\N{EM DASH} {self.name} {signature}\n".encode()


def _node_hash(left, right) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _tile_path(level, number, width) -> str:
    """The canonical path of a tile."""
    path = f"{number % 1000:03}"
    while number >= 1000:
        number //= 1000
        path = f"x{number % 1000:03}/{path}"
    part = f".p/{width}" if width < 1 << TILE_HEIGHT else ""
    return f"tile/{TILE_HEIGHT}/{level}/{path}{part}"


def _base64(data) -> str:
    return base64.b64encode(data).decode()
