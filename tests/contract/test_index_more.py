"""What the conformance cases leave open: copies, parking, groups, limits, restoring over something, long chains."""

from __future__ import annotations

import msgspec
import pytest
from engines import W1, W2, Engines, placeholder, removed, stored, stored_by_hash

from conftest import MakeIndex
from warmroute.core.wire.events import AllBlocksCleared
from warmroute.types import Medium

LONG = 100_000


@pytest.fixture
def engines(make_index: MakeIndex) -> Engines:
    return Engines(make_index(1000))


def test_two_copies_need_two_removals(engines: Engines) -> None:
    engines.store(W1, None, (1, 1), (2, 2))
    engines.store(W1, 1, (2, 2))
    assert engines.remove(W1, 2).removed == 1
    assert engines.find([1, 2]) == {W1: 2}
    engines.remove(W1, 2)
    assert engines.find([1, 2]) == {W1: 1}
    assert engines.remove(W1, 2).unknown_removed == 1


def test_the_fastest_medium_counts(engines: Engines) -> None:
    engines.store(W1, None, (1, 1), (2, 2), (3, 3))
    engines.say(W1, placeholder(1, 2), placeholder(2, 3, medium=Medium.STORAGE), removed(2, 3))
    assert engines.match([1, 2, 3])[0].by_medium == (1, 1, 1)


def test_salt_and_extra_keys_make_content_distinct(engines: Engines) -> None:
    engines.say(W1, stored(None, (1, 1), (2, 2), extra_keys=(("tenant",), ())))
    assert engines.find([1, 2], salt="tenant") == {W1: 2}
    assert engines.find([1, 2]) == engines.find([1, 2], salt="other") == {}
    engines.say(W2, stored(None, (1, 1), (2, 2), lora="sql", extra_keys=(("tenant",), ())))
    assert engines.find([1, 2], lora="sql", salt="tenant") == {W2: 2}


def test_orphans_are_adopted_all_the_way_down(engines: Engines) -> None:
    engines.store(W1, 3, (4, 4), (5, 5))
    engines.store(W1, 3, (40, 40))
    engines.store(W1, 2, (3, 3))
    assert engines.index.worker_sizes(W1).orphans == 4
    report = engines.store(W1, None, (1, 1), (2, 2))
    assert (report.stored, report.adopted) == (2, 4)
    assert engines.find([1, 2, 3, 4, 5]) == {W1: 5}
    assert engines.find([1, 2, 3, 40]) == {W1: 4}
    assert engines.index.sizes().orphans == 0


def test_removals_and_clears_reach_parked_blocks(engines: Engines) -> None:
    engines.store(W1, 9, (1, 1), (2, 2))
    engines.say(W1, stored_by_hash(3), stored_by_hash(3))
    assert engines.remove(W1, 1).removed == 1
    assert engines.remove(W1, 3, 3, 3).unknown_removed == 1
    engines.store(W1, None, (9, 9))
    assert engines.find([9, 1]) == {W1: 1}
    assert engines.clear(W1).cleared == 2
    sizes = engines.swept()
    assert (sizes.copies, sizes.orphans, sizes.unresolved, sizes.nodes) == (0, 0, 0, 0)


def test_a_parent_in_another_medium_or_group_is_known(engines: Engines) -> None:
    engines.say(W1, stored(None, (1, 1), medium=Medium.CPU), stored(1, (2, 2)), stored(2, (3, 3), group=1))
    assert engines.index.sizes().orphans == 0


def test_a_parent_is_known_while_held_blocks_name_it(engines: Engines) -> None:
    engines.store(W1, None, (1, 1), (2, 2))
    engines.remove(W1, 1)
    assert engines.store(W1, 1, (3, 3)).orphaned == 0
    assert engines.find([1, 3]) == {}
    engines.remove(W1, 2, 3)
    assert engines.index.sizes().nodes == 0
    assert engines.store(W1, 1, (3, 3)).orphaned == 1


def test_a_known_hash_is_no_orphan_whatever_its_parent(engines: Engines) -> None:
    engines.store(W1, None, (1, 1), (2, 2))
    engines.remove(W1, 1)
    engines.remove(W1, 1)
    assert engines.store(W1, 77, (2, 2)).stored == 1
    engines.store(W1, None, (1, 1))
    assert engines.find([1, 2]) == {W1: 2}


@pytest.mark.parametrize("first", ["hash", "tokens"])
def test_blocks_by_hash_take_their_meaning_from_another_announcement(engines: Engines, first: str) -> None:
    by_hash, by_tokens = placeholder(1, 2), stored(None, (1, 1), (2, 2))
    reports = [engines.say(W1, event) for event in ((by_hash, by_tokens) if first == "hash" else (by_tokens, by_hash))]
    assert [report.unresolved for report in reports] == ([2, 0] if first == "hash" else [0, 0])
    engines.remove(W1, 1, 2)
    assert engines.match([1, 2])[0].by_medium == (0, 2, 0)
    assert engines.index.sizes().unresolved == 0


