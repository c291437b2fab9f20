"""Steps are known by the pieces of answers; how early a request must be sent, by what became of others."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.core.load import Lease, LoadTable
from warmroute.core.steps import Steps, wait_s
from warmroute.types import WorkerId

W = WorkerId(1)
STEP_S = 0.014


def streaming(table: LoadTable, requests: int = 3) -> list[Lease]:
    """Requests whose answers are under way."""
    leases = [table.book(W, 200, 100, 0.0, prefill_observable=True) for _ in range(requests)]
    for lease in leases:
        table.prefilled(lease, 1.0)
    return leases


def step(table: LoadTable, leases: list[Lease], times: int, begin: float = 1.0) -> float:
    """So many steps, whose pieces come a tenth of a millisecond apart; when the last of them was over."""
    now = begin
    for _ in range(times):
        now += STEP_S
        for n, lease in enumerate(leases):
            table.stepped(lease, now + n * 1e-4)
    return now


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
def test_nobody_waits_for_less_than_nothing_or_for_more_than_one_step_more(
    due: float, step_s: float, reach: float
) -> None:
    assert 0.0 <= wait_s(due, step_s, reach) <= max(0.0, due) + step_s


@pytest.mark.parametrize(
    ("due", "expected"),
    [
        pytest.param(0.010, 0.010, id="part of the next step"),
        pytest.param(0.001, 0.015, id="too late for it"),
        pytest.param(-0.004, 0.010, id="it must have begun meanwhile"),
        pytest.param(-0.5, 0.0, id="nothing has come for long"),
    ],
)
def test_what_is_due_too_soon_is_missed(due: float, expected: float) -> None:
    assert wait_s(due, STEP_S, 0.002) == pytest.approx(expected)
    assert wait_s(due, 0.0, 0.002) == max(0.0, due), "of an engine without pieces nothing is claimed"


def test_pieces_say_when_the_next_step_is_due() -> None:
    table = LoadTable()
    leases = streaming(table)
    now = step(table, leases, 200)
    slot = leases[0].slot
    assert table.rates.generation_s[slot] == pytest.approx(STEP_S, rel=0.03)
    assert table.free_at[slot] == pytest.approx(now + STEP_S, abs=0.03 * STEP_S), "pieces of one step count once"


def test_a_prefill_among_the_steps_does_not_make_them_longer() -> None:
    table = LoadTable()
    leases = streaming(table)
    now = step(table, leases, 200)
    for _ in range(20):
        more = table.book(W, 4000, 4000, now, prefill_observable=True)
        now += 0.3
        for lease in leases:
            table.stepped(lease, now)
        table.prefilled(more, now)
        table.release(more, now)
        now = step(table, leases, 5, now)
    assert table.rates.generation_s[leases[0].slot] == pytest.approx(STEP_S, rel=0.05)


def test_answers_that_are_no_streams_say_nothing_of_steps() -> None:
    table = LoadTable()
    lease = table.book(W, 200, 100, 0.0, prefill_observable=False)
    for n in range(100):
        table.stepped(lease, 1.0 + 0.01 * n)
    assert table.rates.generation_s[lease.slot] == 0.0


def test_a_worker_that_takes_anothers_place_begins_anew() -> None:
    table = LoadTable()
    leases = streaming(table)
    now = step(table, leases, 50)
    for lease in leases:
        table.release(lease, now)
    table.keep_only([])
    other = table.book(WorkerId(2), 10, 10, now, prefill_observable=True)
    assert other.slot == leases[0].slot
    assert table.rates.generation_s[other.slot] == 0.0


@pytest.mark.parametrize("needed_s", [0.0, 0.003, 0.009])
def test_how_early_a_request_must_be_sent_is_learned(needed_s: float) -> None:
    """From requests at any moment, of which those that were sent less than that before a step miss it."""
    steps, dice = Steps(), random.Random(1)
    for _ in range(2000):
        due_s = dice.uniform(0.0, STEP_S)
        steps.learn(due_s, 1 if due_s > needed_s else 2, STEP_S)
    assert steps.reach_s == pytest.approx(needed_s, abs=0.001)


def test_a_prompt_that_takes_several_steps_says_nothing_of_it() -> None:
    steps = Steps()
    for _ in range(100):
        steps.learn(0.01, 3, STEP_S)
    assert steps.reach_s == 0.0


@pytest.mark.parametrize("late_s", [0.001, 0.006])
def test_the_table_learns_it_from_first_bytes(late_s: float) -> None:
    """An engine whose front end takes so long: who comes later than that before a step is part of the one after."""
    table, dice = LoadTable(), random.Random(2)
    leases = streaming(table)
    now = step(table, leases, 100)
    for _ in range(600):
        sent = now + dice.uniform(0.0005, STEP_S - 0.0005)
        more = table.book(W, 100, 50, sent, prefill_observable=True)
        now = step(table, leases, 1 if now + STEP_S - sent > late_s else 2, now) + STEP_S
        for lease in leases:
            table.stepped(lease, now)
        table.prefilled(more, now)
        table.release(more, now)
        now = step(table, leases, 3, now)
    assert table.steps.reach_s == pytest.approx(late_s, abs=0.0015)
    table.check()


def test_the_wait_for_a_step_is_not_taken_for_the_worker_s_slowness() -> None:
    """Requests that come right after a step began and those that come right before the next teach the same."""
    learned = []
    for share in (0.05, 0.95):
        table = LoadTable()
        leases = streaming(table)
        now = step(table, leases, 100)
        for _ in range(200):
            more = table.book(W, 1000, 1000, now + share * STEP_S, prefill_observable=True)
            now += STEP_S
            for lease in leases:
                table.stepped(lease, now)
            now += 0.060
            table.prefilled(more, now)
            table.release(more, now)
            now = step(table, leases, 3, now)
        learned.append(table.rates.step_s(leases[0].slot, (1.0, 1000.0, 500_000.0, 600.0)))
    assert learned[0] == pytest.approx(learned[1], rel=0.1)
    assert learned[0] == pytest.approx(0.060, rel=0.15)
