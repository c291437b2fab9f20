"""How long `Router.pick` takes: a 512-block prompt with its token ids given, 8 to 1,000 workers, the native index.

    .venv/bin/python benchmarks/pick.py [--clock cpu] [--policy round_robin] [--blocks 0]

Every fourth worker holds a part of the prompts' common beginning, four requests are in flight on each, each pick is
answered as in production. What is timed is the decision, and letting go of what is not kept of it. Targets: 50 us for 8
workers (median), 500 us for 1,000 (99th percentile). `cpu` counts this thread alone, whoever else uses the machine;
with `--blocks 0` no token ids are known.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from array import array
from collections import deque
from collections.abc import Callable

from warmroute.app.serving import GC_THRESHOLDS
from warmroute.config.tree import RoutingConfig
from warmroute.core.decision import Decision, PickRequest
from warmroute.core.index import make_index
from warmroute.core.router import Router
from warmroute.core.wire.events import BlockStored
from warmroute.types import Endpoint, Fleet, ModelInfo, Trust, TrustState, Worker, WorkerId

BLOCK, BLOCKS, MODEL = 16, 512, "m"
KEPT = 32
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}


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


def measure(workers: int, policy: str, picks: int, clock: Callable[[], float], known: bool = True) -> list[float]:
    dice = random.Random(workers)
    router, fleet, prompts = stage(workers, policy, dice)
    running: deque[tuple[Decision, array[int]]] = deque()
    times, now = [], 0.0
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)  # as the gateway has it
    for n in range(4 * workers + picks):
        now += 0.01 / workers
        prompt = prompts[n % 64]
        request = PickRequest(model=MODEL, token_ids=prompt if known else None, prompt_bytes=4 * len(prompt))
        start = clock()
        decision = router.pick(request, fleet, now)
        decision.settle(KEPT)
        times.append(clock() - start)
        running.append((decision, prompt))
        if len(running) > 4 * workers:
            oldest, prompt = running.popleft()
            worker = oldest.worker.id
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
            router.release(oldest, now, served=True)
    return sorted(times[4 * workers :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picks", type=int, default=3000)
    parser.add_argument("--policy", default="warmroute")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--blocks", type=int, choices=(0, BLOCKS), default=BLOCKS)
    arguments = parser.parse_args()
    print(f"{'workers':>8} {'p50 us':>8} {'p99 us':>8}")
    for workers in (1, 8, 64, 256, 1000):
        times = measure(
            workers, arguments.policy, arguments.picks, CLOCKS[arguments.clock], known=bool(arguments.blocks)
        )
        print(f"{workers:>8} {statistics.median(times) * 1e6:>8.1f} {times[int(len(times) * 0.99)] * 1e6:>8.1f}")


if __name__ == "__main__":
    main()
