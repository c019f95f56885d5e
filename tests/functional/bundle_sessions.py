"""What the tests of the layout ``bundles`` share: entries, and the sessions that use them."""

import random

from helpers import Plugin, action_id, counters


def some(count: int, word: str = "x") -> dict:
    """{action: body}: an empty one, two equal ones, some that share a block, some that do not."""
    source = random.Random(word)
    bodies = [b"", f"{word} twice".encode(), f"{word} twice".encode()]
    while len(bodies) < count:
        bodies.append(source.randbytes(source.choice((100, 3000, 40_000))) + word.encode())
    return {action_id(f"{word} {n}"): body for n, body in enumerate(bodies[:count])}


def noise(count: int, size: int, word: str = "noise") -> dict:
    """{action: body} of ``size`` bytes each that no compression makes smaller."""
    source = random.Random(word)
    return {action_id(f"{word} {n}"): source.randbytes(size) for n in range(count)}


def put_all(plugin: Plugin, puts: dict) -> None:
    """Put {action: body}, and see each answered."""
    for action, body in puts.items():
        assert "DiskPath" in plugin.answer(plugin.put(action, body))


def get_all(plugin: Plugin, actions) -> list:
    """The answers to gets that are all asked at once."""
    return [plugin.answer(number) for number in [plugin.get(action) for action in actions]]


def expect_all(plugin: Plugin, puts: dict) -> list:
    """Every entry is a hit with the right body; returns their times."""
    return [plugin.expect_hit(action, body)["Time"] for action, body in puts.items()]


def fill(plugin: Plugin, puts: dict) -> dict:
    """A session that puts all of these; its counters."""
    put_all(plugin, puts)
    return plugin.finish()


def close_and_leave(plugin: Plugin) -> dict:
    """Close, and see stdout end, as the go command does; the process may go on. Its counters."""
    number = plugin.close()
    assert plugin.answer(number) == {"ID": number}
    assert plugin.line() is None
    plugin.end_input()
    return counters(plugin.stderr)


def keys(fake_s3, kind: str) -> list:
    """The keys of bundles or manifests, the oldest first."""
    found = [key for key in fake_s3.objects if key.startswith(f"{kind}/")]
    return sorted(found, key=lambda key: key.rpartition("/")[2].split("-")[0], reverse=True)


def in_bundles(fake_s3) -> int:
    """How many GETs were for bundles."""
    return fake_s3.count("GET", "bundle/") - fake_s3.count("GET", "?list bundle/")


def asked(fake_s3) -> list:
    """The requests up to now, which are forgotten."""
    requests = fake_s3.requests[:]
    del fake_s3.requests[: len(requests)]
    return requests
