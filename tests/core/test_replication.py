"""When a prefix gets another holder: what requests have queued for it pays."""

from __future__ import annotations

import pytest
from test_policies import candidates, ours, winners


def test_a_hot_prefix_gets_another_holder_when_queueing_for_it_has_cost_as_much() -> None:
    policy, chosen = ours(), []
    for n in range(100):
        asked = candidates(
            [1, 0], [160, 0], prefilling=[1, 0], free_at=[n + 0.05, 0.0], chain=list(range(10)), now=float(n)
        )
        won = next(iter(winners(policy, asked)))
        policy.chosen(asked, won)
        chosen.append(won)
        if won == 1:
            break
    assert 1 < len(chosen) < 10, "neither at once nor never"
    policy = ours(replication_weight=0.0)
    for n in range(100):
        asked = candidates(
            [1, 0], [160, 0], prefilling=[1, 0], free_at=[n + 0.05, 0.0], chain=list(range(10)), now=float(n)
        )
        assert winners(policy, asked) == {0}
        policy.chosen(asked, 0)


def test_who_waits_for_a_prefix_to_be_computed_pays_for_a_copy_by_what_queues_for_it_alone() -> None:
    def credit(prefill_tokens: int) -> float:
        policy = ours()
        being = {"claimed_tokens": [160, 0], "prefilling": [1, 0], "prefill_tokens": [prefill_tokens, 0]}
        policy.costs(asked := candidates([1, 0], [160, 0], free_at=[5.0, 0.0], chain=range(10), **being))
        policy.chosen(asked, 0)
        return sum(credit_s for credit_s, _ in policy._credits.values())

    assert credit(160) == 0.0, "a copy would take as long"
    assert credit(160 + 16) == 0.0, "an end that fills no block"
    assert credit(160 + 16 + 2000) == pytest.approx(2000 * 0.001 / 2)


def test_the_shorter_room_is_the_more_must_have_been_queued_for_a_copy() -> None:
    def requests_until_there_is_a_copy(forgot: float) -> int:
        policy = ours()
        policy._forgotten._again, policy._forgotten._computed = forgot, 1.0
        for n in range(1000):
            more = {"prefilling": [1, 0], "free_at": [n / 100 + 0.05, 0.0], "now": n / 100}
            asked = candidates([1, 0], [144, 0], chain=range(10), **more)
            if winners(policy, asked) == {1}:
                return n
            policy.chosen(asked, 0)
        return 1000

    plenty, short = requests_until_there_is_a_copy(0.0), requests_until_there_is_a_copy(0.2)
    assert 1 < plenty < 20
    assert 3 * plenty < short < 1000
