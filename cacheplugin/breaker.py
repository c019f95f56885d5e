"""A circuit breaker: after repeated failures nothing is asked for a while, then one job tries."""

import time

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half-open"

FAILURES_TO_OPEN = 3
TIMEOUT_WEIGHT = 2  # a time-out holds up a build for all of its length; the first of all suffices
FIRST_PAUSE_S = 30.0
LONGEST_PAUSE_S = 300.0


class Breaker:
    """Counts consecutive failures. ``clock`` gives monotonic seconds."""

    def __init__(
        self, clock=time.monotonic, first_pause_s=FIRST_PAUSE_S, longest_pause_s=LONGEST_PAUSE_S
    ) -> None:
        self.state = CLOSED
        self.pause_s = self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._proven = False  # whether S3 ever answered
        self._clock = clock
        self._failures = 0
        self._open_until = 0.0

    def admit(self) -> str:
        """CLOSED: go ahead; OPEN: do not; HALF_OPEN: this one job is the probe."""
        if self.state == OPEN and self._clock() >= self._open_until:
            self.state = HALF_OPEN
            return HALF_OPEN
        return CLOSED if self.state == CLOSED else OPEN

    def succeeded(self) -> bool:
        """Note that S3 answered; returns whether that closed the breaker."""
        reopened = self.state != CLOSED
        self.state = CLOSED
        self.pause_s = self._first_pause_s
        self._proven = True
        self._failures = 0
        return reopened

    def failed(self, timed_out: bool = False) -> bool:
        """Note a failure; returns whether that opened a breaker that was closed."""
        if self.state == OPEN:
            return False  # a job that was under way when it opened
        if self.state == HALF_OPEN:
            self.pause_s = min(self.pause_s * 2, self._longest_pause_s)
            self._open()
            return False
        if timed_out:
            self._failures += TIMEOUT_WEIGHT if self._proven else FAILURES_TO_OPEN
        else:
            self._failures += 1
        if self._failures < FAILURES_TO_OPEN:
            return False
        self._open()
        return True

    def trip(self) -> None:
        """Open it for what is known from elsewhere."""
        if self.state == CLOSED:
            self._open()

    def _open(self) -> None:
        self.state = OPEN
        self._open_until = self._clock() + self.pause_s
        self._failures = 0
