"""Words for the index's tests: engines that announce blocks written as `(hash, label)`.

A label stands for a block's content: equal labels are equal token ids. `find` takes labels and gives worker -> depth.
"""

from __future__ import annotations

from collections.abc import Sequence

from warmroute.core.hashing import prefix_hashes
from warmroute.core.index.contract import ApplyReport, IndexSizes, Overlap, PrefixIndex
from warmroute.core.wire.events import AllBlocksCleared, BlockRemoved, BlockStored, ExtraKeys
from warmroute.types import BlockHash, Medium, WorkerId

BLOCK_SIZE = 16
W1, W2, W3 = WorkerId(1), WorkerId(2), WorkerId(3)
Block = tuple[BlockHash, int]


def tokens_of(labels: Sequence[int], size: int = BLOCK_SIZE) -> tuple[int, ...]:
    """The token ids of these blocks in order."""
    return tuple(1000 * label + i for label in labels for i in range(size))


def stored(
    parent: BlockHash | None,
    *blocks: Block,
    size: int = BLOCK_SIZE,
    medium: Medium = Medium.GPU,
    group: int = 0,
    lora: str | None = None,
    extra_keys: tuple[ExtraKeys, ...] = (),
    window: int | None = None,
) -> BlockStored:
    """A chain of blocks with their token ids."""
    return BlockStored(
        block_hashes=tuple(block_hash for block_hash, _ in blocks),
        parent=parent,
        token_ids=tokens_of([label for _, label in blocks], size),
        block_size=size,
        medium=medium,
        group=group,
        lora=lora,
        extra_keys=extra_keys,
        sliding_window=window,
    )


def stored_by_hash(
    *hashes: BlockHash, medium: Medium = Medium.GPU, group: int = 0, window: int | None = None
) -> BlockStored:
    """Blocks of which only the hashes say what they are: a sliding group that keeps a part of its range."""
    return BlockStored(
        block_hashes=hashes,
        parent=None,
        token_ids=tokens_of(range(len(hashes) + 1)),
        block_size=BLOCK_SIZE,
        medium=medium,
        group=group,
        by_hash=True,
        sliding_window=window,
    )


def placeholder(*hashes: BlockHash, medium: Medium = Medium.CPU, group: int = 0) -> BlockStored:
    """What an offload tier announces without token ids."""
    return BlockStored(
        block_hashes=hashes, parent=None, token_ids=(), block_size=BLOCK_SIZE, medium=medium, group=group
    )


def removed(*hashes: BlockHash, medium: Medium = Medium.GPU, group: int = 0) -> BlockRemoved:
    """One copy less of each."""
    return BlockRemoved(block_hashes=hashes, medium=medium, group=group)


class Engines:
    """Engines that publish into one index, which is checked after everything they say."""

    def __init__(self, index: PrefixIndex) -> None:
        self.index = index

    def say(self, worker: WorkerId, *events: BlockStored | BlockRemoved | AllBlocksCleared) -> ApplyReport:
        report = self.index.apply(worker, events)
        self.index.check()
        return report

    def store(self, worker: WorkerId, parent: BlockHash | None, *blocks: Block) -> ApplyReport:
        return self.say(worker, stored(parent, *blocks))

    def remove(self, worker: WorkerId, *hashes: BlockHash) -> ApplyReport:
        return self.say(worker, removed(*hashes))

    def clear(self, worker: WorkerId) -> ApplyReport:
        return self.say(worker, AllBlocksCleared())

    def swept(self) -> IndexSizes:
        """What there is when all that was cleared and dropped is freed."""
        while self.index.sweep(1):
            self.index.check()
        return self.index.sizes()

    def match(
        self, labels: Sequence[int], size: int = BLOCK_SIZE, *, lora: str | None = None, salt: str | None = None
    ) -> list[Overlap]:
        prefixes = prefix_hashes(tokens_of(labels, size), size, lora=lora, cache_salt=salt)
        found = self.index.match(prefixes, size)
        blocks = {overlap.worker: overlap.blocks for overlap in found}
        for worker in {*range(4), *blocks}:
            assert self.index.depth(WorkerId(worker), prefixes, size) == blocks.get(WorkerId(worker), 0)
        return found

    def find(
        self, labels: Sequence[int], size: int = BLOCK_SIZE, *, lora: str | None = None, salt: str | None = None
    ) -> dict[WorkerId, int]:
        return {overlap.worker: overlap.blocks for overlap in self.match(labels, size, lora=lora, salt=salt)}
