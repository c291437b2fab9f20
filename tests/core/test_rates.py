"""Rates follow what workers do, whatever was believed at the beginning."""

from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.core.rates import COEFFICIENTS, FIXED_S, Features, RateTable, fit, fit_in_python, pairs


def table_of(workers: int, prefill_tokens_per_s: float = 8000.0) -> RateTable:
    table = RateTable(prefill_tokens_per_s)
    for slot in range(workers):
        table.start(slot)
    return table


def step(tokens: int) -> Features:
    """One prompt of which nothing was held, and nothing else was running."""
    return 1.0, float(tokens), pairs(tokens, tokens), 0.0


@pytest.mark.parametrize("configured", [800.0, 8000.0, 800_000.0])
def test_a_wrong_configuration_is_forgotten_within_some_answers_to_short_prompts(configured: float) -> None:
    table, dice = table_of(2, configured), random.Random(1)
    for n in range(60):
        tokens = dice.randrange(10, 300)
        table.observe(n % 2, step(tokens), 0.003 + tokens / 50_000)
    for slot in range(2):
        assert table.step_s(slot, step(200)) == pytest.approx(0.007, rel=0.15)


def test_the_one_that_was_asked_first_or_most_does_not_look_faster_than_its_equal() -> None:
    table, dice = table_of(2), random.Random(2)
    for n in range(300):
        tokens = dice.randrange(10, 300)
        table.observe(int(n > 200 and n % 3 == 0), step(tokens), 0.002 + tokens / 100_000)
    assert table.slowness(1) == pytest.approx(table.slowness(0), rel=0.1)


def test_unlike_workers_are_told_apart() -> None:
    table, dice = table_of(3), random.Random(3)
    for n in range(600):
        tokens, slot = dice.randrange(100, 4000), n % 3
        table.observe(slot, step(tokens), (1, 1, 3)[slot] * (0.01 + tokens / 10_000) * dice.uniform(0.8, 1.2))
    assert table.slowness(2) / table.slowness(0) == pytest.approx(3.0, rel=0.2)
    assert table.slowness(1) / table.slowness(0) == pytest.approx(1.0, rel=0.1)


def test_a_worker_that_was_slow_for_a_while_and_is_asked_no_more_is_forgiven() -> None:
    table, dice = table_of(2), random.Random(4)
    for n in range(60):
        tokens = dice.randrange(10, 300)
        table.observe(n % 2, step(tokens), (1, 2)[n % 2] * (0.002 + tokens / 100_000))
    slow = table.step_s(1, step(100)) / table.step_s(0, step(100))
    for _ in range(3000):
        tokens = dice.randrange(10, 300)
        table.observe(0, step(tokens), 0.002 + tokens / 100_000)
    assert slow > 1.6
    assert table.step_s(1, step(100)) == pytest.approx(table.step_s(0, step(100)), rel=0.05)


def test_a_worker_that_stays_slow_and_is_asked_now_and_then_is_known_to_be_slow() -> None:
    table, dice = table_of(2), random.Random(5)
    for n in range(600):
        tokens, slot = dice.randrange(10, 300), int(n % 4 == 0)
        table.observe(slot, step(tokens), (1, 2)[slot] * (0.002 + tokens / 100_000))
    assert table.step_s(1, step(100)) / table.step_s(0, step(100)) == pytest.approx(2.0, rel=0.15)


def test_a_worker_that_takes_the_place_of_a_slow_one_is_like_its_fleet() -> None:
    table = table_of(2)
    for _ in range(100):
        table.observe(0, step(1000), 0.1)
        table.observe(1, step(1000), 0.9)
    slow = table.slowness(1)
    table.start(1)
    assert table.slowness(1) == pytest.approx(table.slowness(0), rel=0.3)
    assert slow > 5 * table.slowness(1)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 200_000), st.integers(0, 10**7), st.floats(-1, 1e9))))
def test_rates_are_positive_and_finite_whatever_is_observed(observed: list[tuple[int, int, int, float]]) -> None:
    table = table_of(2)
    for slot, tokens, context, seconds in observed:
        table.observe(slot, (1.0, tokens, pairs(tokens, tokens), context), seconds)
        for each in range(2):
            rates = table.fixed_s, table.per_token_s, table.per_pair_s, table.per_context_s
            assert all(0 < rate[each] < float("inf") for rate in rates)


def test_nothing_observed_is_the_configured_rate() -> None:
    table = table_of(1, 1000.0)
    assert table.step_s(0, (1.0, 500.0, 0.0, 0.0)) == pytest.approx(FIXED_S + 0.5)


def test_attention_is_told_from_arithmetic() -> None:
    """Half of a long prompt held: the other half attends to it all the same."""
    table, dice = table_of(1), random.Random(4)
    for _ in range(600):
        prompt = int(dice.lognormvariate(8, 1))
        uncached = max(1, int(prompt * dice.random()))
        seen = 1.0, float(uncached), pairs(prompt, uncached), 0.0
        table.observe(0, seen, 0.01 + uncached * 6e-5 + pairs(prompt, uncached) * 2e-9)
    assert table.per_pair_s[0] == pytest.approx(2e-9, rel=0.2)
    assert table.per_token_s[0] == pytest.approx(6e-5, rel=0.1)


sizes = st.floats(0, 1e9)


@given(st.lists(st.tuples(st.tuples(st.just(1.0), sizes, sizes, sizes), st.floats(0, 1e3)), max_size=30))
def test_the_native_fit_is_the_references_to_the_last_bit(observed: list[tuple[Features, float]]) -> None:
    began = 0.02, 1e-4, 1e-9, 5e-8
    states = [array("d", [0.0] * COEFFICIENTS + [*began, 0.0, 0.0]) for _ in range(2)]
    for features, seconds in observed:
        fits = fit(states[0], began, features, seconds), fit_in_python(states[1], began, features, seconds)
        assert fits[0] == fits[1]
        assert states[0] == states[1]
