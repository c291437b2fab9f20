"""What a policy sees and what it must answer.

A policy is any object with a `name` and a `costs` method, so a user's own takes ten lines. It sees all candidates of
one request as parallel lists, because a thousand small objects per request would cost more than the decision is worth.
The lists are made when they are first looked at: the default policy, and what is kept for explanation, need none.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import msgspec

from warmroute.core.dice import Dice
from warmroute.core.rows import COUNTS, HELD, RATES, TIMES, gather
from warmroute.core.steps import wait_s
from warmroute.types import PrefixHash, TokenIds, Worker


class Candidates(msgspec.Struct, dict=True, kw_only=True):
    """The workers that could serve one request, and what is known of each; entry i of every list is of workers[i].

    The lists belong to this request alone: a policy may change them, and need not copy them to keep them.
    """

    workers: tuple[Worker, ...]
    now: float
    """Seconds of the clock that all times here are of."""
    dice: Dice
    """The only randomness a policy may use: with the same seed a run repeats itself."""

    prompt_tokens: int
    """Length of the prompt in tokens; estimated from its bytes if there are no token ids."""
    token_ids: TokenIds | None
    """The prompt, if it is known in tokens."""
    chain: Sequence[PrefixHash]
    """One hash per full block of the prompt, each standing for all tokens up to its end; empty without token ids."""
    block_size: int
    """Tokens per block of `chain`."""
    session: str | None
    """What the client says belongs together: equal for the requests of one conversation."""
    priority: int
    """As vLLM has it: the lower, the earlier; 0 if nothing is said."""

    belief: array[float]
    """How far the worker's view may be believed: 1 in sync, less if it is known to be incomplete. Not to be changed."""
    kv_tokens_max: array[float]
    """Room of the worker's GPU cache, in tokens; infinite if it is not known. Not to be changed."""
    requests_per_s: float
    """Requests of late, all workers together."""
    reach_s: float = 0.0
    """How long before a step begins a request must be sent to be part of it, learned from answers."""

    held: array[int]
    counts: array[int]
    times: array[float]
    rates: array[float]
    """What the lists below are made of, in rows (`core/rows.py`). Not to be changed."""

    @cached_property
    def overlap_tokens(self) -> list[int]:
        """Leading tokens of this request the worker is thought to hold, in any medium, claims included."""
        return self.held[0::HELD].tolist()

    @cached_property
    def cpu_tokens(self) -> list[int]:
        """The part of them that lies in host memory."""
        return self.held[1::HELD].tolist()

    @cached_property
    def storage_tokens(self) -> list[int]:
        """The part of them that lies in storage."""
        return self.held[2::HELD].tolist()

    @cached_property
    def claimed_tokens(self) -> list[int]:
        """The part of them that rests on requests still under way there."""
        return self.held[3::HELD].tolist()

    @cached_property
    def requests(self) -> list[int]:
        """Requests in flight."""
        return self.counts[0::COUNTS].tolist()

    @cached_property
    def prefilling(self) -> list[int]:
        """Those of them that wait for their first byte."""
        return self.counts[1::COUNTS].tolist()

    @cached_property
    def prefill_tokens(self) -> list[int]:
        """Prompt tokens to be computed for those."""
        return self.counts[2::COUNTS].tolist()

    @cached_property
    def kv_tokens(self) -> list[int]:
        """Prompt tokens of all requests in flight."""
        return self.counts[3::COUNTS].tolist()

    @cached_property
    def free_at(self) -> list[float]:
        """When the prefill queued ahead is expected to be done, or else the step under way; in the past: nothing is."""
        return self.times[0::TIMES].tolist()

    @cached_property
    def busy(self) -> list[float]:
        """Share of the time of late for which prefill was booked there; above 1 if it was more than it can do."""
        return self.times[1::TIMES].tolist()

    @cached_property
    def fixed_s(self) -> list[float]:
        """Seconds a prefill takes there however short it is, learned from its answers."""
        return self.rates[0::RATES].tolist()

    @cached_property
    def per_token_s(self) -> list[float]:
        """Seconds there per prompt token that is not cached, learned from its answers."""
        return self.rates[1::RATES].tolist()

    @cached_property
    def per_pair_s(self) -> list[float]:
        """Seconds there per pair of such a token and one before it (attention), learned from its answers."""
        return self.rates[2::RATES].tolist()

    @cached_property
    def per_context_s(self) -> list[float]:
        """Seconds there per token that running requests hold (`kv_tokens`), learned from its answers."""
        return self.rates[3::RATES].tolist()

    @cached_property
    def step_s(self) -> list[float]:
        """Seconds that its steps take while nothing but generations run; 0 if that is not known, or nothing runs."""
        return [step if requests else 0.0 for step, requests in zip(self.rates[4::RATES], self.requests, strict=True)]

    @property
    def decoding(self) -> list[int]:
        """Requests that are generating."""
        return [all_ - waiting for all_, waiting in zip(self.requests, self.prefilling, strict=True)]

    @property
    def uncached_tokens(self) -> list[int]:
        """Tokens the worker would have to compute."""
        prompt = self.prompt_tokens
        return [prompt - overlap for overlap in self.overlap_tokens]

    @property
    def wait_s(self) -> list[float]:
        """Seconds until a step is expected to begin that this request can be part of."""
        now, reach = self.now, self.reach_s
        return [wait_s(free - now, step, reach) for free, step in zip(self.free_at, self.step_s, strict=True)]

    def first_token_s(self, i: int) -> float:
        """Seconds from now until this request's first token is expected of candidate `i`."""
        rates, row = self.rates, RATES * i
        step_s = rates[row + 4] if self.counts[COUNTS * i] else 0.0
        wait = wait_s(self.times[TIMES * i] - self.now, step_s, self.reach_s)
        step = rates[row] + rates[row + 3] * self.counts[COUNTS * i + 3]
        first = step + self.prefill_s(i, self.prompt_tokens - self.held[HELD * i])
        return wait + (max(step_s, first))  # no step with a prefill is shorter than one without

    def prefill_s(self, i: int, tokens: float) -> float:
        """Seconds that candidate `i` is expected to compute the last so many tokens of the prompt."""
        rates, row = self.rates, RATES * i
        return tokens * (rates[row + 1] + (self.prompt_tokens - tokens / 2) * rates[row + 2])

    def only(self, kept: Sequence[int]) -> Candidates:
        """These candidates alone."""
        return msgspec.structs.replace(
            self,
            workers=tuple(self.workers[i] for i in kept),
            belief=gather(self.belief, 1, kept),
            kv_tokens_max=gather(self.kv_tokens_max, 1, kept),
            held=gather(self.held, HELD, kept),
            counts=gather(self.counts, COUNTS, kept),
            times=gather(self.times, TIMES, kept),
            rates=gather(self.rates, RATES, kept),
        )


class Policy(Protocol):
    """Chooses by naming costs. A policy that keeps a history has the method `chosen` too: see `Remembers`."""

    @property
    def name(self) -> str:
        """What decisions and settings call it."""
        ...

    def costs(self, candidates: Candidates) -> Sequence[float]:
        """One cost per candidate, in any unit of the policy's own; the lowest wins.

        Infinity says: not this one, unless there is nobody else. NaN is a mistake.
        """
        ...


class Remembers(Policy, Protocol):
    """A policy that is told what became of its costs."""

    def chosen(self, candidates: Candidates, winner: int) -> None:
        """The request went to `candidates.workers[winner]`."""
        ...


class Explains(Policy, Protocol):
    """A policy whose cost is a sum that can be shown term by term, long after."""

    memo: Any
    """Whatever the last costs rested on beside the candidates: kept with the decision."""

    def terms(self, candidates: Candidates, memo: Any) -> dict[str, list[float]]:
        """Name -> one number per candidate; per candidate they add up to its cost."""
        ...
