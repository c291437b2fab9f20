"""What prompts in use share is held once, and counted once."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_policies import PROMPT, candidates, ours

from warmroute.core.policies.in_use import MARKS, InUse, marks
from warmroute.types import PrefixHash, WorkerId

A, B = WorkerId(1), WorkerId(2)
STEMS = st.lists(st.integers(0, 2), max_size=40)
"""Tokens of prompts whose blocks have one token each: they begin alike more often than not."""


def chain_of(tokens: list[int]) -> list[PrefixHash]:
    return [PrefixHash(hash((1, *tokens[: n + 1]))) for n in range(len(tokens))]


def counted_too_often(chains: list[list[PrefixHash]]) -> int:
    """By definition: of each prompt in turn, up to the last mark that one before it has too."""
    seen, total = set[PrefixHash](), 0
    for chain in chains:
        at = [mark for mark in MARKS if mark <= len(chain)]
        total += max((mark for mark in at if chain[mark - 1] in seen), default=0)
        seen.update(chain[mark - 1] for mark in at)
    return total


@given(st.lists(st.tuples(STEMS, st.booleans(), st.integers(0, 100)), max_size=30))
def test_what_is_shared_depends_on_what_is_in_use_alone(steps: list[tuple[list[int], bool, int]]) -> None:
    in_use, there = InUse(), list[list[PrefixHash]]()
    for tokens, begins, which in steps:
        if begins or not there:
            there.append(chain_of(tokens))
            in_use.begin(A, marks(there[-1]))
        else:
            in_use.end(A, marks(there.pop(which % len(there))))
        assert in_use.shared.get(A, 0) == counted_too_often(there)
    for chain in there[::-1]:
        in_use.end(A, marks(chain))
    assert not in_use.shared
    assert vars(in_use) == vars(InUse()), "nothing is kept of what is over"


def test_workers_share_nothing_with_each_other() -> None:
    in_use, chain = InUse(), chain_of([7] * 10)
    in_use.begin(A, marks(chain))
    in_use.begin(B, marks(chain))
    assert not in_use.shared
    in_use.begin(B, marks(chain))
    assert in_use.shared == {B: 8}, "two thirds of what is shared are known at least"


@given(st.integers(1, 1 << 20))
def test_marks_are_near_to_every_length(blocks: int) -> None:
    assert max(mark for mark in MARKS if mark <= blocks) > blocks * 2 / 3 - 1


def test_prompts_that_share_blocks_take_room_in_the_cache_once() -> None:
    """Ten requests of the same beginning run on the first worker: all of them together have room there."""
    policy, chain = ours(), chain_of([7] * (PROMPT // 16))
    facts = {"kv_tokens_max": array("d", [4.0 * PROMPT] * 2), "chain": chain}
    for _ in range(10):
        policy.costs(asked := candidates([0, 0], **facts))
        policy.chosen(asked, 0)
    full = candidates([0, 0], kv_tokens=[10 * PROMPT, 0], **facts)
    costs, terms = policy.costs(full), policy.terms(full, policy.memo)
    for i, cost in enumerate(costs):
        assert sum(column[i] for column in terms.values()) == pytest.approx(cost)
    assert terms["memory"][0] < ours().terms(full, policy.memo.__class__(0.0, 0, 0.0, 1.0, 0.0, 0.0))["memory"][0] / 3
    last = policy.terms(full.only([0]), policy.memo)
    assert last["memory"] == terms["memory"][:1], "whoever else is left out"
    for _ in range(10):
        policy.ended(WorkerId(0), chain)
    assert policy.costs(full)[0] > costs[0], "who is gone shares nothing"
