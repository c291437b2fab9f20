"""The steps of a real engine are as long as the gateway takes them to be from the pieces of its answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway_process import GatewayProcess
from openai_client import COMPLETIONS, Client
from prompts import Prompts
from real_engines import metric
from vllm_engine import VllmEngine

Engines = Sequence[VllmEngine]

STREAMS, TOKENS, ROUNDS = 3, 400, 10


async def test_steps_are_as_long_as_they_are_taken_to_be(gateway: GatewayProcess, cold: Engines) -> None:
    engines = {engine.url.removeprefix("http://"): engine for engine in cold}
    worker, *_ = engines

    async def stream(client: Client, prompt: list[int]) -> None:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
        async with client.http.post(COMPLETIONS, json=body, headers={"x-warmroute-worker": worker}) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()

    rounds: list[tuple[float, float]] = []
    async with Client(gateway.url) as client:
        prompts = Prompts(31)
        while not (rounds and rounds[-1][0] / 3 < rounds[-1][1] < rounds[-1][0] * 3):
            # An engine's front end that gets no time passes tokens on in bursts: one round must be without.
            assert len(rounds) < ROUNDS, f"steps in seconds, as the engine has them and as they are taken: {rounds}"
            before = latencies(engines[worker])
            await asyncio.gather(*(stream(client, prompts.token_ids(100)) for _ in range(STREAMS)))
            after = latencies(engines[worker])
            # The engine's own word: how late its answers are read by this process says more of this process.
            seen = (after[0] - before[0]) / (after[1] - before[1])
            rounds.append((seen, gateway.workers()[worker]["step_s"]))
    print(rounds)  # noqa: T201
    taken = {name: row["step_s"] for name, row in gateway.workers().items() if name != worker}
    assert set(taken.values()) == {0.0}, "of an engine that streamed nothing, nothing is known"


def latencies(engine: VllmEngine) -> tuple[float, float]:
    """Seconds between an answer's tokens, summed up since the engine started, and how often."""
    name = "vllm:inter_token_latency_seconds"
    return metric(engine, f"{name}_sum"), metric(engine, f"{name}_count")
