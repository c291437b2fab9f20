"""The simulated engine's event sockets, seen as a gateway sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import msgspec
import pytest
import zmq
import zmq.asyncio

from warmroute.testing.engine import EngineOptions, SimulatedEngine

END = b"\xff" * 8


@pytest.fixture
def context() -> Iterator[zmq.asyncio.Context]:
    made = zmq.asyncio.Context()
    yield made
    made.destroy(linger=0)


@contextmanager
def subscribed(context: zmq.asyncio.Context, endpoint: str, topic: bytes = b"") -> Iterator[zmq.asyncio.Socket]:
    socket = context.socket(zmq.SUB)
    socket.subscribe(topic)
    socket.connect(endpoint)
    yield socket
    socket.close(linger=0)


async def received(socket: zmq.asyncio.Socket) -> tuple[bytes, int, Any]:
    async with asyncio.timeout(10):
        topic, seq, payload = await socket.recv_multipart()
    return topic, int.from_bytes(seq, "big"), payload


async def replay(context: zmq.asyncio.Context, engine: SimulatedEngine, start: int) -> list[list[bytes]]:
    dealer = context.socket(zmq.DEALER)
    dealer.connect(engine.events[0].replay_endpoint)
    await dealer.send_multipart((b"", start.to_bytes(8, "big")))
    answers: list[list[bytes]] = []
    async with asyncio.timeout(10):
        while not answers or answers[-1][-2] != END:
            answers.append(await dealer.recv_multipart())
    dealer.close(linger=0)
    return answers


async def generate(engine: SimulatedEngine, first: int, tokens: int = 32, **headers: str) -> None:
    body = {"prompt": list(range(first, first + tokens)), "max_tokens": 1}
    async with (
        aiohttp.ClientSession(engine.url) as client,
        client.post("/v1/completions", json=body, headers=headers) as r,
    ):
        assert r.status == 200


async def newest(engine: SimulatedEngine, socket: zmq.asyncio.Socket, rank: int = 0) -> tuple[bytes, int, Any]:
    """The newest message, once any arrives: a publisher takes notice of a subscription at its leisure."""
    publisher, prompt = engine.process.ranks[rank].publisher, 100_000
    assert publisher
    async with asyncio.timeout(10):
        while not await socket.poll(20):
            await generate(engine, prompt := prompt + 100, **{"X-data-parallel-rank": str(rank)})
        message = await received(socket)
        while message[1] != publisher.next_seq - 1:
            message = await received(socket)
    return message


async def test_batches_are_numbered_from_0_and_a_replay_has_them_all(context: zmq.asyncio.Context) -> None:
    async with SimulatedEngine(EngineOptions(topic="kv")) as engine:
        for first in (0, 100):
            await generate(engine, first)
        await generate(engine, 0, tokens=31)  # nothing new: publishes nothing
        one, two, end = await replay(context, engine, 0)
        assert end == [b"", b"", END, b""]
        assert (one[:3], two[:3]) == ([b"", b"kv", bytes(8)], [b"", b"kv", (1).to_bytes(8, "big")])
        ts, (event,), rank = msgspec.msgpack.decode(one[3])
        assert (ts > 0, rank, event["type"], event["token_ids"]) == (True, 0, "BlockStored", list(range(32)))
        assert await replay(context, engine, 1) == [two, end]
        assert await replay(context, engine, 2) == [end]


async def test_old_releases_answer_without_topic_and_in_arrays(context: zmq.asyncio.Context) -> None:
    async with SimulatedEngine(EngineOptions(release="0.10.2", topic="kv")) as engine:
        await generate(engine, 0)
        (batch, end) = await replay(context, engine, 0)
        assert (batch[:2], end) == ([b"", bytes(8)], [b"", END, b""])
        (event,) = msgspec.msgpack.decode(batch[2])[1]
        assert (event[0], len(event)) == ("BlockStored", 7)
        async with aiohttp.ClientSession(engine.url) as client, client.get("/kv_event_sources") as response:
            assert response.status == 404


async def test_only_the_last_batches_are_kept(context: zmq.asyncio.Context) -> None:
    async with SimulatedEngine(EngineOptions(buffer_steps=2)) as engine:
        for first in range(0, 500, 100):
            await generate(engine, first)
        answers = await replay(context, engine, 0)
        assert [int.from_bytes(answer[-2], "big") for answer in answers[:-1]] == [3, 4]


async def test_each_rank_publishes_where_the_engine_says(context: zmq.asyncio.Context) -> None:
    async with SimulatedEngine(EngineOptions(data_parallel_size=2, topic="kv")) as engine:
        async with aiohttp.ClientSession(engine.url) as client, client.get("/kv_event_sources") as response:
            sources = await response.json()
        for rank, address in enumerate(engine.events):
            said = sources[str(rank)]
            assert said["endpoint"] == address.endpoint.replace("127.0.0.1", "*")
            assert said["replay_endpoint"] == (address.replay_endpoint or "").replace("127.0.0.1", "*")
            assert said["topic"] == "kv"
            with subscribed(context, address.endpoint, b"kv") as socket:
                topic, _, payload = await newest(engine, socket, rank)
                assert (topic, msgspec.msgpack.decode(payload)[2]) == (b"kv", rank)


async def test_a_reset_is_told_with_the_next_step(context: zmq.asyncio.Context) -> None:
    async with SimulatedEngine() as engine:
        await generate(engine, 0)
        async with aiohttp.ClientSession(engine.url) as client, client.post("/reset_prefix_cache") as response:
            assert await response.json() == {"success": True}
        assert engine.held_tokens(list(range(32))) == 0
        assert len(await replay(context, engine, 1)) == 1
        await generate(engine, 100)
        batch, _ = await replay(context, engine, 1)
        assert [event["type"] for event in msgspec.msgpack.decode(batch[-1])[1]] == ["AllBlocksCleared", "BlockStored"]


async def test_dropped_batches_are_missed_live_and_found_in_the_replay(context: zmq.asyncio.Context) -> None:
    async with SimulatedEngine() as engine:
        with subscribed(context, engine.events[0].endpoint) as socket:
            _, first, _ = await newest(engine, socket)
            engine.faults.drop_batches = 2
            for prompt in (10_000, 20_000, 30_000):
                await generate(engine, prompt)
            _, seq, _ = await received(socket)
            assert seq == first + 3
            answers = await replay(context, engine, first + 1)
            assert [int.from_bytes(answer[-2], "big") for answer in answers[:-1]] == [first + 1, first + 2, first + 3]


async def test_lost_garbled_and_foreign_batches(context: zmq.asyncio.Context) -> None:
    async with SimulatedEngine() as engine:
        faults = engine.faults
        faults.lose_batches = faults.garble_batches = faults.foreign_events = 1
        for first in range(0, 400, 100):
            await generate(engine, first)
        garbled, plain, last, _ = await replay(context, engine, 0)
        assert [int.from_bytes(each[-2], "big") for each in (garbled, plain, last)] == [1, 2, 3]
        with pytest.raises(msgspec.DecodeError):
            msgspec.msgpack.decode(garbled[-1])
        assert [event["type"] for event in msgspec.msgpack.decode(plain[-1])[1]] == ["BlockStored"]
        faults.foreign_events = 1
        await generate(engine, 900)
        foreign, _ = await replay(context, engine, 4)
        strange, known = msgspec.msgpack.decode(foreign[-1])[1]
        assert (strange[0], known["type"]) == ("BlockDreamt", "BlockStored")


async def test_requests_of_another_shape_and_silent_replays_get_no_answer(context: zmq.asyncio.Context) -> None:
    async with SimulatedEngine() as engine:
        dealer = context.socket(zmq.DEALER)
        dealer.connect(engine.events[0].replay_endpoint)
        engine.faults.silent_replays = 1
        await dealer.send_multipart((b"", bytes(8)))  # the silent one
        await dealer.send_multipart((bytes(8),))  # no delimiter
        await dealer.send_multipart((b"", (7).to_bytes(1, "big")))  # any length of number will do
        async with asyncio.timeout(10):
            assert await dealer.recv_multipart() == [b"", b"", END, b""]
        assert engine.faults.silent_replays == 0
        assert not await dealer.poll(0)
        dealer.close(linger=0)


async def test_a_restart_begins_at_0_on_the_same_addresses(context: zmq.asyncio.Context) -> None:
    async with SimulatedEngine() as engine:
        addresses = engine.events
        with subscribed(context, addresses[0].endpoint) as socket:
            await newest(engine, socket)
            await engine.restart()
            assert engine.events == addresses
            await newest(engine, socket)
        first, *_ = await replay(context, engine, 0)
        assert first[-2] == bytes(8)


async def test_without_events_there_are_no_sockets() -> None:
    async with SimulatedEngine(EngineOptions(events=False)) as engine:
        await generate(engine, 0)
        assert engine.events == ()
