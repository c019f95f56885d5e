"""The programs that are compared: this one, the yardsticks, and peers given by their command."""

import os
import re
import shlex
import sys
from typing import NamedTuple

PLUGIN = os.path.join(os.path.dirname(sys.executable), "go-cache-plugin")
RESPONDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "responder.py")
OURS, OWN, BARE = "go-cache-plugin", "go's own cache", "bare responder"
PLACES = ("cache", "bucket", "endpoint", "prefix")  # placeholders of a peer's command


class Rival(NamedTuple):
    """A program to compare; both texts have PLACES in braces."""

    name: str
    command: str
    bucket_flags: str  # appended to the command if there is a bucket

    @property
    def has_remote(self) -> bool:
        """Whether it can use a bucket."""
        return "{bucket}" in self.command + self.bucket_flags

    def program(self, cache: str, remote: dict | None = None) -> str:
        """GOCACHEPROG with the directory ``cache``; ``remote`` is {bucket, endpoint, prefix}."""
        text = (
            f"{self.command} {self.bucket_flags}" if remote and self.bucket_flags else self.command
        )
        values = {"bucket": "", "endpoint": "", "prefix": "", **(remote or {}), "cache": cache}
        return re.sub(r"\{(\w+)\}", lambda place: values[place[1]], text)

    def argv(self, cache: str, remote: dict | None = None) -> list:
        """The same as a list of arguments."""
        return shlex.split(self.program(cache, remote))


def ours(layout: str = "") -> Rival:
    """This program; ``layout`` is its --layout."""
    flags = "--bucket={bucket} --s3-endpoint-url={endpoint} --s3-path-style --prefix={prefix}"
    if layout:
        flags += f" --layout={layout}"
    return Rival(OURS, f"{PLUGIN} --cache-dir={{cache}}", flags)


def parse_peer(text: str) -> Rival:
    """A peer given as ``NAME=COMMAND ...``; raises ValueError with a reason."""
    name, separator, command = text.partition("=")
    if not separator or not name.strip() or not command.strip():
        raise ValueError(f"{text!r} is not NAME=COMMAND")
    unknown = set(re.findall(r"\{(\w*)\}", command)) - set(PLACES)
    if unknown:
        raise ValueError(f"unknown placeholder {{{unknown.pop()}}}; use {', '.join(PLACES)}")
    if "{cache}" not in command:
        raise ValueError("the command has no {cache}, so all runs would share one cache")
    if name.strip() in (OURS, OWN, BARE):
        raise ValueError(f"the name {name.strip()!r} is taken")
    return Rival(name.strip(), command.strip(), "")
