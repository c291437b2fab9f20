"""Full reports: what is announced again without another copy is told from what is new."""

from __future__ import annotations

from warmroute.core.full_reports import GRACE_S, FullReports, repeats
from warmroute.core.index.reference import ReferenceIndex
from warmroute.core.wire.events import BlockStored
from warmroute.types import WorkerId

ONE, TWO = WorkerId(1), WorkerId(2)
TOKENS = tuple(range(100, 112))


def stored(blocks: int = 3, **more: object) -> BlockStored:
    fields: dict[str, object] = {
        "block_hashes": tuple(range(blocks)),
        "parent": None,
        "token_ids": TOKENS[: 4 * blocks],
        "block_size": 4,
    }
    return BlockStored(**fields | more)  # type: ignore[arg-type]


def test_they_are_expected_while_they_run_and_a_while_after() -> None:
    reports = FullReports()
    assert not reports.expected(ONE, 0.0)
    reports.began(ONE)
    reports.began(ONE)
    reports.ended(ONE, 1.0)
    assert reports.expected(ONE, 100.0)
    assert not reports.expected(TWO, 100.0)
    reports.ended(ONE, 100.0)
    assert reports.expected(ONE, 100.0 + GRACE_S)
    assert not reports.expected(ONE, 100.1 + GRACE_S)


def test_only_what_the_worker_holds_from_the_root_on_is_a_repetition() -> None:
    index = ReferenceIndex(orphan_blocks_max=100, blocks_max=None)
    index.apply(ONE, [stored(2, extra_keys=(("salt",), ()))])
    assert repeats(stored(2, extra_keys=(("salt",), ())), ONE, index)
    assert repeats(stored(1, extra_keys=(("salt",),)), ONE, index)
    assert not repeats(stored(3, extra_keys=(("salt",), (), ())), ONE, index)  # more than it held
    assert not repeats(stored(2), ONE, index)  # other content
    assert not repeats(stored(2, lora="sql", extra_keys=(("salt",), ())), ONE, index)
    assert not repeats(stored(2, extra_keys=(("salt",), ())), TWO, index)
    assert not repeats(stored(1, parent=0, token_ids=TOKENS[4:8]), ONE, index)
    assert not repeats(stored(1, token_ids=()), ONE, index)
    assert not repeats(stored(0, token_ids=()), ONE, index)
