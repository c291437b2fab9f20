"""What two configurations differ in, and what of it a running gateway can take up.

Invariant: every leaf is either taken up at once or named as needing a restart; none is half taken up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Final

from warmroute.config.leaves import ENGINES, HIDDEN, LEAVES, SECRETS
from warmroute.config.tree import Config

LIVE: Final = frozenset(
    {
        ENGINES,
        *(f"gateway.{name}_timeout_s" for name in ("head", "connect", "first_byte", "idle", "keepalive", "drain")),
        *("gateway.max_body_bytes", "gateway.max_head_bytes", "gateway.retries", "gateway.decision_headers"),
        *(key for key in LEAVES if key.startswith("routing.") and key != "routing.prefill_tokens_per_s"),
        *(key for key in LEAVES if key.startswith("breaker.")),
        *("membership.probe_interval_s", "membership.retry_interval_s", "membership.failures_max"),
        *("membership.drain_timeout_s", "log.level"),
        *("admission.queue_requests_max", "admission.queue_timeout_s"),
    }
)
"""Leaves that are taken up at once."""

LIMITS: Final = frozenset(
    {
        *("admission.requests_max", "admission.model_requests_max", "admission.model_body_bytes_max"),
        *("admission.key_requests_per_min", "admission.key_tokens_per_min"),
    }
)
"""Leaves that are taken up at once where there is a gate: a gateway that was started without limits has none."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One leaf that is not what it was."""

    key: str
    old: str
    new: str
    live: bool
    """Whether it is taken up at once; if not, it needs a restart."""

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def differences(old: Config, new: Config, *, gated: bool) -> list[Difference]:
    """What differs, in the tree's order. `gated`: there is a gate that limits can be changed at."""
    live = LIVE | LIMITS if gated else LIVE
    found = []
    for key, leaf in LEAVES.items():
        before, after = _value(old, key), _value(new, key)
        if before == after:
            continue
        if key == ENGINES:
            texts = f"{len(old.engines)} engines", ", ".join(_engines(old, new))
        else:
            texts = (HIDDEN, HIDDEN) if leaf.name in SECRETS else (_shown(before), _shown(after))
        found.append(Difference(key, *texts, live=key in live))
    return found


def take_up(config: Config, new: Config, differing: Sequence[Difference]) -> Config:
    """`config` with the live ones of these differences."""
    for key in (each.key for each in differing if each.live):
        section, _, name = key.rpartition(".")
        if section:
            part = replace(getattr(config, section), **{name: _value(new, key)})
            config = replace(config, **{section: part})
        else:
            config = replace(config, **{name: _value(new, key)})
    return config


def _value(config: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def _shown(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _engines(old: Config, new: Config) -> list[str]:
    """`+` comes, `-` goes, `~` is described in another way."""
    before, after = ({engine.url: engine for engine in config.engines} for config in (old, new))
    changed = [f"~{url}" for url, engine in after.items() if url in before and before[url] != engine]
    return [f"+{url}" for url in after.keys() - before.keys()] + changed + [
        f"-{url}" for url in before.keys() - after.keys()
    ] or ["in another order"]
