"""A progress bar on stderr."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

_INTERVAL_S = 0.1
_FORMAT = "{desc} {percentage:3.0f} % |{bar}| {elapsed}"
_DEFAULT_SIZE = os.terminal_size((80, 24))  # for a terminal that does not know its size


class Progress:
    """Shows the progress of a command if stderr is a terminal; otherwise shows nothing."""

    def __init__(self) -> None:
        self._is_on = sys.stderr.isatty()
        self._bar: Any = None  # a tqdm.tqdm, which has no types
        self._next_s = 0.0

    def show(self, text: str, done: float, total: float) -> None:
        """Show that ``done`` of ``total`` is done; draws at most ten times a second."""
        if not self._is_on or (now := time.monotonic()) < self._next_s:
            return
        self._next_s = now + _INTERVAL_S
        if self._bar is None:
            from tqdm import tqdm  # takes 40 ms, so it is imported only for a terminal

            size = _terminal_size()
            self._bar = tqdm(
                desc=text,
                total=total,
                initial=done,
                bar_format=_FORMAT,
                leave=False,
                file=sys.stderr,
                ascii=" #",
                ncols=size.columns,
                nrows=size.lines,
            )
            return
        self._bar.total, self._bar.n = total, done
        self._bar.set_description_str(text)

    def clear(self) -> None:
        """Remove the bar; a later ``show`` draws a new one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _terminal_size() -> os.terminal_size:
    try:
        size = os.get_terminal_size(2)
    except OSError:
        return _DEFAULT_SIZE
    return size if all(size) else _DEFAULT_SIZE
