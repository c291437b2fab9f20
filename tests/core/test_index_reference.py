"""What only the reference index can be asked: that its `check()` sees each kind of damage."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from warmroute.core.index.reference import ReferenceIndex
from warmroute.core.index.reference_view import Place, Totals, View
from warmroute.core.wire.events import BlockRemoved, BlockStored
from warmroute.errors import IndexCorruptionError
from warmroute.types import Medium, PrefixHash, WorkerId

W = WorkerId(1)
GPU = Place(0, Medium.GPU)


def stored(parent: int | None, *hashes: int) -> BlockStored:
    tokens = tuple(token for block_hash in hashes for token in [block_hash] * 4)
    return BlockStored(block_hashes=hashes, parent=parent, token_ids=tokens, block_size=4)


@pytest.fixture
def index() -> ReferenceIndex:
    """One block held, one that is only its meaning, one orphan, one unresolved."""
    index = ReferenceIndex(10, 10)
    unresolved = BlockStored(block_hashes=(4,), parent=None, token_ids=(), block_size=4)
    index.apply(W, [stored(None, 1, 2), BlockRemoved(block_hashes=(1,)), stored(9, 3), unresolved])
    index.check()
    return index


def _lose(record: int) -> Callable[[View, Totals], object]:
    return lambda view, totals: view.records.pop(record)


@pytest.mark.parametrize(
    "damage",
    [
        _lose(1),
        _lose(2),
        _lose(3),
        _lose(4),
        lambda view, totals: view.records[2].copies.update({Place(1, Medium.CPU): 0}),
        lambda view, totals: view.records[2].copies.update({GPU: 1}),
        lambda view, totals: view.records[3].copies.update({GPU: 1}),
        lambda view, totals: view.contents.clear(),
        lambda view, totals: view.named.clear(),
        lambda view, totals: view.waiting.clear(),
        lambda view, totals: view.waiting.update({2: {}}),
        lambda view, totals: view.parked.clear(),
        lambda view, totals: totals.leaves.clear(),
        lambda view, totals: totals.nodes.update({PrefixHash(1): 1}),
        lambda view, totals: setattr(totals, "copies", 2),
        lambda view, totals: setattr(view, "copies", 0),
        lambda view, totals: setattr(view, "copies_parked", 0),
    ],
)
def test_check_sees_damage(index: ReferenceIndex, damage: Callable[[View, Totals], object]) -> None:
    damage(index._views[W], index._totals)
    with pytest.raises(IndexCorruptionError, match=r".+"):
        index.check()


def test_check_sees_limits_that_do_not_hold(index: ReferenceIndex) -> None:
    index._blocks_max = 0
    index._orphan_blocks_max = 1
    with pytest.raises(IndexCorruptionError, match="more parked copies than allowed; more copies than allowed"):
        index.check()
