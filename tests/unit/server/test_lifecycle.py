"""lifecycle.py: every event in every state of a server."""

import pytest

from cacheplugin.server.lifecycle import IGNORED, TRANSITIONS, Event, Lifecycle, State

# A row for each state, a column for each event: the next state, "." where nothing changes, "x"
# where the event cannot happen.
EVENTS = [
    "IDLE",
    "FIRST_SIGNAL",
    "SECOND_SIGNAL",
    "STOP_TIMEOUT",
    "CLIENTS_GONE",
    "DRAINED",
    "DRAIN_TIMEOUT",
]
TABLE = {
    "SERVING": "STOPPING STOPPING x x x x x",
    "STOPPING": ". . ABORTED CUT_OFF DRAINING DONE x",
    "DRAINING": ". . ABORTED CUT_OFF . DONE GIVEN_UP",
    "CUT_OFF": ". . ABORTED x . DONE DONE",
    "GIVEN_UP": ". . ABORTED DONE DONE DONE x",
    "DONE": ". . . . . . .",
    "ABORTED": ". . . . . . .",
}
CASES = [
    (state, event, after)
    for state, row in TABLE.items()
    for event, after in zip(EVENTS, row.split(), strict=True)
]


def test_the_table_is_complete():
    assert list(TABLE) == [state.name for state in State]
    assert [event.name for event in Event] == EVENTS


@pytest.mark.parametrize("state, event, after", CASES)
def test_every_event_in_every_state(state, event, after):
    """The state changes, stays, or the event is refused and changes nothing."""
    lifecycle = Lifecycle()
    lifecycle.state = State[state]
    if after == "x":
        with pytest.raises(ValueError, match=f"{event} cannot happen .* {state}"):
            lifecycle.handle(Event[event])
        assert lifecycle.state is State[state]
    elif after == ".":
        assert not lifecycle.handle(Event[event])
        assert lifecycle.state is State[state]
    else:
        assert lifecycle.handle(Event[event])
        assert lifecycle.state is State[after]


def test_no_event_is_both_handled_and_ignored():
    assert not IGNORED & TRANSITIONS.keys()


@pytest.mark.parametrize("state", State)
def test_what_the_state_says(state):
    """The three questions that the server asks."""
    lifecycle = Lifecycle()
    assert lifecycle.state is State.SERVING
    lifecycle.state = state
    assert lifecycle.is_stopping == (state.name != "SERVING")
    assert lifecycle.is_cut_off == (state.name == "CUT_OFF")
    assert lifecycle.is_over == (state.name in ("DONE", "ABORTED"))
