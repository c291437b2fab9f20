"""What changes an engine's cache without a word: the gateway knows it at once, and credits nothing that is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import vllm_engine
from gateway_process import GatewayProcess, is_live
from openai_client import COMPLETIONS, Answer, Client, Json
from prompts import Prompts
from vllm_engine import EngineOptions, VllmEngine

Engines = Sequence[VllmEngine]

BACK_S = 2.0
"""So long after an engine's return predictions are exact again."""


async def ask(client: Client, worker: str, prompt: list[int], **body: object) -> Answer:
    """A request to one worker that must be predicted exactly."""
    answer = await client.ask(COMPLETIONS, {"prompt": prompt, "max_tokens": 1, **body}, x_warmroute_worker=worker)
    assert answer.status == 200, answer
    assert answer.predicted == answer.reported, (answer.predicted, answer.reported)
    return answer


async def exact_again(client: Client, worker: str, warm: Sequence[list[int]]) -> None:
    """Ask for prompts that were warm: at no time more than there is is predicted, and soon exactly what there is."""
    deadline = time.monotonic() + BACK_S
    exact = 0
    while time.monotonic() < deadline or not exact:
        prompt = warm[exact % len(warm)]
        answer = await client.ask(COMPLETIONS, {"prompt": prompt, "max_tokens": 1}, x_warmroute_worker=worker)
        if answer.status == 503:
            assert time.monotonic() < deadline, answer
            await asyncio.sleep(0.02)  # not taken back yet
            continue
        assert answer.predicted <= answer.reported, "stale credit"
        assert answer.predicted == answer.reported or time.monotonic() < deadline
        exact += answer.predicted == answer.reported
    for prompt in warm:
        await ask(client, worker, prompt)


async def test_after_a_kill_predictions_are_exact_within_two_seconds(gateway: GatewayProcess) -> None:
    victim = gateway.engines[0]
    warm = [Prompts(20 + n).token_ids(200) for n in range(4)]
    async with Client(gateway.url) as client:
        for prompt in warm * 2:
            await ask(client, victim.authority, prompt)
        victim.kill()
        victim.spawn()
        await asyncio.to_thread(victim.wait_ready)
        await exact_again(client, victim.authority, warm)
    assert is_live(gateway.workers()[victim.authority])


async def test_a_reset_through_the_gateway_is_known_at_once(gateway: GatewayProcess) -> None:
    worker = gateway.engines[0].authority
    warm = [Prompts(30 + n).token_ids(200) for n in range(4)]
    async with Client(gateway.url) as client:
        for prompt in warm * 2:
            await ask(client, worker, prompt)
        reset = await client.ask("/reset_prefix_cache", {}, x_warmroute_worker=worker)
        assert reset.body == {"success": True}
        assert [(await ask(client, worker, prompt)).reported for prompt in warm] == [0] * 4
        await exact_again(client, worker, warm)


async def test_full_reports_are_no_second_copies(gateway: GatewayProcess) -> None:
    """What is announced again is gone with its one removal: after an eviction nothing of it is credited."""
    worker = gateway.engines[0].authority
    warm = [Prompts(50 + n).token_ids(200) for n in range(4)]
    async with Client(gateway.url) as client:
        for prompt in warm * 2:
            await ask(client, worker, prompt)
        for prompt in warm * 2:
            await ask(client, worker, prompt, vllm_xargs={"kv_cache_report_mode": "full"})
        assert await settled(gateway, worker) >= len(warm) * 2 * (200 // gateway.engines[0].options.block_size)
        for n in range(16):
            await client.ask(
                COMPLETIONS, {"prompt": Prompts(70 + n).token_ids(400), "max_tokens": 1}, x_warmroute_worker=worker
            )
        await settled(gateway, worker)
        assert [(await ask(client, worker, prompt)).reported for prompt in warm] == [0] * 4


async def settled(gateway: GatewayProcess, worker: str) -> int:
    """Wait until no event has come for a second; how many blocks were announced again until then."""
    await gateway.quiet(1.0, deadline_s=20.0)
    return int(gateway.workers()[worker]["events"]["repeated"])


async def test_adapters_loaded_unloaded_and_pointed_elsewhere(gateway: GatewayProcess) -> None:
    worker = gateway.engines[0].authority
    places = [str(vllm_engine.make_model("--adapter", str(number))) for number in (1, 2)]
    prompt = Prompts(40).token_ids(150)

    async with Client(gateway.url) as client:

        async def told(listed: bool) -> None:
            what = "told of the adapter"
            await asyncio.to_thread(
                gateway.wait_for, lambda: ("sql" in gateway.workers()[worker]["models"]) is listed, BACK_S, what
            )

        async def post(path: str, body: Json) -> None:
            async with client.http.post(path, json=body, headers={"x-warmroute-worker": worker}) as answer:
                assert answer.status == 200, await answer.text()

        async def load(place: str) -> None:
            await post("/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": place})
            await told(listed=True)

        async def unload() -> None:
            await post("/v1/unload_lora_adapter", {"lora_name": "sql"})
            await told(listed=False)

        async def cached() -> int:
            return (await ask(client, worker, prompt, model="sql")).reported

        assert (await ask(client, worker, prompt)).reported == 0
        await load(places[0])
        assert [await cached() for _ in range(2)] == [0, 128]
        await unload()
        await load(places[0])
        assert await cached() == 128  # the same weights: what was left is there
        await unload()
        await load(places[1])
        assert [await cached() for _ in range(2)] == [0, 128]  # other weights under the same name
        await unload()
        await load(places[0])
        assert await cached() == 128
        await unload()


