"""Helpers of the tests of the layout ``bundles``: entries, and sessions that use them."""

import random

from helpers import Plugin, action_id, counters


def some(count: int, word: str = "x") -> dict:
    """{action: body} of an empty body, two equal ones, and others, some of which share a block."""
    source = random.Random(word)
    bodies = [b"", f"{word} twice".encode(), f"{word} twice".encode()]
    while len(bodies) < count:
        bodies.append(source.randbytes(source.choice((100, 3000, 40_000))) + word.encode())
    return {action_id(f"{word} {n}"): body for n, body in enumerate(bodies[:count])}


def noise(count: int, size: int, word: str = "noise") -> dict:
    """{action: body} of ``size`` bytes each that cannot be compressed."""
    source = random.Random(word)
    return {action_id(f"{word} {n}"): source.randbytes(size) for n in range(count)}


def put_all(plugin: Plugin, puts: dict) -> None:
    """Put {action: body} and check that each put is answered."""
    for action, body in puts.items():
        assert "DiskPath" in plugin.answer(plugin.put(action, body))


def get_all(plugin: Plugin, actions) -> list:
    """The answers to gets that are sent without waiting for answers."""
    return [plugin.answer(number) for number in [plugin.get(action) for action in actions]]


def expect_all(plugin: Plugin, puts: dict) -> list:
    """Check that every entry is a hit with the right body; returns the times of their puts."""
    return [plugin.expect_hit(action, body)["Time"] for action, body in puts.items()]


def fill(plugin: Plugin, puts: dict) -> dict:
    """Run a session that puts all of these; returns its counters."""
    put_all(plugin, puts)
    return plugin.finish()


def close_and_leave(plugin: Plugin) -> dict:
    """Close, wait for the end of stdout and close stdin, as the go command does; returns counters.

    The process may go on.
    """
    number = plugin.close()
    assert plugin.answer(number) == {"ID": number}
    assert plugin.line() is None
    plugin.end_input()
    return counters(plugin.stderr)


def keys(fake_s3, kind: str) -> list:
    """The keys of bundles or manifests, the oldest first."""
    found = [key for key in fake_s3.objects if key.startswith(f"{kind}/")]
    return sorted(found, key=lambda key: key.rpartition("/")[2].split("-")[0], reverse=True)


def bundle_gets(fake_s3) -> int:
    """The number of GETs for bundles."""
    return fake_s3.count("GET", "bundle/") - fake_s3.count("GET", "?list bundle/")


def take_requests(fake_s3) -> list:
    """The requests since the last call."""
    requests = fake_s3.requests[:]
    del fake_s3.requests[: len(requests)]
    return requests
