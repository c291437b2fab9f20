"""Many seeds, and what is left of one that fails: the shortest plan that still fails the same way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from warmroute.testing.simulation.judge import Violation
from warmroute.testing.simulation.plan import Plan
from warmroute.testing.simulation.world import Outcome, run

STORY_LINES_MAX = 120


@dataclass(slots=True)
class Failure:
    """A seed that failed, shrunk."""

    seed: int
    first: Outcome
    shortest: Outcome

    def __str__(self) -> str:
        plan, outcome = self.shortest.plan, self.shortest
        story = outcome.story()
        cut = [f"         ({len(story) - STORY_LINES_MAX} lines before)"] if len(story) > STORY_LINES_MAX else []
        return "\n".join(
            [
                f"seed {self.seed} fails at {outcome.at:.3f}: {_named(outcome)}",
                f"{len(self.first.plan.actions)} actions shrunk to {len(plan.actions)}:",
                *(f"  {action}" for action in plan.actions),
                *(f"  engine {n}: {setup}" for n, setup in enumerate(plan.setups)),
                f"  pending_batches_max={plan.pending_batches_max}",
                "what happened:",
                *cut,
                *story[-STORY_LINES_MAX:],
                f"again: make sim SEED={self.seed}",
            ]
        )


@dataclass(slots=True)
class Examined:
    """What many seeds gave."""

    seeds: int = 0
    failed: list[int] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Summed over all streams of all worlds: how much of each trouble there was."""


def examine(seeds: Iterable[int], on_seed: Callable[[Outcome], None] = lambda _outcome: None) -> Examined:
    """Run the plans of many seeds."""
    examined = Examined()
    for seed in seeds:
        outcome = run(Plan.of(seed))
        examined.seeds += 1
        examined.counts.update(outcome.counts)
        if outcome.violation is not None:
            examined.failed.append(seed)
        on_seed(outcome)
    return examined


def shrink(outcome: Outcome, tries_max: int = 400) -> Failure:
    """Take out actions as long as what is left fails in the same way."""
    first, shortest, tries = outcome, outcome, 0
    size = len(outcome.plan.actions)
    while size and tries < tries_max:
        start = 0
        while start < len(shortest.plan.actions) and tries < tries_max:
            actions = shortest.plan.actions
            tries += 1
            again = run(replace(shortest.plan, actions=actions[:start] + actions[start + size :]))
            if _named(again).partition(":")[0] == _named(first).partition(":")[0]:
                shortest = again
            else:
                start += size
        size //= 2
    return Failure(outcome.plan.seed, first, shortest)


def _named(outcome: Outcome) -> str:
    violation = outcome.violation
    if violation is None or isinstance(violation, Violation):
        return str(violation)
    return f"{type(violation).__name__}: {violation}"