def test_the_latest_word_on_a_hash_holds(engines: Engines) -> None:
    engines.store(W1, None, (1, 1), (2, 2), (3, 3))
    assert engines.store(W1, 1, (2, 20)).conflicts == 1
    assert engines.find([1, 20]) == {W1: 2}
    assert engines.find([1, 2, 3]) == {W1: 1}
    assert engines.store(W1, 2, (4, 4)).conflicts == 0
    assert engines.find([1, 20, 4]) == {W1: 3}


def test_contradictions_in_a_circle_leave_nothing_behind(engines: Engines) -> None:
    engines.store(W1, None, (1, 1))
    engines.store(W1, 1, (2, 2), (1, 3), (1, 4))
    engines.remove(W1, 1, 2, 1, 1)
    sizes = engines.index.sizes()
    assert (sizes.nodes, sizes.copies, sizes.orphans) == (0, 0, 0)
    engines.store(W1, 5, (6, 6), (5, 5))  # waits for itself
    assert engines.index.sizes().orphans == 2
    engines.remove(W1, 5, 6)
    assert engines.index.sizes().orphans == 0


def test_partial_blocks_are_ignored(engines: Engines) -> None:
    engines.store(W1, None, (1, 1))
    report = engines.say(W1, stored(1, (2, 2), size=4))
    assert (report.partial, report.stored) == (1, 0)
    assert engines.index.block_sizes() == (16,)
    assert engines.remove(W1, 2).unknown_removed == 1


def test_an_offload_tier_may_keep_larger_blocks(engines: Engines) -> None:
    engines.say(W1, stored(None, (7, 7), size=64, medium=Medium.CPU))
    assert engines.say(W1, stored(None, (1, 1))).stored == 1
    assert engines.index.block_sizes() == (16,)
    assert engines.find([1]) == {W1: 1}


def test_orphans_are_bounded_per_worker(make_index: MakeIndex) -> None:
    engines = Engines(make_index(3))
    engines.store(W2, 9, (1, 1))
    dropped = sum(engines.store(W1, 9, (i, i)).orphans_dropped for i in range(5))
    assert dropped == 2
    engines.say(W1, placeholder(100))
    assert engines.store(W1, None, (9, 9)).adopted == 2
    assert [engines.find([9, i]) for i in range(5)] == [{W1: 1}] * 3 + [{W1: 2}] * 2
    assert engines.index.worker_sizes(W2).orphans == 1


def test_no_room_for_orphans_at_all(make_index: MakeIndex) -> None:
    engines = Engines(make_index(0))
    report = engines.store(W1, 9, (1, 1), (2, 2))
    assert (report.orphaned, report.orphans_dropped) == (2, 2)


def test_eviction_takes_the_oldest_chain_from_its_end(make_index: MakeIndex) -> None:
    engines = Engines(make_index(10, 6))
    engines.store(W1, None, (1, 1), (2, 2), (3, 3))
    engines.store(W2, None, (1, 1), (2, 2))
    assert engines.store(W1, None, (8, 8), (9, 9)).evicted == 1
    assert engines.find([1, 2, 3]) == {W1: 2, W2: 2}
    assert engines.store(W2, 2, (3, 3)).evicted == 1
    assert engines.find([1, 2, 3]) == {W1: 1, W2: 3}
    assert engines.find([8, 9]) == {W1: 2}


def test_a_chain_over_the_limit_keeps_its_beginning(make_index: MakeIndex) -> None:
    engines = Engines(make_index(10, 4))
    assert engines.store(W1, None, *((i, i) for i in range(10))).evicted == 6
    assert engines.find(range(10)) == {W1: 4}


def test_a_circle_over_the_limit_is_cleared(make_index: MakeIndex) -> None:
    engines = Engines(make_index(10, 2))
    engines.store(W1, None, (1, 1), (2, 2))
    assert engines.store(W1, 2, (1, 3)).evicted == 3
    assert engines.index.sizes().copies == 0
    engines.store(W1, None, (1, 1))
    assert engines.find([1]) == {W1: 1}


def test_over_its_own_limit_a_worker_loses_its_oldest_ends(make_index: MakeIndex) -> None:
    engines = Engines(make_index(10, 100, 4))
    engines.store(W2, None, (1, 1), (2, 2), (3, 3))
    engines.store(W1, None, (1, 1), (2, 2), (3, 3))
    report = engines.store(W1, None, (8, 8), (9, 9))
    assert (report.outgrown, report.evicted) == (1, 0)
    assert engines.find([1, 2, 3]) == {W1: 2, W2: 3}
    assert engines.find([8, 9]) == {W1: 2}
    engines.clear(W1)
    assert engines.store(W1, None, *((i, i) for i in range(10))).outgrown == 6
    assert engines.find(range(10)) == {W1: 4}


