"""Policies that know nothing of caches: what every load balancer has, and what a better one must beat."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import inf
from typing import ClassVar, Final

from warmroute.core.hashing import mix
from warmroute.core.policies.contract import Candidates
from warmroute.types import Worker, WorkerId

HASHES_MAX: Final = 100_000
"""Workers whose hash is remembered; more have come and gone only in fleets that never rest, and are hashed again."""


class RoundRobin:
    """Each in turn, blind to caches and load."""

    name: ClassVar[str] = "round_robin"

    def __init__(self) -> None:
        self._turn = -1
        self._away = array("d")

    def costs(self, candidates: Candidates) -> Sequence[float]:
        """How many turns away each candidate is."""
        self._turn += 1
        n = len(candidates.workers)
        if len(self._away) != n:
            self._away = array("d", range(n))
        start = n - self._turn % n
        return self._away[start:] + self._away[:start]


class RandomChoice:
    """Any, with equal chances."""

    name: ClassVar[str] = "random"

    def costs(self, candidates: Candidates) -> Sequence[float]:
        """Zero for one, infinity for the others."""
        costs = [inf] * len(candidates.workers)
        costs[candidates.dice.below(len(costs))] = 0.0
        return costs


class LeastLoaded:
    """Fewest requests in flight, blind to caches."""

    name: ClassVar[str] = "least_loaded"

    def costs(self, candidates: Candidates) -> Sequence[float]:
        """Requests in flight."""
        return candidates.requests


class PowerOfTwo:
    """The less loaded of two that are drawn at random.

    Source: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001; as
    `power_of_two` in sglang-router and smg. No parameters; load is requests in flight.
    """

    name: ClassVar[str] = "power_of_two"

    def costs(self, candidates: Candidates) -> Sequence[float]:
        """Requests in flight of the two, infinity for the others."""
        n, dice = len(candidates.workers), candidates.dice
        costs = [inf] * n
        first = dice.below(n)
        second = (first + 1 + dice.below(n - 1)) % n if n > 1 else first
        for i in (first, second):
            costs[i] = candidates.requests[i]
        return costs


class ConsistentHash:
    """The worker that a session hashes to; few sessions move when workers come or go.

    Highest random weight (D. Thaler, C. Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM ToN
    6(1), 1998), which spreads like a ring with endless virtual nodes; `consistent_hash` in smg and vllm-router is such
    a ring over the session header. Without a session: at random.
    """

    name: ClassVar[str] = "consistent_hash"

    def __init__(self) -> None:
        self._hashes: dict[WorkerId, int] = {}

    def costs(self, candidates: Candidates) -> Sequence[float]:
        """A number that the key and the worker's name decide, so that all gateways before a fleet agree."""
        if candidates.session is None:
            return RandomChoice().costs(candidates)
        key = _number(candidates.session)
        return [mix(key ^ self._hash(worker)) * 2.0**-64 for worker in candidates.workers]

    def _hash(self, worker: Worker) -> int:
        hashed = self._hashes.get(worker.id)  # ids are never given twice, so what is kept stays true
        if hashed is None:
            if len(self._hashes) >= HASHES_MAX:
                self._hashes.clear()
            hashed = self._hashes[worker.id] = mix(_number(worker.name))
        return hashed


def _number(text: str) -> int:
    """FNV-1a, 64 bits: the same in every process, unlike hash()."""
    number = 0xCBF29CE484222325
    for byte in text.encode("utf-8", "surrogatepass"):
        number = (number ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return number
