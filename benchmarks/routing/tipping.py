"""How often caches that conversations nearly fill tip over: a run of few requests may or may not.

Who comes back finds its context evicted, computes it again, and so pushes out another's: a fleet that has tipped over
does not come back under the same load. A few runs say little of how often that happens; fifty say something.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from statistics import mean, median
from typing import TypeAlias

from warmroute.app.simulation.cluster import Cluster
from warmroute.app.simulation.scenario import Scenario

SEEDS = range(101, 151)
"""None of which any default was chosen by."""
TIPPED = 2.5
"""So many times the mean time to first token of the median run of the policy whose median run is the best."""

Runs: TypeAlias = dict[str, list[tuple[float, float]]]
"""Policy -> of each seed mean and 99th percentile of the time to first token."""


def run(scenario: Scenario) -> tuple[float, float]:
    """Mean and 99th percentile of the time to first token."""
    figures = Cluster(scenario).run().summary().as_dict()
    return figures["ttft_mean_s"], figures["ttft_p99_s"]


def tipping(scenarios: dict[str, Scenario], jobs: int) -> Runs:
    """Of each policy's scenario, all runs."""
    every = [(policy, replace(scenario, seed=seed)) for policy, scenario in scenarios.items() for seed in SEEDS]
    found: Runs = {policy: [] for policy in scenarios}
    with ProcessPoolExecutor(jobs) as pool:
        for (policy, scenario), figures in zip(every, pool.map(run, [each for _, each in every]), strict=True):
            found[policy].append(figures)
            if scenario.seed == SEEDS[-1]:
                print(f"{policy}: {mean(ttft for ttft, _ in found[policy]):.3f} s", flush=True)
    return found


def table(found: Runs) -> str:
    """A line per policy, the best mean first."""
    usual = min(median(ttft for ttft, _ in runs) for runs in found.values())
    lines = [f"{'policy':16} {'mean s':>8} {'median run':>10} {'p99 s':>8} {'median run':>10} {'tipped over':>14}"]
    for policy, runs in sorted(found.items(), key=lambda each: mean(ttft for ttft, _ in each[1])):
        ttft, p99 = zip(*runs, strict=True)
        tipped = sum(each > TIPPED * usual for each in ttft)
        lines.append(
            f"{policy:16} {mean(ttft):>8.3f} {median(ttft):>10.3f} {mean(p99):>8.3f} {median(p99):>10.3f} "
            f"{tipped:>6} of {len(runs)}"
        )
    return "\n".join(lines)
