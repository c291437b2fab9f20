"""What is computed again though it was computed before says how short room is in the caches."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_in_use import STEMS, chain_of
from test_policies import PROMPT, candidates, ours

from warmroute.core.policies import forgotten
from warmroute.core.policies.forgotten import OF_LATE, Forgotten
from warmroute.core.policies.in_use import MARKS, marks
from warmroute.types import Trust, TrustState


@given(st.lists(st.tuples(STEMS, st.integers(0, 40), st.integers(0, 40)), max_size=30))
def test_what_was_asked_before_and_nobody_holds_was_forgotten(asked: list[tuple[list[int], int, int]]) -> None:
    memory, before, again, computed = Forgotten(), list[list[int]](), 0.0, 0.0
    for tokens, some, more in asked:
        most = len(tokens)
        best, held = min(max(some, more), most), min(some, more, most)
        memory.asked(marks(chain_of(tokens)), most, best, held)
        known = max((m for m in MARKS if m <= most and any(each[:m] == tokens[:m] for each in before)), default=0)
        again += (max(0, known - best) - again) * OF_LATE
        computed += (most - held - computed) * OF_LATE
        before.append(tokens)
        assert memory.share == pytest.approx(again / computed if again else 0.0)
        assert 0.0 <= memory.share <= 1.0


def forgotten_by(state: TrustState, *overlaps: int) -> float:
    """The share, when the same prompt of whole blocks was asked again and again and one worker held so much of it."""
    policy, trust = ours(), Trust(state, "for the test", 0.0)
    for overlap in overlaps:
        asked = candidates([0, 0], [overlap, 0], chain=chain_of([7] * (PROMPT // 16)))
        asked = msgspec.structs.replace(asked, workers=tuple(replace(each, trust=trust) for each in asked.workers))
        policy.costs(asked)
        policy.chosen(asked, 0)
    return policy._forgotten.share


def test_the_last_token_that_engines_always_compute_was_not_forgotten() -> None:
    """A prompt of whole blocks is never held whole: all but the last block is found, or it is gone."""
    assert forgotten_by(TrustState.LIVE, 0, *[PROMPT - 16] * 10) == 0.0
    assert forgotten_by(TrustState.LIVE, 0, *[PROMPT - 16] * 10, 0) > 0.0


@pytest.mark.parametrize("state", [each for each in TrustState if each is not TrustState.LIVE])
def test_of_a_worker_that_does_not_tell_all_it_is_not_known_what_it_forgot(state: TrustState) -> None:
    assert forgotten_by(state, *[0] * 10) == 0.0


def test_what_is_not_asked_for_any_more_is_remembered_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgotten, "REMEMBERED_MAX", 100)
    memory, often = Forgotten(), marks(chain_of([1] * 40))
    for n in range(100):
        memory.asked(often, 40, 40, 40)
        memory.asked(marks(chain_of([2 + n] * 40)), 40, 0, 0)
        assert len(memory._young) + len(memory._old) <= 2 * (100 + len(MARKS))
    memory.asked(marks(chain_of([2] * 40)), 40, 0, 0)
    assert memory.share == 0.0, "too long ago"
    memory.asked(often, 40, 0, 0)
    assert memory.share > 0.0
