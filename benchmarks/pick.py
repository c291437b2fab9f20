"""How long `Router.pick` takes: a 512-block prompt with its token ids given, 8 to 1,000 workers, the native index.

    .venv/bin/python benchmarks/pick.py

Every fourth worker holds a part of the prompts' common beginning, requests are in flight everywhere, each pick is
answered as in production. Targets: 50 us for 8 workers (median), 500 us for 1,000 (99th percentile).
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from array import array
from collections import deque

from warmroute.app.serving import GC_THRESHOLDS
from warmroute.config.tree import RoutingConfig
from warmroute.core.decision import Decision, PickRequest
from warmroute.core.index import make_index
from warmroute.core.router import Router
from warmroute.core.wire.events import BlockStored
from warmroute.types import Endpoint, Fleet, ModelInfo, Trust, TrustState, Worker, WorkerId

BLOCK, BLOCKS, MODEL = 16, 512, "m"


def stage(workers: int, policy: str, dice: random.Random) -> tuple[Router, Fleet, list[array[int]]]:
    router = Router(make_index(100_000), RoutingConfig(policy=policy))
    live = Trust(TrustState.LIVE, "bench", 0.0)
    fleet = Fleet(
        [
            Worker(id=WorkerId(n), endpoint=Endpoint("10.0.0.1", n + 1), models=(ModelInfo(MODEL),), trust=live)
            for n in range(workers)
        ]
    )
    beginning = [dice.randrange(100_000) for _ in range(BLOCK * BLOCKS // 2)]
    prompts = [array("I", beginning + [dice.randrange(100_000) for _ in range(BLOCK * BLOCKS // 2)]) for _ in range(64)]
    for n in range(0, workers, 4):
        blocks = dice.randrange(1, BLOCKS)
        event = BlockStored(
            block_hashes=tuple(range(n * 1000, n * 1000 + blocks)),
            parent=None,
            token_ids=tuple(prompts[n % 64][: blocks * BLOCK]),
            block_size=BLOCK,
        )
        router.index.apply(WorkerId(n), [event])
    return router, fleet, prompts


def measure(workers: int, policy: str, picks: int) -> list[float]:
    dice = random.Random(workers)
    router, fleet, prompts = stage(workers, policy, dice)
    running: deque[Decision] = deque()
    times, now = [], 0.0
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)  # as the gateway has it
    for n in range(picks + 200):
        now += 0.01 / workers
        request = PickRequest(model=MODEL, token_ids=prompts[n % 64])
        start = time.perf_counter()
        decision = router.pick(request, fleet, now)
        times.append(time.perf_counter() - start)
        running.append(decision)
        if len(running) > 4 * workers:
            oldest = running.popleft()
            worker, prompt = oldest.worker.id, oldest.candidates.token_ids
            if oldest.overlap_blocks < BLOCKS - 1:
                router.index.clear(worker)  # so that the picture does not change in the long run
                event = BlockStored(
                    block_hashes=tuple(range(n * 1000, n * 1000 + BLOCKS)),
                    parent=None,
                    token_ids=prompt,
                    block_size=BLOCK,
                )
                router.index.apply(worker, [event])
            router.prefilled(oldest, now)
            oldest.settle(32)
            router.release(oldest, now, served=True)
    return sorted(times[200:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picks", type=int, default=3000)
    parser.add_argument("--policy", default="warmroute")
    arguments = parser.parse_args()
    print(f"{'workers':>8} {'p50 us':>8} {'p99 us':>8}")
    for workers in (1, 8, 64, 256, 1000):
        times = measure(workers, arguments.policy, arguments.picks)
        print(f"{workers:>8} {statistics.median(times) * 1e6:>8.1f} {times[int(len(times) * 0.99)] * 1e6:>8.1f}")


if __name__ == "__main__":
    main()