def test_a_circle_over_the_limit_of_a_worker_is_cleared(make_index: MakeIndex) -> None:
    engines = Engines(make_index(10, None, 2))
    engines.store(W2, None, (1, 1), (2, 2))
    engines.say(W1, placeholder(99))
    engines.store(W1, None, (1, 1), (2, 2))
    report = engines.store(W1, 2, (1, 3))
    assert (report.outgrown, report.orphans_dropped) == (3, 1)
    assert engines.index.worker_sizes(W1).copies == engines.index.worker_sizes(W1).unresolved == 0
    assert engines.find([1, 2]) == {W2: 2}


def test_what_is_forgotten_takes_no_part_before_it_is_swept(engines: Engines) -> None:
    for worker in (W1, W2):
        engines.store(worker, None, *((100 * worker + i, i) for i in range(70)))
    engines.say(W1, stored(101, (7, 7), medium=Medium.CPU), placeholder(5))
    engines.clear(W1)
    assert engines.find(range(70)) == {W2: 70}
    engines.store(W1, None, (500, 0), (501, 1))  # by other names, where it held the same before
    engines.index.drop(W2)
    assert engines.find(range(70)) == {W1: 2}
    assert engines.index.sizes().copies == 2
    engines.store(W2, None, (200, 0))
    assert engines.find(range(70)) == {W1: 2, W2: 1}
    assert (engines.swept().nodes, engines.index.sizes().workers) == (2, 2)
    assert engines.find(range(70)) == {W1: 2, W2: 1}


def test_restoring_replaces_what_is_known(engines: Engines) -> None:
    engines.store(W1, None, (1, 1), (2, 2))
    engines.store(W1, None, (1, 1))
    entries = list(engines.index.dump())
    engines.store(W1, 1, (2, 20), (3, 3))
    engines.store(W1, 77, (78, 78))
    for _ in range(2):
        engines.index.restore(entries)
        engines.index.check()
    assert engines.find([1, 2]) == {W1: 2}
    assert engines.index.worker_sizes(W1).copies == 4
    engines.remove(W1, 1, 1)
    assert engines.find([1]) == {}


def test_dumping_one_worker(engines: Engines) -> None:
    engines.store(W1, None, (1, 1))
    engines.store(W2, None, (2, 2))
    assert [entry.block_hash for entry in engines.index.dump(W2)] == [2]
    assert list(engines.index.dump(W1)) + list(engines.index.dump(W2)) == list(engines.index.dump())


