"""Virtual time: what is due happens in order, and an hour passes as fast as nothing happens in it.

Invariant: the same calls give the same order; what is due at the same instant happens in the order it was asked for.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

Act = Callable[[], None]


class VirtualTime:
    """A clock in seconds and what is due by it. It never goes back."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Act]] = []
        self._asked = 0

    def call_at(self, when: float, act: Act) -> None:
        """Do `act` at `when`, or now if that is past."""
        self._asked += 1
        heapq.heappush(self._due, (max(self.now, when), self._asked, act))

    def call_later(self, seconds: float, act: Act) -> None:
        """Do `act` after so many seconds."""
        self.call_at(self.now + seconds, act)

    def run_until(self, end: float) -> None:
        """Do everything that is due until `end`, and be there."""
        while self._due and self._due[0][0] <= end:
            self.now, _, act = heapq.heappop(self._due)
            act()
        self.now = end
