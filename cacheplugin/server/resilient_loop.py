"""The loop of a server, which an unexpected error does not end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

MAX_ERRORS = 100


class ResilientLoop(Loop):
    """Logs unexpected errors of handlers and timers and goes on; raises the one after MAX_ERRORS.

    So many mean that the server no longer works, and a service manager starts a new one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._errors = 0

    def call(self, handler: Callable[..., object], *arguments: object) -> None:
        """Call a handler; see the class for what is raised."""
        try:
            handler(*arguments)
        except Exception:
            self._errors += 1
            if self._errors > MAX_ERRORS:
                raise
            log.exception(
                "unexpected error %d; the server goes on, but ends after %d; please report it",
                self._errors,
                MAX_ERRORS,
            )
