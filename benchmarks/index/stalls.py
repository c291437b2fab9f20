"""The longest call of the index, of each kind, while a worker with a million blocks comes and goes.

    python benchmarks/index/stalls.py [--blocks 1000000] [--limited]

An index belongs to an event loop: while it is in a call, nothing else happens. Times are CPU times of this thread, so
that what else the machine does is left out. Events have 100 blocks. The shapes are what makes an index's tables differ:

- chains of 100 blocks, as prompts are
- the same where another worker calls all of it by other hashes
- prompts of one block each
- the first again, with hashes that are bytes

A clear or drop is followed by sweeps of `SWEEP_BLOCKS`, as the gateway does, until all is free.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from warmroute.core.hashing import prefix_hashes
from warmroute.core.index import make_index
from warmroute.core.index.contract import ApplyReport, PrefixIndex
from warmroute.core.wire.events import BlockRemoved, BlockStored
from warmroute.service.sweeping import SWEEP_BLOCKS
from warmroute.types import BlockHash, WorkerId

BLOCK_SIZE = 16
EVENT_BLOCKS = 100
LONG_NS = 2_000_000
Returned = TypeVar("Returned")


class Longest:
    """How long the longest call of each kind took."""

    def __init__(self) -> None:
        self.ns: dict[str, int] = {}
        self.count: dict[str, int] = {}
        self.over: dict[str, int] = {}

    def time(self, kind: str, call: Callable[..., Returned], *arguments: object) -> Returned:
        start = time.thread_time_ns()
        result = call(*arguments)
        took = time.thread_time_ns() - start
        self.ns[kind] = max(self.ns.get(kind, 0), took)
        self.count[kind] = self.count.get(kind, 0) + 1
        self.over[kind] = self.over.get(kind, 0) + (took > LONG_NS)
        return result

    def __str__(self) -> str:
        return ", ".join(
            f"{kind} {ns / 1e6:.2f} ms ({self.over[kind]} of {self.count[kind]:,} over {LONG_NS // 10**6} ms)"
            for kind, ns in self.ns.items()
        )


def stores(blocks: int, chain_blocks: int, *, seed: int, as_bytes: bool) -> Iterator[BlockStored]:
    """Chains of `chain_blocks`, the same contents in every call; what the engine calls them depends on `seed`."""
    contents, names = random.Random(0), random.Random(seed)
    for _ in range(blocks // chain_blocks):
        numbers = [names.getrandbits(63) for _ in range(chain_blocks)]
        hashes: list[BlockHash] = [n.to_bytes(32) for n in numbers] if as_bytes else list(numbers)
        first, others = contents.randrange(2**30), [1] * (BLOCK_SIZE * min(chain_blocks, EVENT_BLOCKS) - 1)
        yield BlockStored(block_hashes=tuple(hashes), parent=None, token_ids=(first, *others), block_size=BLOCK_SIZE)


def free(index: PrefixIndex, longest: Longest) -> None:
    while longest.time("sweep", index.sweep, SWEEP_BLOCKS):
        pass


def measure(index: PrefixIndex, worker: WorkerId, events: list[BlockStored], longest: Longest) -> None:
    """The worker comes, is cleared, comes again, loses all of its blocks, comes again and is dropped."""
    report = ApplyReport()
    for turn in range(3):
        for at, event in enumerate(events):
            longest.time("store", index.store, worker, event, report)
            if at % 64 == 0:
                prompt = prefix_hashes(events[at // 2].token_ids, BLOCK_SIZE)
                longest.time("match", index.match, prompt, BLOCK_SIZE)
        if turn == 0:
            longest.time("sizes", index.sizes)
            longest.time("clear", index.clear, worker, report)
            free(index, longest)
        elif turn == 1:
            hashes = [block_hash for event in events for block_hash in event.block_hashes]
            for at in range(0, len(hashes), EVENT_BLOCKS):
                removed = BlockRemoved(block_hashes=tuple(hashes[at : at + EVENT_BLOCKS]))
                longest.time("remove", index.remove, worker, removed, report)
    longest.time("drop", index.drop, worker)
    free(index, longest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--limited", action="store_true", help="with a limit per worker that is never reached")
    arguments = parser.parse_args()
    shapes = {
        "chains of 100": (100, False, False),
        "by other hashes than another's": (100, True, False),
        "one block each": (1, False, False),
        "hashes that are bytes": (100, False, True),
    }
    gc.disable()
    for shape, (chain_blocks, other, as_bytes) in shapes.items():
        index = make_index(65_536, None, 10**9 if arguments.limited else None)
        if other:
            for event in stores(arguments.blocks, chain_blocks, seed=2, as_bytes=as_bytes):
                index.store(WorkerId(2), event, ApplyReport())
        longest = Longest()
        events = list(stores(arguments.blocks, chain_blocks, seed=1, as_bytes=as_bytes))
        measure(index, WorkerId(1), events, longest)
        print(f"{shape}: {longest}", flush=True)


if __name__ == "__main__":
    main()
