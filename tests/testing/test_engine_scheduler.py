"""Continuous batching, step by step."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from warmroute.testing.engine.cache import PagedCache, Pages
from warmroute.testing.engine.scheduler import Scheduler, Sequence, Step

BLOCK = 4


def scheduler(blocks: int = 100, sequences_max: int = 8, tokens_max: int = 100) -> Scheduler:
    cache = PagedCache(blocks, BLOCK)
    return Scheduler(
        cache, sequences_max=sequences_max, tokens_max=tokens_max, sample=lambda tokens: 1000 + len(tokens)
    )


def sequence(prompt: list[int], tokens_max: int, made: list[tuple[int, bool]] | None = None) -> Sequence:
    out = [] if made is None else made
    return Sequence(Pages(list(prompt)), len(prompt), tokens_max, lambda token, last: out.append((token, last)))


def step(under_test: Scheduler) -> Step:
    done = under_test.schedule()
    under_test.complete(done)
    under_test.cache.check()
    return done


def test_a_token_a_step_until_the_last_whose_kv_is_never_computed() -> None:
    s, made = scheduler(), list[tuple[int, bool]]()
    s.add(sequence([1, 2, 3], 2, made))
    assert (step(s).prefill_tokens, step(s).decodes) == (3, 1)
    assert made == [(1003, False), (1004, True)]
    assert not s.busy
    assert s.cache.cached_blocks == 1  # 3 + 2 tokens, the last of them without KV: one block of four
    assert s.totals.generation == 2


def test_long_prompts_are_computed_in_chunks_beside_running_ones() -> None:
    s = scheduler(tokens_max=8, blocks=100)
    s.add(sequence([1, 2], 9))
    step(s)
    s.add(sequence(list(range(100, 120)), 1))
    steps = [step(s) for _ in range(3)]
    assert [(each.decodes, each.prefill_tokens) for each in steps] == [(1, 7), (1, 7), (1, 6)]
    assert [len(each.events) for each in steps] == [1, 2, 1]  # one per chunk, and the decoding one's first block


def test_sequences_of_one_step_share_what_the_first_of_them_computes() -> None:
    s = scheduler()
    sequences = [sequence(list(range(9)), 1) for _ in range(3)]
    for each in sequences:
        s.add(each)
    done = step(s)
    assert [each.cached_tokens for each in sequences] == [0, 8, 8]
    assert (done.prefill_tokens, len(done.events)) == (11, 1)
    assert (s.totals.cache_queries, s.totals.cache_hits) == (27, 16)


def test_more_sequences_than_a_step_takes_wait_in_order() -> None:
    s = scheduler(sequences_max=2)
    for first in range(3):
        s.add(sequence([first], 1))
    assert [each.pages.tokens[0] for each in step(s).sequences] == [0, 1]
    assert (len(s.waiting), len(step(s).sequences), s.busy) == (1, 1, False)


def test_without_a_free_block_the_youngest_waits_again_and_loses_nothing() -> None:
    s, old, young = scheduler(blocks=5), list[tuple[int, bool]](), list[tuple[int, bool]]()
    s.add(sequence([1] * 7, 6, old))
    s.add(sequence([2] * 7, 6, young))
    while s.busy:
        step(s)
    assert s.totals.preemptions > 0
    assert [token for token, _ in old] == [token for token, _ in young] == list(range(1007, 1013))
    assert s.totals.prompt == 14
    assert s.cache.used == 0


def test_an_aborted_sequence_leaves_its_full_blocks_and_the_step_under_way_ignores_it() -> None:
    s, made = scheduler(), list[tuple[int, bool]]()
    gone = sequence(list(range(9)), 5, made)
    s.add(gone)
    under_way = s.schedule()
    s.abort(gone)
    s.abort(gone)
    s.complete(under_way)
    assert (made, s.busy, s.cache.used, s.totals.aborted_requests) == ([], False, 0, 1)
    again = sequence(list(range(9)), 1)
    s.add(again)
    step(s)
    assert again.cached_tokens == 8


def test_a_request_that_does_not_read_the_cache_is_not_counted_as_a_query() -> None:
    s = scheduler()
    for reads in (True, False):
        each = sequence(list(range(9)), 1)
        each.reads_cache = reads
        s.add(each)
        step(s)
        assert each.cached_tokens == 0
    assert s.totals.cache_queries == 9


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=12), st.integers(1, 6)), max_size=8),
    st.integers(1, 10),
    st.integers(1, 3),
)
def test_everything_ends_with_the_asked_number_of_tokens(
    asked: list[tuple[list[int], int]], tokens_max: int, sequences_max: int
) -> None:
    s = scheduler(blocks=7, tokens_max=tokens_max, sequences_max=sequences_max)
    made: list[list[tuple[int, bool]]] = [[] for _ in asked]
    for (prompt, count), out in zip(asked, made, strict=True):
        s.add(sequence(prompt, count, out))
    for _ in range(2000):
        if not s.busy:
            break
        assert step(s).sequences
    assert [len(out) for out in made] == [count for _, count in asked]
    assert all([last for _, last in out] == [False] * (len(out) - 1) + [True] for out in made)
    assert s.cache.used == 0
