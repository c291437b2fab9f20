"""The conformance cases of the index, by their ids: an engine says, a prompt asks."""

from __future__ import annotations

import pytest
from engines import BLOCK_SIZE, W1, W2, W3, Engines, placeholder, removed, stored, tokens_of

from conftest import MakeIndex
from warmroute.core.hashing import prefix_hashes
from warmroute.core.index.contract import ApplyReport
from warmroute.core.wire.events import BlockStored
from warmroute.types import Medium, WorkerId


@pytest.fixture
def engines(make_index: MakeIndex) -> Engines:
    return Engines(make_index(1000))


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 0), (16, 1), (23, 1), (48, 3)])
def test_B2_only_full_blocks_count(engines: Engines, tokens: int, blocks: int) -> None:
    labels = [1, 2, 3, 4]
    engines.store(W1, None, *((100 + label, label) for label in labels))
    prefixes = prefix_hashes(tokens_of(labels)[:tokens], BLOCK_SIZE)
    assert len(prefixes) == blocks
    assert [overlap.blocks for overlap in engines.index.match(prefixes, BLOCK_SIZE)] == ([blocks] if blocks else [])


def test_B4_one_event_is_a_chain(engines: Engines) -> None:
    report = engines.store(W1, None, (1, 0), (2, 100), (3, 200), (4, 300))
    assert report.stored == 4
    assert engines.find([0, 100, 200, 300]) == {W1: 4}


def test_B6_a_middle_block_is_no_prompt(engines: Engines) -> None:
    engines.store(W1, None, (1, 0), (2, 100), (3, 200), (4, 300))
    assert engines.find([200]) == {}


def test_B8_a_removal_touches_one_worker(engines: Engines) -> None:
    engines.store(W1, None, (1, 1))
    engines.store(W2, None, (1, 1))
    engines.remove(W1, 1)
    assert engines.find([1]) == {W2: 1}


def test_B10_a_hole_ends_the_overlap(engines: Engines) -> None:
    engines.store(W1, None, (1, 1), (2, 2), (3, 3))
    engines.remove(W1, 2)
    assert engines.find([1, 2, 3]) == {W1: 1}


