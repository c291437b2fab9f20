"""`Router.pick`: one request, one fleet, one moment -> the worker with the least left to do, and why.

Synchronous and pure but for the state it owns: the index it reads, the load it books, the claims it makes. Whatever
skin it wears (gateway, endpoint picker, library), this is the decision. It never fails because something is not known:
without token ids, events or a usable index it is a load balancer, and says so in the decision's reason.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec

from warmroute.config.tree import RoutingConfig
from warmroute.core.adapters import Adapters
from warmroute.core.hashing import prefix_hashes
from warmroute.core.index.contract import PrefixIndex
from warmroute.core.load import Lease, LoadTable
from warmroute.core.policy import Candidates, LeastWork, Policy, make_policy
from warmroute.core.speculation import Claim, Speculation
from warmroute.errors import NoWorkerError
from warmroute.types import Fleet, PrefixHash, TokenIds, TrustState, Worker, WorkerId

BYTES_PER_TOKEN = 4
"""Rough length of a token in a prompt's bytes: only for the load of requests whose tokens are not known."""


Chains: TypeAlias = Mapping[int, Sequence[PrefixHash]]
"""Block size -> the request's PrefixHashes."""


class Reason(enum.StrEnum):
    """Why the chosen worker won, in one word for headers and metrics."""

    OVERLAP = "overlap"
    """It holds part of the request, and no other worker's total was lower."""
    LOAD = "load"
    """It holds nothing of it, but has the least to do."""
    NO_TOKENS = "no_tokens"
    """The request's token ids are not known: chosen by load."""
    POLICY = "policy"
    """Another policy than the default chose."""


class PickRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What `pick` needs to know of a request."""

    model: str | None
    """None: any worker will do (a request that names no model)."""
    token_ids: TokenIds | None = None
    prompt_bytes: int = 0
    """Length of the request in bytes: stands in for the prompt's length where there are no token ids."""
    further_prompts: tuple[TokenIds, ...] | None = ()
    """The prompts after the first, which is what is routed by; None: there are some, and their tokens are not known."""
    n: int = 1
    """Answers to each prompt."""
    cache_salt: str | None = None
    skips_cache_read: bool = False
    """The engine will compute the whole prompt whatever it holds."""
    streamed: bool = True
    """Whether the answer's first byte will tell when prefill is done."""
    exclude: frozenset[WorkerId] = frozenset()
    """Workers not to be chosen: this request has failed there."""
    pinned: WorkerId | None = None
    """The only worker allowed."""
    even_unready: bool = False
    """Whether a worker will do that takes no generations now: to be woken, for one."""
    rank: int | None = None
    """The only data-parallel rank allowed, on engines that have several."""


class CandidateView(msgspec.Struct, frozen=True):
    """One candidate of a decision, for people."""

    worker: str
    trust: str
    overlap_tokens: int
    overlap_by_medium: dict[str, int]
    claimed_tokens: int
    requests: int
    prefill_tokens: int
    decoding: int
    cost: float
    chosen: bool


class Decision(msgspec.Struct):
    """Where a request goes, and everything that was weighed."""

    worker: Worker
    reason: Reason
    policy: str
    prompt_tokens: int
    overlap_blocks: int
    overlap_tokens: int
    """Prompt tokens the chosen worker is predicted to take from its cache."""
    claimed_tokens: int
    """The part of `overlap_tokens` that rests on requests still under way there."""
    predicted_tokens: int | None
    """Cached prompt tokens the engine will report: those of its last prompt and answer. None: cannot be known."""
    lease: Lease
    claims: tuple[Claim, ...]
    candidates: Candidates
    costs: tuple[float, ...]
    overlaps: dict[WorkerId, _Held]
    at: float
    served: bool = False
    """Whether its prefill is known to be done."""

    def explain(self) -> list[CandidateView]:
        """Every candidate with its numbers, the cheapest first."""
        c = self.candidates
        rows = [
            CandidateView(
                worker=worker.name,
                trust=worker.trust.state,
                overlap_tokens=c.overlap_tokens[i],
                overlap_by_medium=self.overlaps[worker.id].tokens_by_medium() if worker.id in self.overlaps else {},
                claimed_tokens=self.overlaps[worker.id].claimed_tokens if worker.id in self.overlaps else 0,
                requests=c.requests[i],
                prefill_tokens=c.prefill_tokens[i],
                decoding=c.decoding[i],
                cost=self.costs[i],
                chosen=worker.id == self.worker.id,
            )
            for i, worker in enumerate(c.workers)
        ]
        return sorted(rows, key=lambda row: (row.cost, not row.chosen))


