"""What a resync of one huge worker does to everybody else's requests: how late they are while a million blocks come.

A second process replays BATCHES batches of BLOCKS blocks over ZMQ, as an engine does to a gateway that starts over with
it; this process applies them on its event loop and matches a prompt of 4,096 tokens every 2 ms. What is printed: how
late the answers were, from when they were due, during the first replay, while nothing happens and during a resync, and
how long the purge takes that goes before it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import random
import time

import uvloop
import zmq

from warmroute.config.tree import EventsConfig, RoutingConfig
from warmroute.core.index import make_index
from warmroute.core.router import Router
from warmroute.core.wire.events import BlockStored
from warmroute.edge.zmq import zmq_event_sources
from warmroute.service.following import Following
from warmroute.service.ports import EventAddress
from warmroute.service.sweeping import sweep_forever
from warmroute.testing.events import encode_batch, replay_end, replay_frames
from warmroute.types import Endpoint, TrustState, Worker, WorkerId

BLOCK_SIZE = 16
PICK_EVERY_S = 0.002
PROMPT_TOKENS = 4096


def engine(port: int, replay_port: int, batches: int, blocks: int) -> None:
    """An engine that has published all that before anybody listened, and replays it as often as it is asked."""
    luck = random.Random(1)
    payloads = []
    for batch in range(batches):
        first = batch * blocks
        tokens = tuple(luck.randrange(150_000) for _ in range(blocks * BLOCK_SIZE))
        hashes = tuple(luck.getrandbits(64) for _ in range(blocks))
        event = BlockStored(block_hashes=hashes, parent=None, token_ids=tokens, block_size=BLOCK_SIZE)
        payloads.append(encode_batch([event], ts=1.7e9 + first))
    context = zmq.Context()
    pub, router = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
    router.set_hwm(0)
    pub.bind(f"tcp://127.0.0.1:{port}")
    router.bind(f"tcp://127.0.0.1:{replay_port}")
    while True:
        identity, _, start = router.recv_multipart()
        for seq in range(int.from_bytes(start, "big"), batches):
            router.send_multipart([identity, *replay_frames(seq, payloads[seq])])
        router.send_multipart([identity, *replay_end()])


def quantiles(late: list[float]) -> str:
    late = sorted(late) or [0.0]
    at = lambda share: late[min(len(late) - 1, int(share * len(late)))] * 1e3  # noqa: E731
    return f"p50 {at(0.5):.2f} ms, p99 {at(0.99):.2f} ms, worst {late[-1] * 1e3:.2f} ms, {len(late)} answers"


class Bench:
    """A router with one huge worker and a small one, and picks that are due at fixed times."""

    def __init__(self, context: zmq.Context, address: EventAddress) -> None:
        self.router = Router(make_index(65_536), RoutingConfig())
        config = EventsConfig()
        sources = zmq_event_sources(context, config)
        self.following = Following(self.router, sources, config, time.monotonic, time.time)
        self.worker = Worker(id=WorkerId(0), endpoint=Endpoint("engine", 1), rank=0, models=())
        self.following.worker_added(self.worker, address)
        self.stream = self.following.streams[self.worker.id]
        luck = random.Random(2)
        self.prompt = [luck.randrange(150_000) for _ in range(PROMPT_TOKENS)]

    async def until_live(self) -> list[float]:
        """Match a prompt at fixed times until the worker is LIVE; how late each answer was."""
        late: list[float] = []
        due = time.perf_counter()
        while True:
            due += PICK_EVERY_S
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self.router.index.match(prefixes(self.prompt), BLOCK_SIZE)
            late.append(time.perf_counter() - due)
            due = max(due, time.perf_counter() - PICK_EVERY_S)
            if self.stream.trust.state is TrustState.LIVE:
                return late

    async def run(self, seconds: float) -> None:
        sweeping = asyncio.create_task(sweep_forever(self.router.index))
        began = time.perf_counter()
        late = await self.until_live()
        took = time.perf_counter() - began
        held = self.router.index.worker_sizes(self.worker.id).blocks
        print(f"first replay: {held:,} blocks in {took:.1f} s ({held / took:,.0f} blocks/s): {quantiles(late)}")
        idle: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            idle += await self.until_live()
        print(f"nothing happens: {quantiles(idle)}")
        began = time.perf_counter()
        self.stream.restarted()
        print(f"the purge: {(time.perf_counter() - began) * 1e3:.1f} ms")
        began = time.perf_counter()
        late = await self.until_live()
        print(f"resync: {time.perf_counter() - began:.1f} s: {quantiles(late)}")
        self.following.close()
        sweeping.cancel()


def prefixes(prompt: list[int]) -> list[int]:
    from warmroute.core.hashing import prefix_hashes  # noqa: PLC0415

    return prefix_hashes(prompt, BLOCK_SIZE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--blocks", type=int, default=100, help="in each batch")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long nothing happens")
    parser.add_argument("--port", type=int, default=39557)
    arguments = parser.parse_args()
    logging.disable()
    ports = arguments.port, arguments.port + 1
    process = multiprocessing.Process(target=engine, args=(*ports, arguments.batches, arguments.blocks), daemon=True)
    process.start()

    async def bench(context: zmq.Context) -> None:
        address = EventAddress(f"tcp://127.0.0.1:{ports[0]}", f"tcp://127.0.0.1:{ports[1]}")
        await Bench(context, address).run(arguments.seconds)

    with zmq.Context() as context:
        uvloop.run(bench(context))
    process.terminate()
    process.join()


if __name__ == "__main__":
    main()
