"""Log lines about what strangers can cause at any rate: one a minute, with a count."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..loop import Loop, Timer

log = logging.getLogger(__name__)

EVERY_S = 60.0


class RareLog:
    """Logs the first of many equal events at once, and the number of further ones each minute.

    ``first`` is the format of the first line, with the reason; ``more`` that of the later ones,
    with the number of events and the last reason. ``count``: all events.
    """

    def __init__(self, loop: Loop, first: str, more: str) -> None:
        self.count = 0
        self._loop = loop
        self._first, self._more = first, more
        self._untold = 0
        self._reason = ""
        self._timer: Timer | None = None  # while a minute runs

    def note(self, reason: str) -> None:
        """Log or count an event."""
        self.count += 1
        if self._timer is None:
            log.warning(self._first, reason)
            self._timer = self._loop.after(EVERY_S, self._tell)
        else:
            self._untold += 1
            self._reason = reason

    def _tell(self) -> None:
        self._timer = None
        if self._untold:
            log.warning(self._more, self._untold, self._reason)
            self._untold = 0
            self._timer = self._loop.after(EVERY_S, self._tell)

    def close(self) -> None:
        """Log what is counted and not logged yet."""
        self._loop.cancel(self._timer)
        if self._untold:
            log.warning(self._more, self._untold, self._reason)
            self._untold = 0
