"""The default policy: one cost in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from warmroute.config.tree import RoutingConfig
from warmroute.core.policies.contract import Candidates


class LeastWork:
    """Seconds until this request's first token, plus the harm done to those already running.

    One smooth sum, so locality is given up exactly when the queue behind it costs more than it saves.
    """

    name: ClassVar[str] = "warmroute"

    def __init__(self, config: RoutingConfig) -> None:
        self._cpu_loss = 1.0 - config.cpu_hit_worth
        self._storage_loss = 1.0 - config.storage_hit_worth
        self._decode_s = config.decode_weight / config.decode_tokens_per_s

    def costs(self, candidates: Candidates) -> Sequence[float]:
        """Seconds."""
        c, prompt, now, decode_s = candidates, candidates.prompt_tokens, candidates.now, self._decode_s
        worth = self._worth(c)
        return [
            (free - now if free > now else 0.0) + fixed + (prompt - worth) * per_token + (all_ - prefilling) * decode_s
            for free, fixed, per_token, worth, all_, prefilling in zip(
                c.free_at, c.fixed_s, c.per_token_s, worth, c.requests, c.prefilling, strict=True
            )
        ]

    def _worth(self, c: Candidates) -> Sequence[float]:
        """Tokens' worth of prefill that the overlap saves, as far as the worker's view is believed."""
        worth: Sequence[float] = c.overlap_tokens
        if any(c.cpu_tokens) or any(c.storage_tokens):
            cpu_loss, storage_loss = self._cpu_loss, self._storage_loss
            tiers = zip(worth, c.cpu_tokens, c.storage_tokens, strict=True)
            worth = [held - cpu * cpu_loss - storage * storage_loss for held, cpu, storage in tiers]
        if min(c.belief) < 1.0:
            worth = [held * belief for held, belief in zip(worth, c.belief, strict=True)]
        return worth
