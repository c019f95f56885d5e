"""The life of a server as one state machine: from serving to the end of the process.

A server that is told to stop takes no new clients and lets its clients finish; then it waits for
uploads; then it ends. Two time-outs and a second signal shorten this. TRANSITIONS has every step.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """What a server does now."""

    SERVING = "clients are accepted and served"
    STOPPING = "no client is accepted; clients and HTTP requests may finish"
    DRAINING = "no client is left; uploads and late HTTP requests may finish"
    CUT_OFF = "--stop-timeout is over: clients were cut off, uploads may finish"
    GIVEN_UP = "--drain-timeout is over: HTTP requests may finish, uploads are not waited for"
    DONE = "the process ends"
    ABORTED = "the process ends at once, because a second signal came"


class Event(enum.Enum):
    """What can happen to a server."""

    IDLE = "no client for --idle-exit"
    FIRST_SIGNAL = "SIGINT or SIGTERM"
    SECOND_SIGNAL = "SIGINT or SIGTERM after FIRST_SIGNAL"
    STOP_TIMEOUT = "--stop-timeout is over since the server began to stop"
    CLIENTS_GONE = "no client and, unless CUT_OFF, no HTTP request is left; uploads are"
    DRAINED = "as CLIENTS_GONE, and no upload is left"
    DRAIN_TIMEOUT = "--drain-timeout is over since CLIENTS_GONE"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.SERVING, Event.IDLE): State.STOPPING,
    (State.SERVING, Event.FIRST_SIGNAL): State.STOPPING,
    (State.STOPPING, Event.SECOND_SIGNAL): State.ABORTED,
    (State.STOPPING, Event.STOP_TIMEOUT): State.CUT_OFF,
    (State.STOPPING, Event.CLIENTS_GONE): State.DRAINING,
    (State.STOPPING, Event.DRAINED): State.DONE,
    (State.DRAINING, Event.SECOND_SIGNAL): State.ABORTED,
    (State.DRAINING, Event.STOP_TIMEOUT): State.CUT_OFF,
    (State.DRAINING, Event.DRAINED): State.DONE,
    (State.DRAINING, Event.DRAIN_TIMEOUT): State.GIVEN_UP,
    (State.CUT_OFF, Event.SECOND_SIGNAL): State.ABORTED,
    (State.CUT_OFF, Event.DRAINED): State.DONE,
    (State.CUT_OFF, Event.DRAIN_TIMEOUT): State.DONE,
    (State.GIVEN_UP, Event.SECOND_SIGNAL): State.ABORTED,
    (State.GIVEN_UP, Event.STOP_TIMEOUT): State.DONE,
    (State.GIVEN_UP, Event.CLIENTS_GONE): State.DONE,
    (State.GIVEN_UP, Event.DRAINED): State.DONE,
}

# Events that change nothing in a state, though they can happen there.
IGNORED: frozenset[tuple[State, Event]] = frozenset(
    [
        # The first signal may come while the server already stops because it was idle, and the idle
        # timer may fire while it stops because of a signal.
        *((state, Event.FIRST_SIGNAL) for state in State if state is not State.SERVING),
        *((state, Event.IDLE) for state in State if state is not State.SERVING),
        # The server sends this event in every turn of its loop.
        (State.DRAINING, Event.CLIENTS_GONE),
        (State.CUT_OFF, Event.CLIENTS_GONE),
        # The process is about to exit.
        *((state, event) for state in (State.DONE, State.ABORTED) for event in Event),
    ]
)


class Lifecycle:
    """The state of one server, which begins with SERVING.

    A pair of state and event that is neither in TRANSITIONS nor in IGNORED is a defect of the
    server: a second signal before the first one, say, or a time-out that fires twice.
    """

    def __init__(self) -> None:
        self.state = State.SERVING

    def handle(self, event: Event) -> bool:
        """Change the state as ``event`` demands; returns whether it has changed.

        Raises ValueError for an event that cannot happen in this state.
        """
        key = (self.state, event)
        if key in IGNORED:
            return False
        if key not in TRANSITIONS:
            raise ValueError(f"{event.name} cannot happen to a server that is {self.state.name}")
        self.state = TRANSITIONS[key]
        return True

    @property
    def is_stopping(self) -> bool:
        """Whether no client is accepted any more."""
        return self.state is not State.SERVING

    @property
    def is_cut_off(self) -> bool:
        """Whether --stop-timeout is over, so that only uploads are waited for."""
        return self.state is State.CUT_OFF

    @property
    def is_over(self) -> bool:
        """Whether the process is to end."""
        return self.state in (State.DONE, State.ABORTED)