class _Held(msgspec.Struct, frozen=True, gc=False):
    """What one worker is thought to hold of a request: confirmed by medium, and claimed behind it; in blocks."""

    block_size: int
    by_medium: tuple[int, int, int]
    claimed: int

    @property
    def blocks(self) -> int:
        return sum(self.by_medium) + self.claimed

    @property
    def claimed_tokens(self) -> int:
        return self.claimed * self.block_size

    def tokens_by_medium(self) -> dict[str, int]:
        names = ("GPU", "CPU", "STORAGE")
        return {name: blocks * self.block_size for name, blocks in zip(names, self.by_medium, strict=True) if blocks}


class Router:
    """Picks workers. Owns the load table and the claims; reads the index that ingestion fills.

    Belongs to one event loop, like the index. `now` is seconds of one monotonic clock, the same in every call.
    """

    def __init__(self, index: PrefixIndex, config: RoutingConfig | None = None, policy: Policy | None = None) -> None:
        config = config or RoutingConfig()
        self.index = index
        self.load = LoadTable()
        self.speculation = Speculation()
        self.adapters = Adapters()
        self.policy = policy or make_policy(config)
        self._config = config
        self._turn = 0

    def pick(self, request: PickRequest, fleet: Fleet, now: float) -> Decision:
        """Choose a worker, book its load and claim the blocks it will store.

        Raises NoWorkerError if no ready worker serves the model. Whoever calls reports `prefilled` at the answer's
        first byte of body and `release` at its end, whatever the end was.
        """
        workers = self._eligible(request, fleet)
        lora = fleet.lora(request.model)
        keys = self.adapters.keys(workers, lora)
        chains = {key: self._chains(request, key, workers) for key in keys}
        held = {
            worker: entry
            for key, users in keys.items()
            for worker, entry in self._held(request, chains[key], now).items()
            if worker in users
        }
        candidates = self._candidates(request, workers, held, now)
        costs = tuple(self.policy.costs(candidates))
        chosen = self._cheapest(costs, candidates)
        key = next(key for key, users in keys.items() if workers[chosen].id in users)
        lease, claims = self._book(request, candidates, chosen, chains[key], now)
        entry = held.get(workers[chosen].id)
        return Decision(
            worker=workers[chosen],
            reason=self._reason(request, candidates.overlap_tokens[chosen]),
            policy=self.policy.name,
            prompt_tokens=candidates.prompt_tokens,
            overlap_blocks=entry.blocks if entry else 0,
            overlap_tokens=candidates.overlap_tokens[chosen],
            claimed_tokens=entry.claimed_tokens if entry else 0,
            predicted_tokens=self._predicted(request, workers[chosen], candidates.overlap_tokens[chosen], key, now),
            lease=lease,
            claims=claims,
            candidates=candidates,
            costs=costs,
            overlaps=held,
            at=now,
        )

    def prefilled(self, decision: Decision, now: float) -> None:
        """The first byte of the answer's body came: the prompt's blocks are stored."""
        self.load.prefilled(decision.lease)
        if not decision.served:
            decision.served = True
            for claim in decision.claims:
                self.speculation.served(claim)
            self.applied(decision.worker.id, now)

    def release(self, decision: Decision, now: float, *, served: bool) -> None:
        """The request is over. `served` is false if the worker never took it up: then its claims are void."""
        self.load.release(decision.lease)
        if served:
            self.prefilled(decision, now)
        else:
            for claim in decision.claims:
                claim.end()

    def applied(self, worker: WorkerId, now: float) -> None:
        """Events of `worker` were applied to the index: what they confirm need not be assumed any more."""
        if self.index.prefix_sizes(worker) == ():  # claims made before it showed that a part alone is of no use
            self.speculation.forget(worker)
        self.speculation.confirm(worker, self._is_confirmed, now)

    def forget(self, worker: WorkerId) -> None:
        """Assume nothing of `worker` any more: it was cleared, restarted or removed."""
        self.speculation.forget(worker)

    def _is_confirmed(self, claim: Claim) -> bool:
        matches = self.index.match(claim.chain, claim.block_size)
        return any(o.worker == claim.worker and o.blocks == len(claim.chain) for o in matches)

    def _eligible(self, request: PickRequest, fleet: Fleet) -> tuple[Worker, ...]:
        serving = fleet.workers if request.model is None else fleet.serving(request.model)
        if request.pinned is not None:
            serving = tuple(w for w in serving if w.id == request.pinned)
        if request.rank is not None:
            serving = tuple(w for w in serving if w.rank == request.rank or w.ranks == 1)
        workers = tuple(w for w in serving if (w.ready or request.even_unready) and w.id not in request.exclude)
        if not workers:
            raise NoWorkerError(_why_none(request, serving))
        return workers

    def _chains(self, request: PickRequest, lora: str | None, workers: tuple[Worker, ...]) -> Chains:
        """The request's PrefixHashes for each block size in use."""
        tokens = request.token_ids
        if tokens is None:
            return {}
        sizes = self.index.block_sizes() or {w.block_size for w in workers if w.block_size}
        return {size: prefix_hashes(tokens, size, lora=lora, cache_salt=request.cache_salt) for size in sizes}

    def _held(self, request: PickRequest, chains: Chains, now: float) -> dict[WorkerId, _Held]:
        if request.skips_cache_read:
            return {}
        held: dict[WorkerId, _Held] = {}
        for size, chain in chains.items():
            usable = chain[: max(0, len(request.token_ids or ()) - 1) // size]  # the last token is always computed
            confirmed = {overlap.worker: overlap for overlap in self.index.match(usable, size)}
            claimed = self.speculation.extend(usable, {w: o.blocks for w, o in confirmed.items()}, now)
            for worker in confirmed.keys() | claimed.keys():
                overlap = confirmed.get(worker)
                by_medium = overlap.by_medium if overlap else (0, 0, 0)
                entry = _Held(size, by_medium, claimed.get(worker, 0))
                if worker not in held or held[worker].blocks * held[worker].block_size < entry.blocks * size:
                    held[worker] = entry
        return held

    def _predicted(
        self, request: PickRequest, worker: Worker, overlap_tokens: int, lora: str | None, now: float
    ) -> int | None:
        """What the engine will report: its last prompt's, and of several answers that of one that came second."""
        if request.further_prompts is None:
            return None
        if request.token_ids is None or request.skips_cache_read or not (request.further_prompts or request.n > 1):
            return overlap_tokens
        prompts = (request.token_ids, *request.further_prompts)
        last = request if len(prompts) == 1 else msgspec.structs.replace(request, token_ids=prompts[-1])
        chains = self._chains(last, lora, (worker,))
        held = self._held(last, chains, now).get(worker.id)
        best = held.blocks * held.block_size if held else 0
        usable = {size: (len(prompts[-1]) - 1) // size for size in chains}
        if request.n > 1:  # the first answer's blocks are there before the second one is looked up
            return max((size * blocks for size, blocks in usable.items()), default=best)
        sizes = self.index.prefix_sizes(worker.id)
        for size in chains if sizes is None else sizes:
            earlier = (prefix_hashes(p, size, lora=lora, cache_salt=request.cache_salt) for p in prompts[:-1])
            best = max(best, *(size * _shared(chains[size][: usable[size]], other) for other in earlier))
        return best

    def _candidates(
        self, request: PickRequest, workers: tuple[Worker, ...], held: dict[WorkerId, _Held], now: float
    ) -> Candidates:
        tokens = request.token_ids
        loads = [self.load.of(worker.id, now) for worker in workers]
        overlap, worth = [0] * len(workers), [0.0] * len(workers)
        for i, worker in enumerate(workers):
            entry = held.get(worker.id)
            if entry is not None:
                overlap[i] = entry.blocks * entry.block_size
                worth[i] = self._worth(entry, worker)
        return Candidates(
            workers=workers,
            prompt_tokens=len(tokens) if tokens is not None else request.prompt_bytes // BYTES_PER_TOKEN,
            overlap_tokens=overlap,
            worth_tokens=worth,
            requests=[load.requests for load in loads],
            prefill_tokens=[load.prefill_tokens for load in loads],
            decoding=[load.decoding for load in loads],
        )

    def _worth(self, held: _Held, worker: Worker) -> float:
        """Tokens' worth of prefill that the overlap saves, as far as the worker's view is believed."""
        gpu, cpu, storage = held.by_medium
        worth = gpu + held.claimed + cpu * self._config.cpu_hit_worth + storage * self._config.storage_hit_worth
        trust = worker.trust
        belief = min(trust.belief, self._config.degraded_belief) if trust.state is TrustState.DEGRADED else 1.0
        return worth * held.block_size * belief

    def _cheapest(self, costs: Sequence[float], candidates: Candidates) -> int:
        """Lowest cost; among equals the fewest requests in flight, then whose turn it is."""
        lowest = min(costs)
        tied = [i for i, cost in enumerate(costs) if cost == lowest]
        if len(tied) == 1:
            return tied[0]
        fewest = min(candidates.requests[i] for i in tied)
        tied = [i for i in tied if candidates.requests[i] == fewest]
        self._turn += 1
        return tied[self._turn % len(tied)]

    def _book(
        self, request: PickRequest, candidates: Candidates, chosen: int, chains: Chains, now: float
    ) -> tuple[Lease, tuple[Claim, ...]]:
        """Book the load, and claim the blocks beyond the overlap that the worker is about to store."""
        worker, overlap = candidates.workers[chosen].id, candidates.overlap_tokens[chosen]
        uncached = candidates.prompt_tokens - overlap
        queued_s = (candidates.prefill_tokens[chosen] + uncached) / self._config.prefill_tokens_per_s
        lease = self.load.book(worker, uncached, prefill_observable=request.streamed, prefill_ends_at=now + queued_s)
        deadline = now + max(self._config.speculative_ttl_s, 2 * queued_s)
        sizes = self.index.prefix_sizes(worker)
        if sizes is None:
            sizes = tuple(chains)
        claims = tuple(
            Claim(worker, chains[size], size, overlap // size, deadline)
            for size in sizes
            if len(chains.get(size, ())) > overlap // size
        )
        for claim in claims:
            self.speculation.add(claim, now)
        return lease, claims

    def _reason(self, request: PickRequest, overlap_tokens: int) -> Reason:
        if not isinstance(self.policy, LeastWork):
            return Reason.POLICY
        if request.token_ids is None:
            return Reason.NO_TOKENS
        return Reason.OVERLAP if overlap_tokens else Reason.LOAD


def _shared(prefixes: Sequence[PrefixHash], other: Sequence[PrefixHash]) -> int:
    """How many leading blocks two prompts have in common."""
    differing = (at for at, (a, b) in enumerate(zip(prefixes, other, strict=False)) if a != b)
    return next(differing, min(len(prefixes), len(other)))


def _why_none(request: PickRequest, serving: Sequence[Worker]) -> str:
    served = "" if request.model is None else f" that serves the model {request.model!r}"
    if not serving:
        return f"there is no engine{served} now"
    if request.exclude:
        return f"every engine{served} was tried and could not be reached"
    return f"none of the {len(serving)} known engines{served} is ready now"
