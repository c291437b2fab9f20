"""What the other processes of one gateway have in flight: a page of memory that all of them can see.

Each process has a part of the page to itself and writes there what it has booked; the others add it to their own when
they weigh candidates. Nobody waits for anybody, and nothing is sent::

    page   | part of process 0 | part of process 1 | ...
    part   | head | row | row | ...                      of nine numbers each
    row    | key | requests | prefilling | ... |         one worker; its key is the same in all processes, its place not

Invariant: every number is eight aligned bytes and is written whole, so none is ever seen half. Numbers beside each
other may be of different moments, microseconds apart: they are estimates, and were as old if a message had brought
them. So there is no lock that a crash could leave taken; whoever reaps a crashed process clears its part.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import chain
from operator import add
from typing import Final, TypeAlias

from warmroute.core.hashing import NATIVE
from warmroute.core.rows import COUNTS, TIMES
from warmroute.types import Worker

if NATIVE:
    from warmroute import _native

ROWS_MAX: Final = 4096
"""Workers whose load is shared. That of those beyond is each process's own (`Sharing.unshared`)."""
READING_SHARE: Final = 0.02
"""The others' parts are read as often as costs no more of the time than this, by what a part and a row of it cost."""
_PART_S: Final = 2e-6 if NATIVE else 8e-6
_ROW_S: Final = 0.02e-6 if NATIVE else 0.4e-6

_WIDTH: Final = 9
_ROWS, _NAMINGS, _PER_S, _INSIDE = range(4)
"""What stands in the head: rows in use, changes of keys so far, bookings per second, requests inside."""
_PART: Final = _WIDTH * (1 + ROWS_MAX)
_BYTES: Final = 8
_KEY_BYTES: Final = 6
"""Of a hash: what a double holds exactly."""
_BOOKED: Final = struct.Struct("8d")
_REQUESTS, _KV_TOKENS, _FREE_AT, _BUSY, _COMPUTED_TOKENS, _COMPUTED_PAIRS = 1, 4, 5, 6, 7, 8
NOWHERE: Final = -1
"""The row of a worker that is not known there."""


Booked: TypeAlias = "tuple[array[int], array[float], float]"
"""What is booked, as rows of counts and times (`rows.py`), and bookings per second, of all workers together."""


def page_bytes(processes: int) -> int:
    """How large a page for so many processes is."""
    return processes * _PART * _BYTES


def clear_part(page: memoryview[float], process: int) -> None:
    """The process is gone, and with it what it had in flight."""
    at = process * _PART
    namings = page[at + _NAMINGS] + 1.0  # so that nobody takes the next process's rows for the last one's
    page[at : at + _PART] = memoryview(bytes(_PART * _BYTES)).cast("d")
    page[at + _NAMINGS] = namings


def key_of(worker: Worker) -> float:
    """What a worker is called on the page: the same in every process, and never 0."""
    name = f"{worker.endpoint.url}#{worker.rank}".encode()
    return float(int.from_bytes(blake2b(name, digest_size=_KEY_BYTES).digest()) or 1)


class Sharing:
    """One process's part of a page, and its view of the others'. Rows are the load table's places."""

    def __init__(self, page: memoryview[float], process: int, processes: int) -> None:
        self.process = process
        self.unshared = 0
        """Workers that found no row."""
        self._bytes = page.cast("B")
        self._page = page
        self._at = process * _PART
        self._keys: list[float] = []
        self._renamed = 0
        self._parts = [_Part(self._page, other) for other in range(processes) if other != process]
        self._others: Booked | None = None
        self._stale_at = 0.0

    def is_named(self, slot: int) -> bool:
        """Whether the others know who is at this place."""
        return bool(self._keys[slot])

    def name(self, slot: int, key: float) -> None:
        """The worker at this place is called so; 0: there is none any more."""
        while len(self._keys) <= slot:
            self._keys.append(0.0)
        self._others = None
        if self._keys[slot] == key:
            return
        self._keys[slot] = key
        self._renamed += 1
        self.unshared = sum(1 for other in self._keys[ROWS_MAX:] if other)
        if slot < ROWS_MAX:
            self._page[self._at + _WIDTH * (1 + slot)] = key
            self._page[self._at + _ROWS] = float(min(len(self._keys), ROWS_MAX))
            self._page[self._at + _NAMINGS] += 1.0

    def put(self, slot: int, booked: tuple[float, ...], requests_per_s: float) -> None:
        """Publish what is booked at this place, counts and times, and what was ever computed."""
        if slot < ROWS_MAX:
            _BOOKED.pack_into(self._bytes, (self._at + _WIDTH * (1 + slot) + 1) * _BYTES, *booked)
        self._page[self._at + _PER_S] = requests_per_s

    def put_busy(self, busy: memoryview[float], requests_per_s: float) -> None:
        """Publish how busy the workers at all places are now."""
        start, rows = self._at + _WIDTH + _BUSY, min(len(busy), ROWS_MAX)
        self._page[start : start + _WIDTH * rows : _WIDTH] = busy[:rows]
        self._page[self._at + _PER_S] = requests_per_s

    def put_inside(self, inside: int) -> None:
        """Publish how many requests were let in and are not over."""
        self._page[self._at + _INSIDE] = float(inside)

    def inside(self) -> int:
        """Requests inside, of the others."""
        return int(sum(part.head(_INSIDE) for part in self._parts))

    def computed(self, slot: int) -> tuple[float, float]:
        """Tokens and pairs that the others have ever seen computed there: a first byte came, or time told."""
        tokens = pairs = 0.0
        for part in self._parts:
            if row := part.row(self._keys, self._renamed, slot):
                tokens += self._page[row + _COMPUTED_TOKENS]
                pairs += self._page[row + _COMPUTED_PAIRS]
        return tokens, pairs

    def requests(self, slot: int) -> int:
        """What the others have in flight at this place."""
        return int(self._sum(_REQUESTS, slot))

    def kv_tokens(self, slot: int) -> int:
        """Prompt tokens of those."""
        return int(self._sum(_KV_TOKENS, slot))

    def others(self, now: float) -> Booked:
        """What they have booked, as of `now` or a moment before it that is short beside what reading costs."""
        if self._others is None or not self._stale_at - 1.0 < now < self._stale_at:
            n = len(self._keys)
            counts, times = array("q", bytes(_BYTES * COUNTS * n)), array("d", bytes(_BYTES * TIMES * n))
            for part in self._parts:
                part.add_to(counts, times, self._keys, self._renamed, now)
            self._others = counts, times, sum(part.head(_PER_S) for part in self._parts)
            self._stale_at = now + len(self._parts) * (_PART_S + _ROW_S * len(self._keys)) / READING_SHARE
        return self._others

    def _sum(self, column: int, slot: int) -> float:
        found = 0.0
        for part in self._parts:
            if row := part.row(self._keys, self._renamed, slot):
                found += self._page[row + column]
        return found


