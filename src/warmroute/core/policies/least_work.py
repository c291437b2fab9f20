"""The default policy: one cost in seconds, for this request and for those it makes wait.

cost = queue + step + prefill + others + generations + evictions + memory - replication

    queue        until the prefill queued ahead is expected to be done
    step         a step of the engine beside what runs there
    prefill      computing what the worker does not hold, at its own learned rate
    others       the delay of requests yet to come, which arrive while this prefill keeps the worker busy: the more of
                 them the longer the queue, and the longer for each the busier the worker has been of late. Those that
                 are bound to a worker, since it holds more of them than others do, wait in its queue; the rest goes
                 to the shortest queue there is, and waits only if all workers have one
    generations  a slower step for all tokens that are generated there, this request's and the others'
    evictions    what is computed pushes out what was computed before: the more of the fleet's work a worker has done of
                 late, the younger, and the likelier to be asked for again, is what goes
    memory       what does not fit into the cache beside what runs there has to wait, or be computed again
    replication  what requests have paid by queueing at the holders of this prefix while others were free: when it is
                 worth a prefill, it pays for one, and there is one holder more

A request's priority scales what the delay of others counts for it: each step down, as vLLM counts, halves it. Of a
prompt whose tokens are not known, the session says where its beginning is thought to be.

No term has a threshold at which the decision changes its kind; each is zero where it does not matter.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import repeat
from math import inf
from typing import ClassVar, Final, NamedTuple

from warmroute.config.tree import RoutingConfig
from warmroute.core.hashing import NATIVE
from warmroute.core.policies.contract import Candidates
from warmroute.types import PrefixHash, Worker, WorkerId

if NATIVE:
    from warmroute import _native

BUSY_MAX: Final = 0.95
"""However busy a worker looks, its queue is taken to end some time."""
ROOMY_SHARE: Final = 0.85
"""Share of the cache that prompts may fill before memory costs: what they generate needs room too."""
PRIORITY_MAX: Final = 10
"""Each step of priority makes the delay of others count half as much, so many steps at most."""
SESSIONS_MAX: Final = 100_000
"""Sessions of which it is remembered who answered them last; the least recently seen goes first."""
BOUND_SHARE: Final = 0.005
"""How much one request says of how bound requests are to where their prefix is: some hundred of late matter."""
CREDIT_HALF_LIFE_S: Final = 60.0
CREDITS_MAX: Final = 10_000
"""Prefixes for which queueing is remembered; the least recently used goes first."""


class Memo(NamedTuple):
    """What a decision rested on beside its candidates: kept with it, so that it can be explained later."""

    credit_s: float
    """Seconds that had been queued for the longest prefix anybody held."""
    best_tokens: int
    """The length of that prefix."""
    others_per_s: float
    """Requests expected per second and worker that cannot well go elsewhere, times the weight of their delay."""
    mean_busy: float
    """Of all candidates."""
    work: float
    """What a second of computing on any worker costs those that may go to all, times the weight of their delay."""
    session: tuple[WorkerId, float] | None = None
    """Who answered this session last, and so many tokens that are thought to be held there still."""


class LeastWork:
    """Seconds; the weights of `config` scale the terms."""

    name: ClassVar[str] = "warmroute"

    def __init__(self, config: RoutingConfig) -> None:
        self._config = config
        self._cpu_loss = 1.0 - config.cpu_hit_worth
        self._storage_loss = 1.0 - config.storage_hit_worth
        self._credits: OrderedDict[PrefixHash, tuple[float, float]] = OrderedDict()
        self._sessions: OrderedDict[str, tuple[WorkerId, int]] = OrderedDict()
        self.memo = Memo(0.0, 0, 0.0, 1.0, 0.0)
        """Of the last costs."""
        self._bound = 0.5
        self._roomy: tuple[Worker, ...] = ()
        """The workers that `_rooms` is of."""
        self._rooms: list[float] = []
        """Tokens that may be in use by prompts, per worker, until memory costs."""
        self._least_room = inf

    def costs(self, candidates: Candidates) -> Sequence[float]:
        """Seconds."""
        c, config = candidates, self._config
        best, mean_busy = max(c.overlap_tokens), sum(c.busy) / len(c.busy) or 1.0
        care = config.others_weight * 2.0 ** max(-PRIORITY_MAX, min(PRIORITY_MAX, c.priority))
        rate = care * c.requests_per_s / len(c.workers)
        others = rate * self._bound
        shortest = max(0.0, min(c.free_at) - c.now)
        work = rate * (1.0 - self._bound) * shortest / (1.0 - min(mean_busy, BUSY_MAX))
        session = self._session(c)
        self.memo = Memo(self._credit(c, best), best, others, mean_busy, work, session)
        weights = (
            c.now,
            float(c.prompt_tokens),
            1.0 + config.decode_weight,
            work,
            others,
            config.eviction_weight,
            mean_busy,
        )
        columns = c.free_at, c.fixed_s, c.per_token_s, c.per_pair_s, c.kv_tokens, c.per_context_s, c.busy
        costs = weigh(weights, self._worth(c, session), _paid(c, self.memo), columns)
        memory = self._memory(c)
        return costs if memory is None else [cost + more for cost, more in zip(costs, memory, strict=True)]

    def terms(self, candidates: Candidates, memo: Memo) -> dict[str, list[float]]:
        """The terms that `costs` has summed up; `others` with what replication pays for left out."""
        c = candidates
        n = len(c.workers)
        worth, paid = self._worth(c, memo.session), _paid(c, memo) or [0.0] * n
        prefill = [c.prefill_s(i, c.prompt_tokens - held) for i, held in enumerate(worth)]
        step = [c.fixed_s[i] + c.kv_tokens[i] * c.per_context_s[i] for i in range(n)]
        generations = [c.kv_tokens[i] * c.per_context_s[i] * self._config.decode_weight for i in range(n)]
        others = []
        for i, wait in enumerate(c.wait_s):
            s = prefill[i] - paid[i]
            delayed = memo.others_per_s * (wait + step[i] + generations[i] + s / 2) / (1.0 - min(c.busy[i], BUSY_MAX))
            others.append(s * (memo.work + delayed))
        evictions = [
            (s - back) * self._config.eviction_weight * busy / (busy + memo.mean_busy)
            for s, back, busy in zip(prefill, paid, c.busy, strict=True)
        ]
        return {
            "queue": c.wait_s,
            "step": step,
            "prefill": prefill,
            "others": others,
            "generations": generations,
            "evictions": evictions,
            "memory": self._memory(c) or [0.0] * n,
            "replication": [-each for each in paid],
        }

    def chosen(self, candidates: Candidates, winner: int) -> None:
        """Remember the session, and settle the replication account of the prefix that the best holder has."""
        c, best = candidates, self.memo.best_tokens
        if c.session is not None:
            self._sessions[c.session] = c.workers[winner].id, c.prompt_tokens
            self._sessions.move_to_end(c.session)
            if len(self._sessions) > SESSIONS_MAX:
                self._sessions.popitem(last=False)
        if c.prompt_tokens:
            # What is only being computed binds to nobody: it could be computed elsewhere meanwhile.
            lies = best - c.claimed_tokens[c.overlap_tokens.index(best)]
            bound = max(0.0, lies - sum(c.overlap_tokens) / len(c.workers)) / c.prompt_tokens
            self._bound += (bound - self._bound) * BOUND_SHARE
        if not (best and len(c.chain) and self._config.replication_weight):
            return
        missing_s = (best - c.overlap_tokens[winner]) * c.per_token_s[winner]
        if missing_s > 0:
            credit_s = max(0.0, self.memo.credit_s - missing_s)
        elif c.claimed_tokens[winner]:
            return  # it waits for the prefix to be computed for the first time: a copy would take as long
        else:
            loads = [
                (free - c.now if free > c.now else 0.0) + fixed + kv * per_context
                for free, fixed, kv, per_context in zip(c.free_at, c.fixed_s, c.kv_tokens, c.per_context_s, strict=True)
            ]
            credit_s = self.memo.credit_s + (loads[winner] - min(loads)) * self._config.replication_weight
        prefix = c.chain[best // c.block_size - 1]
        self._credits[prefix] = (credit_s, c.now)
        self._credits.move_to_end(prefix)
        if len(self._credits) > CREDITS_MAX:
            self._credits.popitem(last=False)

    def _credit(self, c: Candidates, best: int) -> float:
        """Seconds that have been queued for the longest prefix anybody holds of this request."""
        if not (best and len(c.chain)):
            return 0.0
        credit_s, at = self._credits.get(c.chain[best // c.block_size - 1], (0.0, 0.0))
        return credit_s * 0.5 ** ((c.now - at) / CREDIT_HALF_LIFE_S) if credit_s else 0.0

    def _memory(self, c: Candidates) -> list[float] | None:
        """None where everything fits everywhere, as far as engines say how much they hold."""
        prompt, weight = c.prompt_tokens, self._config.memory_weight
        if c.workers is not self._roomy:  # hardly ever: they are the same as long as the fleet is
            self._roomy = c.workers
            self._rooms = [ROOMY_SHARE * worker.kv_tokens_max if worker.kv_tokens_max else inf for worker in c.workers]
            self._least_room = min(self._rooms)
        if max(c.kv_tokens) + prompt <= self._least_room or not weight:
            return None
        columns = zip(self._rooms, c.kv_tokens, c.per_token_s, strict=True)
        return [
            weight * per_token * over if (over := kv + prompt - room) > 0.0 else 0.0 for room, kv, per_token in columns
        ]

    def _session(self, c: Candidates) -> tuple[WorkerId, float] | None:
        """Where a prompt whose tokens are not known has its beginning, most likely: where the session was last."""
        if c.session is None or c.token_ids is not None:
            return None
        last = self._sessions.get(c.session)
        return last and (last[0], self._config.session_worth * min(last[1], c.prompt_tokens))

    def _worth(self, c: Candidates, session: tuple[WorkerId, float] | None) -> Sequence[float]:
        """Tokens' worth of prefill that the overlap saves, as far as the worker's view is believed."""
        if session is not None:
            return [session[1] if worker.id == session[0] else 0.0 for worker in c.workers]
        worth: Sequence[float] = c.overlap_tokens
        if any(c.cpu_tokens) or any(c.storage_tokens):
            cpu_loss, storage_loss = self._cpu_loss, self._storage_loss
            tiers = zip(worth, c.cpu_tokens, c.storage_tokens, strict=True)
            worth = [held - cpu * cpu_loss - storage * storage_loss for held, cpu, storage in tiers]
        if not c.all_believed:
            worth = [held * belief for held, belief in zip(worth, c.belief, strict=True)]
        return worth


def _paid(c: Candidates, memo: Memo) -> list[float]:
    """How much of computing the longest prefix is paid for, per candidate; empty if nothing is."""
    credit_s, best = memo.credit_s, memo.best_tokens
    if not credit_s:
        return []
    return [
        min(credit_s, (best - overlap) * per_token)
        for overlap, per_token in zip(c.overlap_tokens, c.per_token_s, strict=True)
    ]


def weigh_in_python(
    weights: tuple[float, float, float, float, float, float, float],
    worth: Sequence[float],
    paid: Sequence[float],
    columns: tuple[Sequence[float], ...],
) -> list[float]:
    """All terms but memory, summed up per candidate: what `_native.weigh` does, and what judges it.

    `weights`: now, prompt tokens, steps, work, others, evictions and mean busy, as in `LeastWork.costs`.
    """
    now, prompt, steps, work, others, evictions, mean_busy = weights
    costs = []
    for held, back, free, fixed, per_token, per_pair, kv, per_context, busy in zip(
        worth, paid or repeat(0.0), *columns, strict=False
    ):
        uncached = prompt - held
        wait = (free - now if free > now else 0.0) + fixed + kv * per_context * steps
        s = uncached * (per_token + (prompt - uncached / 2) * per_pair) - back
        delayed = others * (wait + s / 2) / (1.0 - (busy if busy < BUSY_MAX else BUSY_MAX))  # noqa: FURB136 - faster
        costs.append(wait + s + s * (work + evictions * busy / (busy + mean_busy) + delayed))
    return costs


weigh: Callable[..., list[float]] = _native.weigh if NATIVE else weigh_in_python
