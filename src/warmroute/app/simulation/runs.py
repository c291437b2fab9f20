"""Several runs of one wish: the same workload under each policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path

from warmroute.app.own_policy import load_policy
from warmroute.app.simulation import report
from warmroute.app.simulation.cluster import Cluster
from warmroute.app.simulation.profiles import Profile, parse_profile
from warmroute.app.simulation.results import Results
from warmroute.app.simulation.scenario import FleetChange, Scenario, rate_for
from warmroute.app.simulation.trace import Trace
from warmroute.app.simulation.workloads import WORKLOADS, Workload
from warmroute.config.ranges import POLICIES
from warmroute.config.tree import RoutingConfig

DEFAULT_PROFILE = "qwen3-32b@h100x2"
REQUESTS_PER_ENGINE = 300
REQUESTS_MIN = 4000

Progress = Callable[[str, int, int, float], None]
"""Told (policy, requests issued, of how many, virtual seconds)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the command line asks for."""

    workload: str = "chat"
    trace: Path | None = None
    engines: int = 16
    profiles: Sequence[str] = ()
    host_gib: float = 0.0
    policies: Sequence[str] = ()
    requests: int | None = None
    rate: float | None = None
    utilisation: float = 0.7
    block_size: int = 128
    event_delay_ms: float = 10.0
    changes: Sequence[str] = ()
    seed: int = 1

    def scenario(self, policy: str) -> Scenario:
        """The run for one policy. Raises ValueError with what is wrong with the wish."""
        workload, engines = self._workload(), self._engines()
        if not all(map(isfinite, (self.utilisation, self.rate or 0.0, self.event_delay_ms, self.host_gib))):
            raise ValueError("give finite numbers")
        rate = rate_for(self.utilisation, workload, engines, self.block_size) if self.rate is None else self.rate
        if rate <= 0:
            raise ValueError("the rate must be above 0")
        if self.event_delay_ms < 0 or self.host_gib < 0:
            raise ValueError("the delay of events and the host tier must not be below 0: give 0 for none")
        return Scenario(
            workload=workload,
            engines=engines,
            requests=self.requests or max(REQUESTS_MIN, REQUESTS_PER_ENGINE * self.engines),
            requests_per_s=rate,
            seed=self.seed,
            policy=load_policy(policy),
            routing=RoutingConfig(policy=policy),
            block_size=self.block_size,
            event_delay_s=self.event_delay_ms / 1e3,
            changes=[_change(text, self.engines) for text in self.changes],
        )

    def _workload(self) -> Workload:
        if self.trace is not None:
            return Trace(self.trace)
        if self.workload not in WORKLOADS:
            raise ValueError(f"{self.workload!r} is no workload: give one of {', '.join(WORKLOADS)}")
        return WORKLOADS[self.workload]

    def _engines(self) -> list[Profile]:
        kinds = [parse_profile(text, self.host_gib) for text in self.profiles or (DEFAULT_PROFILE,)]
        return [kinds[n % len(kinds)] for n in range(self.engines)]


@dataclass(frozen=True, slots=True)
class Done:
    """All runs of a wish."""

    about: dict[str, object]
    runs: Sequence[Results]

    @property
    def table(self) -> str:
        """For a terminal."""
        undecided = [
            f"{results.policy}: the default decided {results.undecided} times in its place: {results.why_undecided}"
            for results in self.runs
            if results.undecided
        ]
        return "\n".join([report.table([results.summary() for results in self.runs]), *undecided])

    def json(self) -> bytes:
        """For programs."""
        return report.as_json(self.about, self.runs)

    def html(self) -> bytes:
        """For a browser."""
        return report.as_html(self.about, self.runs).encode()


def simulate(wish: Wish, progress: Progress) -> Done:
    """Run the wish for each of its policies, one after the other."""
    runs = []
    scenario = None
    for policy in wish.policies or POLICIES:
        scenario = wish.scenario(policy)
        told = _told(progress, policy, scenario.requests)
        runs.append(Cluster(scenario).run(told))
        progress(policy, scenario.requests, scenario.requests, runs[-1].end_s)
    assert scenario is not None  # noqa: S101 - there is at least one policy
    about: dict[str, object] = {
        "workload": str(wish.trace) if wish.trace else wish.workload,
        "engines": ", ".join(f"{n} x {name}" for name, n in _counted(scenario.engines).items()),
        "requests": scenario.requests,
        "requests_per_s": round(scenario.requests_per_s, 3),
        "block_size": scenario.block_size,
        "event_delay_s": scenario.event_delay_s,
        "fleet": list(wish.changes),
        "seed": wish.seed,
    }
    return Done(about, runs)


def _told(progress: Progress, policy: str, requests: int) -> Callable[[int, float], None]:
    return lambda issued, virtual_s: progress(policy, issued, requests, virtual_s)


def _counted(engines: Sequence[Profile]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for profile in engines:
        counts[profile.name] = counts.get(profile.name, 0) + 1
    return counts


def _change(text: str, engines: int) -> FleetChange:
    kind, _, rest = text.partition(":")
    number, _, at = rest.partition("@")
    try:
        change = FleetChange(float(at), kind, int(number))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"--fleet {text!r}: give fail:N@S, drain:N@S or join:N@S") from error
    if kind not in ("fail", "drain", "join") or not 0 <= change.engine < engines or not 0 <= change.at_s < inf:
        raise ValueError(f"--fleet {text!r}: give fail:N@S, drain:N@S or join:N@S with N below {engines}")
    return change
