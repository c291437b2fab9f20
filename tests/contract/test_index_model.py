"""The index against models so dumb that they are right: random announcements, compared after every step.

`ExactMachine` lets engines contradict themselves, lose events and use any hash; a model of plain lists says exactly
what the index must hold. `HonestMachine` simulates engines that never contradict themselves and loses some of their
events: reachable <= score <= held, whatever is lost.
"""

from __future__ import annotations

from collections import Counter
from itertools import product

from engines import W1, W2, Engines, placeholder, removed, stored
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from conftest import IMPLEMENTATIONS
from warmroute.core.index.contract import ApplyReport
from warmroute.core.wire.events import AllBlocksCleared
from warmroute.types import BlockHash, Medium, WorkerId

Path = tuple[int, ...]
HASHES: list[BlockHash] = [1, 2, 3, -1, b"\x01"]
LABELS = [1, 2]
DEPTH = 4
QUERIES = list(product(LABELS, repeat=DEPTH))

workers = st.sampled_from([W1, W2])
hashes = st.sampled_from(HASHES)
media = st.sampled_from([Medium.GPU, Medium.CPU])


class Model:
    """One worker: every copy in a list, every meaning spelled out from the root."""

    def __init__(self, parked_max: int) -> None:
        self.parked_max = parked_max
        self.copies: list[tuple[BlockHash, Medium]] = []
        self.meaning: dict[BlockHash, Path] = {}
        self.parent: dict[BlockHash, BlockHash | None] = {}
        self.claims: dict[BlockHash, tuple[BlockHash | None, int]] = {}
        self.parked: list[BlockHash] = []

    def held(self) -> set[BlockHash]:
        return {block_hash for block_hash, _ in self.copies if block_hash in self.meaning}

    def store(self, parent: BlockHash | None, blocks: list[tuple[BlockHash, int]], medium: Medium) -> None:
        for block_hash, label in blocks:
            self.claim(block_hash, parent, label)
            self.add(block_hash, medium)
            parent = block_hash
        self.drop_parked()

    def store_by_hash(self, block_hash: BlockHash, medium: Medium) -> None:
        self.add(block_hash, medium)
        self.drop_parked()

    def claim(self, block_hash: BlockHash, parent: BlockHash | None, label: int) -> None:
        if parent is None or parent in self.meaning:
            self.claims.pop(block_hash, None)
            self.define(block_hash, parent, label)
        elif block_hash not in self.meaning:
            self.claims[block_hash] = (parent, label)

    def define(self, block_hash: BlockHash, parent: BlockHash | None, label: int) -> None:
        self.meaning[block_hash] = (*(() if parent is None else self.meaning[parent]), label)
        self.parent[block_hash] = parent

    def add(self, block_hash: BlockHash, medium: Medium) -> None:
        self.copies.append((block_hash, medium))
        if block_hash not in self.meaning and block_hash not in self.parked:
            self.parked.append(block_hash)
        self.settle()

    def settle(self) -> None:
        """Adopt until nothing changes, then forget what nobody holds or names."""
        while ready := [h for h, (parent, _) in self.claims.items() if parent in self.meaning]:
            self.define(ready[0], *self.claims.pop(ready[0]))
        self.parked = [h for h in self.parked if h not in self.meaning]
        needed = {block_hash for block_hash, _ in self.copies} | {self.parent[h] for h in self.held()}
        self.meaning = {h: path for h, path in self.meaning.items() if h in needed}

    def remove(self, block_hash: BlockHash, medium: Medium) -> bool:
        if (block_hash, medium) not in self.copies:
            return False
        self.copies.remove((block_hash, medium))
        if block_hash in self.parked and not any(h == block_hash for h, _ in self.copies):
            self.give_up(block_hash)
        self.settle()
        return True

    def drop_parked(self) -> None:
        while sum(block_hash in self.parked for block_hash, _ in self.copies) > self.parked_max:
            self.give_up(self.parked[0])

    def give_up(self, block_hash: BlockHash) -> None:
        self.parked.remove(block_hash)
        self.claims.pop(block_hash, None)
        self.copies = [copy for copy in self.copies if copy[0] != block_hash]

    def overlap(self, query: Path) -> tuple[int, int]:
        """Leading blocks in GPU memory and in CPU memory alone."""
        fastest: list[Medium] = []
        for length in range(1, len(query) + 1):
            there = [medium for h, medium in self.copies if self.meaning.get(h) == query[:length]]
            if not there:
                break
            fastest.append(min(there))
        return fastest.count(Medium.GPU), fastest.count(Medium.CPU)


