"""Requests that make an engine announce again what it reuses (`vllm_xargs: {"kv_cache_report_mode": "full"}`).

Such an announcement looks like any other, but there is no new copy behind it: counted, a block would outlive its
removal. Only who sees the request pass can tell, so while one is under way on a worker, a chain from the root of which
the worker holds everything is taken for a repetition.

A real second copy of a whole chain comes only of a request that skips the cache read; in the same moment as a full
report, that one copy is not counted, and its blocks are forgotten one removal too early. Too little is the safe side.
"""

from __future__ import annotations

from collections import Counter

from warmroute.core.hashing import block_digests, chain, extra_digest
from warmroute.core.index.contract import PrefixIndex
from warmroute.core.wire.events import BlockStored
from warmroute.types import PrefixHash, WorkerId

GRACE_S = 5.0
"""So long after the answer its events may still come."""


class FullReports:
    """Which workers are serving such requests, or did a moment ago. `now` is in seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._running: Counter[WorkerId] = Counter()
        self._until: dict[WorkerId, float] = {}

    def began(self, worker: WorkerId) -> None:
        """Such a request was sent to the worker."""
        self._running[worker] += 1

    def ended(self, worker: WorkerId, now: float) -> None:
        """It is over."""
        self._running[worker] -= 1
        if not self._running[worker]:
            del self._running[worker]
            self._until[worker] = now + GRACE_S

    def expected(self, worker: WorkerId, now: float) -> bool:
        """Whether the worker may be announcing what it has announced before."""
        if not self._running and not self._until:
            return False
        if self._until.get(worker, now) < now:
            del self._until[worker]
        return worker in self._running or worker in self._until


def repeats(event: BlockStored, worker: WorkerId, index: PrefixIndex) -> bool:
    """Whether `event` announces from the root on only what `worker` holds."""
    blocks = len(event.block_hashes)
    if event.parent is not None or event.by_hash or not blocks or len(event.token_ids) != blocks * event.block_size:
        return False
    prefix: PrefixHash | None = None
    prefixes: list[PrefixHash] = []
    for i, digest in enumerate(block_digests(event.token_ids, event.block_size)):
        keys = event.extra_keys[i] if event.extra_keys else ()
        prefix = chain(prefix, digest, extra_digest(event.lora, keys))
        prefixes.append(prefix)
    return index.depth(worker, prefixes, event.block_size) == blocks
