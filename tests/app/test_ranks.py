"""Data-parallel ranks over real sockets: whose blocks they are, the socket says."""

from __future__ import annotations

import time

import aiohttp
import zmq

from warmroute.config.tree import EventsConfig
from warmroute.edge.zmq import zmq_event_sources
from warmroute.service.doctor.watch import Watch
from warmroute.testing.engine import EngineOptions, SimulatedEngine
from warmroute.types import ModelInfo, Worker, WorkerId

MODEL = ModelInfo("tiny")


async def test_t32_ranks_of_one_topic_are_told_apart_by_their_sockets() -> None:
    prompts = [[rank + 1] * 40 for rank in range(2)]
    with zmq.Context() as context:
        async with SimulatedEngine(EngineOptions(topic="kv", data_parallel_size=2)) as engine:
            workers = [
                Worker(WorkerId(rank), engine.endpoint, rank=rank, ranks=2, models=(MODEL,)) for rank in range(2)
            ]
            watches = [Watch(worker, EventsConfig(), time.monotonic, time.time) for worker in workers]
            try:
                for watch, address in zip(watches, engine.events, strict=True):
                    assert address.topic == "kv"
                    watch.start(zmq_event_sources(context, EventsConfig())(address))
                    await watch.settled(20.0)
                async with aiohttp.ClientSession(engine.url) as client:
                    for rank, prompt in enumerate(prompts):
                        headers = {"x-data-parallel-rank": str(rank)}
                        body = {"prompt": prompt, "max_tokens": 1}
                        async with client.post("/v1/completions", json=body, headers=headers) as answer:
                            assert answer.status == 200
                assert [await watch.batches(more_than=0, timeout_s=20.0) for watch in watches] == [1, 1]
                held = [[watch.predicted(prompt, MODEL) for prompt in prompts] for watch in watches]
                assert held == [[32, 0], [0, 32]]
                assert [watch.facts().rank_mismatches for watch in watches] == [0, 0]
            finally:
                for watch in watches:
                    watch.close()
