"""Who is compared: this program, what stands in its place, and any other GOCACHEPROG by its command."""

import os
import re
import shlex
import sys
from collections import namedtuple

PLUGIN = os.path.join(os.path.dirname(sys.executable), "go-cache-plugin")
RESPONDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "responder.py")
OURS, OWN, BARE = "go-cache-plugin", "go's own cache", "bare responder"
PLACES = ("cache", "bucket", "endpoint", "prefix")  # what a peer's command may have in braces


class Rival(namedtuple("Rival", "name command bucket_flags")):
    """``command``, and ``bucket_flags`` where there is a bucket: texts with PLACES in braces."""

    __slots__ = ()

    @property
    def has_remote(self) -> bool:
        return "{bucket}" in self.command + self.bucket_flags

    def program(self, cache: str, remote: dict = None) -> str:
        """GOCACHEPROG over the directory ``cache``; ``remote``: {bucket, endpoint, prefix}, if any."""
        text = (
            f"{self.command} {self.bucket_flags}" if remote and self.bucket_flags else self.command
        )
        values = {"bucket": "", "endpoint": "", "prefix": "", **(remote or {}), "cache": cache}
        return re.sub(r"\{(\w+)\}", lambda place: values[place[1]], text)

    def argv(self, cache: str, remote: dict = None) -> list:
        return shlex.split(self.program(cache, remote))


def ours(layout: str = "") -> Rival:
    flags = "--bucket={bucket} --s3-endpoint-url={endpoint} --s3-path-style --prefix={prefix}"
    if layout:
        flags += f" --layout={layout}"
    return Rival(OURS, f"{PLUGIN} --cache-dir={{cache}}", flags)


def parse_peer(text: str) -> Rival:
    """A peer given as ``NAME=COMMAND ...``; raises ValueError with what is wrong with it."""
    name, separator, command = text.partition("=")
    if not separator or not name.strip() or not command.strip():
        raise ValueError(f"{text!r} is not NAME=COMMAND")
    unknown = set(re.findall(r"\{(\w*)\}", command)) - set(PLACES)
    if unknown:
        raise ValueError(f"{{{unknown.pop()}}} is none of {', '.join(PLACES)}")
    if "{cache}" not in command:
        raise ValueError("the command has no {cache}, so runs would share what they keep")
    if name.strip() in (OURS, OWN, BARE):
        raise ValueError(f"{name.strip()!r} is the name of another one")
    return Rival(name.strip(), command.strip(), "")