class _Part:
    """Another process's part, as this one reads it."""

    def __init__(self, page: memoryview[float], process: int) -> None:
        self._page = page
        self._at = process * _PART
        self._order = array("q")
        """Row there by place here."""
        self._namings, self._renamed = -1.0, -1
        """Which namings, there and here, the order was made of."""

    def head(self, what: int) -> float:
        return self._page[self._at + what]

    def add_to(self, counts: array[int], times: array[float], keys: Sequence[float], renamed: int, now: float) -> None:
        """Add its counts, and its times, to rows in the order of `keys`."""
        if self._follow(keys, renamed):
            add_part(counts, times, self._page[self._at + _WIDTH : self._at + _PART], self._order, now)

    def row(self, keys: Sequence[float], renamed: int, slot: int) -> int:
        """Where on the page the worker's row is; 0: it is not known there."""
        if not self._follow(keys, renamed) or slot >= len(self._order) or (row := self._order[slot]) == NOWHERE:
            return 0
        return self._at + _WIDTH * (1 + row)

    def _follow(self, keys: Sequence[float], renamed: int) -> bool:
        """Learn which row is whose, if anything was renamed; whether there are any rows."""
        namings = self._page[self._at + _NAMINGS]
        if namings != self._namings or renamed != self._renamed:
            self._namings, self._renamed, rows = namings, renamed, int(self.head(_ROWS))
            start = self._at + _WIDTH
            there: Sequence[float] = self._page[start : start + _WIDTH * rows].tolist()[::_WIDTH]
            row_of = {key: row for row, key in enumerate(there) if key}
            self._order = array("q", [row_of.get(key, NOWHERE) for key in keys])
        return bool(self._order)


def add_part_in_python(
    counts: array[int], times: array[float], rows: memoryview[float], order: array[int], now: float
) -> None:
    """Add to each place the row of a page's part that `order` has there: what `_native.add_part` does."""
    for place, row in enumerate(order):
        if row == NOWHERE:
            continue
        there: Sequence[float] = rows[_WIDTH * row : _WIDTH * row + _WIDTH].tolist()
        for column in range(COUNTS):
            counts[COUNTS * place + column] += int(there[_REQUESTS + column])
        free_at, at = there[_FREE_AT], TIMES * place
        if free_at > now:
            times[at] = max(times[at], now) + free_at - now
        times[at + 1] += there[_BUSY]


def together(mine: Booked, others: Booked, now: float) -> Booked:
    """Counts add up, and so does what is queued: it is done one after the other. A step under way, both have seen."""
    counts, times = others[0][:], others[1][:]
    add_booked(counts, times, mine[0], mine[1], now)
    return counts, times, mine[2] + others[2]


def add_booked_in_python(
    counts: array[int], times: array[float], more_counts: array[int], more_times: array[float], now: float
) -> None:
    """Add to these rows those of another table, which may have more of them: what `_native.add_booked` does."""
    queued = zip(more_counts[1::COUNTS], more_times[0::TIMES], counts[1::COUNTS], times[0::TIMES], strict=False)
    free_at = [
        (max(a, now) + b - now if b > now else a) if mine and theirs else max(a, b) for mine, a, theirs, b in queued
    ]
    counts[:] = array("q", map(add, counts, more_counts))
    busy = map(add, more_times[1::TIMES], times[1::TIMES])
    times[:] = array("d", chain.from_iterable(zip(free_at, busy, strict=True)))


add_part: Callable[[array[int], array[float], memoryview[float], array[int], float], None] = (
    _native.add_part if NATIVE else add_part_in_python
)
add_booked: Callable[[array[int], array[float], array[int], array[float], float], None] = (
    _native.add_booked if NATIVE else add_booked_in_python
)
