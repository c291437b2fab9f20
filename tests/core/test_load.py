"""Load is booked at dispatch, moved on at the first byte and released at the last, whatever the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute.core.load import Lease, LoadTable
from warmroute.types import WorkerId

W1, W2 = WorkerId(1), WorkerId(2)


def book(table: LoadTable, worker: WorkerId = W1, tokens: int = 100, *, observable: bool = True) -> Lease:
    return table.book(worker, tokens, prefill_observable=observable, prefill_ends_at=10.0)


def seen(table: LoadTable, worker: WorkerId = W1, now: float = 0.0) -> tuple[int, int, int]:
    load = table.of(worker, now)
    return load.requests, load.prefill_tokens, load.decoding


def test_a_lease_is_prefill_first_then_decoding_then_gone() -> None:
    table = LoadTable()
    lease = book(table)
    assert seen(table) == (1, 100, 0)
    table.prefilled(lease)
    assert seen(table) == (1, 0, 1)
    table.release(lease)
    assert seen(table) == (0, 0, 0)


def test_a_lease_that_ends_during_prefill_leaves_nothing() -> None:
    table = LoadTable()
    table.release(book(table))
    assert seen(table) == (0, 0, 0)


def test_what_comes_after_the_end_changes_nothing() -> None:
    table = LoadTable()
    first, second = book(table), book(table)
    table.release(first)
    table.release(first)
    table.prefilled(first)
    assert seen(table) == (1, 100, 0)
    table.release(second)
    table.check()


def test_workers_do_not_share_load() -> None:
    table = LoadTable()
    book(table, W1, 100)
    book(table, W2, 7)
    assert seen(table, W1) == (1, 100, 0)
    assert seen(table, W2) == (1, 7, 0)


def test_an_answer_that_shows_no_first_byte_is_decoding_when_its_prefill_should_be_done() -> None:
    table = LoadTable()
    lease = book(table, observable=False)
    assert seen(table, now=9.9) == (1, 100, 0)
    assert seen(table, now=10.0) == (1, 0, 1)
    table.release(lease)
    assert seen(table, now=11.0) == (0, 0, 0)


def test_an_idle_worker_is_not_kept() -> None:
    table = LoadTable()
    table.release(book(table))
    assert not table._loads


@given(st.lists(st.tuples(st.sampled_from(["book", "prefilled", "release"]), st.integers(0, 20), st.booleans())))
def test_load_is_the_sum_over_open_leases(steps: list[tuple[str, int, bool]]) -> None:
    table, leases, now = LoadTable(), [], 0.0
    for step, number, flag in steps:
        now += 1.0
        if step == "book":
            worker = W1 if flag else W2
            leases.append(table.book(worker, number, prefill_observable=flag, prefill_ends_at=now + 3))
        elif leases:
            lease = leases[number % len(leases)]
            table.prefilled(lease) if step == "prefilled" else table.release(lease)
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
    table.of(W1, 0.0).prefill_tokens = -1
    with pytest.raises(AssertionError):
        table.check()
