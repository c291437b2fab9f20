"""Limits and breakers of the composed gateway, before simulated engines."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from e2e_client import Client
from e2e_fleet import QUICK, Stack, before, config_for, engines_of, stack_of, until

from warmroute.config.tree import AdmissionConfig, BreakerConfig, Config, RoutingConfig
from warmroute.core.keys import digest_of
from warmroute.errors import ConfigError
from warmroute.testing.engine import EngineOptions
from warmroute.testing.redis_server import INSTALLED, RedisProcess

ALICE, BOB = {"authorization": "Bearer a"}, {"authorization": "Bearer b"}
SLOW = EngineOptions(decode_per_token_s=0.01)


def limited(**admission: Any) -> Config:
    return replace(QUICK, admission=AdmissionConfig(**admission))


def keyed(folder: Path, text: str, **admission: Any) -> Config:
    (folder / "keys").write_text(text)
    config = limited(**admission)
    return replace(config, gateway=replace(config.gateway, keys_file=str(folder / "keys")))


def busiest(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Worker -> the most requests that it ever had, kept up to date."""
    most: dict[str, int] = {}
    router, pick = stack.gateway.router, stack.gateway.router.pick

    def watched(*arguments: Any) -> Any:
        decision = pick(*arguments)
        load = router.load.of(decision.worker.id, 0.0).requests
        most[decision.worker.name] = max(load, most.get(decision.worker.name, 0))
        return decision

    monkeypatch.setattr(router, "pick", watched)
    return most


async def metrics(stack: Stack) -> str:
    return (await stack.client.get("/metrics")).raw.decode()


async def test_a_gateway_without_limits_has_no_gate(stack: Stack) -> None:
    assert stack.gateway.limiting.admission is None
    assert stack.gateway.server.plane.service is stack.gateway.routing


@pytest.mark.parametrize("prompt", [[1, 2, 3], "text that an engine must tokenize"])
async def test_requests_wait_while_all_engines_are_full(monkeypatch: pytest.MonkeyPatch, prompt: Any) -> None:
    async with stack_of(SLOW, replace(SLOW, seed=1), config=limited(worker_requests_max=2)) as stack:
        most = busiest(stack, monkeypatch)
        answers = await asyncio.gather(
            *(stack.client.ask(prompt=prompt, max_tokens=5, stream=bool(n % 2)) for n in range(12))
        )
        assert [answer.status for answer in answers] == [200] * 12
        assert most == {engine.endpoint.authority: 2 for engine in stack.engines}
        admission = stack.gateway.limiting.admission
        assert admission is not None
        assert admission.waited >= 8 - 4
        await until(lambda: (admission.gate.inside, len(admission.gate)) == (0, 0), "all is given back")
        assert f'warmroute_admission_total{{event="waited"}} {admission.waited}.0' in await metrics(stack)


async def test_the_line_is_bounded_in_length_and_time() -> None:
    config = limited(requests_max=1, queue_requests_max=1, queue_timeout_s=0.1)
    async with stack_of(replace(SLOW, decode_per_token_s=0.05), config=config) as stack:
        admission = stack.gateway.limiting.admission
        assert admission is not None
        running = asyncio.create_task(stack.client.ask(prompt=[1], max_tokens=100, stream=True))
        await until(lambda: admission.gate.inside, "one is inside")
        waiting = asyncio.create_task(stack.client.ask(prompt=[1]))
        await until(lambda: len(admission.gate), "one waits")
        refused = await stack.client.ask(prompt=[1])
        assert (refused.status, refused.error["code"], refused.error["type"]) == (429, "queue_full", "rate_limit_error")
        assert refused.headers["retry-after"] == "1"
        late = await waiting
        assert (late.status, late.error["code"], late.headers["retry-after"]) == (503, "deadline", "1")
        assert (await stack.client.get("/v1/models")).status == 200  # what computes nothing does not wait
        running.cancel()
        await until(lambda: not admission.gate.inside, "the one inside is gone")
        page = await metrics(stack)
        assert 'warmroute_admission_total{event="refused:queue_full"} 1.0' in page
        assert 'warmroute_admission_requests{state="waiting"} 0.0' in page