@pytest.fixture(scope="module")
def unlike(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """An engine with two data-parallel ranks, and one with sliding windows."""
    logs = tmp_path_factory.mktemp("unlike")
    ranks = EngineOptions(model=vllm_engine.make_model(), blocks=160, ranks=2)
    hybrid = EngineOptions(model=vllm_engine.make_model("--architecture", "gemma3"), blocks=400, served_name="hybrid")
    pair = [VllmEngine(ranks, logs / "ranks.log"), VllmEngine(hybrid, logs / "hybrid.log")]
    with vllm_engine.running(pair) as started:
        yield started


@pytest.fixture
def mixed_gateway(unlike: Engines, tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway before both."""
    with GatewayProcess(unlike, tmp_path / "gateway.log") as started:
        yield started


async def test_data_parallel_ranks_are_workers_of_their_own(mixed_gateway: GatewayProcess) -> None:
    ranks = [f"{mixed_gateway.engines[0].authority}#{rank}" for rank in range(2)]
    prompts = [Prompts(50 + n).token_ids(180) for n in range(4)]
    async with Client(mixed_gateway.url) as client:
        for number, prompt in enumerate(prompts):
            body: Json = {"prompt": prompt, "max_tokens": 1}
            for expected in (0, 160):
                answer = await client.ask(COMPLETIONS, body, X_data_parallel_rank=str(number % 2))
                found = (answer.worker, answer.predicted, answer.reported)
                assert found == (ranks[number % 2], expected, expected)
        for number, prompt in enumerate(prompts):  # unpinned, each goes where it is warm
            answer = await client.ask(COMPLETIONS, {"prompt": prompt, "max_tokens": 1})
            assert (answer.worker, answer.predicted, answer.reported) == (ranks[number % 2], 160, 160)
        other = await client.ask(COMPLETIONS, {"prompt": prompts[0], "max_tokens": 1}, X_data_parallel_rank="1")
        assert (other.worker, other.predicted, other.reported) == (ranks[1], 0, 0)


async def test_a_hybrid_model_is_predicted_under_traffic(mixed_gateway: GatewayProcess) -> None:
    families = [Prompts(60 + n).token_ids(700) for n in range(6)]

    async def client_of(client: Client, seed: int) -> list[Answer]:
        random, own = Prompts(seed).random, []
        for _ in range(20):
            cut = random.randrange(20, 700)
            body = {"model": "hybrid", "prompt": random.choice(families)[:cut], "max_tokens": random.randrange(1, 40)}
            own.append(await client.ask(COMPLETIONS, body))
        return own

    async with Client(mixed_gateway.url) as client:
        first = await client_of(client, 70)
        await asyncio.gather(*(client_of(client, seed) for seed in range(71, 75)))
    async with Client(mixed_gateway.url, mixed_gateway.quiet) as client:
        last = await client_of(client, 80)
    # A hybrid engine is credited with nothing until all of its groups have announced; never with too much.
    stale = [(answer.predicted, answer.reported) for answer in first if answer.predicted > answer.reported]
    assert len(stale) <= 1, stale
    misses = [(answer.predicted, answer.reported) for answer in last if answer.predicted != answer.reported]
    assert not misses
