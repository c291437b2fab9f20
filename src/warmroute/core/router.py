"""`Router.pick`: one request, one fleet, one moment -> the worker with the least left to do, and why.

Synchronous and pure but for the state it owns: the index it reads, the load it books, the claims it makes. Whatever
skin it wears (gateway, endpoint picker, library), this is the decision. It never fails because something is not known:
without token ids, events or a usable index it is a load balancer, and says so in the decision's reason.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TypeAlias

import msgspec

from warmroute.config.tree import RoutingConfig
from warmroute.core.adapters import Adapters
from warmroute.core.decision import Decision, PickRequest, Reason, share
from warmroute.core.dice import Dice
from warmroute.core.full_reports import FullReports
from warmroute.core.hashing import prefix_hash_array
from warmroute.core.index.contract import PrefixIndex
from warmroute.core.lanes import Lanes, confirm, most_of
from warmroute.core.load import Lease, LoadTable
from warmroute.core.policies import Candidates, LeastWork, Policy, make_policy
from warmroute.core.policies.guard import Guarded
from warmroute.core.rates import RateTable
from warmroute.core.rows import BYTES, HELD, lowest
from warmroute.core.sharing import Sharing
from warmroute.core.speculation import Claim, Speculation
from warmroute.errors import NoWorkerError
from warmroute.types import Fleet, PrefixHash, Worker, WorkerId

BYTES_PER_TOKEN = 4
"""Rough length of a token in a prompt's bytes: only for the load of requests whose tokens are not known."""
BLOCK_SIZE = 16
"""Tokens per block where no engine has said, for policies that keep a history of their own."""


LANES_MAX = 64
"""Sets of workers that are remembered, by model and by whom requests are to avoid: all are made anew beyond that."""


Hashed: TypeAlias = tuple[int, Sequence[PrefixHash], Mapping[WorkerId, int], str | None]
"""A prompt in blocks: tokens per block, PrefixHashes, the workers that know it so and their places among the
candidates, and under which key they know the adapter (`core/adapters.py`)."""


