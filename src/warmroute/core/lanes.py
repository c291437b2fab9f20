"""The candidates of a request in rows: row i of each array is of one worker.

A thousand small objects for each request would cost more than the decision. Invariant: all rows of one request have
the order of `Lanes.workers`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import TypeAlias

from warmroute.core.hashing import NATIVE
from warmroute.core.load import LoadTable
from warmroute.core.rows import BYTES, COUNTS, HELD, RATES, TIMES, gather
from warmroute.types import Trust, TrustState, Worker, WorkerId

if NATIVE:
    from warmroute import _native

Taken: TypeAlias = "tuple[array[int], array[float], array[float]]"
"""Rows of counts, times and rates."""


class Lanes:
    """The workers of one fleet that could serve one model: what of them does not change from request to request."""

    __slots__ = (
        "_of_counts", "_of_rates", "_of_times", "_slots", "belief", "kv_tokens_max", "nothing", "positions", "weights",
        "workers",
    )  # fmt: skip

    def __init__(self, workers: tuple[Worker, ...], load: LoadTable, degraded_belief: float) -> None:
        self.workers = workers
        self.positions = {worker.id: i for i, worker in enumerate(workers)}
        slots = [load.slot(worker.id) for worker in workers]
        first, behind = slots[0], slots[0] + len(slots)
        self._slots = None if slots == list(range(first, behind)) else array("q", slots)
        """Where they are in the load table; None: one behind the other, from the first on, as the slices say."""
        self._of_counts, self._of_times, self._of_rates = (
            slice(first * width, behind * width) for width in (COUNTS, TIMES, RATES)
        )
        self.nothing = array("q", bytes(BYTES * HELD * len(workers)))
        """What they hold of a prompt of which nobody holds anything: to be copied, not changed."""
        self.belief = array("d", [_belief(w.trust, degraded_belief) for w in workers])
        self.kv_tokens_max = array("d", [worker.kv_tokens_max or inf for worker in workers])
        weights = [w.weight for w in workers]
        self.weights = None if all(weight == 1.0 for weight in weights) else weights

    def take(self, counts: array[int], times: array[float], rates: array[float]) -> Taken:
        """These workers' rows of the load table's."""
        if (slots := self._slots) is not None:
            return gather(counts, COUNTS, slots), gather(times, TIMES, slots), gather(rates, RATES, slots)
        return counts[self._of_counts], times[self._of_times], rates[self._of_rates]


Matched = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""Workers, how many blocks they hold, and those by medium, three each: `index.contract.Columns`."""


def confirm_in_python(held: array[int], positions: Mapping[WorkerId, int], matched: Matched, block_size: int) -> None:
    """Put into `held`, of which all is 0, what the events of each worker say of blocks of this size, in tokens.

    What `_native.confirm` does, and what judges it.
    """
    workers, blocks, by_medium = matched
    for n, (worker, count) in enumerate(zip(workers, blocks, strict=True)):
        i = positions.get(WorkerId(worker))
        if i is not None:
            row = HELD * i
            held[row] = count * block_size
            held[row + 1], held[row + 2] = by_medium[3 * n + 1] * block_size, by_medium[3 * n + 2] * block_size


confirm: Callable[[array[int], Mapping[WorkerId, int], Matched, int], None] = (
    _native.confirm if NATIVE else confirm_in_python
)


def most_of(one: array[int], other: array[int]) -> array[int]:
    """Of each candidate the row that says it holds more."""
    best = one[:]
    for row in range(0, len(best), HELD):
        if other[row] > best[row]:
            best[row : row + HELD] = other[row : row + HELD]
    return best


def _belief(trust: Trust, degraded_belief: float) -> float:
    return min(trust.belief, degraded_belief) if trust.state is TrustState.DEGRADED else 1.0
