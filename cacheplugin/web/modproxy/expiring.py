"""A bounded dict whose values are forgotten after a while."""

import time
from collections import OrderedDict

_MOST_REMEMBERED = 10_000


class Recent:
    """``clock`` gives monotonic seconds."""

    def __init__(self, clock=time.monotonic) -> None:
        self._clock = clock
        self._found = OrderedDict()

    def add(self, key, value, seconds: float) -> None:
        self._found.pop(key, None)
        self._found[key] = (self._clock() + seconds, value)
        while len(self._found) > _MOST_REMEMBERED:
            self._found.popitem(last=False)

    def get(self, key):
        """(its value, the seconds it has left), or None."""
        end, value = self._found.get(key, (0.0, None))
        left = end - self._clock()
        if left <= 0:
            self._found.pop(key, None)
            return None
        return value, left
