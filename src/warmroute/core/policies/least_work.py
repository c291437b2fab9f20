"""The default policy: one cost in seconds, for this request and for those it makes wait.

cost = queue + step + prefill + others + generations + evictions + memory - replication

    queue        until the prefill queued ahead is expected to be done, or the step under way; and one step more if it
                 is too late to be part of the next
    step         a step of the engine beside what runs there
    prefill      computing what the worker does not hold, at its own learned rate
    others       the delay of requests yet to come, which arrive while this prefill keeps the worker busy: the more of
                 them the longer the queue, and the longer for each the busier the worker has been of late. Those that
                 are bound to a worker, since it holds more of them than others do, wait in its queue; the rest goes
                 to the shortest queue there is, and waits only if all workers have one
    generations  a slower step for all tokens that are generated there, this request's and the others'
    evictions    what is computed pushes out what was computed before: the more of the fleet's work a worker has done of
                 late, the younger, and the likelier to be asked for again, is what goes. Where requests are not bound
                 to what a worker holds this costs half: it is found elsewhere, or not asked for again
    memory       what does not fit into the cache beside what runs there has to wait, or be computed again; blocks that
                 prompts in flight share are counted once (`in_use.py`)
    replication  what requests have paid by queueing at the holders of this prefix while others were free: when it is
                 worth a prefill, it pays for one, and there is one holder more. A copy takes room from others for as
                 long as it is asked for: the shorter room is (`forgotten.py`), the more must have been paid

A request's priority scales what the delay of others counts for it: each step down, as vLLM counts, halves it. Of a
prompt whose tokens are not known, the session says where its beginning is thought to be.

No term has a threshold at which the decision changes its kind; each is zero where it does not matter.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import ClassVar, Final, TypeAlias

import msgspec

from warmroute.config.tree import RoutingConfig
from warmroute.core.hashing import NATIVE
from warmroute.core.policies.contract import Candidates
from warmroute.core.policies.forgotten import Forgotten
from warmroute.core.policies.in_use import InUse, marks
from warmroute.core.rows import BYTES, COUNTS, HELD, RATES, TIMES
from warmroute.core.steps import wait_s
from warmroute.types import PrefixHash, TrustState, WorkerId

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
QUEUED_SHARE: Final = 0.5
"""What a request pays of what queues before it for a prefix that is still being computed: beside a copy half would."""
ROOM_PRICE: Final = 20.0
"""A copy stays as long as it is asked for. Where all that is computed was forgotten before, it must be worth so many
prefills more."""
CREDITS_MAX: Final = 10_000
"""Prefixes for which queueing is remembered; the least recently used goes first."""


class Memo(msgspec.Struct, frozen=True, gc=False):
    """What a decision rested on beside its candidates: kept with it, so that it can be explained later."""

    credit_s: float
    """Seconds that had been queued for the longest prefix anybody held, at the price of room in caches."""
    best_tokens: int
    """The length of that prefix."""
    others_per_s: float
    """Requests expected per second and worker that cannot well go elsewhere, times the weight of their delay."""
    mean_busy: float
    """Of all candidates."""
    work: float
    """What a second of computing on any worker costs those that may go to all, times the weight of their delay."""
    evictions: float
    """What a second of computing pushes out is worth, in seconds, times the weight of it."""
    session: tuple[WorkerId, float] | None = None
    """Who answered this session last, and so many tokens that are thought to be held there still."""
    spared: dict[WorkerId, int] | None = None
    """Where the cache would seem too small otherwise: tokens in flight that are another prompt's too."""


Survey: TypeAlias = tuple[int, int, int, float, float, float]
"""What one look over all candidates shows: the longest overlap; who has it, of several the first; the sum of overlaps,
and of how busy they are, from the first on; when the first of them will be free; the least that anybody has to do
before it begins to compute a prompt, in seconds: what is queued, and a step."""
NOWHERE: Final = -1


