"""Randomness as a value: the same seed gives the same throws, so every run can be repeated.

The core must not draw from the process's own source. Splitmix64: a counter and one mixing step per throw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from warmroute.core.hashing import mix

T = TypeVar("T")


class Dice:
    """A seeded sequence of throws."""

    __slots__ = ("_state",)

    def __init__(self, seed: int = 0) -> None:
        self._state = seed & 0xFFFFFFFFFFFFFFFF

    def throw(self) -> float:
        """A number from 0 up to 1, 1 not included."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        return (mix(self._state) >> 11) * 2.0**-53

    def below(self, sides: int) -> int:
        """A whole number from 0 up to `sides`, which is not included."""
        return int(self.throw() * sides)

    def choice(self, items: Sequence[T]) -> T:
        """One of them."""
        return items[self.below(len(items))]
