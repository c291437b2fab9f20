"""Policies: what each candidate would cost. The lowest cost wins; the router breaks ties.

A policy is any object with a `name` and a `costs` method, so a user's own takes ten lines. It sees all candidates of
one request as parallel lists, because a thousand small objects per request would cost more than the decision is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from warmroute.config.tree import RoutingConfig
from warmroute.types import Worker


class Candidates(msgspec.Struct, frozen=True, gc=False):
    """The workers that could serve one request, and what is known of each; entry i of every list is of workers[i]."""

    workers: tuple[Worker, ...]
    prompt_tokens: int
    """Length of the prompt in tokens; estimated from its bytes if there are no token ids."""
    overlap_tokens: list[int]
    """Leading tokens of this request the worker is thought to hold, claims included."""
    worth_tokens: list[float]
    """The overlap weighed by medium and by how far the worker's view is believed: tokens' worth of saved prefill."""
    requests: list[int]
    """Requests in flight."""
    prefill_tokens: list[int]
    """Prompt tokens queued ahead."""
    decoding: list[int]
    """Requests that are generating."""


class Policy(Protocol):
    """Chooses by naming costs."""

    name: str

    def costs(self, candidates: Candidates) -> Sequence[float]:
        """One cost per candidate, in any unit of the policy's own; the lowest wins."""
        ...


class LeastWork:
    """The default: seconds until this request's first token, plus the harm done to those already running.

    cost = (prefill queued ahead + prompt tokens not cached) / prefill rate + weight * generations running / decode rate

    One smooth sum, so locality is given up exactly when the queue behind it costs more than it saves.
    """

    name = "warmroute"

    def __init__(self, config: RoutingConfig) -> None:
        self._prefill_s = 1.0 / config.prefill_tokens_per_s
        self._decode_s = config.decode_weight / config.decode_tokens_per_s

    def costs(self, candidates: Candidates) -> Sequence[float]:
        """Seconds."""
        prompt, prefill_s, decode_s = candidates.prompt_tokens, self._prefill_s, self._decode_s
        return [
            (queued + prompt - worth) * prefill_s + decoding * decode_s
            for queued, worth, decoding in zip(
                candidates.prefill_tokens, candidates.worth_tokens, candidates.decoding, strict=True
            )
        ]


class LeastLoaded:
    """Fewest requests in flight, blind to caches."""

    name = "least_loaded"

    def costs(self, candidates: Candidates) -> Sequence[float]:
        """Requests in flight."""
        return candidates.requests


class RoundRobin:
    """Each in turn, blind to caches and load."""

    name = "round_robin"

    def __init__(self) -> None:
        self._turn = -1

    def costs(self, candidates: Candidates) -> Sequence[float]:
        """How many turns away each candidate is."""
        self._turn += 1
        return [(position - self._turn) % len(candidates.workers) for position in range(len(candidates.workers))]


def make_policy(config: RoutingConfig) -> Policy:
    """The policy that `config.policy` names. The config's own check has refused other names."""
    match config.policy:
        case "round_robin":
            return RoundRobin()
        case "least_loaded":
            return LeastLoaded()
        case _:
            return LeastWork(config)
