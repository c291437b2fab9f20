"""Blocks assumed stored because a request was just routed there.

Between a dispatch and the engine's own event lies the time of a prefill: without this, a burst of equal prompts would
see nothing anywhere and spread, though the engine shares blocks among requests that run together. A claim covers the
blocks beyond what the worker was known to hold, and is believed until events have confirmed it (from then on they are
the truth, an eviction included), or until its time to live is over.

Invariant: a claim adds only to an unbroken run that starts where the confirmed overlap ends, so an eviction reported
meanwhile takes the speculative rest with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from warmroute.types import PrefixHash, WorkerId


class Claim:
    """Blocks `start` and on of one dispatched request's `chain`, believed to be on `worker` until `deadline` (s)."""

    __slots__ = ("block_size", "chain", "deadline", "start", "worker")

    def __init__(
        self, worker: WorkerId, chain: Sequence[PrefixHash], block_size: int, start: int, deadline: float
    ) -> None:
        self.worker = worker
        self.chain = chain
        self.block_size = block_size
        self.start = start
        self.deadline = deadline

    def end(self) -> None:
        """Believe it no longer."""
        self.deadline = float("-inf")


class Speculation:
    """All claims, by worker and block."""

    def __init__(self) -> None:
        self._claims: dict[WorkerId, dict[PrefixHash, Claim]] = {}
        self._order: dict[WorkerId, deque[Claim]] = {}
        self._served: dict[WorkerId, list[Claim]] = {}

    def claimed_blocks(self, now: float) -> int:
        """Blocks that are believed only because of a claim. Counts them all: for metrics."""
        return sum(claim.deadline > now for blocks in self._claims.values() for claim in blocks.values())

    def add(self, claim: Claim, now: float) -> None:
        """Make a claim. A later one on the same block takes its place."""
        self._expire(claim.worker, now)
        blocks = self._claims.setdefault(claim.worker, {})
        for prefix in claim.chain[claim.start :]:
            blocks[prefix] = claim
        self._order.setdefault(claim.worker, deque()).append(claim)

    def extend(
        self, prefixes: Sequence[PrefixHash], confirmed: Mapping[WorkerId, int], now: float
    ) -> dict[WorkerId, int]:
        """Blocks that claims add behind each worker's confirmed overlap (in blocks; 0 for workers not named)."""
        extra: dict[WorkerId, int] = {}
        end = len(prefixes)
        for worker, blocks in self._claims.items():
            start = at = confirmed.get(worker, 0)
            while at < end and (claim := blocks.get(prefixes[at])) is not None and claim.deadline > now:
                at += 1
            if at > start:
                extra[worker] = at - start
        return extra

    def served(self, claim: Claim) -> None:
        """The claim's request has been computed: its blocks are stored, and events that say so are due."""
        self._served.setdefault(claim.worker, []).append(claim)

    def confirm(self, worker: WorkerId, confirmed: Callable[[Claim], bool], now: float) -> None:
        """End those served claims of `worker` that events have confirmed: from then on the events are the truth."""
        waiting = self._served.pop(worker, None)
        if not waiting:
            return
        left = []
        for claim in waiting:
            if claim.deadline > now:
                if confirmed(claim):
                    claim.end()
                else:
                    left.append(claim)
        if left:
            self._served[worker] = left

    def unconfirmed(self, worker: WorkerId) -> int:
        """How many requests `worker` has computed whose blocks it has not announced yet."""
        return len(self._served.get(worker, ()))

    def forget(self, worker: WorkerId) -> None:
        """Nothing is assumed of `worker` any more: it was cleared, restarted or removed."""
        self._claims.pop(worker, None)
        self._served.pop(worker, None)
        for claim in self._order.pop(worker, ()):
            claim.end()

    def _expire(self, worker: WorkerId, now: float) -> None:
        order = self._order.get(worker)
        if not order:
            return
        blocks = self._claims[worker]
        while order and order[0].deadline <= now:
            claim = order.popleft()
            for prefix in claim.chain[claim.start :]:
                if blocks.get(prefix) is claim:
                    del blocks[prefix]
        if not order:
            del self._order[worker], self._claims[worker]
