"""The candidates of a request in columns: position i of each list is one worker.

A thousand small objects for each request would cost more than the decision. Invariant: all columns of one request have
the order of `Lanes.workers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TypeVar

from warmroute.core.load import LoadTable
from warmroute.types import Trust, TrustState, Worker, WorkerId

T = TypeVar("T")


class Lanes:
    """The workers of one fleet that could serve one model: what of them does not change from request to request."""

    __slots__ = ("all_believed", "belief", "kv_tokens_max", "positions", "take", "weights", "workers")

    def __init__(self, workers: tuple[Worker, ...], load: LoadTable, degraded_belief: float) -> None:
        self.workers = workers
        self.positions = {worker.id: i for i, worker in enumerate(workers)}
        self.kv_tokens_max = min((worker.kv_tokens_max or 0 for worker in workers), default=0)
        self.take = _taker([load.slot(worker.id) for worker in workers])
        """Takes this model's entries out of columns of the load table."""
        self.belief = [_belief(w.trust, degraded_belief) for w in workers]
        self.all_believed = min(self.belief) == 1.0
        weights = [w.weight for w in workers]
        self.weights = None if all(weight == 1.0 for weight in weights) else weights


class Held:
    """What each candidate is thought to hold of one request, in tokens, in columns."""

    __slots__ = ("claimed", "cpu", "overlap", "storage")

    def __init__(self, n: int) -> None:
        self.overlap = [0] * n
        self.cpu = [0] * n
        self.storage = [0] * n
        self.claimed = [0] * n

    def confirm(
        self, positions: Mapping[WorkerId, int], size: int, columns: tuple[Sequence[int], Sequence[int], Sequence[int]]
    ) -> None:
        """What the events of each worker say: workers, blocks of `size` tokens, and those by medium, three each.

        Of several block sizes, the one that gives the most tokens counts.
        """
        overlap = self.overlap
        workers, blocks, by_medium = columns
        on_gpu = sum(by_medium[::3]) == sum(blocks)
        for n, (worker, count) in enumerate(zip(workers, blocks, strict=True)):
            i = positions.get(worker)  # type: ignore[call-overload]  # a call of WorkerId costs as much again
            if i is not None and overlap[i] < count * size:
                overlap[i] = count * size
                if not on_gpu:
                    self.cpu[i], self.storage[i] = by_medium[3 * n + 1] * size, by_medium[3 * n + 2] * size


def _belief(trust: Trust, degraded_belief: float) -> float:
    return min(trust.belief, degraded_belief) if trust.state is TrustState.DEGRADED else 1.0


def _taker(slots: Sequence[int]) -> Callable[[Iterable[list[T]]], list[list[T]]]:
    first, behind = slots[0], slots[0] + len(slots)
    if list(slots) == list(range(first, behind)):
        span = slice(first, behind)  # made once: written out, each column would make one of its own
        return lambda columns: [column[span] for column in columns]
    take = itemgetter(*slots)
    return lambda columns: [list(take(column)) for column in columns]
