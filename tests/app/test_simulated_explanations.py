"""What decisions say of themselves, held against what then happened: every one of a run of a thousand requests."""

from __future__ import annotations

import pytest

from warmroute.app.simulation.cluster import Cluster
from warmroute.app.simulation.profiles import parse_profile
from warmroute.app.simulation.scenario import Scenario, rate_for
from warmroute.app.simulation.workloads import WORKLOADS
from warmroute.core.decision import CandidateView, Decision, PickRequest
from warmroute.types import Fleet

REQUESTS = 1000
ENGINES = [parse_profile("qwen3-32b@h100x2")] * 4
UNFORESEEN = {"agents": 0, "bursts": 0, "chat": 0.005, "hot_prompt": 0.02, "mixed": 0.005, "rag": 0.005}
"""Share of the requests whose blocks engines may hold more or less of by the time they look: events take 10 ms."""


class Watched(Cluster):
    """Keeps each decision, how it explained itself at once, and where the request went and what was cached there."""

    def __init__(self, workload: str) -> None:
        made = WORKLOADS[workload]
        rate = rate_for(0.7, made, ENGINES, 128)
        super().__init__(Scenario(workload=made, engines=ENGINES, requests=REQUESTS, requests_per_s=rate))
        self.explained: list[tuple[Decision, list[CandidateView]]] = []
        self.went_to: dict[int, int] = {}
        self.cached: dict[int, int] = {}
        self._pick, self._asked, self._first = self.router.pick, self.results.asked, self.results.first
        self.router.pick = self.pick  # type: ignore[method-assign]
        self.results.asked = self.asked  # type: ignore[method-assign]
        self.results.first = self.first  # type: ignore[method-assign]

    def pick(self, request: PickRequest, fleet: Fleet, now: float) -> Decision:
        decision = self._pick(request, fleet, now)
        self.explained.append((decision, decision.explain()))
        return decision

    def asked(self, number: int, engine: int, prompt_tokens: int, infinite_tokens: int) -> None:
        self.went_to[number] = engine
        self._asked(number, engine, prompt_tokens, infinite_tokens)

    def first(self, number: int, ttft_s: float, expected_s: float, cached_tokens: int) -> None:
        self.cached[number] = cached_tokens
        self._first(number, ttft_s, expected_s, cached_tokens)


@pytest.mark.parametrize("workload", UNFORESEEN)
def test_every_explanation_agrees_with_what_happened(workload: str) -> None:
    run = Watched(workload)
    run.run()
    assert len(run.explained) == len(run.cached) == REQUESTS
    unforeseen = 0
    for number, (decision, rows) in enumerate(run.explained):
        best = rows[0]
        assert best.chosen
        assert [row.chosen for row in rows].count(True) == 1
        assert best.cost == min(row.cost for row in rows)
        assert decision.worker.id == run.went_to[number]
        assert best.worker == decision.worker.name
        assert best.overlap_tokens == decision.overlap_tokens
        assert sum(best.overlap_by_medium.values()) + best.claimed_tokens == best.overlap_tokens
        for row in rows:
            assert sum(row.terms.values()) == pytest.approx(row.cost)
        unforeseen += best.overlap_tokens != run.cached[number]
    assert unforeseen <= UNFORESEEN[workload] * REQUESTS
