"""A cache by shape: a shape is kept from its second use on, and the one unused for longest is dropped."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_REMEMBERED = 8  # times the capacity: shapes seen once that are remembered


class ShapeCache(Generic[Key, Value]):
    """At most `capacity` values, by key."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._kept: OrderedDict[Key, Value] = OrderedDict()
        self._seen: OrderedDict[Key, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> Value | None:
        """The value of a key, which thereby becomes the one used last."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def earns_place(self, key: Key) -> bool:
        """Whether a value should be made for this key now; call once per use of a key without a value."""
        if self.capacity == 0:
            return False
        if key in self._seen:
            del self._seen[key]
            return True
        self._seen[key] = None
        while len(self._seen) > _REMEMBERED * self.capacity:
            self._seen.popitem(last=False)
        return False

    def make_room(self) -> Value | None:
        """Let go of the value not used for longest, if one more has no room; gives it."""
        return self._kept.popitem(last=False)[1] if len(self._kept) == self.capacity else None

    def put(self, key: Key, value: Value) -> None:
        """Keep a value, for which there must be room."""
        assert len(self._kept) < self.capacity
        self._kept[key] = value
