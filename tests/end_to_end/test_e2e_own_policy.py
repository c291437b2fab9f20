"""A policy of the user's own inside the gateway: it decides, and when it fails the default does and says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from e2e_fleet import QUICK, stack_of

from warmroute.config.tree import RoutingConfig
from warmroute.testing.engine import EngineOptions

POLICY = """
class Mine:
    name = "mine"

    def costs(self, candidates):
        if candidates.prompt_tokens > 50:
            raise ValueError("too long for me")
        return [-worker.endpoint.port for worker in candidates.workers]
"""


async def test_an_own_policy_decides_and_its_failures_are_counted(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(POLICY)
    config = replace(QUICK, routing=RoutingConfig(policy=f"{tmp_path}/mine.py:Mine"))
    async with stack_of(EngineOptions(), EngineOptions(seed=1), config=config) as stack:
        last = max(stack.engines, key=lambda engine: engine.endpoint.port).endpoint.authority
        short = [await stack.client.ask(prompt=[number] * 10) for number in range(1, 5)]
        assert [(answer.status, answer.worker) for answer in short] == [(200, last)] * 4
        long = [await stack.client.ask(prompt=[number] * 100) for number in range(1, 4)]
        assert [answer.status for answer in long] == [200] * 3
        page = (await stack.client.get("/metrics")).raw.decode()
    assert 'warmroute_policy_failures_total{why="raised"} 3.0' in page


async def test_the_priority_and_the_session_of_a_request_reach_the_policy(tmp_path: Path) -> None:
    (tmp_path / "seen.py").write_text(
        "class Seen:\n"
        "    name = 'seen'\n"
        "    def costs(self, candidates):\n"
        "        if (candidates.priority, candidates.session) != (-2, 's'):\n"
        "            raise ValueError(f'{candidates.priority}, {candidates.session}')\n"
        "        return [0.0] * len(candidates.workers)\n"
    )
    config = replace(QUICK, routing=RoutingConfig(policy=f"{tmp_path}/seen.py:Seen"))
    async with stack_of(EngineOptions(), config=config) as stack:
        answer = await stack.client.ask(prompt=[1, 2, 3], priority=-2, headers={"x-session-id": "s"})
        assert answer.status == 200
        assert stack.gateway.router.policy.failures == {}, stack.gateway.router.policy.last_failure  # type: ignore[attr-defined]
