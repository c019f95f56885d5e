"""A progress bar on stderr."""

import sys
import time

_EVERY_S = 0.1


class Progress:
    """Shows how far a command is, where stderr is a terminal; elsewhere it shows nothing."""

    def __init__(self) -> None:
        self._is_on = sys.stderr.isatty()
        self._bar = None
        self._next_s = 0.0

    def show(self, text: str, done: float, total: float) -> None:
        """Show that ``done`` of ``total`` is done; drawn ten times a second at most."""
        if not self._is_on or (now := time.monotonic()) < self._next_s:
            return
        self._next_s = now + _EVERY_S
        if self._bar is None:
            from tqdm import tqdm  # 40 ms, which only a person at a terminal waits for

            bar_format = "{desc} {percentage:3.0f} % |{bar}| {elapsed}"
            self._bar = tqdm(bar_format=bar_format, leave=False, file=sys.stderr, ascii=" #")
        self._bar.total, self._bar.n = total, done
        self._bar.set_description_str(text)

    def clear(self) -> None:
        """Remove the bar; a later ``show`` draws a new one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
