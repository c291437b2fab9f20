"""What is simulated: engines, load, and what happens to the fleet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from warmroute.app.simulation.profiles import Profile
from warmroute.app.simulation.workloads import Workload, tokens_of
from warmroute.config.tree import RoutingConfig
from warmroute.core.hashing import prefix_hash_array
from warmroute.core.policies import Policy

TYPICAL_BATCH = 32
"""Generations that share a step when an engine is busy but not full: only for estimating a sensible rate."""
SAMPLE_REQUESTS = 3000


@dataclass(frozen=True, slots=True)
class FleetChange:
    """At `at_s` seconds engine number `engine` fails (its requests are lost), drains or joins."""

    at_s: float
    kind: Literal["fail", "drain", "join"]
    engine: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One run. Everything that decides its outcome is in here."""

    workload: Workload
    engines: Sequence[Profile]
    requests: int
    requests_per_s: float
    """Mean rate that is offered, follow-up turns included."""
    seed: int = 1
    policy: Policy | None = None
    """None: what `routing` names."""
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    block_size: int = 128
    """Tokens per block. vLLM's 16 gives the same picture, slower: a request then is 8 times as many blocks."""
    event_delay_s: float = 0.010
    """From a step's end until its events are in the router's index."""
    network_s: float = 0.001
    """From a step's end until its tokens are at the router."""
    warmup: float = 0.2
    """Share of the requests, the first ones, that no figure counts."""
    changes: Sequence[FleetChange] = ()


@dataclass(frozen=True, slots=True)
class Demand:
    """What a workload asks of an engine, on average over a sample."""

    requests_per_conversation: float
    seconds_per_request: float
    """Engine time if every block that anybody asked for before were cached."""
    prompt_tokens: float
    shared: float
    """Share of the prompt tokens that were asked for before: the hit rate of an infinite cache."""


def demand(workload: Workload, profile: Profile, block_size: int, seed: int = 1) -> Demand:
    """Measure a sample of the workload."""
    seen: set[int] = set()
    conversations = requests = 0
    prompt = shared = seconds = 0.0
    for conversation in workload(seed):
        conversations += 1
        for turn in islice(conversation.turns, 200):
            tokens = tokens_of((*turn.pieces, turn.answer))
            length = len(tokens) - turn.answer[1]
            held = _held(seen, prefix_hash_array(tokens, block_size), (length - 1) // block_size) * block_size
            requests += 1
            prompt += length
            shared += held
            seconds += profile.prefill_s(length - held, held) - profile.overhead_s
            seconds += turn.answer[1] * profile.decode_s(length, TYPICAL_BATCH)
        if requests >= SAMPLE_REQUESTS:
            break
    return Demand(requests / conversations, seconds / requests, prompt / requests, shared / prompt)


def _held(seen: set[int], chain: Sequence[int], limit: int) -> int:
    """Leading blocks seen before; all are now."""
    n = 0
    for block in chain[:limit]:
        if block not in seen:
            break
        n += 1
    seen.update(chain)
    return n


def rate_for(utilisation: float, workload: Workload, engines: Sequence[Profile], block_size: int) -> float:
    """Requests per second that keep the engines busy for that share of time, with perfect caches."""
    per_engine = {profile: 1.0 / demand(workload, profile, block_size).seconds_per_request for profile in set(engines)}
    return utilisation * sum(per_engine[profile] for profile in engines)
