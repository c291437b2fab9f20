"""One simulated engine's prefix cache: blocks by content, pinned while a request runs, least recently used first to go.

What vLLM's block pool does, counted instead of stored. A block is named by its content's chained hash, so equal content
of requests that run together is one block (vLLM keeps a copy for each). A host tier, if there is one, takes what the
GPU loses.

Invariant: pinned + free + private blocks never exceed the capacity, unless all of them are in use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class BlockCache:
    """Blocks of one engine. What changed is in `evicted`, `offloaded` and `host_evicted` until the owner takes it."""

    __slots__ = (
        "_blocks",
        "_free",
        "capacity",
        "evicted",
        "host",
        "host_capacity",
        "host_evicted",
        "offloaded",
        "private",
    )

    def __init__(self, capacity: int, host_capacity: int = 0) -> None:
        self.capacity = capacity
        self.host_capacity = host_capacity
        self._blocks: dict[int, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict()
        self.host: OrderedDict[int, None] = OrderedDict()
        self.private = 0.0
        """Blocks of running requests that cannot be found by content (being filled, or generated)."""
        self.evicted: list[int] = []
        self.offloaded: list[int] = []
        self.host_evicted: list[int] = []

    @property
    def in_use(self) -> float:
        """Blocks that running requests hold."""
        return len(self._blocks) - len(self._free) + self.private

    def match(self, chain: Sequence[int], limit: int) -> tuple[int, int]:
        """Leading blocks of `chain` held: (on the GPU, behind those in the host tier); of at most `limit`."""
        blocks, host, n = self._blocks, self.host, 0
        while n < limit and chain[n] in blocks:
            n += 1
        on_gpu = n
        while n < limit and chain[n] in host:
            n += 1
        return on_gpu, n - on_gpu

    def needs(self, chain: Sequence[int], on_gpu: int) -> int:
        """How many of the leading `on_gpu` blocks would be taken out of the free ones by pinning."""
        free = self._free
        return sum(block in free for block in chain[:on_gpu])

    def pin(self, blocks: Sequence[int]) -> None:
        """They are used by one more request; those not there yet are now."""
        counts, free = self._blocks, self._free
        for block in blocks:
            count = counts.get(block)
            if count == 0:
                del free[block]
            counts[block] = (count or 0) + 1

    def unpin(self, blocks: Sequence[int]) -> None:
        """They are used by one request less; the end of a chain is the first to go."""
        counts, free = self._blocks, self._free
        for block in reversed(blocks):
            count = counts[block] = counts[block] - 1
            if not count:
                free[block] = None

    def add_free(self, blocks: Sequence[int]) -> None:
        """Keep them though nobody uses them."""
        counts, free = self._blocks, self._free
        for block in reversed(blocks):
            if block not in counts:
                counts[block] = 0
                free[block] = None

    def missing(self, blocks: Sequence[int]) -> list[int]:
        """Those that are not there."""
        counts = self._blocks
        return [block for block in blocks if block not in counts]

    def make_room(self) -> bool:
        """Evict free blocks until the capacity is kept; whether it is."""
        counts, free = self._blocks, self._free
        excess = len(counts) + self.private - self.capacity
        while excess > 0 and free:
            block, _ = free.popitem(last=False)
            del counts[block]
            self.evicted.append(block)
            if self.host_capacity:
                self._offload(block)
            excess -= 1
        return excess <= 0

    def _offload(self, block: int) -> None:
        host = self.host
        if block in host:
            host.move_to_end(block)
            return
        host[block] = None
        self.offloaded.append(block)
        if len(host) > self.host_capacity:
            self.host_evicted.append(host.popitem(last=False)[0])
