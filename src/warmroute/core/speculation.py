"""Blocks assumed stored because a request was just routed there.

Between a dispatch and the engine's own event lies the time of a prefill: without this, a burst of equal prompts would
see nothing anywhere and spread, though the engine shares blocks among requests that run together. A claim covers the
blocks beyond what the worker was known to hold, and is believed until events have confirmed it (from then on they are
the truth, an eviction included), or until its time to live is over.

A claim is found by its first block: a request that shares any of its blocks shares that one, or has no use for it. How
far it reaches into another request is a bisection, because a chained hash that is equal means that all before are.

Invariant: a claim adds only to an unbroken run that starts where the confirmed overlap ends, so an eviction reported
meanwhile takes the speculative rest with it.
"""

from __future__ import annotations

import itertools
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import msgspec

from warmroute.core.hashing import NATIVE
from warmroute.core.rows import HELD
from warmroute.types import PrefixHash, WorkerId

if NATIVE:
    from warmroute import _native


class Claim(msgspec.Struct, eq=False, gc=False):
    """Blocks `start` and on of one dispatched request's `chain`, believed to be on `worker` until `deadline` (s)."""

    worker: WorkerId
    chain: Sequence[PrefixHash]
    block_size: int
    start: int
    deadline: float
    batches: int = 0
    """Of events that came since it was served."""

    def end(self) -> None:
        """Believe it no longer."""
        self.deadline = float("-inf")

    def reach(self, prefixes: Sequence[PrefixHash]) -> int:
        """Up to which block of `prefixes`, in which its first one is, this claim goes."""
        chain, low = self.chain, self.start
        high = min(len(chain), len(prefixes))
        if chain[high - 1] == prefixes[high - 1]:
            return high
        while high - low > 1:  # chain[low] is equal, chain[high - 1] is not
            middle = (low + high) // 2
            if chain[middle] == prefixes[middle]:
                low = middle
            else:
                high = middle
        return low + 1


BATCHES_SURE = 4
"""For so many batches a claim is looked at each time, then with the 8th, the 16th and so on."""
Alike: TypeAlias = dict[PrefixHash, dict[Claim, None]]
"""Claims by their last block: those that have the first one in common as well go equally far, on whatever worker."""


class Speculation:
    """All claims, by their first block: where it stands in the prompt, and what it is."""

    def __init__(self) -> None:
        self._by_start: dict[int, dict[PrefixHash, Alike]] = {}
        self._order: dict[WorkerId, deque[Claim]] = {}
        self._served: dict[WorkerId, deque[Claim]] = {}

    @property
    def idle(self) -> bool:
        """Whether there are no claims at all."""
        return not self._by_start

    def claimed_blocks(self, now: float) -> int:
        """Blocks that are believed only because of a claim. Counts them all: for metrics."""
        blocks: set[tuple[WorkerId, PrefixHash]] = set()
        for firsts in self._by_start.values():
            for alike in firsts.values():
                for claim in itertools.chain.from_iterable(alike.values()):
                    if claim.deadline > now:
                        blocks.update((claim.worker, prefix) for prefix in claim.chain[claim.start :])
        return len(blocks)

    def add(self, claim: Claim, now: float) -> None:
        """Make a claim. It must have at least one block."""
        order = self._order.get(claim.worker)
        if order is None:
            order = self._order[claim.worker] = deque()
        while order and order[0].deadline <= now:
            self._drop(order.popleft())
        order.append(claim)
        start, chain = claim.start, claim.chain
        firsts = self._by_start.get(start)
        if firsts is None:
            firsts = self._by_start[start] = {}
        alike = firsts.setdefault(chain[start], {})
        alike.setdefault(chain[-1], {})[claim] = None

    def extend(
        self, held: array[int], prefixes: Sequence[PrefixHash], positions: Mapping[WorkerId, int], size: int, now: float
    ) -> None:
        """Add to what is known to be held of this prompt what claims add behind it: rows, blocks of `size` tokens."""
        met = self._met(prefixes)
        if NATIVE and type(prefixes) is memoryview:
            _native.extend(held, prefixes, positions, met, size, now)
            return
        for claims in met:
            one, reached = next(iter(claims)), 0
            end = min(len(one.chain), len(prefixes))
            for claim in claims:
                if claim.deadline <= now or (i := positions.get(claim.worker)) is None:
                    continue
                known = held[HELD * i] // size
                if one.start <= known < end and one.chain[known] == prefixes[known]:
                    reached = reached or one.reach(prefixes)
                    held[HELD * i] = reached * size
                    held[HELD * i + 3] += (reached - known) * size

    def _met(self, prefixes: Sequence[PrefixHash]) -> list[dict[Claim, None]]:
        """Claims whose first block is in this prompt, alike ones together; one may go on where another ends."""
        met: list[dict[Claim, None]] = []
        end = len(prefixes)
        for start in sorted(self._by_start):
            if start < end and (alike := self._by_start[start].get(prefixes[start])) is not None:
                met += alike.values()
        return met

    def served(self, claim: Claim, now: float) -> None:
        """The claim's request has been computed: its blocks are stored, and events that say so are due."""
        waiting = self._served.setdefault(claim.worker, deque())
        while waiting and waiting[0].deadline <= now:  # nobody may ever confirm them
            waiting.popleft()
        waiting.append(claim)

    def confirm(self, worker: WorkerId, confirmed: Callable[[Claim], bool], now: float) -> None:
        """End those served claims of `worker` that events have confirmed: from then on the events are the truth.

        To be called for every batch. One that few batches did not confirm is looked at ever more rarely, lest each of
        many that wait cost a look for each batch: so it may be believed for as long again as it has waited.
        """
        waiting = self._served.pop(worker, None)
        if not waiting:
            return
        left: deque[Claim] = deque()
        for claim in waiting:
            if claim.deadline > now:
                claim.batches = n = claim.batches + 1
                if (n <= BATCHES_SURE or not n & (n - 1)) and confirmed(claim):
                    self.end(claim)
                else:
                    left.append(claim)
        if left:
            self._served[worker] = left

    def end(self, claim: Claim) -> None:
        """Believe it no longer."""
        claim.end()
        self._drop(claim)

    def unconfirmed(self, worker: WorkerId) -> int:
        """How many requests `worker` has computed whose blocks it has not announced yet."""
        return len(self._served.get(worker, ()))

    def forget(self, worker: WorkerId) -> None:
        """Nothing is assumed of `worker` any more: it was cleared, restarted or removed."""
        self._served.pop(worker, None)
        for claim in self._order.pop(worker, ()):
            self.end(claim)

    def _drop(self, claim: Claim) -> None:
        first, last = claim.chain[claim.start], claim.chain[-1]
        firsts = self._by_start.get(claim.start, {})
        alike = firsts.get(first, {})
        claims = alike.get(last, {})
        if claim in claims:
            del claims[claim]
            if not claims:
                del alike[last]
            if not alike:
                del firsts[first]
            if not firsts:
                del self._by_start[claim.start]
