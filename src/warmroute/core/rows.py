"""Numbers about workers, one row of a few for each, all in one array.

A decision reads all that is known of every worker. As lists of Python's numbers, a thousand workers would be ten
thousand objects to look at and to keep; as rows they are memory: copied at once, weighed by native code where they lie.

    held    overlap, in host memory, in storage, claimed      tokens, of one request
    counts  requests, prefilling, prefill tokens, kv tokens   what is in flight
    times   free at, busy                                     seconds, a share
    rates   fixed, per token, per pair, per context, a step   seconds

Invariant: what is in a row's column is of one kind for good; whoever has copied rows has them for himself.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from heapq import nsmallest
from typing import Any, Final, Generic, Literal, TypeVar

from warmroute.core.hashing import NATIVE

if NATIVE:
    from warmroute import _native

HELD: Final = 4
COUNTS: Final = 4
TIMES: Final = 2
RATES: Final = 5
"""How many columns they have."""
BYTES: Final = 8
"""Of each number: a count ("q") or a double ("d")."""
ROOM_MIN: Final = 8

N = TypeVar("N", int, float)


class Rows(Generic[N]):
    """Rows that grow in number, and their columns, which are read and written like lists."""

    __slots__ = ("columns", "numbers", "width")

    def __init__(self, kind: Literal["q", "d"], width: int) -> None:
        self.width = width
        self.numbers: array[N] = array(kind)
        self.columns: tuple[memoryview[N], ...] = ()

    def reach(self, rows: int) -> bool:
        """Let there be at least so many rows, new ones of zeros; whether `columns` are others now."""
        old = self.numbers
        if len(old) >= rows * self.width:
            return False
        self.numbers = new = zeros(old, max(ROOM_MIN, 2 * rows) * self.width)
        new[: len(old)] = old
        view: Any = memoryview(new)
        self.columns = tuple(view[column :: self.width] for column in range(self.width))
        return True


def zeros(like: array[N], count: int) -> array[N]:
    """So many, of the same kind as `like`."""
    return array(like.typecode, bytes(BYTES * count))


def gather(numbers: array[N], width: int, places: Sequence[int]) -> array[N]:
    """The rows at these places, in this order."""
    taken = zeros(numbers, width * len(places))
    if NATIVE:
        _native.gather(numbers, width, places, taken)
    else:
        gather_in_python(numbers, width, places, taken)
    return taken


def gather_in_python(numbers: array[N], width: int, places: Sequence[int], taken: array[N]) -> None:
    """What `_native.gather` does, and what judges it."""
    for row, place in enumerate(places):
        taken[row * width : (row + 1) * width] = numbers[place * width : (place + 1) * width]


def lowest_in_python(costs: array[float], counts: array[int], turn: int) -> tuple[int, int]:
    """Where the lowest cost is: among equals with the fewest requests in flight, then where it is whose turn it is.

    And whose turn it is then. What `_native.lowest` does, and what judges it.
    """
    least = min(costs)
    if costs.count(least) == 1:
        return costs.index(least), turn
    tied = [place for place, cost in enumerate(costs) if cost == least]
    fewest = min(counts[COUNTS * place] for place in tied)
    tied = [place for place in tied if counts[COUNTS * place] == fewest]
    return tied[(turn + 1) % len(tied)], turn + 1


lowest: Callable[[array[float], array[int], int], tuple[int, int]] = _native.lowest if NATIVE else lowest_in_python


def cheapest(costs: array[float], count: int) -> list[int]:
    """The places of so many that are the lowest, in ascending order; of equal ones the first count."""
    if NATIVE:
        return _native.cheapest(costs, count)
    return sorted(nsmallest(count, range(len(costs)), key=costs.__getitem__))