class LeastWork:
    """Seconds; the weights of `config` scale the terms."""

    name: ClassVar[str] = "warmroute"

    def __init__(self, config: RoutingConfig) -> None:
        self._config = config
        self._cpu_loss = 1.0 - config.cpu_hit_worth
        self._storage_loss = 1.0 - config.storage_hit_worth
        self._credits: OrderedDict[PrefixHash, tuple[float, float]] = OrderedDict()
        self._sessions: OrderedDict[str, tuple[WorkerId, int]] = OrderedDict()
        self.memo = Memo(0.0, 0, 0.0, 1.0, 0.0, 0.0)
        """Of the last costs."""
        self._bound, self._price = 0.5, 1.0
        self._in_use, self._forgotten = InUse(), Forgotten()
        self._seen: Survey = (0, 0, 0, 0.0, 0.0, 0.0)
        """At the last costs."""

    def costs(self, candidates: Candidates) -> Sequence[float]:
        """Seconds."""
        c, config = candidates, self._config
        n, rows = len(c.workers), (c.held, c.counts, c.times, c.rates)
        self._seen = best, _, _, busy, free_at, _ = survey(c.now, *rows)
        mean_busy = busy / n or 1.0
        care = config.others_weight
        if c.priority:
            care *= 2.0 ** max(-PRIORITY_MAX, min(PRIORITY_MAX, c.priority))
        rate = care * c.requests_per_s / n
        others = rate * self._bound
        shortest = free_at - c.now if free_at > c.now else 0.0
        work = rate * (1.0 - self._bound) * shortest / (1.0 - min(mean_busy, BUSY_MAX))
        evictions = config.eviction_weight * (1.0 + self._bound) / 2
        session = self._session(c)
        self._price = 1.0 + ROOM_PRICE * self._forgotten.share
        credit_s = self._credit(c, best) / self._price
        at, tokens = NOWHERE, 0.0
        if session is not None:
            at = next((i for i, worker in enumerate(c.workers) if worker.id == session[0]), NOWHERE)
            tokens = session[1]
        costs, steps = array("d", bytes(BYTES * n)), 1.0 + config.decode_weight
        # fmt: off
        weights = (
            c.now, float(c.prompt_tokens), steps, work, others, evictions, mean_busy, self._cpu_loss,
            self._storage_loss, ROOMY_SHARE, config.memory_weight, credit_s, float(best), at, tokens,
            c.reach_s,
        )
        # fmt: on
        full = weigh(weights, rows, c.belief, c.kv_tokens_max, costs)
        spared = self._spare(c, costs) if full and self._in_use.shared else None
        self.memo = Memo(credit_s, best, others, mean_busy, work, evictions, session, spared)
        return costs

    def terms(self, candidates: Candidates, memo: Memo) -> dict[str, list[float]]:
        """The terms that `costs` has summed up; `others` with what replication pays for left out."""
        c = candidates
        n = len(c.workers)
        worth, paid = self._worth(c, memo.session), _paid(c, memo)
        prefill = [c.prefill_s(i, c.prompt_tokens - held) for i, held in enumerate(worth)]
        step = [c.fixed_s[i] + c.kv_tokens[i] * c.per_context_s[i] for i in range(n)]
        step = [max(alone, least - s) for alone, least, s in zip(step, c.step_s, prefill, strict=True)]
        generations = [c.kv_tokens[i] * c.per_context_s[i] * self._config.decode_weight for i in range(n)]
        others = []
        for i, wait in enumerate(c.wait_s):
            s = prefill[i] - paid[i]
            delayed = memo.others_per_s * (wait + step[i] + generations[i] + s / 2) / (1.0 - min(c.busy[i], BUSY_MAX))
            others.append(s * (memo.work + delayed))
        evictions = [
            (s - back) * memo.evictions * busy / (busy + memo.mean_busy)
            for s, back, busy in zip(prefill, paid, c.busy, strict=True)
        ]
        return {
            "queue": c.wait_s,
            "step": step,
            "prefill": prefill,
            "others": others,
            "generations": generations,
            "evictions": evictions,
            "memory": self._memory(c, memo),
            "replication": [-each for each in paid],
        }

    def chosen(self, candidates: Candidates, winner: int) -> None:
        """Remember the session, and settle the replication account of the prefix that the best holder has."""
        c, (best, holder, held_tokens, _, _, _) = candidates, self._seen
        worker, marked, held = c.workers[winner], marks(c.chain), c.held[HELD * winner]
        self._in_use.begin(worker.id, marked)
        if marked and worker.trust.state is TrustState.LIVE:  # of others it is not known what they hold
            size = c.block_size
            self._forgotten.asked(marked, (c.prompt_tokens - 1) // size, best // size, held // size)
        if c.session is not None:
            self._sessions[c.session] = worker.id, c.prompt_tokens
            self._sessions.move_to_end(c.session)
            if len(self._sessions) > SESSIONS_MAX:
                self._sessions.popitem(last=False)
        if c.prompt_tokens:
            # What is only being computed binds to nobody: it could be computed elsewhere meanwhile.
            lies = best - c.held[HELD * holder + 3]
            bound = max(0.0, lies - held_tokens / len(c.workers)) / c.prompt_tokens
            self._bound += (bound - self._bound) * BOUND_SHARE
        if best and marked and self._config.replication_weight:
            self._settle(c, winner)

    def _settle(self, c: Candidates, winner: int) -> None:
        """Book what this request pays for a copy of the longest prefix there is, or take a copy's price."""
        best, _, _, _, _, least_s = self._seen
        row, held, claimed = RATES * winner, c.held[HELD * winner], c.held[HELD * winner + 3]
        paid_s = self.memo.credit_s * self._price
        missing_s = (best - held) * c.rates[row + 1]
        if missing_s > 0:
            credit_s = max(0.0, paid_s - missing_s * self._price)
        else:
            if claimed:
                # A copy would take as long as the prefix itself, which is computed there, but not what queues for it.
                # The ends of equal prompts, which fill no block, are no reason to compute all again.
                ends = c.counts[COUNTS * winner + 1] * c.block_size
                if (queued := c.counts[COUNTS * winner + 2] - claimed - ends) <= 0:
                    return
                wait = QUEUED_SHARE * queued * c.rates[row + 1]
            else:
                # Who only waits for a step would do so wherever it is.
                free = c.times[TIMES * winner]
                wait = free - c.now if free > c.now and c.counts[COUNTS * winner + 1] else 0.0
            load = wait + c.rates[row] + c.counts[COUNTS * winner + 3] * c.rates[row + 3]
            credit_s = paid_s + (load - least_s) * self._config.replication_weight
        prefix = c.chain[best // c.block_size - 1]
        self._credits[prefix] = (credit_s, c.now)
        self._credits.move_to_end(prefix)
        if len(self._credits) > CREDITS_MAX:
            self._credits.popitem(last=False)

    def ended(self, worker: WorkerId, chain: Sequence[PrefixHash]) -> None:
        """A request that this policy has sent there is over."""
        self._in_use.end(worker, marks(chain))

    def _credit(self, c: Candidates, best: int) -> float:
        """Seconds that have been queued for the longest prefix anybody holds of this request."""
        if not (best and len(c.chain)):
            return 0.0
        credit_s, at = self._credits.get(c.chain[best // c.block_size - 1], (0.0, 0.0))
        return credit_s * 0.5 ** ((c.now - at) / CREDIT_HALF_LIFE_S) if credit_s else 0.0

    def _spare(self, c: Candidates, costs: array[float]) -> dict[WorkerId, int]:
        """Take from the costs what the memory term has of blocks that were counted before."""
        spared: dict[WorkerId, int] = {}
        for i, worker in enumerate(c.workers):
            if blocks := self._in_use.shared.get(worker.id):
                over = c.counts[COUNTS * i + 3] + c.prompt_tokens - ROOMY_SHARE * c.kv_tokens_max[i]
                spared[worker.id] = shared = blocks * c.block_size
                costs[i] -= self._config.memory_weight * c.rates[RATES * i + 1] * max(0.0, min(over, shared))
        return spared

    def _memory(self, c: Candidates, memo: Memo) -> list[float]:
        prompt, weight, spared = c.prompt_tokens, self._config.memory_weight, memo.spared or {}
        columns = zip(c.workers, c.kv_tokens_max, c.kv_tokens, c.per_token_s, strict=True)
        over = [
            (kv + prompt - ROOMY_SHARE * room - spared.get(worker.id, 0), per_token)
            for worker, room, kv, per_token in columns
        ]
        return [weight * per_token * tokens if tokens > 0.0 else 0.0 for tokens, per_token in over]

    def _session(self, c: Candidates) -> tuple[WorkerId, float] | None:
        """Where a prompt whose tokens are not known has its beginning, most likely: where the session was last."""
        if c.session is None or c.token_ids is not None:
            return None
        last = self._sessions.get(c.session)
        return last and (last[0], self._config.session_worth * min(last[1], c.prompt_tokens))

    def _worth(self, c: Candidates, session: tuple[WorkerId, float] | None) -> Sequence[float]:
        """Tokens' worth of prefill that the overlap saves, as far as the worker's view is believed."""
        columns = zip(c.overlap_tokens, c.cpu_tokens, c.storage_tokens, c.belief, strict=True)
        worth = [
            (held - cpu * self._cpu_loss - storage * self._storage_loss) * belief
            for held, cpu, storage, belief in columns
        ]
        if session is None:
            return worth
        return [session[1] if worker.id == session[0] else held for worker, held in zip(c.workers, worth, strict=True)]


def _paid(c: Candidates, memo: Memo) -> list[float]:
    """How much of computing the longest prefix is paid for, per candidate."""
    credit_s, best = memo.credit_s, memo.best_tokens
    columns = zip(c.overlap_tokens, c.per_token_s, strict=True)
    return [min(credit_s, (best - overlap) * per_token) for overlap, per_token in columns]


RowsOfAll: TypeAlias = "tuple[array[int], array[int], array[float], array[float]]"
"""Of all candidates: held, counts, times, rates."""


def survey_in_python(
    now: float, held: array[int], counts: array[int], times: array[float], rates: array[float]
) -> Survey:
    """What `_native.survey` finds, and what judges it."""
    overlap, kv, free_at = held[0::HELD], counts[3::COUNTS], times[0::TIMES]
    best = max(overlap)
    queued = [waiting and free > now for waiting, free in zip(counts[1::COUNTS], free_at, strict=True)]
    loads = [
        (free - now if waits else 0.0) + fixed + in_use * per_context
        for waits, free, fixed, in_use, per_context in zip(
            queued, free_at, rates[0::RATES], kv, rates[3::RATES], strict=True
        )
    ]
    busy = reduce(add, times[1::TIMES], 0.0)  # sum() is more exact in some versions
    return best, overlap.index(best), sum(overlap), busy, min(free_at), min(loads)


def weigh_in_python(
    weights: tuple[float, ...], rows: RowsOfAll, belief: array[float], kv_tokens_max: array[float], costs: array[float]
) -> int:
    """All terms summed up per candidate, put into `costs`: what `_native.weigh` does, and what judges it.

    Returns of how many candidates the cache seems to be too small.

    `weights`: as in `LeastWork.costs`.
    """
    now, prompt, steps, work, others, evictions, mean_busy, *more = weights
    cpu_loss, storage_loss, roomy, memory, credit_s, best, session_at, session_tokens, reach = more
    held, counts, times, rates = rows
    full = 0
    for i, believed in enumerate(belief):
        overlap, cpu, storage, _ = held[HELD * i : HELD * i + HELD]
        fixed, per_token, per_pair, per_context, step = rates[RATES * i : RATES * i + RATES]
        (free, busy), kv = times[TIMES * i : TIMES * i + TIMES], counts[COUNTS * i + 3]
        worth = (overlap - cpu * cpu_loss - storage * storage_loss) * believed
        uncached = prompt - (session_tokens if i == session_at else worth)
        step = step if counts[COUNTS * i] else 0.0
        s = uncached * (per_token + (prompt - uncached / 2) * per_pair)
        alike = max(0.0, step - fixed - kv * per_context - s)
        wait = wait_s(free - now, step, reach) + fixed + kv * per_context * steps + alike
        s -= min(credit_s, (best - overlap) * per_token)
        delayed = others * (wait + s / 2) / (1.0 - min(busy, BUSY_MAX))
        cost = wait + s + s * (work + evictions * busy / (busy + mean_busy) + delayed)
        over = kv + prompt - roomy * kv_tokens_max[i]
        full += over > 0.0
        costs[i] = cost + (memory * per_token * over if over > 0.0 else 0.0)
    return full


survey: Callable[..., Survey] = _native.survey if NATIVE else survey_in_python
weigh: Callable[..., int] = _native.weigh if NATIVE else weigh_in_python
