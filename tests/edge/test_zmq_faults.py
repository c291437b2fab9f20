"""Engines behind relays that stall, cut, refuse, truncate, swallow: views heal exactly, nobody waits for another."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from warmroute.config.tree import EventsConfig
from warmroute.core.index import make_index
from warmroute.core.index.contract import PrefixIndex
from warmroute.edge.zmq import ZmqEventSource, zmq_event_sources
from warmroute.errors import ConfigError
from warmroute.service.ingest import Ingest, WorkerStream
from warmroute.service.ports import EventAddress
from warmroute.testing.engine.cache import PagedCache, Pages
from warmroute.testing.engine.options import EngineOptions, Faults
from warmroute.testing.engine.publisher import Publisher
from warmroute.testing.relay import Relay
from warmroute.types import TrustState, WorkerId

DEADLINE_S = 60.0
CONFIG = EventsConfig(reconnect_backoff_s=0.02, reconnect_backoff_max_s=0.1, replay_timeout_s=0.5, probe_idle_s=0.3)
OPTIONS = EngineOptions(hash_form="bytes", block_size=4, num_blocks=40, max_model_len=100, topic="kv")


class Engine:
    """A paged cache with real event sockets; `work` is what a scheduler does with prompts."""

    def __init__(self, former: EventAddress | None = None) -> None:
        self.cache = PagedCache(OPTIONS.num_blocks, OPTIONS.block_size)
        self.faults = Faults()
        self.publisher = Publisher(OPTIONS, 0, self.faults)
        self.publisher.bind(former)
        self.luck = random.Random(7)
        self.replays = asyncio.ensure_future(self.publisher.serve_replays())

    def work(self, prompts: int) -> None:
        for _ in range(prompts):
            pages = Pages([self.luck.randrange(3) for _ in range(self.luck.randint(4, 24))])
            assert self.cache.allocate(pages, self.cache.match(pages), len(pages.tokens))
            self.cache.free(pages)
            self.publisher.publish(time.time(), tuple(self.cache.take_events()))

    @property
    def held(self) -> dict[Any, int]:
        return {digest: len(blocks) for digest, blocks in self.cache._copies.items()}

    async def close(self) -> None:
        self.replays.cancel()
        await asyncio.gather(self.replays, return_exceptions=True)
        await self.publisher.close()


class Followed:
    """One worker: an engine, a relay before each of its sockets, and the stream that follows it through them."""

    def __init__(self, engine: Engine, events: Relay, replay: Relay, stream: WorkerStream, index: PrefixIndex) -> None:
        self.engine, self.events, self.replay, self.stream, self.index = engine, events, replay, stream, index

    @property
    def exact(self) -> bool:
        view = {entry.block_hash: entry.copies for entry in self.index.dump(self.stream.worker) if entry.copies}
        held = {digest: sum(n for _, _, n in copies) for digest, copies in view.items()}
        return self.stream.trust.state is TrustState.LIVE and held == self.engine.held

    async def restart(self) -> None:
        address = self.engine.publisher.address
        await self.engine.close()
        self.engine = Engine(address)


def port_of(endpoint: str | None) -> int:
    return int((endpoint or "").rpartition(":")[2])


def follow(worker: int, address: EventAddress, index: PrefixIndex, context: zmq.Context[Any]) -> WorkerStream:
    clock = asyncio.get_running_loop().time
    ingest = Ingest(index=index, config=CONFIG, clock=clock, wall_clock=time.time, on_trust=lambda *_: None)
    stream = WorkerStream(WorkerId(worker), ingest)
    stream.start(zmq_event_sources(context, CONFIG)(address))
    return stream


@asynccontextmanager
async def followed(count: int) -> AsyncIterator[list[Followed]]:
    index = make_index(1000)
    workers: list[Followed] = []
    with zmq.Context() as context:
        for number in range(count):
            engine = Engine()
            address = engine.publisher.address
            events = await Relay("127.0.0.1", port_of(address.endpoint)).__aenter__()
            replay = await Relay("127.0.0.1", port_of(address.replay_endpoint)).__aenter__()
            ours = EventAddress(f"tcp://127.0.0.1:{events.port}", f"tcp://127.0.0.1:{replay.port}", "kv")
            workers.append(Followed(engine, events, replay, follow(number, ours, index, context), index))
        try:
            await until(lambda: all(worker.exact for worker in workers), *workers)
            yield workers
        finally:
            for worker in workers:
                worker.stream.retire()
                await worker.events.__aexit__(None, None, None)
                await worker.replay.__aexit__(None, None, None)
                await worker.engine.close()


async def until(condition: Callable[[], bool], *workers: Followed) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        for worker in workers:
            worker.stream.tick()
        assert time.monotonic() < deadline, [(w.stream, w.stream.trust, w.stream.counts.stream) for w in workers]
        await asyncio.sleep(0.005)


def stalled(worker: Followed) -> Iterator[None]:
    worker.events.stall()
    worker.replay.stall()
    yield
    worker.events.flow()
    worker.replay.flow()


def cut(worker: Followed) -> Iterator[None]:
    worker.events.refusing = True
    worker.events.cut()
    yield
    worker.events.refusing = False


def truncated(worker: Followed) -> Iterator[None]:
    worker.events.truncate_after_bytes = 1000
    worker.replay.truncate_after_bytes = 700
    yield
    worker.events.truncate_after_bytes = worker.replay.truncate_after_bytes = None


def swallowed(worker: Followed) -> Iterator[None]:
    worker.events.swallowing = worker.replay.swallowing = True
    yield
    worker.events.swallowing = worker.replay.swallowing = False
    worker.replay.cut()


def replay_refused(worker: Followed) -> Iterator[None]:
    worker.replay.refusing = True
    worker.replay.cut()
    worker.engine.faults.drop_batches = 3
    yield
    worker.replay.refusing = False


@pytest.mark.parametrize("trouble", [stalled, cut, truncated, swallowed, replay_refused])
async def test_one_workers_trouble_delays_no_other_and_heals_exactly(trouble: Callable[..., Iterator[None]]) -> None:
    async with followed(3) as (ill, *well):
        for worker in (ill, *well):
            worker.engine.work(20)
        await until(lambda: all(worker.exact for worker in (ill, *well)), ill, *well)
        course = trouble(ill)
        next(course)
        for _ in range(3):
            for worker in (ill, *well):
                worker.engine.work(10)
            await until(lambda: all(worker.exact for worker in well), ill, *well)
        await until(lambda: not ill.exact, ill)
        next(course, None)
        await until(lambda: ill.exact, ill)
        assert all(not worker.stream.counts.stream["gaps"] for worker in well)


@pytest.mark.parametrize("passes", [False, True])
async def test_an_engine_that_restarts_behind_its_relay(passes: bool) -> None:
    """Also when its new run has passed the old one before the connection is made again."""
    async with followed(2) as (ill, well):
        ill.engine.work(10)
        await until(lambda: ill.exact, ill)
        ill.events.refusing = True
        await ill.restart()
        ill.engine.work(30 if passes else 3)
        well.engine.work(5)
        await until(lambda: well.exact and ill.stream.trust.state is not TrustState.LIVE, ill, well)
        ill.events.refusing = False
        await until(lambda: ill.exact, ill)
        assert ill.stream.counts.purges == 1


async def test_a_lost_tail_is_found_without_another_batch() -> None:
    async with followed(1) as (worker,):
        worker.engine.work(5)
        await until(lambda: worker.exact, worker)
        worker.engine.faults.drop_batches = 2
        worker.engine.work(2)
        await until(lambda: worker.exact and worker.stream.counts.stream["tails"] == 1, worker)


async def test_an_engine_whose_pub_socket_connects_to_us() -> None:
    index = make_index(100)
    with zmq.Context() as context:
        engine = Engine()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        listen = EventAddress(f"tcp://*:{port}", engine.publisher.address.replay_endpoint, "kv", bind=True)
        stream = follow(0, listen, index, context)
        with pytest.raises(ConfigError, match="events_listen"):
            ZmqEventSource(listen, context, CONFIG).start(stream)
        engine.publisher._pub.connect(f"tcp://127.0.0.1:{port}")
        worker = Followed(engine, None, None, stream, index)  # type: ignore[arg-type]
        await until(lambda: worker.exact, worker)
        engine.work(20)
        await until(lambda: worker.exact, worker)
        await engine.close()
        await until(lambda: stream.trust.state is TrustState.DEGRADED)
        worker.engine = again = Engine(EventAddress("tcp://127.0.0.1:*", engine.publisher.address.replay_endpoint))
        again.publisher._pub.connect(f"tcp://127.0.0.1:{port}")
        again.work(25)
        await until(lambda: worker.exact, worker)
        stream.retire()
        await again.close()


async def test_engines_on_ipc_and_on_topics_of_their_own(tmp_path: Path) -> None:
    index = make_index(100)
    with zmq.Context() as context:
        address = EventAddress(f"ipc://{tmp_path}/events", f"ipc://{tmp_path}/replay", "k")
        engine = Engine(address)
        heard, unheard = (
            follow(0, address, index, context),
            follow(1, EventAddress(address.endpoint, None, "other"), index, context),
        )
        engine.work(20)
        worker = Followed(engine, None, None, heard, index)  # type: ignore[arg-type]
        await until(lambda: worker.exact, worker)
        engine.work(5)
        await until(lambda: worker.exact, worker)
        assert unheard.counts.messages == 0
        for stream in (heard, unheard):
            stream.retire()
        await engine.close()
