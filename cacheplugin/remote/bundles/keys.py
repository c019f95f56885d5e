"""The keys of bundles and manifests. docs/bundles.rst has their form."""

from __future__ import annotations

import hashlib
import re

from ...options import key_prefix

_LAST_MS = (1 << 48) - 1

# The names that new_name makes, for bundles (the group is the scope) and for manifests.
BUNDLE_NAME = re.compile("[0-9a-f]{12}-([0-9a-f]{16})-[0-9a-f]{8}")
MANIFEST_NAME = re.compile("[0-9a-f]{12}-[0-9a-f]{8}")


class KeyPrefixes:
    """How the keys of ``bundles`` and ``manifests`` begin. ``prefix`` is that of --prefix."""

    def __init__(self, prefix: str) -> None:
        self.bundles = f"{key_prefix(prefix)}bundle/"
        self.manifests = f"{key_prefix(prefix)}manifest/"


def scope_key(scope: str) -> str:
    """The 16 hex digits that stand for a scope in keys."""
    return hashlib.sha256(scope.encode()).hexdigest()[:16]


def new_name(now_s: float, unique: str) -> str:
    """A name that sorts before those of earlier times: 12 hex digits, "-" and ``unique``."""
    return f"{_LAST_MS - int(now_s * 1000):012x}-{unique}"
