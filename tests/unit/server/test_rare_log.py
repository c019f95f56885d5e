"""rare_log.py: the first event is a line, and further ones are a count each minute."""

import logging

import pytest

from cacheplugin.loop import Loop
from cacheplugin.server import rare_log
from cacheplugin.server.rare_log import RareLog


@pytest.fixture
def loop(monkeypatch):
    """A loop in which a minute is over at once."""
    monkeypatch.setattr(rare_log, "EVERY_S", 0.0)
    return Loop()


@pytest.fixture
def lines(caplog):
    """The lines logged so far."""
    caplog.set_level(logging.WARNING)
    return lambda: caplog.messages


def test_the_first_event_is_told_at_once(loop, lines):
    RareLog(loop, "first: %s", "%d more: %s").note("a")
    assert lines() == ["first: a"]


def test_further_events_are_told_as_a_number_each_minute(loop, lines):
    events = RareLog(loop, "first: %s", "%d more: %s")
    for reason in "abc":
        events.note(reason)
    loop.turn(0)
    assert lines() == ["first: a", "2 more: c"]
    events.note("d")
    loop.turn(0)
    assert lines()[2:] == ["1 more: d"]
    assert events.count == 4


def test_after_a_minute_without_events_the_next_one_is_told_at_once(loop, lines):
    events = RareLog(loop, "first: %s", "%d more: %s")
    events.note("a")
    loop.turn(0)
    events.note("b")
    assert lines() == ["first: a", "first: b"]


def test_what_is_left_is_told_at_the_end(loop, lines):
    events = RareLog(loop, "first: %s", "%d more: %s")
    for reason in "ab":
        events.note(reason)
    events.close()
    events.close()
    loop.turn(0)
    assert lines() == ["first: a", "1 more: b"]