class ExactMachine(RuleBasedStateMachine):
    implementation = "reference"

    @initialize(parked_max=st.sampled_from([0, 2, 5, 100]))
    def start(self, parked_max: int) -> None:
        self.parked_max = parked_max
        self.engines = Engines(IMPLEMENTATIONS[self.implementation](parked_max))
        self.models: dict[WorkerId, Model] = {}
        self.total = Counter[str]()

    def model(self, worker: WorkerId) -> Model:
        return self.models.setdefault(worker, Model(self.parked_max))

    def count(self, report: ApplyReport) -> ApplyReport:
        self.total.update({field: getattr(report, field) for field in report.__struct_fields__})
        return report

    @rule(
        worker=workers,
        parent=st.none() | hashes,
        blocks=st.lists(st.tuples(hashes, st.sampled_from(LABELS)), max_size=3),
        medium=media,
    )
    def store(
        self, worker: WorkerId, parent: BlockHash | None, blocks: list[tuple[BlockHash, int]], medium: Medium
    ) -> None:
        self.count(self.engines.say(worker, stored(parent, *blocks, medium=medium)))
        self.model(worker).store(parent, blocks, medium)

    @rule(worker=workers, block_hash=hashes, medium=media)
    def store_by_hash(self, worker: WorkerId, block_hash: BlockHash, medium: Medium) -> None:
        self.count(self.engines.say(worker, placeholder(block_hash, medium=medium)))
        self.model(worker).store_by_hash(block_hash, medium)

    @rule(worker=workers, gone=st.lists(hashes, max_size=3), medium=media)
    def remove(self, worker: WorkerId, gone: list[BlockHash], medium: Medium) -> None:
        report = self.count(self.engines.say(worker, removed(*gone, medium=medium)))
        done = sum([self.model(worker).remove(block_hash, medium) for block_hash in gone])
        assert (report.removed, report.unknown_removed) == (done, len(gone) - done)

    @rule(worker=workers)
    def clear(self, worker: WorkerId) -> None:
        report = self.count(self.engines.say(worker, AllBlocksCleared()))
        assert report.cleared == len(self.model(worker).copies)
        self.models[worker] = Model(self.parked_max)

    @rule(worker=workers)
    def drop(self, worker: WorkerId) -> None:
        self.total["removed"] += len(self.model(worker).copies)
        self.engines.index.drop(worker)
        self.models.pop(worker)

    @rule(blocks=st.integers(1, 5))
    def sweep(self, blocks: int) -> None:
        self.engines.index.sweep(blocks)
        self.engines.index.check()

    @rule()
    def restore_elsewhere(self) -> None:
        copy = Engines(IMPLEMENTATIONS[self.implementation](self.parked_max))
        copy.index.restore(self.engines.index.dump())
        copy.index.check()
        for query in QUERIES:
            assert sorted(copy.match(query), key=repr) == sorted(self.engines.match(query), key=repr)
        assert copy.index.sizes().nodes == self.engines.swept().nodes

    @rule()
    def restore_in_place(self) -> None:
        self.engines.index.restore(list(self.engines.index.dump())[::-1])  # even the wrong way round
        self.engines.index.check()

    @invariant()
    def agrees(self) -> None:
        for query in QUERIES:
            found = {overlap.worker: overlap for overlap in self.engines.match(query)}
            for worker, model in self.models.items():
                gpu, cpu = model.overlap(query)
                overlap = found.pop(worker, None)
                assert ((overlap.blocks, overlap.by_medium) if overlap else (0, (0, 0, 0))) == (
                    gpu + cpu,
                    (gpu, cpu, 0),
                )
            assert not found

    @invariant()
    def sizes_agree(self) -> None:
        models = self.models.values()
        sizes = self.engines.index.sizes()
        assert sizes.copies == sum(block_hash in m.meaning for m in models for block_hash, _ in m.copies)
        nodes = len({path for m in models for path in m.meaning.values()})
        assert sizes.nodes >= nodes if self.engines.index.sweep(0) else sizes.nodes == nodes
        assert sizes.orphans == sum(block_hash in m.claims for m in models for block_hash, _ in m.copies)
        assert sizes.orphans + sizes.unresolved == sum(h in m.parked for m in models for h, _ in m.copies)
        for worker, model in self.models.items():
            assert self.engines.index.worker_sizes(worker).blocks == len(model.held())

    @invariant()
    def counts_add_up(self) -> None:
        came = sum(self.total[word] for word in ("stored", "orphaned", "unresolved"))
        went = sum(self.total[word] for word in ("removed", "cleared", "orphans_dropped", "evicted", "outgrown"))
        assert came - went == sum(len(model.copies) for model in self.models.values())


