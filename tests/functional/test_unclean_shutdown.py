"""Behaviour after the machine went down during a session. The tests create a marker of another boot
and damage files as a power cut would."""

import os

import pytest

from helpers import action_id, output_id, stored_bodies

OTHER_BOOT = "00000000-1111-2222-3333-444444444444"


def body_of(number: int) -> bytes:
    return f"body {number}\n".encode() * 100


def body_path(cache_dir, number):
    output = output_id(body_of(number))
    return cache_dir / "output" / output[:2] / output


def record_path(cache_dir, number):
    action = action_id(number)
    return cache_dir / "action" / action[:2] / action


def markers(cache_dir) -> list:
    return sorted(os.listdir(cache_dir / "open"))


@pytest.fixture
def crashed(start, cache_dir):
    """Ten entries of a session whose machine went down: the bodies of 0 to 3 are all zeros, the
    records of 2 and 3 are missing, that of 4 is truncated."""
    plugin = start().hello()
    for number in range(10):
        plugin.expect_stored(action_id(number), body_of(number))
    plugin.finish()
    for number in range(4):
        body_path(cache_dir, number).write_bytes(bytes(len(body_of(number))))
    for number in (2, 3):
        record_path(cache_dir, number).unlink()
    os.truncate(record_path(cache_dir, 4), 20)
    marker = cache_dir / "open" / f"{OTHER_BOOT}-4242-abcd"
    marker.touch()
    os.utime(marker, (1, 1))


def test_damaged_entries_are_misses_and_can_be_put_again(start, crashed, cache_dir):
    """A body of zeros is never served, not even in the answer to a put of the same body."""
    plugin = start().hello()
    for number in range(10):
        if number in (0, 2, 4):
            plugin.expect_miss(action_id(number))
            plugin.expect_stored(action_id(number), body_of(number))
        elif number > 4:
            plugin.expect_hit(action_id(number), body_of(number))
    plugin.finish()


def test_unrequested_entries_are_checked_at_the_end(start, crashed, cache_dir):
    """The session's end removes damaged files, then the marker; the next session checks none."""
    plugin = start().hello()
    plugin.expect_hit(action_id(9), body_of(9))
    assert len(markers(cache_dir)) == 1
    plugin.finish()
    assert markers(cache_dir) == []
    right = {output_id(body_of(number)): body_of(number) for number in range(4, 10)}
    assert stored_bodies(cache_dir) == right
    plugin = start().hello()
    for number in range(5):
        plugin.expect_miss(action_id(number))
    for number in range(5, 10):
        plugin.expect_hit(action_id(number), body_of(number))
    plugin.finish()


def test_a_session_that_writes_is_marked_until_its_end(start, cache_dir):
    """A session that only reads has no marker."""
    plugin = start().hello()
    plugin.expect_stored(action_id(0), body_of(0))
    (name,) = markers(cache_dir)
    assert f"-{plugin.pid}-" in name
    plugin.finish()
    assert markers(cache_dir) == []
    plugin = start().hello()
    plugin.expect_hit(action_id(0), body_of(0))
    assert markers(cache_dir) == []
    plugin.finish()


def test_the_marker_of_a_killed_session_is_removed_by_the_next(start, cache_dir):
    """Its entries are served, as the machine stayed up; the next session that writes removes it."""
    plugin = start().hello()
    plugin.expect_stored(action_id(0), body_of(0))
    plugin.kill()
    left = markers(cache_dir)
    assert len(left) == 1
    plugin = start().hello()
    plugin.expect_hit(action_id(0), body_of(0))
    assert markers(cache_dir) == left
    plugin.expect_stored(action_id(1), body_of(1))
    assert len(markers(cache_dir)) == 1 and markers(cache_dir) != left
    plugin.finish()
    assert markers(cache_dir) == []