class Router:
    """Picks workers. Owns the load table and the claims; reads the index that ingestion fills.

    Belongs to one event loop, like the index. `now` is seconds of one monotonic clock, the same in every call. `timer`
    tells how long a policy that is not ours takes (None: that is not watched); `seed` decides every draw. `sharing`:
    how this process and others know of each other's load.
    """

    def __init__(
        self,
        index: PrefixIndex,
        config: RoutingConfig | None = None,
        policy: Policy | None = None,
        *,
        timer: Callable[[], float] | None = None,
        seed: int = 0,
        sharing: Sharing | None = None,
    ) -> None:
        config = config or RoutingConfig()
        self.index = index
        self.load = LoadTable(RateTable(config.prefill_tokens_per_s), sharing)
        self.speculation = Speculation()
        self.full_reports = FullReports()
        self._timer = timer
        self._dice = Dice(seed)
        self.adapters = Adapters()
        self._turn = 0
        self._fleet: Fleet | None = None
        self._lanes: dict[tuple[str | None, frozenset[WorkerId]], Lanes] = {}
        self.reconfigure(config, policy)

    def reconfigure(self, config: RoutingConfig, policy: Policy | None = None) -> None:
        """Decide by this from now on; what policies remember of the past is forgotten. `policy`: one's own."""
        self.config = config
        ours = LeastWork(config)
        self.policy: Policy = (policy or make_policy(config.policy, config)) or ours
        if policy is not None:
            self.policy = Guarded(policy, ours, config.policy_ms_max / 1e3, self._timer)
        self._others: dict[str, Policy] = {self.policy.name: self.policy}
        self._lanes.clear()

    def pick(self, request: PickRequest, fleet: Fleet, now: float) -> Decision:
        """Choose a worker, book its load and claim the blocks it will store.

        Raises NoWorkerError if no ready worker serves the model. Whoever calls reports `prefilled` at the answer's
        first byte of body and `release` at its end, whatever the end was.
        """
        lanes = self._eligible(request, fleet)
        policy = self.policy if request.policy is None else self._named(request.policy)
        prompts = self._hashed(request, lanes, fleet.lora(request.model)) if request.token_ids is not None else []
        held = self._held(request, prompts, lanes.nothing, now) if prompts else lanes.nothing
        candidates = self._candidates(request, prompts, held, lanes, now)
        costs = policy.costs(candidates)
        policy = getattr(policy, "decider", policy)  # the default, where one's own could not
        if lanes.weights is not None:
            costs = [cost * share(cost, weight) for cost, weight in zip(costs, lanes.weights, strict=True)]
        if type(costs) is not array:
            costs = array("d", costs)
        chosen, self._turn = lowest(costs, candidates.counts, self._turn)
        worker, overlap = lanes.workers[chosen], held[HELD * chosen]
        prompt = candidates.prompt_tokens
        lease = self.load.book(worker.id, prompt, prompt - overlap, now, prefill_observable=request.streamed)
        claims = self._claims(lease, prompts, overlap, now) if prompts else ()
        predicted: int | None = overlap
        if request.further_prompts != () or request.n != 1:
            predicted = self._predicted(request, worker, overlap, prompts, now)
        if (remember := getattr(policy, "chosen", None)) is not None:
            remember(candidates, chosen)
        return Decision(
            worker=worker,
            reason=self._reason(request, policy, overlap),
            policy=policy.name,
            prompt_tokens=prompt,
            overlap_blocks=overlap // candidates.block_size,
            overlap_tokens=overlap,
            claimed_tokens=held[HELD * chosen + 3],
            predicted_tokens=predicted,
            lease=lease,
            claims=claims,
            chain=candidates.chain,
            candidates=candidates,
            chosen=chosen,
            costs=costs,
            memo=getattr(policy, "memo", None),
            at=now,
            decided_by=policy,
        )

    def prefilled(self, decision: Decision, now: float) -> None:
        """The first byte of the answer's body came: the prompt's blocks are stored."""
        self.load.prefilled(decision.lease, now)
        if not decision.served:
            decision.served = True
            decision.first_byte_s = now - decision.at
            for claim in decision.claims:
                if self._is_confirmed(claim):
                    self.speculation.end(claim)
                else:
                    self.speculation.served(claim, now)

    def stepped(self, decision: Decision, now: float) -> None:
        """A further piece of the answer came: its worker has begun another step. May be left out."""
        self.load.stepped(decision.lease, now)

    def release(self, decision: Decision, now: float, *, served: bool) -> None:
        """The request is over. `served` is false if the worker never took it up: then its claims are void."""
        if decision.lease.open and (ended := getattr(decision.decided_by, "ended", None)) is not None:
            ended(decision.worker.id, decision.chain)
        self.load.release(decision.lease, now)
        if served:
            self.prefilled(decision, now)
        else:
            for claim in decision.claims:
                self.speculation.end(claim)

    def applied(self, worker: WorkerId, now: float) -> None:
        """Events of `worker` were applied to the index: what they confirm need not be assumed any more."""
        if self.index.prefix_sizes(worker) == ():  # claims made before it showed that a part alone is of no use
            self.speculation.forget(worker)
        self.speculation.confirm(worker, self._is_confirmed, now)

    def forget(self, worker: WorkerId) -> None:
        """Assume nothing of `worker` any more: it was cleared, restarted or removed."""
        self.speculation.forget(worker)
        for policy in self._others.values():
            if (forget := getattr(policy, "forget", None)) is not None:
                forget(worker)

    def _is_confirmed(self, claim: Claim) -> bool:
        return self.index.depth(claim.worker, claim.chain, claim.block_size) == len(claim.chain)

    def _named(self, name: str) -> Policy:
        """The policy a request asks for; the configured one if there is none of that name."""
        if name not in self._others:
            made = make_policy(name, self.config)
            if made is None:
                return self.policy
            self._others[name] = made
        return self._others[name]

    def _eligible(self, request: PickRequest, fleet: Fleet) -> Lanes:
        if fleet is not self._fleet:
            self.load.keep_only(worker.id for worker in fleet.workers)
            self.load.introduce(fleet.workers)
            self._fleet = fleet
            self._lanes.clear()
        choosy = request.pinned is not None or request.rank is not None or request.even_unready
        key = request.model, request.exclude
        if not choosy and (lanes := self._lanes.get(key)) is not None:
            return lanes
        serving = fleet.workers if request.model is None else fleet.serving(request.model)
        if request.pinned is not None:
            serving = tuple(w for w in serving if w.id == request.pinned)
        if request.rank is not None:
            serving = tuple(w for w in serving if w.rank == request.rank or w.ranks == 1)
        workers = tuple(w for w in serving if (w.ready or request.even_unready) and w.id not in request.exclude)
        if not workers:
            raise NoWorkerError(_why_none(request, serving))
        lanes = Lanes(workers, self.load, self.config.degraded_belief)
        if not choosy:
            if len(self._lanes) >= LANES_MAX:
                self._lanes.clear()
            self._lanes[key] = lanes
        return lanes

    def _hashed(self, request: PickRequest, lanes: Lanes, lora: str | None) -> list[Hashed]:
        """The request's prompt as each worker knows it, in each block size in use."""
        tokens, salt = request.token_ids or (), request.cache_salt
        sizes: Iterable[int] = self.index.block_sizes()
        if not sizes:
            sizes = {worker.block_size for worker in lanes.workers if worker.block_size} or (BLOCK_SIZE,)
        keys = self.adapters.keys(lanes.positions, lora).items()
        return [
            (size, prefix_hash_array(tokens, size, lora=key, cache_salt=salt), users, key)
            for key, users in keys
            for size in sizes
        ]

    def _held(self, request: PickRequest, prompts: Sequence[Hashed], nothing: array[int], now: float) -> array[int]:
        """What the workers hold of the request."""
        if request.skips_cache_read:
            return nothing
        held, known = nothing, max(0, len(request.token_ids or ()) - 1)  # the last token is always computed
        for size, chain, users, _ in prompts:
            rows, usable = nothing[:], chain[: known // size]
            confirm(rows, users, self.index.match_columns(usable, size), size)
            if not self.speculation.idle:
                self.speculation.extend(rows, usable, users, size, now)
            held = rows if held is nothing else most_of(held, rows)  # of several sizes, that which gives most
        return held

    def _predicted(
        self, request: PickRequest, worker: Worker, overlap_tokens: int, hashed: Sequence[Hashed], now: float
    ) -> int | None:
        """What the engine will report: its last prompt's, and of several answers that of one that came second."""
        if request.further_prompts is None:
            return None
        if request.token_ids is None or request.skips_cache_read:
            return overlap_tokens
        salt, prompts = request.cache_salt, (request.token_ids, *request.further_prompts)
        last = request if len(prompts) == 1 else msgspec.structs.replace(request, token_ids=prompts[-1])
        lasts = [
            (size, prefix_hash_array(prompts[-1], size, lora=lora, cache_salt=salt), {worker.id: 0}, lora)
            for size, _, users, lora in hashed
            if worker.id in users
        ]
        best = self._held(last, lasts, array("q", bytes(BYTES * HELD)), now)[0]
        sizes = self.index.prefix_sizes(worker.id)
        for size, chain, _, lora in lasts:
            usable = chain[: (len(prompts[-1]) - 1) // size]
            if request.n > 1:  # the first answer's blocks are there before the second one is looked up
                best = max(best, size * len(usable))
            elif sizes is None or size in sizes:
                earlier = (prefix_hash_array(p, size, lora=lora, cache_salt=salt) for p in prompts[:-1])
                best = max(best, *(size * _shared(usable, other) for other in earlier))
        return best

    def _candidates(
        self, request: PickRequest, prompts: Sequence[Hashed], held: array[int], lanes: Lanes, now: float
    ) -> Candidates:
        tokens = request.token_ids
        counts, times, requests_per_s = self.load.rows(now)
        counts, times, rates = lanes.take(counts, times, self.load.rates.rows.numbers)
        block_size, chain = min(prompts, key=itemgetter(0))[:2] if prompts else (BLOCK_SIZE, ())
        return Candidates(
            workers=lanes.workers,
            now=now,
            dice=self._dice,
            prompt_tokens=len(tokens) if tokens is not None else request.prompt_bytes // BYTES_PER_TOKEN,
            token_ids=tokens,
            chain=chain,
            block_size=block_size,
            session=request.session,
            priority=request.priority,
            belief=lanes.belief,
            kv_tokens_max=lanes.kv_tokens_max,
            requests_per_s=requests_per_s,
            reach_s=self.load.steps.reach_s,
            held=held,
            counts=counts,
            times=times,
            rates=rates,
        )

    def _claims(self, lease: Lease, prompts: Sequence[Hashed], overlap: int, now: float) -> tuple[Claim, ...]:
        """Claim the blocks beyond the overlap that the worker is about to store."""
        worker, queued_s = lease.worker, self.load.free_at[lease.slot] - now
        deadline = now + max(self.config.speculative_ttl_s, 2 * queued_s)
        sizes, claims = self.index.prefix_sizes(worker), []
        for size, chain, users, _ in prompts:
            if (sizes is None or size in sizes) and len(chain) > overlap // size and worker in users:
                claims.append(claim := Claim(worker, chain, size, overlap // size, deadline))
                self.speculation.add(claim, now)
        return tuple(claims)

    def _reason(self, request: PickRequest, policy: Policy, overlap_tokens: int) -> Reason:
        if request.pinned is not None:
            return Reason.PINNED
        if not isinstance(policy, LeastWork):
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
