"""Policies of other routers, as faithful as our inputs allow, so that they can be compared and chosen.

Each says where it comes from, with which defaults, and what had to differ. Load is what this router has in flight: the
originals see the same through their own counters, or later through the engines' metrics.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from math import inf, sqrt
from typing import ClassVar

from warmroute.core.policies.contract import Candidates
from warmroute.types import PrefixHash, WorkerId


class Approximate:
    """History instead of events: a tree of what was sent where, with thresholds that switch to load.

    Source: `cache_aware` of sglang-router and smg (their docs/router.md and docs/concepts/routing/cache-aware.md).
    Parameters and defaults as there: `cache_threshold` 0.3, `balance_abs_threshold` 64, `balance_rel_threshold` 1.5,
    `tree_tokens_max` 2^26 per worker. If (most - fewest requests) > abs and most > rel * fewest: the fewest requests.
    Else, if the best match covers more than the threshold of the prompt: that worker; else the one with the smallest
    tree. Differs: the tree is of whole blocks of tokens, not of characters, and loses what was used longest ago as soon
    as it is full, not every two minutes.
    """

    name: ClassVar[str] = "approximate"

    def __init__(
        self,
        cache_threshold: float = 0.3,
        balance_abs_threshold: int = 64,
        balance_rel_threshold: float = 1.5,
        tree_tokens_max: int = 2**26,
    ) -> None:
        self.cache_threshold = cache_threshold
        self.balance_abs_threshold = balance_abs_threshold
        self.balance_rel_threshold = balance_rel_threshold
        self.tree_tokens_max = tree_tokens_max
        self._trees: dict[WorkerId, OrderedDict[PrefixHash, int]] = {}
        self._holders: dict[PrefixHash, set[WorkerId]] = {}
        self._tokens: Counter[WorkerId] = Counter()

    def costs(self, candidates: Candidates) -> Sequence[float]:
        """Requests in flight, or zero for the match or the smallest trees and infinity for the others."""
        requests, workers = candidates.requests, candidates.workers
        fewest, most = min(requests), max(requests)
        if most - fewest > self.balance_abs_threshold and most > self.balance_rel_threshold * fewest:
            return requests
        matched, depth = self._deepest(candidates)
        if matched and depth * candidates.block_size > self.cache_threshold * candidates.prompt_tokens:
            return [0.0 if worker.id in matched else inf for worker in workers]
        sizes = [self._tokens[worker.id] for worker in workers]
        smallest = min(sizes)
        return [0.0 if size == smallest else inf for size in sizes]

    def forget(self, worker: WorkerId) -> None:
        """Nothing was sent there."""
        for prefix in self._trees.pop(worker, ()):
            self._drop(prefix, worker)
        self._tokens.pop(worker, None)

    def _drop(self, prefix: PrefixHash, worker: WorkerId) -> None:
        holders = self._holders[prefix]
        holders.discard(worker)
        if not holders:
            del self._holders[prefix]

    def _deepest(self, candidates: Candidates) -> tuple[set[WorkerId], int]:
        """Candidates that were sent the longest beginning of this prompt, and its blocks."""
        there = {worker.id for worker in candidates.workers}
        matched: set[WorkerId] = set()
        depth = 0
        for prefix in candidates.chain:
            holders = self._holders.get(prefix)
            here = there & holders if holders else None
            if not here:
                break
            matched, depth = here, depth + 1
        return matched, depth

    def chosen(self, candidates: Candidates, winner: int) -> None:
        """Put the prompt into the winner's tree."""
        worker, size = candidates.workers[winner].id, candidates.block_size
        tree = self._trees.setdefault(worker, OrderedDict())
        for prefix in reversed(candidates.chain):  # the ends of chains are to go first
            if prefix not in tree:
                self._holders.setdefault(prefix, set()).add(worker)
                self._tokens[worker] += size
            tree[prefix] = size
            tree.move_to_end(prefix)
        while self._tokens[worker] > self.tree_tokens_max:
            oldest, tokens = tree.popitem(last=False)
            self._tokens[worker] -= tokens
            self._drop(oldest, worker)


class Aibrix:
    """Best match among the workers whose load is not out of line.

    Source: AIBrix's `prefix-cache` routing algorithm. Parameters and defaults as there:
    `imbalance_abs_count` 8 (its POD_RUNNING_REQUEST_IMBALANCE_ABS_COUNT), `deviation_factor` 1 (its
    STANDARD_DEVIATION_FACTOR). If the most and the fewest running requests are more than the first apart: the best
    match among those with the fewest. Else the best match (ties: fewer requests) whose load is at most mean + factor *
    sample deviation over all ready workers; without one, the fewest requests.
    """

    name: ClassVar[str] = "aibrix"

    def __init__(self, imbalance_abs_count: int = 8, deviation_factor: float = 1.0) -> None:
        self.imbalance_abs_count = imbalance_abs_count
        self.deviation_factor = deviation_factor

    def costs(self, candidates: Candidates) -> Sequence[float]:
        """Minus the share matched where matching is allowed; the requests in flight where nothing is."""
        requests, prompt = candidates.requests, max(1, candidates.prompt_tokens)
        fewest = min(requests)
        if max(requests) - fewest > self.imbalance_abs_count:
            return [
                -overlap / prompt if load == fewest else inf
                for load, overlap in zip(requests, candidates.overlap_tokens, strict=True)
            ]
        n = len(requests)
        mean = sum(requests) / n
        deviation = sqrt(sum((load - mean) ** 2 for load in requests) / (n - 1)) if n > 1 else 0.0
        cap = mean + self.deviation_factor * deviation
        costs = [
            -overlap / prompt if overlap and load <= cap else inf
            for load, overlap in zip(requests, candidates.overlap_tokens, strict=True)
        ]
        return costs if min(costs) < inf else requests


