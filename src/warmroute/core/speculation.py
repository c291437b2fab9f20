"""Blocks assumed stored because a request was just routed there.

Between a dispatch and the engine's own event lies the time of a prefill: without this, a burst of equal prompts would
see nothing anywhere and spread, though the engine shares blocks among requests that run together. A claim covers the
blocks beyond what the worker was known to hold, and is believed until its deadline: shortly after the first byte of
the answer, when the events of that prefill have come, or after its time to live.

Invariant: a claim adds only to an unbroken run that starts where the confirmed overlap ends, so an eviction reported
meanwhile takes the speculative rest with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from warmroute.types import PrefixHash, WorkerId


class Claim:
    """The blocks of one dispatched request on one worker, believed until `deadline` (seconds)."""

    __slots__ = ("deadline", "prefixes", "worker")

    def __init__(self, worker: WorkerId, prefixes: Sequence[PrefixHash], deadline: float) -> None:
        self.worker = worker
        self.prefixes = prefixes
        self.deadline = deadline

    def settle(self, deadline: float) -> None:
        """Believe it no longer than until `deadline`."""
        self.deadline = min(self.deadline, deadline)


class Speculation:
    """All claims, by worker and block."""

    def __init__(self) -> None:
        self._claims: dict[WorkerId, dict[PrefixHash, Claim]] = {}
        self._order: dict[WorkerId, deque[Claim]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._claims.values()))

    def add(self, worker: WorkerId, prefixes: Sequence[PrefixHash], now: float, ttl_s: float) -> Claim:
        """Claim `prefixes` for `worker`. A later claim on the same block takes its place."""
        self._expire(worker, now)
        claim = Claim(worker, prefixes, now + ttl_s)
        if prefixes:
            blocks = self._claims.setdefault(worker, {})
            for prefix in prefixes:
                blocks[prefix] = claim
            self._order.setdefault(worker, deque()).append(claim)
        return claim

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

    def forget(self, worker: WorkerId) -> None:
        """Nothing is assumed of `worker` any more: it was cleared, restarted or removed."""
        self._claims.pop(worker, None)
        for claim in self._order.pop(worker, ()):
            claim.deadline = float("-inf")

    def _expire(self, worker: WorkerId, now: float) -> None:
        order = self._order.get(worker)
        if not order:
            return
        blocks = self._claims[worker]
        while order and order[0].deadline <= now:
            claim = order.popleft()
            for prefix in claim.prefixes:
                if blocks.get(prefix) is claim:
                    del blocks[prefix]
        if not order:
            del self._order[worker], self._claims[worker]