async def test_a_client_that_leaves_the_line_is_forgotten_at_once() -> None:
    async with stack_of(replace(SLOW, decode_per_token_s=0.05), config=limited(requests_max=1)) as stack:
        admission = stack.gateway.limiting.admission
        assert admission is not None
        running = asyncio.create_task(stack.client.ask(prompt=[1], max_tokens=100, stream=True))
        await until(lambda: admission.gate.inside, "one is inside")
        waiting = asyncio.create_task(stack.client.ask(prompt=[1]))
        await until(lambda: len(admission.gate), "one waits")
        waiting.cancel()
        await until(lambda: not len(admission.gate), "nobody waits")
        running.cancel()
        await until(lambda: not admission.gate.inside, "nobody is inside")
        assert (await stack.client.ask(prompt=[1])).status == 200


async def test_models_have_limits_of_their_own() -> None:
    config = limited(model_requests_max="sql=1", model_body_bytes_max="sql=2000,*=5000", queue_requests_max=0)
    async with stack_of(replace(SLOW, loras=("sql",), decode_per_token_s=0.05), config=config) as stack:
        admission = stack.gateway.limiting.admission
        assert admission is not None
        running = asyncio.create_task(stack.client.ask(prompt=[1], model="sql", max_tokens=100, stream=True))
        await until(lambda: admission.gate.inside, "one is inside")
        assert (await stack.client.ask(prompt=[1], model="sql")).status == 429
        assert (await stack.client.ask(prompt=[1])).status == 200
        assert (await stack.client.ask(prompt="x" * 3000, model="sql")).status == 413
        assert (await stack.client.ask(prompt="x" * 3000)).status == 200
        assert (await stack.client.ask(prompt="x" * 6000)).status == 413
        running.cancel()


async def test_keys_have_rates(tmp_path: Path) -> None:
    text = f"alice {digest_of('a')} requests_per_min=2\nbob {digest_of('b')} tokens_per_min=40\n"
    async with stack_of(EngineOptions(), config=keyed(tmp_path, text)) as stack:
        for _ in range(2):
            assert (await stack.client.ask(prompt=[1], headers=ALICE)).status == 200
        refused = await stack.client.ask(prompt=[1], headers=ALICE)
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        assert "2 requests per minute" in refused.error["message"]
        assert 0 < int(refused.headers["retry-after"]) <= 30
        first = await stack.client.ask(prompt=[7] * 40, max_tokens=60, headers=BOB, stream=True)  # a guess lets it in
        assert first.usage["total_tokens"] == 100
        second = await stack.client.ask(prompt=[1], headers=BOB)
        assert (second.status, 60 < int(second.headers["retry-after"]) <= 120) == (429, True)


@pytest.mark.skipif(not INSTALLED and "WARMROUTE_REQUIRE_REDIS" not in os.environ, reason="needs redis-server")
async def test_gateways_share_rates_in_redis_and_go_on_without(tmp_path: Path) -> None:
    async with RedisProcess(tmp_path) as redis, engines_of(EngineOptions()) as engines:
        text = f"alice {digest_of('a')} requests_per_min=3\n"
        config = config_for(engines, keyed(tmp_path, text, redis_url=redis.url, redis_timeout_s=5.0))
        async with before(engines, config) as one, before(engines, config) as two:
            statuses = [
                (await stack.client.ask(prompt=[1], headers=ALICE)).status for stack in (one, two, one, two, one)
            ]
            assert statuses == [200, 200, 200, 429, 429]
            await redis.stop()
            alone = [(await one.client.ask(prompt=[1], headers=ALICE)).status for _ in range(4)]
            assert alone == [200, 200, 200, 429]
            shared = one.gateway.limiting.shared
            assert shared is not None
            assert shared.failures >= 1
            async with Client(one.gateway.url) as client:
                page = (await client._send("GET", "/metrics", None, ALICE)).raw.decode()
            assert f'warmroute_admission_total{{event="redis_failures"}} {shared.failures}.0' in page