def test_B12_workers_hold_different_lengths(engines: Engines) -> None:
    engines.store(W1, None, (1, 1), (2, 2), (3, 3))
    engines.store(W2, None, (1, 1), (2, 2))
    found = engines.find([1, 2, 3])
    assert {worker: 100 * depth // 3 for worker, depth in found.items()} == {W1: 100, W2: 66}


def test_B14_dropping_a_worker_frees_what_it_held(engines: Engines) -> None:
    engines.store(W1, None, (1, 1), (2, 2), (3, 3))
    engines.store(W2, None, (1, 1), (2, 2))
    engines.index.drop(W1)
    engines.index.check()
    assert engines.find([1, 2]) == {W2: 2}
    sizes = engines.swept()
    assert (sizes.workers, sizes.nodes, sizes.copies) == (1, 2, 2)


def test_B16_a_clear_touches_one_worker(engines: Engines) -> None:
    engines.store(W1, None, (1, 1), (2, 2))
    engines.store(W2, None, (1, 1), (2, 2))
    assert engines.clear(W1).cleared == 2
    assert engines.find([1, 2]) == {W2: 2}
    engines.store(W1, None, (1, 1))
    assert engines.find([1, 2]) == {W1: 1, W2: 2}


def test_B18_storing_and_removing_leaves_nothing(engines: Engines) -> None:
    engines.store(W1, None, (0, 0))
    engines.remove(W1, 0)
    baseline = engines.index.sizes()
    for i in range(1000):
        engines.index.apply(W1, [stored(i - 1 if i else None, (i, i))])
    for i in reversed(range(1000)):
        engines.index.apply(W1, [removed(i)])
    engines.index.check()
    assert engines.index.sizes() == baseline
    assert baseline.nodes == baseline.copies == 0


def test_B20_the_limit_holds_and_says_so(make_index: MakeIndex) -> None:
    engines = Engines(make_index(1000, 10_000))
    evicted = 0
    for chain in range(300):
        hashes = range(100 * chain, 100 * chain + 100)
        evicted += engines.index.apply(W1, [stored(None, *((h, h) for h in hashes))]).evicted
        assert engines.index.sizes().copies <= 10_000
    engines.index.check()
    assert evicted == 20_000
    assert engines.find(range(29_900, 30_000)) == {W1: 100}
    assert engines.find(range(100)) == {}


def test_B20_so_does_the_limit_of_one_worker(make_index: MakeIndex) -> None:
    engines = Engines(make_index(1000, None, 100))
    engines.store(W2, None, *((h, h) for h in range(100)))
    outgrown = 0
    for chain in range(30):
        outgrown += engines.store(W1, None, *((h, h) for h in range(10 * chain, 10 * chain + 10))).outgrown
        assert engines.index.worker_sizes(W1).copies <= 100
    assert outgrown == 200
    assert engines.find(range(290, 300)) == {W1: 10}
    assert engines.find(range(10)) == {W2: 10}
    assert engines.find(range(100)) == {W2: 100}


def test_B22_adapters_do_not_share(engines: Engines) -> None:
    engines.say(W1, stored(None, (1, 1), lora="x"))
    engines.say(W2, stored(None, (1, 1), lora="y"))
    assert engines.find([1], lora="x") == {W1: 1}
    assert engines.find([1]) == {}


@pytest.mark.parametrize("size", [1, 16, 17, 528])
def test_B24_block_sizes_are_learned(engines: Engines, size: int) -> None:
    engines.say(W1, stored(None, (1, 1), (2, 2), size=size))
    assert engines.index.block_sizes() == (size,)
    assert engines.index.worker_sizes(W1).block_sizes == (size,)
    assert engines.find([1, 2], size) == {W1: 2}
    assert engines.find([1, 2], size + 1) == {}


def test_K1_partial_depths(engines: Engines) -> None:
    engines.store(W1, None, (101, 1), (102, 2), (103, 3))
    engines.store(W2, None, (101, 1), (102, 2))
    assert engines.find([1, 2, 3, 4]) == {W1: 3, W2: 2}
    assert engines.find([1]) == {W1: 1, W2: 1}
    assert engines.find([9]) == {}
    assert engines.find([]) == {}


def test_K3_branching(engines: Engines) -> None:
    engines.store(W1, None, (101, 1), (102, 2), (103, 3))
    engines.store(W1, 102, (204, 4))
    assert engines.find([1, 2, 3]) == engines.find([1, 2, 4]) == {W1: 3}
    engines.remove(W1, 103)
    assert engines.find([1, 2, 4]) == {W1: 3}
    assert engines.find([1, 2, 3]) == {W1: 2}


def test_K5_ranks_are_workers_of_their_own(engines: Engines) -> None:
    rank0, rank1 = W1, W2
    engines.store(rank0, None, (101, 1), (102, 2))
    engines.store(rank1, None, (101, 1), (102, 2), (103, 3))
    assert engines.find([1, 2, 3]) == {rank0: 2, rank1: 3}
    engines.clear(rank0)
    assert engines.find([1, 2, 3]) == {rank1: 3}


def test_K7_extreme_numbers_are_ordinary(engines: Engines) -> None:
    worker = WorkerId(2**64 - 1)
    hashes = [2**64 - 1, -1, -(2**63), 2**63, 2**255, 0, (1).to_bytes(1), 1, (2**64 - 1).to_bytes(8), b""]
    engines.store(worker, None, *((h, label) for label, h in enumerate(hashes)))
    assert engines.find(range(len(hashes))) == {worker: len(hashes)}
    for depth, h in reversed(list(enumerate(hashes))):
        assert engines.remove(worker, h).removed == 1
        assert engines.find(range(len(hashes))) == ({worker: depth} if depth else {})


def test_K9_without_its_head_a_chain_is_worth_nothing(engines: Engines) -> None:
    for worker in (W1, W2):
        engines.store(worker, None, (1, 1), (2, 2), (3, 3))
    engines.remove(W1, 1)
    assert engines.find([1, 2, 3]) == {W2: 3}
    engines.store(W3, None, (1, 1))
    assert engines.find([1, 2, 3]) == {W2: 3, W3: 1}
    engines.store(W1, None, (1, 1))
    assert engines.find([1, 2, 3]) == {W1: 3, W2: 3, W3: 1}


@pytest.mark.parametrize(
    "order",
    [(3, 99, 2, 1), (1, 2, 99, 3), (99, 2, 3, 1), (13, 1, 99, 12, 2, 11, 3)],
    ids=["tail first", "head first", "shuffled", "two sequences"],
)
def test_K13_an_unknown_hash_does_not_keep_the_others(engines: Engines, order: tuple[int, ...]) -> None:
    engines.store(W1, None, (1, 1), (2, 2), (3, 3))
    engines.store(W1, None, (11, 11), (12, 12), (13, 13))
    report = engines.remove(W1, *order)
    assert (report.removed, report.unknown_removed) == (len(order) - 1, 1)
    assert engines.find([1, 2, 3]) == {}
    assert engines.find([11, 12, 13]) == ({} if 11 in order else {W1: 3})


def test_K15_clear_then_store(engines: Engines) -> None:
    for _ in range(3):
        engines.store(W1, None, (1, 1), (2, 2))
        engines.store(W2, None, (1, 1))
        engines.clear(W1)
    engines.store(W1, None, (1, 1))
    assert engines.find([1, 2]) == {W1: 1, W2: 1}
    sizes = engines.index.sizes()
    assert (sizes.nodes, sizes.copies) == (1, 4)
    assert engines.index.worker_sizes(W1).copies == 1


def test_K17_an_unknown_parent_is_no_root(engines: Engines) -> None:
    report = engines.store(W1, 999, (500, 50))
    assert (report.stored, report.orphaned) == (0, 1)
    assert engines.find([50]) == {}
    assert engines.index.worker_sizes(W1).orphans == 1


def test_K18_equal_content_under_different_hashes(engines: Engines) -> None:
    engines.store(W1, None, (10, 1), (11, 2), (12, 3))
    engines.store(W2, None, (20, 1), (21, 2), (22, 3))
    assert engines.find([1, 2, 3]) == {W1: 3, W2: 3}
    engines.store(W2, 22, (23, 4))
    assert engines.find([1, 2, 3, 4]) == {W1: 3, W2: 4}
    engines.remove(W2, 22, 21, 20)
    assert engines.find([1, 2, 3, 4]) == {W1: 3}


def test_K19_one_worker_with_two_hashes_for_one_content(engines: Engines) -> None:
    engines.store(W1, None, (10, 1), (11, 2))
    engines.store(W1, None, (10, 1), (12, 2))
    engines.remove(W1, 11)
    assert engines.find([1, 2]) == {W1: 2}
    engines.remove(W1, 12)
    assert engines.find([1, 2]) == {W1: 1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"token_ids": tokens_of([1])[:-1]},
        {"token_ids": (-1, *tokens_of([1])[1:])},
        {"token_ids": (2**32, *tokens_of([1])[1:])},
        {"block_size": 0},
        {"block_size": -16},
        {"extra_keys": (("a",), ("b",))},
    ],
    ids=str,
)
def test_K21_contradictions_in_an_event_credit_nothing(engines: Engines, wrong: dict[str, object]) -> None:
    fields = {"block_hashes": (1,), "parent": None, "token_ids": tokens_of([1]), "block_size": BLOCK_SIZE}
    report = engines.say(W1, BlockStored(**{**fields, **wrong}))  # type: ignore[arg-type]
    assert (report.stored, report.unresolved) == (0, 1)
    assert engines.find([1]) == {}
    engines.store(W1, None, (2, 2))
    assert engines.find([2]) == {W1: 1}