class Dynamo:
    """Prefill blocks still to compute plus blocks held by running requests.

    Source: NVIDIA Dynamo's KV router (docs/components/router; lib/kv-router, `DefaultWorkerSelector`). cost =
    `overlap_weight` * (prefill tokens queued + prompt tokens not cached) / block size + blocks of all requests that
    would then run there, shared ones counted once. Defaults as there: weight 1, temperature 0 (the lowest cost wins),
    credit for a block in host memory 0.75 and on disk 0.25, output blocks not tracked.
    """

    name: ClassVar[str] = "dynamo"

    def __init__(
        self, overlap_weight: float = 1.0, host_cache_hit_weight: float = 0.75, disk_cache_hit_weight: float = 0.25
    ) -> None:
        self.overlap_weight = overlap_weight
        self.host_cache_hit_weight = host_cache_hit_weight
        self.disk_cache_hit_weight = disk_cache_hit_weight
        self._active: dict[WorkerId, Counter[PrefixHash]] = {}

    def costs(self, candidates: Candidates) -> Sequence[float]:
        """Blocks."""
        c, size, chain = candidates, max(1, candidates.block_size), candidates.chain
        host, disk = 1.0 - self.host_cache_hit_weight, 1.0 - self.disk_cache_hit_weight
        costs = []
        for i, worker in enumerate(c.workers):
            credit = c.overlap_tokens[i] - c.cpu_tokens[i] * host - c.storage_tokens[i] * disk
            prefill_blocks = (c.prefill_tokens[i] + c.prompt_tokens - credit) / size
            active = self._active.get(worker.id)
            running_blocks = len(active) + len(chain) - _shared(chain, active) if active else len(chain)
            costs.append(self.overlap_weight * prefill_blocks + running_blocks)
        return costs

    def chosen(self, candidates: Candidates, winner: int) -> None:
        """Its blocks are in use there now."""
        self._active.setdefault(candidates.workers[winner].id, Counter()).update(candidates.chain)

    def ended(self, worker: WorkerId, chain: Sequence[PrefixHash]) -> None:
        """Its blocks are not in use by this request any more."""
        active = self._active.get(worker, Counter[PrefixHash]())
        for prefix in chain:
            active[prefix] -= 1
            if not active[prefix]:
                del active[prefix]
        if not active:
            self._active.pop(worker, None)


def _shared(chain: Sequence[PrefixHash], active: Counter[PrefixHash]) -> int:
    """How many leading blocks of `chain` are in use; a block's presence implies that of all before it."""
    low, high = 0, len(chain)
    while low < high:
        middle = (low + high) // 2
        if chain[middle] in active:
            low = middle + 1
        else:
            high = middle
    return low


class LlmD:
    """Weighted scores between 0 and 1; the highest sum wins, ties at random.

    Source: llm-d's precise-prefix-cache guide over the Gateway API Inference Extension's scorers. Weights as there:
    `queue` 2, `kv_utilization` 2, `prefix` 3. queue score = (most - own) / (most - fewest) waiting requests, 1 if all
    have the same; KV score = 1 - share of the cache in use; prefix score = (own - least) / (most - least) overlap, 1 if
    all have the same. Differs: where a worker's cache size is not known, the largest use in the fleet stands for it.
    """

    name: ClassVar[str] = "llm_d"

    def __init__(self, queue: float = 2.0, kv_utilization: float = 2.0, prefix: float = 3.0) -> None:
        self.queue = queue
        self.kv_utilization = kv_utilization
        self.prefix = prefix

    def costs(self, candidates: Candidates) -> Sequence[float]:
        """Minus the weighted sum of scores."""
        c = candidates
        most_waiting, waiting_span = max(c.prefilling), max(c.prefilling) - min(c.prefilling)
        least_overlap, overlap_span = min(c.overlap_tokens), max(c.overlap_tokens) - min(c.overlap_tokens)
        most_kv = max(1, *c.kv_tokens, 1)
        return [
            -self.queue * ((most_waiting - waiting) / waiting_span if waiting_span else 1.0)
            - self.kv_utilization * (1.0 - min(1.0, kv / (worker.kv_tokens_max or most_kv)))
            - self.prefix * ((overlap - least_overlap) / overlap_span if overlap_span else 1.0)
            for worker, waiting, kv, overlap in zip(c.workers, c.prefilling, c.kv_tokens, c.overlap_tokens, strict=True)
        ]
