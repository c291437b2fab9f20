"""Load is booked at dispatch, moved on at the first byte and released at the last, whatever the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.core.load import STEP_SHARE, Lease, LoadTable
from warmroute.core.rates import FIXED_S, RateTable
from warmroute.types import WorkerId

W1, W2 = WorkerId(1), WorkerId(2)


def book(table: LoadTable, worker: WorkerId = W1, tokens: int = 100, *, observable: bool = True) -> Lease:
    return table.book(worker, 2 * tokens, tokens, 0.0, prefill_observable=observable)


def seen(table: LoadTable, worker: WorkerId = W1, now: float = 0.0) -> tuple[int, int, int]:
    load = table.of(worker, now)
    return load.requests, load.prefill_tokens, load.decoding


def test_a_lease_is_prefill_first_then_decoding_then_gone() -> None:
    table = LoadTable()
    lease = book(table)
    assert seen(table) == (1, 100, 0)
    table.prefilled(lease, 1.0)
    assert seen(table) == (1, 0, 1)
    table.release(lease, 1.0)
    assert seen(table) == (0, 0, 0)


def test_a_lease_that_ends_during_prefill_leaves_nothing() -> None:
    table = LoadTable()
    table.release(book(table), 1.0)
    assert seen(table) == (0, 0, 0)


def test_what_comes_after_the_end_changes_nothing() -> None:
    table = LoadTable()
    first, second = book(table), book(table)
    table.release(first, 1.0)
    table.release(first, 1.0)
    table.prefilled(first, 1.0)
    assert seen(table) == (1, 100, 0)
    table.release(second, 1.0)
    table.check()


def test_workers_do_not_share_load() -> None:
    table = LoadTable()
    book(table, W1, 100)
    book(table, W2, 7)
    assert seen(table, W1) == (1, 100, 0)
    assert seen(table, W2) == (1, 7, 0)


def test_answers_that_are_over_are_not_waited_for() -> None:
    """Each books an hour; of those that ended at once none is kept until its hour is over."""
    table = LoadTable()
    for _ in range(50):
        table.release(book(table, tokens=30_000_000, observable=False), 0.0)
        table.pass_time(0.0)
        assert len(table._unobserved) <= 1
    running = book(table, observable=False)
    table.pass_time(1e9)
    assert not table._unobserved
    assert seen(table, now=1e9) == (1, 0, 1)
    table.release(running, 1e9)
    table.check()


def test_an_answer_that_shows_no_first_byte_is_decoding_when_its_prefill_should_be_done() -> None:
    table = LoadTable()
    lease = book(table, observable=False)
    done_at = table.free_at[lease.slot]
    assert done_at == pytest.approx(FIXED_S + 100 / 8000, rel=0.01)
    assert seen(table, now=done_at - 0.001) == (1, 100, 0)
    assert seen(table, now=done_at) == (1, 0, 1)
    table.release(lease, 1.0)
    assert seen(table, now=1.0) == (0, 0, 0)


def test_an_answer_that_comes_at_once_teaches_nothing_of_prefill() -> None:
    """Its first byte comes after everything was generated, whether or not anybody looked at the load meanwhile."""
    for looked_at in (True, False):
        table = LoadTable()
        table.slot(W1)
        before = table.rates.fixed_s[0], table.rates.per_token_s[0]
        for turn in range(8):
            lease = table.book(W1, 200, 100, 10.0 * turn, prefill_observable=False)
            if looked_at:
                table.pass_time(10.0 * turn + 5.0)
            table.prefilled(lease, 10.0 * turn + 9.0)
            table.release(lease, 10.0 * turn + 9.0)
        assert (table.rates.fixed_s[0], table.rates.per_token_s[0]) == before


def test_the_place_of_a_worker_that_left_is_given_to_another() -> None:
    table = LoadTable()
    first, second = book(table, W1), book(table, W2)
    table.release(first, 1.0)
    table.keep_only([])
    assert table.slot(WorkerId(3)) == first.slot, "W2 has a request in flight: its place is not free"
    assert second.slot != first.slot
    table.release(second, 1.0)


def test_time_passing_and_first_bytes_say_when_the_queue_will_be_empty() -> None:
    table = LoadTable(RateTable(prefill_tokens_per_s=1000.0))
    a, b, c = (table.book(W1, 500, 480, 10.0, prefill_observable=True) for _ in range(3))
    assert table.free_at[a.slot] == pytest.approx(10.0 + FIXED_S + 3 * 0.48, rel=0.01)
    table.prefilled(a, 11.0)  # twice as slow as expected: what is behind it is late
    assert table.free_at[a.slot] == pytest.approx(11.0 + 2 * 0.48, rel=0.01)
    table.prefilled(b, 12.0)
    table.prefilled(c, 12.5)
    step_s = table.rates.step_s(a.slot, (1.0, 0.0, 0.0, 1500.0))
    assert table.free_at[a.slot] == 12.5 + STEP_SHARE * step_s, "nothing is queued, but a step has begun"
    assert table.rates.step_s(a.slot, (1.0, 480.0, 0.0, 0.0)) > FIXED_S + 0.48, "it has learned"


def test_an_end_says_when_a_step_began_and_an_idle_engine_has_none() -> None:
    table = LoadTable()
    first, second = book(table), book(table)
    table.prefilled(first, 1.0)
    table.prefilled(second, 1.0)
    table.release(first, 5.0)
    assert 5.0 < table.free_at[first.slot] < 5.0 + FIXED_S + 1.0
    table.release(second, 5.001)
    assert table.free_at[first.slot] == 5.001


def test_what_was_queued_is_gone_with_the_last_request() -> None:
    table = LoadTable()
    table.release(lease := book(table, tokens=100_000), 0.5)
    assert table.free_at[lease.slot] == 0.5


@given(st.lists(st.tuples(st.sampled_from(["book", "prefilled", "release"]), st.integers(0, 20), st.booleans())))
def test_load_is_the_sum_over_open_leases(steps: list[tuple[str, int, bool]]) -> None:
    table, leases, now = LoadTable(), [], 0.0
    for step, number, flag in steps:
        now += 1.0
        if step == "book":
            worker = W1 if flag else W2
            leases.append(table.book(worker, number, number, now, prefill_observable=flag))
        elif leases:
            lease = leases[number % len(leases)]
            table.prefilled(lease, now) if step == "prefilled" else table.release(lease, now)
        for worker in (W1, W2):
            load = table.of(worker, now)
            live = [lease for lease in leases if lease.worker == worker and lease.open]
            assert load.requests == len(live)
            assert load.prefill_tokens == sum(lease.uncached_tokens for lease in live if lease.prefilling)
            assert load.decoding == sum(not lease.prefilling for lease in live)
        table.check()


def test_check_finds_a_broken_sum() -> None:
    table = LoadTable()
    book(table)
    table.prefill_tokens[table.slot(W1)] = -1
    with pytest.raises(AssertionError):
        table.check()