def test_A18_nothing_stored_is_nothing(engines: Engines) -> None:
    for size in (16, 2**64 - 1):
        event = BlockStored(block_hashes=(), parent=None, token_ids=(), block_size=size)
        assert engines.say(W1, event) == ApplyReport()
    assert engines.index.block_sizes() == ()


def test_K23_byte_hashes(engines: Engines) -> None:
    digests = [bytes([i]) * 32 for i in range(3)]
    engines.store(W1, None, *((digest, i) for i, digest in enumerate(digests)))
    engines.store(W1, digests[2], (bytes(16), 3))
    assert engines.find([0, 1, 2, 3]) == {W1: 4}
    engines.remove(W1, digests[1])
    assert engines.find([0, 1, 2, 3]) == {W1: 1}


def test_K27_a_dump_restored_answers_the_same(make_index: MakeIndex, engines: Engines) -> None:
    engines.store(W1, None, (1, 1), (2, 2), (3, 3))
    engines.store(W1, 2, (b"four", 4))
    engines.store(W1, None, (1, 1))
    engines.say(W1, placeholder(2), removed(2))
    engines.store(W2, None, (7, 1), (8, 2))
    engines.remove(W2, 7)
    dump = engines.index.dump()
    engines.store(W2, None, (7, 1))  # what comes after the dump was taken is not in it
    entries = list(dump)
    assert len(entries) == 6
    for i, entry in enumerate(entries):
        before = [e.block_hash for e in entries[:i] if e.worker == entry.worker]
        assert entry.parent is None or entry.parent in before
    copy = Engines(make_index(1000))
    copy.index.restore(entries)
    copy.index.check()
    assert copy.find([1, 2]) == {W1: 2}
    copy.store(W2, None, (7, 1))
    assert list(copy.index.dump()) == list(engines.index.dump())
    for labels in ([1], [1, 2, 3], [1, 2, 4], [2], [9]):
        assert copy.match(labels) == engines.match(labels)


def test_T16_an_entry_stays_in_the_other_medium(engines: Engines) -> None:
    engines.store(W1, None, (1, 1))
    engines.say(W1, placeholder(1))
    assert engines.match([1])[0].by_medium == (1, 0, 0)
    engines.remove(W1, 1)
    assert engines.match([1])[0].by_medium == (0, 1, 0)
    engines.say(W1, removed(1, medium=Medium.CPU))
    assert engines.find([1]) == {}
    assert engines.index.sizes().nodes == 0


def test_T18_removing_what_was_never_there(engines: Engines) -> None:
    engines.store(W1, None, (1, 1))
    before = list(engines.index.dump())
    assert engines.remove(W1, 2).unknown_removed == 1
    assert engines.remove(W2, 1).unknown_removed == 1
    assert engines.say(W1, removed(1, medium=Medium.CPU), removed(1, group=1)).unknown_removed == 2
    assert list(engines.index.dump()) == before


def test_T22_groups_count_apart(engines: Engines) -> None:
    engines.say(W1, stored(None, (1, 1)), stored(None, (1, 1), group=1))
    assert engines.find([1]) == {W1: 1}
    engines.say(W1, removed(1))
    (entry,) = engines.index.dump()
    assert entry.copies == ((1, Medium.GPU, 1),)
    assert engines.find([1]) == {}  # a hit needs the block in every full group