async def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "warmroute.edge.redis_limits", raising=False)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    config = keyed(tmp_path, f"alice {digest_of('a')}\n", redis_url="redis://127.0.0.1:6379/0")
    with pytest.raises(ConfigError, match=r"pip install 'warmroute\[redis\]'"):
        async with before([], config):
            pass


# Breakers


async def breaker(stack: Stack, number: int) -> str:
    listed = (await stack.client.get("/workers")).body["engines"]
    return str(next(e["breaker"] for e in listed if e["address"] == stack.engines[number].url))


async def test_an_engine_that_keeps_failing_is_left_alone_and_tried_again() -> None:
    config = replace(
        QUICK,
        routing=RoutingConfig(policy="round_robin"),
        breaker=BreakerConfig(failures_max=3, open_s=0.3, open_max_s=0.6),
    )
    async with stack_of(EngineOptions(), EngineOptions(seed=1), config=config) as stack:
        sick = stack.engines[0]
        sick.faults.refuse_requests = -1
        seen = [await stack.client.ask(prompt=[number]) for number in range(6)]
        assert [(answer.status, answer.worker) for answer in seen] == [(200, stack.engines[1].endpoint.authority)] * 6
        assert await breaker(stack, 0) in ("open", "half_open")
        assert await breaker(stack, 1) == "closed"
        page = await metrics(stack)
        assert "warmroute_breaker_opened_total 1.0" in page
        statuses = [(await stack.client.ask(prompt=[number])).status for number in range(10)]
        assert statuses == [200] * 10
        sick.faults.refuse_requests = 0

        async def again() -> bool:
            answer = await stack.client.ask(prompt=[5])
            assert answer.status == 200
            return answer.worker == sick.endpoint.authority

        async with asyncio.timeout(20):
            while not await again():  # noqa: ASYNC110 - it comes back when its breaker lets it
                await asyncio.sleep(0.02)
        assert await breaker(stack, 0) == "closed"
        assert f'warmroute_breaker{{engine="{sick.endpoint.authority}",state="closed"}} 1.0' in await metrics(stack)


async def test_if_all_keep_failing_they_are_still_asked() -> None:
    config = replace(QUICK, breaker=BreakerConfig(failures_max=2, open_s=60.0))
    async with stack_of(EngineOptions(), config=config) as stack:
        stack.engines[0].faults.refuse_requests = 5
        statuses = [(await stack.client.ask(prompt=[number])).status for number in range(7)]
        assert statuses == [503] * 5 + [200] * 2
        assert await breaker(stack, 0) == "closed"  # a good answer is believed, whoever asked for it
        assert stack.gateway.routing.tracking.avoided_in_vain >= 3


async def test_what_clients_are_at_fault_for_opens_nothing() -> None:
    config = replace(QUICK, breaker=BreakerConfig(failures_max=2))
    async with stack_of(EngineOptions(), config=config) as stack:
        for _ in range(5):
            assert (await stack.client.ask(prompt=[5] * 9000)).status == 400
            leaving = asyncio.create_task(stack.client.ask(prompt=[1], max_tokens=2000, stream=True))
            await asyncio.sleep(0)
            leaving.cancel()
        assert await breaker(stack, 0) == "closed"
        assert not stack.gateway.breakers.known


async def test_answers_that_break_count_as_failures() -> None:
    config = replace(
        QUICK, routing=RoutingConfig(policy="round_robin"), breaker=BreakerConfig(failures_max=2, open_s=60.0)
    )
    async with stack_of(EngineOptions(), EngineOptions(seed=1), config=config) as stack:
        for engine in stack.engines:
            engine.faults.break_answers = -1
        broken = 0
        while broken < 4:
            broken += bool((await stack.client.ask(prompt=[1, 2, 3], max_tokens=9, stream=True)).broken)
        await until(lambda: stack.gateway.breakers.opened, "one of them is left alone")
