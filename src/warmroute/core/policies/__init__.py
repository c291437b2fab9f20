"""Policies: what each candidate would cost. The lowest cost wins; the router breaks ties.

`contract` is what a policy sees and must answer, `least_work` the default, `simple` and `peers` the baselines, `guard`
what keeps a policy that fails from failing requests. docs/policies.md shows how to write one.
"""

from __future__ import annotations

from collections.abc import Callable

from warmroute.config.tree import RoutingConfig
from warmroute.core.policies.contract import Candidates, Policy
from warmroute.core.policies.least_work import LeastWork
from warmroute.core.policies.peers import Aibrix, Approximate, Dynamo, LlmD
from warmroute.core.policies.simple import ConsistentHash, LeastLoaded, PowerOfTwo, RandomChoice, RoundRobin

_BASELINES = (
    RoundRobin,
    RandomChoice,
    LeastLoaded,
    PowerOfTwo,
    ConsistentHash,
    Approximate,
    Aibrix,
    Dynamo,
    LlmD,
)
BASELINES: dict[str, Callable[[], Policy]] = {each.name: each for each in _BASELINES}
"""Name in the configuration -> policy, with its source's parameters."""


def make_policy(name: str, config: RoutingConfig) -> Policy | None:
    """A new policy of that name; None if none that is built in has it."""
    if name == LeastWork.name:
        return LeastWork(config)
    return BASELINES[name]() if name in BASELINES else None


__all__ = ["BASELINES", "Candidates", "LeastWork", "Policy", "make_policy"]
