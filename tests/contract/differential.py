"""Two indexes are told the same random things; they must say the same.

Worlds differ in what engines are like: a few hashes that contradict each other all the time, honest chains that many
workers share, salted hashes, hybrid groups, limits. A world is small and short, so that all of it is asked often.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import msgspec

from warmroute.core.hashing import prefix_hashes
from warmroute.core.index.contract import DumpEntry, PrefixIndex
from warmroute.core.index.native import NativeIndex
from warmroute.core.index.reference import ReferenceIndex
from warmroute.core.wire.events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from warmroute.types import BlockHash, Medium, PrefixHash, WorkerId

WORLD_OPERATIONS = 400
SIZE = 2
ODD_HASHES: tuple[BlockHash, ...] = (
    0, 1, 2, -1, -(2**63), 2**63, 2**64 - 1, 2**64 - 2**32, 2**64 - 2**32 - 1, 2**64, 2**300,
    b"", b"\x01", bytes(8), bytes(32),
)  # fmt: skip


class World(msgspec.Struct, frozen=True):
    """What the engines of one run are like."""

    workers: int
    labels: int
    """How many different blocks there are: few make branches and collisions."""
    chain_blocks_max: int
    honest: bool
    """A hash is one content for ever; else anything may be called anything."""
    salted: bool
    """Each worker has its own hashes."""
    hashes: int
    groups: int
    windows: bool
    media: int
    orphan_blocks_max: int
    blocks_max: int | None
    worker_blocks_max: int | None

    @property
    def limits(self) -> tuple[int, int | None, int | None]:
        """What an index is made with."""
        return self.orphan_blocks_max, self.blocks_max, self.worker_blocks_max


def make_world(rng: random.Random) -> World:
    """A random one; every kind comes often."""
    honest = rng.random() < 0.6
    return World(
        workers=rng.choice([1, 2, 3, 12]),
        labels=rng.choice([1, 2, 3]),
        chain_blocks_max=rng.choice([4, 10, 80, 200]) if honest else rng.choice([3, 6]),
        honest=honest,
        salted=rng.random() < 0.3,
        hashes=rng.choice([3, 6, 40]),
        groups=rng.choice([1, 1, 1, 2, 3]),
        windows=rng.random() < 0.3,
        media=rng.choice([1, 1, 2, 3]),
        orphan_blocks_max=rng.choice([0, 2, 20, 1000]),
        blocks_max=rng.choice([None, None, 0, 5, 30, 300]),
        worker_blocks_max=rng.choice([None, None, None, 0, 5, 30, 200]),
    )


class Speaker:
    """Makes up what engines say and what prompts ask."""

    def __init__(self, rng: random.Random, world: World) -> None:
        self.rng = rng
        self.world = world
        self.said: list[tuple[WorkerId, BlockHash]] = []

    def worker(self) -> WorkerId:
        return WorkerId(self.rng.randrange(self.world.workers) * 7919)

    def label(self) -> int:
        return int(self.rng.random() ** 2 * self.world.labels)

    def path(self, length_max: int) -> tuple[int, ...]:
        return tuple(self.label() for _ in range(self.rng.randint(1, length_max)))

    def hash_of(self, worker: WorkerId, path: tuple[int, ...]) -> BlockHash:
        if self.world.honest:
            return hash((worker if self.world.salted else 0, path)) & (2**64 - 1 if sum(path) % 5 else 2**66 - 1)
        n = self.rng.randrange(self.world.hashes)
        return ODD_HASHES[n] if n < len(ODD_HASHES) else n

    def place(self) -> tuple[int, Medium]:
        return self.rng.randrange(self.world.groups), Medium(self.rng.randrange(self.world.media))

    def window(self, group: int) -> int | None:
        return (
            self.rng.choice([1, 2, 3, 4, 9]) if self.world.windows and group == 0 and self.rng.random() < 0.9 else None
        )

    def stored(self, worker: WorkerId) -> BlockStored:
        path = self.path(self.world.chain_blocks_max)
        start = self.rng.choice([0, 0, 0, self.rng.randrange(len(path)), len(path) - 1])
        hashes = tuple(self.hash_of(worker, path[: i + 1]) for i in range(start, len(path)))
        parent = (
            self.hash_of(worker, path[:start]) if start or (not self.world.honest and self.rng.random() < 0.5) else None
        )
        self.said += [(worker, block_hash) for block_hash in hashes]
        group, medium = self.place()
        size = SIZE if self.rng.random() < 0.97 else self.rng.choice([1, 3, 4])
        kind = self.rng.random()
        tokens = tuple(label + 1 for label in path[start:] for _ in range(size))
        return BlockStored(
            block_hashes=hashes,
            parent=parent,
            token_ids=() if kind < 0.08 else tokens[:-1] if kind < 0.1 else tokens,
            block_size=size if kind < 0.99 else 0,
            medium=medium,
            group=group,
            by_hash=0.1 < kind < 0.15,
            sliding_window=self.window(group),
            lora="x" if self.rng.random() < 0.02 else None,
            extra_keys=tuple(("s",) if i == 0 else () for i in range(len(hashes))) if self.rng.random() < 0.02 else (),
        )

    def removed(self, worker: WorkerId) -> BlockRemoved:
        group, medium = self.place()
        own = [block_hash for of, block_hash in self.said[-60:] if of == worker]
        gone = self.rng.choices(own, k=self.rng.randint(1, 4)) if own else [self.hash_of(worker, self.path(3))]
        if own and self.rng.random() < 0.3:  # a chain's end
            gone = own[: -self.rng.randint(1, 20) : -1]
        return BlockRemoved(block_hashes=tuple(gone), group=group, medium=medium)

    def events(self, worker: WorkerId) -> list[Event]:
        kind = self.rng.random()
        if kind < 0.02:
            return [AllBlocksCleared()]
        return [
            self.stored(worker) if self.rng.random() < 0.55 else self.removed(worker)
            for _ in range(1 if kind < 0.8 else 3)
        ]

    def prompt(self) -> list[PrefixHash]:
        path = self.path(self.world.chain_blocks_max)
        salt = "s" if self.rng.random() < 0.05 else None
        return prefix_hashes([label + 1 for label in path for _ in range(SIZE)], SIZE, cache_salt=salt)


def answers(index: PrefixIndex, prompts: Sequence[Sequence[PrefixHash]], workers: int) -> object:
    """All that can be asked, in an order that does not depend on the implementation; prompts before a sweep."""
    ids = [WorkerId(n * 7919) for n in range(workers)]
    matches = [
        [sorted(index.match(prompt, size), key=lambda o: o.worker) for size in (SIZE, 1, 4)] for prompt in prompts
    ]
    depths = [[index.depth(worker, prompt, size) for worker in ids[:3] for size in (SIZE, 4)] for prompt in prompts]
    while index.sweep(100):  # what is not swept counts in sizes
        index.check()
    sizes = index.sizes()
    return (
        matches,
        depths,
        index.block_sizes(),
        [(index.prefix_sizes(worker), index.worker_sizes(worker)) for worker in ids],
        (sizes.workers, sizes.nodes, sizes.copies, sizes.orphans, sizes.unresolved),
    )


def entries(index: PrefixIndex) -> tuple[object, object]:
    """A dump as a set, and what the groups are like."""
    dump = list(index.dump())
    return (
        {(e.worker, e.block_hash, e.prefix, e.parent, e.block_size, e.copies) for e in dump},
        {(e.worker, e.groups) for e in dump if e.groups},
    )


class Pair:
    """The two indexes of one world."""

    def __init__(self, rng: random.Random, world: World) -> None:
        self.rng = rng
        self.world = world
        self.speaker = Speaker(rng, world)
        self.reference: PrefixIndex = ReferenceIndex(*world.limits)
        self.native: PrefixIndex = NativeIndex(*world.limits)

    def step(self, counts: Counter[str]) -> None:
        worker = self.speaker.worker()
        kind = self.rng.random()
        if kind < 0.05:
            counts["unswept"] += self.native.sweep(self.rng.randrange(8))
        elif kind < 0.055:
            counts["drops"] += 1
            self.reference.drop(worker)
            self.native.drop(worker)
        elif kind < 0.058:
            counts["restores"] += 1
            self.restore()
        else:
            self.say(worker, counts)

    def say(self, worker: WorkerId, counts: Counter[str]) -> None:
        events = self.speaker.events(worker)
        expected, found = self.reference.apply(worker, events), self.native.apply(worker, events)
        assert found == expected, f"{events}: {found} instead of {expected}"
        counts["conflicts"] += found.conflicts
        counts["adopted"] += found.adopted
        counts["evicted"] += found.evicted
        counts["outgrown"] += found.outgrown
        counts["stored"] += found.stored

    def restore(self) -> None:
        dump: list[DumpEntry] = list(self.reference.dump())
        how = self.rng.random()
        if how < 0.3:
            dump.reverse()
        elif how < 0.6:
            dump = self.rng.sample(dump, self.rng.randint(0, len(dump)))
        if self.rng.random() < 0.5:
            self.reference = ReferenceIndex(*self.world.limits)
            self.native = NativeIndex(*self.world.limits)
        self.reference.restore(dump)
        self.native.restore(dump)
        self.compare()

    def compare(self) -> None:
        prompts = [self.speaker.prompt() for _ in range(5)]
        self.native.check()  # what is not swept too
        expected, found = (answers(index, prompts, self.world.workers) for index in (self.reference, self.native))
        assert found == expected, f"{found} instead of {expected}"
        self.native.check()
        assert entries(self.native) == entries(self.reference)


def run(seed: int, operations: int, check_every: int) -> Counter[str]:
    """Raises AssertionError at the first difference, naming the seed of its world."""
    seeds = random.Random(seed)
    counts = Counter[str]()
    for start in range(0, operations, WORLD_OPERATIONS):
        world_seed = seeds.getrandbits(64)
        rng = random.Random(world_seed)
        world = make_world(rng)
        pair = Pair(rng, world)
        for step in range(start, min(start + WORLD_OPERATIONS, operations)):
            try:
                pair.step(counts)
                if step % check_every == 0:
                    pair.compare()
            except Exception as error:
                raise AssertionError(f"world seed {world_seed}, step {step - start} of {world}: {error}") from error
        pair.compare()
        counts["worlds"] += 1
    return counts
