"""A circuit breaker: stops requests for a pause after repeated failures, then admits one probe."""

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half-open"

FAILURES_TO_OPEN = 3
# A time-out delays a build by its whole length, so it counts as two failures; a time-out before
# any answer opens the breaker at once.
TIMEOUT_WEIGHT = 2
FIRST_PAUSE_S = 30.0
LONGEST_PAUSE_S = 300.0


class Breaker:
    """Counts consecutive failures. The pause doubles with each probe that fails.

    ``clock`` returns monotonic seconds.
    """

    def __init__(
        self,
        clock: "Callable[[], float]" = time.monotonic,
        first_pause_s: float = FIRST_PAUSE_S,
        longest_pause_s: float = LONGEST_PAUSE_S,
    ) -> None:
        self.state = CLOSED
        self.pause_s = self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._has_succeeded = False
        self._clock = clock
        self._failures = 0
        self._open_until = 0.0
        self._off_since: float | None = None  # when a closed breaker opened, until a success

    @property
    def off_s(self) -> "float | None":
        """For how many seconds it has not been closed; None while it is closed."""
        return None if self._off_since is None else self._clock() - self._off_since

    def admit(self) -> str:
        """Decide on one job. CLOSED: run it; OPEN: skip it; HALF_OPEN: run it, as the probe."""
        if self.state == OPEN and self._clock() >= self._open_until:
            self.state = HALF_OPEN
            return HALF_OPEN
        return CLOSED if self.state == CLOSED else OPEN

    def succeeded(self) -> bool:
        """Note a success; returns whether it closed a breaker that was open or half-open."""
        was_closed = self.state == CLOSED
        self.state = CLOSED
        self.pause_s = self._first_pause_s
        self._has_succeeded = True
        self._failures = 0
        self._off_since = None
        return not was_closed

    def failed(self, timed_out: bool = False) -> bool:
        """Note a failure; returns whether it opened a breaker that was closed."""
        if self.state == OPEN:
            return False  # the job was under way when the breaker opened
        if self.state == HALF_OPEN:
            self.pause_s = min(self.pause_s * 2, self._longest_pause_s)
            self._open()
            return False
        if timed_out:
            self._failures += TIMEOUT_WEIGHT if self._has_succeeded else FAILURES_TO_OPEN
        else:
            self._failures += 1
        if self._failures < FAILURES_TO_OPEN:
            return False
        self._open()
        return True

    def trip(self) -> None:
        """Open a closed breaker without counting, for a failure that was seen elsewhere."""
        if self.state == CLOSED:
            self._open()

    def _open(self) -> None:
        self.state = OPEN
        now = self._clock()
        self._open_until = now + self.pause_s
        if self._off_since is None:
            self._off_since = now
        self._failures = 0
