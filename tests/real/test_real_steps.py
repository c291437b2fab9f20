"""The steps of a real engine are as long as the gateway takes them to be from the pieces of its answers."""

from __future__ import annotations

import asyncio
import statistics
import time

from gateway_process import GatewayProcess
from openai_client import COMPLETIONS, Client
from prompts import Prompts

STREAMS, TOKENS = 3, 400


async def test_steps_are_as_long_as_they_are_taken_to_be(gateway: GatewayProcess) -> None:
    worker = next(iter(gateway.workers()))

    async def arrivals(client: Client, prompt: list[int]) -> list[float]:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
        async with client.http.post(COMPLETIONS, json=body, headers={"x-warmroute-worker": worker}) as answer:
            return [time.monotonic() async for piece, _ in answer.content.iter_chunks() if piece]

    async with Client(gateway.url) as client:
        prompts = Prompts(31)
        streams = await asyncio.gather(*(arrivals(client, prompts.token_ids(100)) for _ in range(STREAMS)))
    # On average: pieces that wait together for this process are read together.
    seen = statistics.mean((at[-1] - at[TOKENS // 2]) / (len(at) - 1 - TOKENS // 2) for at in streams)
    taken = {name: row["step_s"] for name, row in gateway.workers().items()}
    print(f"a piece every {seen * 1e3:.2f} ms; steps are taken for {taken}")  # noqa: T201
    assert seen / 3 < taken.pop(worker) < seen * 3
    assert set(taken.values()) == {0.0}, "of an engine that streamed nothing, nothing is known"