@pytest.mark.parametrize("way", ["one event", "adopted", "one by one"])
def test_very_long_chains(make_index: MakeIndex, way: str) -> None:
    engines = Engines(make_index(LONG, LONG))
    blocks = [(i, i % 4000) for i in range(LONG)]
    if way == "one event":
        engines.store(W1, None, *blocks)
    elif way == "adopted":
        assert engines.store(W1, 0, *blocks[1:]).orphaned == LONG - 1
        assert engines.store(W1, None, blocks[0]).adopted == LONG - 1
    else:
        engines.say(W1, *(stored(i - 1 if i else None, block) for i, block in enumerate(blocks)))
    labels = [label for _, label in blocks]
    assert engines.find(labels) == {W1: LONG}
    engines.remove(W1, LONG // 2)
    assert engines.find(labels) == {W1: LONG // 2}
    engines.say(W1, removed(*range(LONG)))
    assert engines.index.sizes().nodes == 0


def hybrid(engines: Engines, *kept: int, window: int = 33) -> None:
    """Ten blocks in full group 1, of which sliding group 0 keeps some; a window of 33 tokens needs two blocks of 16."""
    engines.say(W1, stored_by_hash(*kept, window=window), stored(None, *((i, i) for i in range(10)), group=1))


@pytest.mark.parametrize(
    ("kept", "window", "overlap"),
    [
        ((8, 9), 33, 10),
        ((7, 8), 33, 9),
        ((0, 9), 33, 1),
        ((9,), 33, 0),
        ((3, 4, 5, 8), 33, 6),
        ((1, 2), 33, 3),
        ((9,), 17, 10),
        ((9,), 18, 0),
        ((8, 9), 32, 10),
        ((), 1, 10),
        ((0, 1), 1000, 2),
    ],
)
def test_hybrid_window_rule(engines: Engines, kept: tuple[int, ...], window: int, overlap: int) -> None:
    hybrid(engines, *kept, window=window)
    assert engines.find(range(10)) == ({W1: overlap} if overlap else {})


def test_hybrid_needs_the_full_chain_too(engines: Engines) -> None:
    hybrid(engines, 3, 4, 8, 9)
    engines.say(W1, removed(6, group=1))
    assert engines.find(range(10)) == {W1: 5}
    engines.say(W1, removed(4))
    assert engines.find(range(10)) == {}


def test_hybrid_survives_clear_and_restore(make_index: MakeIndex, engines: Engines) -> None:
    hybrid(engines, 7, 8)
    copy = Engines(make_index(1000))
    copy.index.restore(engines.index.dump())
    assert copy.find(range(10)) == engines.find(range(10)) == {W1: 9}
    engines.clear(W1)
    assert engines.index.block_sizes() == (16,)
    engines.say(W1, stored(None, (0, 0), group=1))
    assert engines.find([0]) == {}


def test_a_model_of_sliding_groups_only_needs_no_head(engines: Engines) -> None:
    engines.say(W1, stored(None, *((i, i) for i in range(6)), window=33), removed(0, 1))
    assert engines.find(range(10)) == {W1: 6}
    assert engines.match(range(6))[0].by_medium == (6, 0, 0)
    engines.say(W1, placeholder(4), removed(4))
    assert engines.match(range(6))[0].by_medium == (5, 1, 0)


def test_nothing_is_lost_from_the_counts(engines: Engines) -> None:
    reports = [
        engines.store(W1, 5, (6, 6), (7, 7)),
        engines.store(W1, None, (4, 4), (5, 5)),
        engines.say(W1, placeholder(1, 4), removed(4, 6, 6)),
        engines.store(W1, None, (1, 1)),
        engines.say(W1, placeholder(2), AllBlocksCleared(), stored(None, (1, 1))),
    ]
    came = sum(report.stored + report.orphaned + report.unresolved for report in reports)
    went = sum(report.removed + report.cleared for report in reports)
    assert came - went == engines.index.sizes().copies == 1


def test_storing_again_makes_a_leaf_young(make_index: MakeIndex) -> None:
    engines = Engines(make_index(10, 3))
    engines.store(W1, None, (1, 1))
    engines.store(W1, None, (2, 2))
    engines.store(W1, None, (1, 1))
    assert engines.store(W1, None, (3, 3)).evicted == 1
    assert [engines.find([label]) for label in (1, 2, 3)] == [{W1: 1}, {}, {W1: 1}]


def test_of_two_circles_the_greater_worker_is_cleared(make_index: MakeIndex) -> None:
    engines = Engines(make_index(10, 5))
    for worker in (W1, W2):
        engines.store(worker, None, (1, 1), (2, 2))
        engines.say(worker, placeholder(99))
    engines.store(W1, 2, (1, 3))
    assert engines.store(W2, 2, (1, 3)).evicted == 3  # equal: the one with the lower number goes
    assert engines.index.worker_sizes(W1).copies == engines.index.worker_sizes(W1).unresolved == 0
    assert engines.index.worker_sizes(W2).copies == 3


def test_the_slowest_full_group_is_waited_for(engines: Engines) -> None:
    engines.say(W1, stored(None, (1, 1)), stored(None, (1, 1), group=1), placeholder(1, group=1), removed(1, group=1))
    assert engines.match([1])[0].by_medium == (0, 1, 0)


def test_restored_blocks_that_nobody_needs_are_forgotten(engines: Engines) -> None:
    engines.store(W1, None, (1, 1), (2, 2))
    engines.remove(W1, 1)
    entries = [entry for entry in engines.index.dump() if not entry.copies]
    assert len(entries) == 1
    engines.index.drop(W1)
    engines.index.restore(entries)
    engines.index.check()
    assert engines.swept().nodes == 0


def test_restoring_replaces_parked_blocks(engines: Engines) -> None:
    engines.store(W1, None, (1, 1), (2, 2))
    entries = list(engines.index.dump())
    engines.index.drop(W1)
    engines.say(W1, placeholder(1), stored(2, (3, 3)))
    engines.index.restore(entries)
    engines.index.check()
    assert engines.find([1, 2, 3]) == {W1: 3}
    assert engines.match([1])[0].by_medium == (1, 0, 0)
    engines.remove(W1, 1)
    assert engines.find([1]) == {}


def test_sliding_groups_of_another_block_size_do_not_take_part(engines: Engines) -> None:
    engines.say(W1, stored(None, (1, 1), size=32), stored(None, (7, 7), group=1, window=64))
    assert engines.index.block_sizes() == engines.index.worker_sizes(W1).block_sizes == (32,)
    assert engines.find([1], 32) == {W1: 1}
    assert engines.find([7]) == {}


def test_by_hash_means_that_the_tokens_are_not_the_blocks(engines: Engines) -> None:
    event = msgspec.structs.replace(stored(None, (1, 1), (2, 2)), by_hash=True)
    assert engines.say(W1, event).unresolved == 2
    assert engines.find([1]) == {}
