"""A decision as values: what `Router.pick` is asked, what it answers, and how that reads to people.

Invariant: these are values: a decision says what was weighed, and nothing here weighs anything.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from warmroute.core.load import Lease
from warmroute.core.policies.contract import Candidates, Policy
from warmroute.core.rows import cheapest, gather
from warmroute.core.speculation import Claim
from warmroute.types import PrefixHash, TokenIds, Worker, WorkerId


class Reason(enum.StrEnum):
    """Why the chosen worker won, in one word for headers and metrics."""

    OVERLAP = "overlap"
    """It holds part of the request, and no other worker's total was lower."""
    LOAD = "load"
    """It holds nothing of it, but has the least to do."""
    NO_TOKENS = "no_tokens"
    """The request's token ids are not known: chosen by load."""
    PINNED = "pinned"
    """The client asked for this worker."""
    POLICY = "policy"
    """Another policy than the default chose."""

    __hash__ = str.__hash__  # an enum's own is written in Python, and every decision is counted by its reason


class PickRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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
    session: str | None = None
    """What the client says belongs together."""
    priority: int = 0
    """As vLLM has it: the lower, the earlier."""
    policy: str | None = None
    """Name of the policy for this request alone; None: the configured one."""
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
    wait_s: float
    """Seconds until the prefill queued ahead was expected to be done."""
    cost: float
    terms: dict[str, float]
    """What the cost is the sum of, if the policy says."""
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
    chain: Sequence[PrefixHash]
    candidates: Candidates
    chosen: int
    """Place of the worker among the candidates."""
    costs: array[float]
    memo: Any
    at: float
    decided_by: Policy
    served: bool = False
    """Whether its prefill is known to be done."""
    first_byte_s: float | None = None
    """Seconds until the first byte came, if it was seen."""
    left_out: int = 0
    """Candidates that are not kept any more."""

    @property
    def expected_s(self) -> float:
        """Seconds from the decision to the first token that were expected of the chosen worker."""
        return self.candidates.first_token_s(self.chosen)

    def explain(self) -> list[CandidateView]:
        """Every candidate with its numbers, the cheapest first."""
        c = self.candidates
        explains = getattr(self.decided_by, "terms", None)
        terms = explains(c, self.memo) if explains is not None else {}
        decoding, wait_s = c.decoding, c.wait_s
        rows = []
        for i, worker in enumerate(c.workers):
            by_medium = (
                ("GPU", c.overlap_tokens[i] - c.cpu_tokens[i] - c.storage_tokens[i] - c.claimed_tokens[i]),
                ("CPU", c.cpu_tokens[i]),
                ("STORAGE", c.storage_tokens[i]),
            )
            row = CandidateView(
                worker=worker.name,
                trust=worker.trust.state,
                overlap_tokens=c.overlap_tokens[i],
                overlap_by_medium={medium: tokens for medium, tokens in by_medium if tokens},
                claimed_tokens=c.claimed_tokens[i],
                requests=c.requests[i],
                prefill_tokens=c.prefill_tokens[i],
                decoding=decoding[i],
                wait_s=wait_s[i],
                cost=self.costs[i],
                terms={name: column[i] * share(self.costs[i], worker.weight) for name, column in terms.items()},
                chosen=i == self.chosen,
            )
            rows.append(row)
        return sorted(rows, key=lambda row: (row.cost, not row.chosen))

    def settle(self, candidates_max: int) -> None:
        """Keep of the candidates only what `explain` needs, of the chosen and so many of the cheapest ones."""
        self.candidates.token_ids, self.candidates.chain = None, ()
        n = len(self.costs)
        if n > candidates_max + 1:
            kept = cheapest(self.costs, candidates_max)
            if self.chosen not in kept:
                kept = sorted((self.chosen, *kept))
            self.candidates = self.candidates.only(kept)
            self.costs = gather(self.costs, 1, kept)
            self.chosen = kept.index(self.chosen)
            self.left_out += n - len(kept)


def share(cost: float, weight: float) -> float:
    """What a cost and its terms are multiplied by, so that more weight attracts more, be the cost below 0."""
    weight = weight or 1.0  # 0: not ready, and asked for all the same
    return weight if cost < 0 else 1 / weight
