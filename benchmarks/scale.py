"""A thousand engines that publish at once into one gateway: how long it takes to know them, and what following costs.

    python benchmarks/scale.py [--workers 1000] [--seconds 10] [--batches-per-s 5] [--events 16] [--out FILE.json]

Engines live in two other processes, each with a PUB and a ROUTER socket of its own and a history that a gateway that
starts must replay. This process is the event plane as `warmroute serve` has it: one loop, sockets, streams, index.
Printed: until all are LIVE and how many replays went on at once meanwhile; then, while all publish: events and blocks
applied, CPU, how old events are when they are applied, how late a query every 5 ms is, memory and descriptors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop
import zmq
from machine import machine

from warmroute.config.tree import EventsConfig, RoutingConfig
from warmroute.core.hashing import prefix_hash_array
from warmroute.core.index import make_index
from warmroute.core.router import Router
from warmroute.core.wire.events import BlockStored
from warmroute.edge.zmq import zmq_event_sources
from warmroute.service.following import Following
from warmroute.service.ports import EventAddress
from warmroute.testing.events import encode_batch, replay_end, replay_frames
from warmroute.types import Endpoint, TrustState, Worker, WorkerId

BLOCK_SIZE = 16
HISTORY_BATCHES = 50
"""What every engine has published before the gateway starts."""
PROCESSES = 2
TS_AT = 2
"""Where the time stands in a payload: behind the array's head and the number's own."""
LIVE_DEADLINE_S = 120.0


def make_payloads(events: int, batches: int, seed: int) -> list[bytearray]:
    """Batches of `events` events of one block each; every batch begins a prompt of its own."""
    luck, payloads = random.Random(seed), []
    for _ in range(batches):
        stored, parent = [], None
        for _ in range(events):
            block, tokens = luck.getrandbits(63), tuple(luck.randrange(150_000) for _ in range(BLOCK_SIZE))
            stored.append(BlockStored(block_hashes=(block,), parent=parent, token_ids=tokens, block_size=BLOCK_SIZE))
            parent = block
        payloads.append(bytearray(encode_batch(stored, ts=time.time())))
    return payloads


def engines(count: int, seed: int, events: int, control: multiprocessing.connection.Connection) -> None:
    """Tell where these engines are; answer replays, and publish at the rate that comes until none does."""
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4 * count + 16)
    poller, pubs, routers = zmq.Poller(), [], {}
    payloads, places = make_payloads(events, 400, seed), []
    for number in range(count):
        pub, router = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
        pub.set_hwm(100_000)
        router.set_hwm(0)
        places.append((pub.bind_to_random_port("tcp://127.0.0.1"), router.bind_to_random_port("tcp://127.0.0.1")))
        pubs.append(pub)
        routers[router] = number
        poller.register(router, zmq.POLLIN)
    published = [HISTORY_BATCHES] * len(pubs)
    pause, due, at = 0.0, 0.0, 0
    control.send(places)
    while True:
        for router, _ in poller.poll(0 if pause else 20):
            answer(router, published[routers[router]], payloads)
        if control.poll():
            rate = control.recv()
            if rate is None:
                break
            pause, due = 1.0 / (rate * len(pubs)), time.perf_counter()
        while pause and due <= time.perf_counter():
            seq = published[at]
            payload = payloads[seq % len(payloads)]
            struct.pack_into(">d", payload, TS_AT, time.time())
            pubs[at].send_multipart([b"", seq.to_bytes(8, "big"), payload])
            published[at] += 1
            at, due = (at + 1) % len(pubs), due + pause
    context.destroy(linger=0)


def answer(router: Any, published: int, payloads: list[bytearray]) -> None:
    identity, _, start = router.recv_multipart()
    for seq in range(int.from_bytes(start, "big"), published):
        router.send_multipart([identity, *replay_frames(seq, bytes(payloads[seq % len(payloads)]))])
    router.send_multipart([identity, *replay_end()])


def quantile(values: list[float], share: float) -> float:
    values = sorted(values) or [0.0]
    return values[min(len(values) - 1, int(share * len(values)))]


def rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def until(true: Callable[[], bool], each: Callable[[], None]) -> float:
    """Seconds until it is true."""
    started = time.perf_counter()
    while not true():
        if time.perf_counter() - started > LIVE_DEADLINE_S:
            raise SystemExit("not all engines became LIVE")
        each()
        await asyncio.sleep(0.01)
    return time.perf_counter() - started


async def follow(
    ports: list[tuple[int, int]], chosen: argparse.Namespace, tell: Callable[[float], None]
) -> dict[str, Any]:
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4 * len(ports) + 16)
    config = EventsConfig()
    index = make_index(config.orphan_blocks_max)
    router = Router(index, RoutingConfig())
    trust: dict[WorkerId, TrustState] = {}
    following = Following(router, zmq_event_sources(context, config), config, time.monotonic, time.time)
    following.set_trust = lambda worker, news: trust.__setitem__(worker, news.state)
    before_mb, cpu = rss_mb(), time.process_time()
    for number, (port, replay_port) in enumerate(ports):
        worker = Worker(id=WorkerId(number), endpoint=Endpoint("127.0.0.1", port))
        address = EventAddress(f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{replay_port}")
        following.worker_added(worker, address)
    most = 0

    def look() -> None:
        nonlocal most
        most = max(most, descriptors())

    all_live = lambda: len(trust) == len(ports) and all(t is TrustState.LIVE for t in trust.values())  # noqa: E731
    found: dict[str, Any] = {"live_s": await until(all_live, look), "live_cpu_s": time.process_time() - cpu}
    found |= {"descriptors": descriptors(), "descriptors_most": most, "replayed_blocks": index.sizes().copies}
    tell(chosen.batches_per_s)
    await asyncio.sleep(2.0)
    counts = [stream.counts for stream in following.streams.values()]
    events, cpu, started = sum(c.events for c in counts), time.process_time(), time.perf_counter()
    query = prefix_hash_array(list(range(4096)), BLOCK_SIZE)
    late, lags, due = [], [], started
    while time.perf_counter() - started < chosen.seconds:
        due += 0.005
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        index.match_columns(query, BLOCK_SIZE)
        late.append(time.perf_counter() - due)
        lags.append(counts[len(late) % len(counts)].lag_s or 0.0)
    took = time.perf_counter() - started
    applied = sum(c.events for c in counts) - events
    found |= {
        "events_per_s": applied / took,
        "events_per_cpu_s": applied / (time.process_time() - cpu),
        "cpu_share": (time.process_time() - cpu) / took,
        "lag_p50_ms": quantile(lags, 0.5) * 1e3,
        "lag_p99_ms": quantile(lags, 0.99) * 1e3,
        "query_late_p50_ms": quantile(late, 0.5) * 1e3,
        "query_late_p99_ms": quantile(late, 0.99) * 1e3,
        "rss_mb": rss_mb(),
        "rss_mb_before": before_mb,
        "index_blocks": index.sizes().copies,
        "not_live_at_end": sum(t is not TrustState.LIVE for t in trust.values()),
    }
    for worker in list(following.streams):
        following.worker_removed(worker)
    context.destroy(linger=0)
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--workers", type=int, default=1000)
    options.add_argument("--seconds", type=float, default=10.0)
    options.add_argument("--batches-per-s", type=float, default=5.0, help="of each engine")
    options.add_argument("--events", type=int, default=16, help="in a batch, of one block each")
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scale.json")
    chosen = options.parse_args()
    logging.disable()
    about = machine()
    processes, controls = [], []
    for part in range(PROCESSES):
        ours, theirs = multiprocessing.Pipe()
        arguments = (len(range(part, chosen.workers, PROCESSES)), part, chosen.events, theirs)
        processes.append(multiprocessing.Process(target=engines, args=arguments, daemon=True))
        controls.append(ours)
    for process in processes:
        process.start()
    ports = [place for control in controls for place in control.recv()]

    def tell(rate: float | None) -> None:
        for control in controls:
            control.send(rate)

    try:
        found = uvloop.run(follow(ports, chosen, tell))
    finally:
        tell(None)
        for process in processes:
            process.join(10)
    for name, value in found.items():
        print(f"{name:24}{value:>14,.2f}")
    settings = {name: value for name, value in vars(chosen).items() if name != "out"}
    result = {"machine": about, "settings": settings, "found": found}
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