class HonestEngine:
    """One engine: a hash is its path. Remembers what it published and what of that got through."""

    def __init__(self) -> None:
        self.cached: Counter[Path] = Counter()
        self.announced: Counter[Path] = Counter()
        self.steady: set[Path] = set()
        """Announced blocks whose ancestors have all been there since they were announced."""

    def stored(self, path: Path) -> None:
        self.announced[path] += 1
        if len(path) == 1 or path[:-1] in self.steady:
            self.steady.add(path)

    def removed(self, path: Path) -> None:
        self.announced[path] = max(0, self.announced[path] - 1)
        if not self.announced[path]:
            self.steady = {other for other in self.steady if other[: len(path)] != path}

    def reachable(self, query: Path) -> int:
        return next((n for n in range(len(query)) if query[: n + 1] not in self.steady), len(query))

    def held(self, query: Path) -> int:
        return next((n for n in range(len(query)) if not self.announced[query[: n + 1]]), len(query))


def name_of(path: Path) -> BlockHash | None:
    return hash(path) if path else None


class HonestMachine(RuleBasedStateMachine):
    implementation = "reference"

    @initialize()
    def start(self) -> None:
        self.engines = Engines(IMPLEMENTATIONS[self.implementation](100))
        self.honest = {W1: HonestEngine(), W2: HonestEngine()}

    @rule(worker=workers, prompt=st.sampled_from(QUERIES), length=st.integers(1, DEPTH), lost=st.booleans())
    def prefill(self, worker: WorkerId, prompt: Path, length: int, lost: bool) -> None:
        """Compute what is not cached, and always the last block again: its copies pile up."""
        engine = self.honest[worker]
        start = next((n for n in range(length - 1) if not engine.cached[prompt[: n + 1]]), length - 1)
        computed = [prompt[: n + 1] for n in range(start, length)]
        engine.cached.update(computed)
        if not lost:
            blocks = [(hash(path), path[-1]) for path in computed]
            self.engines.say(worker, stored(name_of(prompt[:start]), *blocks))
            for path in computed:
                engine.stored(path)

    @rule(worker=workers, data=st.data(), lost=st.booleans())
    def evict(self, worker: WorkerId, data: st.DataObject, lost: bool) -> None:
        """Any block may go, a chain's head before its tail too."""
        engine = self.honest[worker]
        cached = sorted(path for path, copies in engine.cached.items() if copies)
        if not cached:
            return
        path = data.draw(st.sampled_from(cached))
        engine.cached[path] -= 1
        if not lost:
            self.engines.say(worker, removed(hash(path)))
            engine.removed(path)

    @rule(worker=workers)
    def restart(self, worker: WorkerId) -> None:
        self.engines.clear(worker)
        self.honest[worker] = HonestEngine()

    @invariant()
    def bounds(self) -> None:
        for query in QUERIES:
            found = self.engines.find(query)
            for worker, engine in self.honest.items():
                assert engine.reachable(query) <= found.get(worker, 0) <= engine.held(query)


def _cases() -> dict[str, type]:
    cases = {}
    for name in IMPLEMENTATIONS:
        for machine in (ExactMachine, HonestMachine):
            case = type(f"{machine.__name__}_{name}", (machine,), {"implementation": name}).TestCase
            case.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
            cases[f"Test_K11_{machine.__name__}_{name}"] = case
    return cases


globals().update(_cases())
