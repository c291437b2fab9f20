"""Workers to leave out of a decision for now: those that have enough to do, and those whose engine keeps failing.

It is a wish, not an order: if nobody else is left, the router picks among all, because a doubtful engine is better than
none. That there is somebody else, admission sees to for saturation (requests wait), and time for breakers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from warmroute.core.breaker import Breakers
from warmroute.core.load import LoadTable
from warmroute.types import Fleet, WorkerId

Avoided: TypeAlias = Callable[[float], frozenset[WorkerId]]
"""The workers to leave out at a moment; empty nearly always."""

_NOBODY: frozenset[WorkerId] = frozenset()


class Saturation:
    """Which workers have as many requests as they may."""

    def __init__(self, load: LoadTable, fleet: Callable[[], Fleet], most: int) -> None:
        self._load = load
        self._fleet = fleet
        self._most = most

    def avoided(self, _now: float) -> frozenset[WorkerId]:
        """Those that are full."""
        return frozenset(w.id for w in self._fleet().workers if self._load.requests_of(w.id) >= self._most)

    def room(self, model: str | None, booking: int) -> bool:
        """Whether the model's workers have room beside `booking` requests; true if there are none: then it fails."""
        fleet = self._fleet()
        workers = [w for w in (fleet.workers if model is None else fleet.serving(model)) if w.ready]
        free = sum(max(0, self._most - self._load.requests_of(w.id)) for w in workers)
        return free > booking or not workers


def shut_workers(breakers: Breakers, fleet: Callable[[], Fleet]) -> Avoided:
    """The workers of engines whose breaker is open."""

    def avoided(now: float) -> frozenset[WorkerId]:
        if not breakers.known or not (shut := breakers.shut(now)):
            return _NOBODY
        return frozenset(worker.id for worker in fleet().workers if worker.endpoint in shut)

    return avoided
