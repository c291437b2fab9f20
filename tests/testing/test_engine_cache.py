"""The paged cache by its rules, and against a dumb twin under random operations."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from warmroute.testing.engine.cache import PLAIN, Cleared, Content, PagedCache, Pages, Removed, Stored

BLOCK = 4


def run(cache: PagedCache, tokens: list[int], content: Content = PLAIN) -> int:
    """One request that computes its prompt and ends; the tokens it found cached."""
    pages = Pages(list(tokens), content)
    hits = cache.match(pages)
    assert cache.allocate(pages, hits, len(tokens))
    cache.free(pages)
    cache.check()
    return len(hits) * BLOCK


def test_one_event_carries_the_chain_of_one_step() -> None:
    cache = PagedCache(10, BLOCK)
    pages = Pages(list(range(14)))
    cache.allocate(pages, [], 6)
    cache.allocate(pages, [], 14)
    first, second = cache.take_events()
    assert isinstance(first, Stored)
    assert isinstance(second, Stored)
    assert (first.parent, first.token_ids) == (None, (0, 1, 2, 3))
    assert (second.parent, second.token_ids, second.first_block) == (first.digests[0], tuple(range(4, 12)), 1)
    assert cache.take_events() == []


def test_the_last_token_is_always_computed_so_an_aligned_prompt_gets_a_second_copy() -> None:
    cache = PagedCache(10, BLOCK)
    assert [run(cache, list(range(8))) for _ in range(3)] == [0, 4, 4]
    assert [len(event.digests) for event in cache.take_events() if isinstance(event, Stored)] == [2, 1, 1]
    assert cache.cached_blocks == 4


def test_each_copy_is_removed_on_its_own_and_the_last_one_still_hits() -> None:
    cache = PagedCache(5, BLOCK)
    run(cache, [1, 2, 3, 4])
    run(cache, [1, 2, 3, 4])
    run(cache, list(range(100, 112)))  # four blocks: two uncached, then the older copy
    stored, again, removed, _ = cache.take_events()
    assert isinstance(stored, Stored)
    assert isinstance(again, Stored)
    assert stored.digests == again.digests
    assert removed == Removed(stored.digests[0])
    assert run(cache, [1, 2, 3, 4, 5]) == 4


def test_the_tail_of_a_sequence_goes_first_and_a_hit_protects() -> None:
    cache = PagedCache(5, BLOCK)
    run(cache, list(range(17))[:16])
    stored = cache.take_events()[0]
    assert isinstance(stored, Stored)
    run(cache, [*range(4), 90])  # touches the first block, takes the last one for its tail and leaves that uncached
    run(cache, [50, 51, 52, 53, 54])
    removed = [event.digest for event in cache.take_events() if isinstance(event, Removed)]
    assert removed == [stored.digests[3], stored.digests[2]]
    assert run(cache, list(range(9))) == 8


def test_what_was_freed_without_a_hash_is_taken_first_since_0_24_only() -> None:
    for first, removals in ((True, 0), (False, 1)):
        cache = PagedCache(4, BLOCK, reuse_uncached_first=first)
        run(cache, list(range(4)))
        run(cache, [9, 9])
        run(cache, [8, 8])
        run(cache, [7, 7])
        assert sum(isinstance(event, Removed) for event in cache.take_events()) == removals


def test_nothing_changes_when_blocks_do_not_suffice() -> None:
    cache = PagedCache(4, BLOCK)
    run(cache, list(range(8)))
    holder = Pages([1] * 4)
    assert cache.allocate(holder, [], 4)
    cache.take_events()
    wanting = Pages(list(range(13)))
    hits = cache.match(wanting)
    assert len(hits) == 2
    assert not cache.allocate(wanting, hits, 13)
    assert (wanting.blocks, cache.take_events(), cache.used) == ([], [], 1)
    cache.check()


def test_reset_waits_for_the_last_block_and_is_told_first() -> None:
    cache = PagedCache(10, BLOCK)
    pages = Pages(list(range(5)))
    cache.allocate(pages, [], 5)
    assert not cache.reset()
    cache.free(pages)
    cache.take_events()
    assert cache.reset()
    assert run(cache, list(range(5))) == 0
    assert isinstance(cache.take_events()[0], Cleared)
    cache.check()


def test_lora_and_salt_keep_equal_tokens_apart() -> None:
    cache = PagedCache(50, BLOCK)
    contents = [
        Content(),
        Content("sql", 1, "sql\0/a"),
        Content("sql", 2, "sql\0/b"),
        Content(salt="s"),
        Content(salt="t"),
        Content("sql", 1, "sql\0/a", "s"),
    ]
    tokens = list(range(9))
    assert [run(cache, tokens, content) for content in contents] == [0] * 6
    assert [run(cache, tokens, content) for content in contents] == [8] * 6
    assert [contents[5].extra_keys(block) for block in (0, 1)] == [("sql", "s"), ("sql",)]
    assert contents[3].extra_keys(1) == ()


class AgainstDumbTwin(RuleBasedStateMachine):
    """What the events say is what can be hit, whatever sequences do."""

    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.cache = PagedCache(8, 2)
        self.announced: dict[bytes, int] = {}
        self.prefixes: dict[tuple[int, ...], bytes] = {}

    def follow(self) -> None:
        for event in self.cache.take_events():
            if isinstance(event, Stored):
                for digest in event.digests:
                    self.announced[digest] = self.announced.get(digest, 0) + 1
            elif isinstance(event, Removed):
                self.announced[event.digest] -= 1
            else:
                self.announced.clear()

    @rule(target=running, tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def admit(self, tokens: list[int]) -> object:
        pages = Pages(list(tokens))
        hits = self.cache.match(pages)
        for length in range(2, len(tokens) + 1, 2):  # equal prefixes have equal hashes, others have others
            prefix, digest = tuple(tokens[:length]), pages.digests[length // 2 - 1]
            assert self.prefixes.setdefault(prefix, digest) == digest
        assert len(set(self.prefixes.values())) == len(self.prefixes)
        expected = 0
        while expected < (len(tokens) - 1) // 2 and self.announced.get(pages.digests[expected], 0) > 0:
            expected += 1
        assert len(hits) == expected
        admitted = self.cache.allocate(pages, hits, len(tokens))
        self.follow()
        return pages if admitted else multiple()

    @rule(pages=running, token=st.integers(0, 1))
    def decode(self, pages: Pages, token: int) -> None:
        pages.tokens.append(token)
        if not self.cache.allocate(pages, (), len(pages.tokens)):
            pages.tokens.pop()
            assert self.cache.used == 7
        self.follow()

    @rule(pages=consumes(running))
    def finish(self, pages: Pages) -> None:
        self.cache.free(pages)

    @rule()
    def reset(self) -> None:
        assert self.cache.reset() == (self.cache.used == 0)
        self.follow()

    @invariant()
    def holds_together(self) -> None:
        self.cache.check()
        assert sum(self.announced.values()) == self.cache.cached_blocks


AgainstDumbTwin.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAgainstDumbTwin = AgainstDumbTwin.TestCase
