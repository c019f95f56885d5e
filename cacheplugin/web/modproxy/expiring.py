"""A dict of bounded size whose values expire."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_ENTRIES = 10_000

_Value = TypeVar("_Value")


class ExpiringCache(Generic[_Value]):
    """Maps texts to values. ``clock`` returns monotonic seconds.

    When there are more than _MAX_ENTRIES, the entry that was added first is dropped.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, _Value]] = OrderedDict()

    def add(self, key: str, value: _Value, seconds: float) -> None:
        """Store a value for so many seconds. It replaces an earlier value of the key."""
        self._entries.pop(key, None)
        self._entries[key] = (self._clock() + seconds, value)
        while len(self._entries) > _MAX_ENTRIES:
            self._entries.popitem(last=False)

    def get(self, key: str) -> tuple[_Value, float] | None:
        """(the value of a key, seconds until it expires); None if it has none or it has expired."""
        found = self._entries.get(key)
        if found is None:
            return None
        expires_at, value = found
        left_s = expires_at - self._clock()
        if left_s <= 0:
            del self._entries[key]
            return None
        return value, left_s
