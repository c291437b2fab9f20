"""Processes that share a page see each other's load, whatever they do and in whatever order they know workers."""

from __future__ import annotations

from array import array
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from warmroute.core.decision import PickRequest
from warmroute.core.index import make_index
from warmroute.core.load import Lease, LoadTable
from warmroute.core.rates import pairs
from warmroute.core.router import Router
from warmroute.core.rows import COUNTS, TIMES
from warmroute.core.sharing import (
    ROWS_MAX,
    Sharing,
    add_booked,
    add_booked_in_python,
    add_part,
    add_part_in_python,
    clear_part,
    page_bytes,
)
from warmroute.types import Endpoint, Fleet, ModelInfo, Worker, WorkerId

PROCESSES = 3


def workers(order: list[int], first_id: int = 0) -> list[Worker]:
    """The workers of these numbers, with ids of one process's own."""
    return [
        Worker(WorkerId(first_id + place), Endpoint("10.0.0.1", 8000 + number), models=(ModelInfo("m"),))
        for place, number in enumerate(order)
    ]


def page_for(processes: int) -> memoryview[float]:
    return memoryview(bytearray(page_bytes(processes))).cast("d")


class Shared(RuleBasedStateMachine):
    """Several tables on one page, against the sums over their own columns."""

    def __init__(self) -> None:
        super().__init__()
        self.page = page_for(PROCESSES)
        self.now = 100.0
        self.ids = count()
        self.fleets = [[0, 1, 2], [2, 0, 1], [1]]
        self.tables = [LoadTable(sharing=Sharing(self.page, p, PROCESSES)) for p in range(PROCESSES)]
        self.known: list[dict[int, WorkerId]] = [{} for _ in self.tables]
        self.leases: list[list[Lease]] = [[] for _ in self.tables]
        for process in range(PROCESSES):
            self.meet(process, self.fleets[process])

    def meet(self, process: int, order: list[int]) -> None:
        known = self.known[process]
        ids = {number: known.get(number, WorkerId(next(self.ids))) for number in order}
        self.known[process] = known | ids
        fleet = [Worker(ids[number], Endpoint("10.0.0.1", 8000 + number)) for number in order]
        self.tables[process].keep_only(worker.id for worker in fleet)
        self.tables[process].introduce(fleet)
        self.fleets[process] = order

    @rule(
        process=st.integers(0, PROCESSES - 1), which=st.integers(0, 9), tokens=st.integers(1, 1000), seen=st.booleans()
    )
    def book(self, process: int, which: int, tokens: int, seen: bool) -> None:
        order = self.fleets[process]
        worker = self.known[process][order[which % len(order)]]
        table = self.tables[process]
        self.leases[process].append(table.book(worker, 2 * tokens, tokens, self.now, prefill_observable=seen))

    @rule(process=st.integers(0, PROCESSES - 1), which=st.integers(0, 99), how=st.sampled_from(["first byte", "end"]))
    def move_on(self, process: int, which: int, how: str) -> None:
        if leases := self.leases[process]:
            lease = leases[which % len(leases)]
            if how == "end":
                self.tables[process].release(lease, self.now)
                leases.remove(lease)
            else:
                self.tables[process].prefilled(lease, self.now)

    @rule(process=st.integers(0, PROCESSES - 1), order=st.permutations([0, 1, 2]), n=st.integers(1, 3))
    def fleet_changes(self, process: int, order: list[int], n: int) -> None:
        self.meet(process, order[:n])

    @rule(process=st.integers(0, PROCESSES - 1))
    def crash(self, process: int) -> None:
        clear_part(self.page, process)
        self.tables[process] = LoadTable(sharing=Sharing(self.page, process, PROCESSES))
        self.known[process], self.leases[process] = {}, []
        self.meet(process, list(reversed(self.fleets[process])))

    @rule(seconds=st.floats(0.0, 3.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def everybody_sees_the_sums(self) -> None:
        self.now += 1.0  # what was read is old by now
        for table in self.tables:
            table.pass_time(self.now)
        for process, table in enumerate(self.tables):
            counts, times, requests_per_s = table.rows(self.now)
            for number in self.fleets[process]:
                slot = table.slot(self.known[process][number])
                own = self.of(process, number)
                all_of_it = [
                    own if other == process else self.of(other, number)
                    for other in range(PROCESSES)
                    if other == process or self.knows(other, number)
                ]
                for i, name in enumerate(("requests", "prefilling", "prefill_tokens", "kv_tokens")):
                    assert counts[COUNTS * slot + i] == sum(each[i] for each in all_of_it), (process, number, name)
                wait = max(0.0, times[TIMES * slot] - self.now)
                mine, *theirs = sorted(all_of_it, key=lambda each: each is not own)
                queued = sum(each[4] for each in theirs if each[1])
                both = mine[1] and any(each[1] for each in theirs)
                expected = mine[4] + queued if both else max(mine[4], queued)
                assert wait == pytest.approx(expected, abs=1e-6), "a step under way, both see"
                assert times[TIMES * slot + 1] == pytest.approx(sum(each[5] for each in all_of_it))
                assert table.requests_of(self.known[process][number]) == counts[COUNTS * slot]
            assert requests_per_s == pytest.approx(sum(each.requests_per_s for each in self.tables))
            table.check()

    def knows(self, process: int, number: int) -> bool:
        worker = self.known[process].get(number)
        return worker is not None and worker in self.tables[process]._slots

    def of(self, process: int, number: int) -> list[Any]:
        table = self.tables[process]
        slot = table.slot(self.known[process][number])
        wait = max(0.0, table.free_at[slot] - self.now)
        counts = (table.requests, table.prefilling, table.prefill_tokens, table.kv_tokens)
        return [*(column[slot] for column in counts), wait, table.busy[slot]]


TestShared = Shared.TestCase
TestShared.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_a_burst_over_two_processes_does_not_pile_up() -> None:
    """Equal requests in turn at two routers: none of the four workers gets more than its share."""
    page, sent = page_for(2), [0, 0, 0, 0]
    routers = [Router(make_index(1000), sharing=Sharing(page, process, 2)) for process in range(2)]
    fleets = [Fleet(workers([0, 1, 2, 3])), Fleet(workers([3, 1, 0, 2], first_id=7))]
    for n in range(40):
        request = PickRequest(model="m", prompt_bytes=8000)
        decision = routers[n % 2].pick(request, fleets[n % 2], 100.0 + n * 1e-3)
        sent[decision.worker.endpoint.port - 8000] += 1
    assert sent == [10, 10, 10, 10]


def test_a_step_that_another_process_shared_is_not_taken_for_slowness() -> None:
    """The engine computes 1000 tokens of each process in turn, 0.1 s each: both learn that, not half of it."""
    page = page_for(2)
    tables = [LoadTable(sharing=Sharing(page, process, 2)) for process in range(2)]
    alone = LoadTable()
    fleet = workers([0])
    for table in tables:
        table.introduce(fleet)
    now, pending = 100.0, []
    for n in range(400):
        table = tables[n % 2]
        pending.append((table, table.book(fleet[0].id, 1000, 1000, now, prefill_observable=True)))
        single = alone.book(fleet[0].id, 1000, 1000, now, prefill_observable=True)
        now += 0.1
        alone.prefilled(single, now)
        alone.release(single, now)
        if len(pending) > 3:
            of, lease = pending.pop(0)
            of.prefilled(lease, now)
            of.release(lease, now)
    for table in tables:
        learned, expected = (
            table.rates.step_s(0, (1.0, 1000.0, pairs(1000, 1000), 0.0)),
            alone.rates.step_s(0, (1.0, 1000.0, pairs(1000, 1000), 0.0)),
        )
        assert learned == pytest.approx(expected, rel=0.25)


def test_workers_beyond_the_page_are_counted_not_lost() -> None:
    table = LoadTable(sharing=Sharing(page_for(2), 0, 2))
    fleet = workers(list(range(ROWS_MAX + 2)))
    table.introduce(fleet)
    lease = table.book(fleet[-1].id, 10, 10, 1.0, prefill_observable=True)
    assert table.rows(1.0)[0][COUNTS * lease.slot] == 1
    assert table.sharing is not None
    assert table.sharing.unshared == 2


counts = st.integers(0, 10**9)
times = st.floats(0, 1e6)


@given(st.lists(st.tuples(*[counts] * 8, *[times] * 4), max_size=20), st.integers(0, 3), times)
def test_adding_natively_gives_what_the_reference_gives(rows: list[tuple[Any, ...]], further: int, now: float) -> None:
    """The table whose rows are added may have room for more."""
    theirs_q, ours_q = (array("q", [n for row in rows for n in row[at : at + 4]]) for at in (0, 4))
    theirs_d, ours_d = (array("d", [n for row in rows for n in row[at : at + 2]]) for at in (8, 10))
    ours_q.extend([7] * COUNTS * further)
    ours_d.extend([7.0] * TIMES * further)
    added = []
    for add in (add_booked, add_booked_in_python):
        added.append((theirs_q[:], theirs_d[:]))
        add(*added[-1], ours_q, ours_d, now)
    assert added[0] == added[1]


part_rows = st.lists(st.tuples(*[times] * 9), max_size=8)


@given(part_rows, st.lists(st.tuples(st.integers(-1, 7), counts, times), max_size=12), times)
def test_a_part_is_added_natively_as_the_reference_adds_it(
    rows: list[tuple[float, ...]], places: list[tuple[int, int, float]], now: float
) -> None:
    page = memoryview(array("d", [number for row in rows for number in row]))
    order = array("q", [row if row < len(rows) else -1 for row, _, _ in places])
    summed_q = array("q", [n for _, count, _ in places for n in (count, 0, 1, 2)])
    summed_d = array("d", [t for _, _, time in places for t in (time, 0.5)])
    added = []
    for add in (add_part, add_part_in_python):
        added.append((summed_q[:], summed_d[:]))
        add(*added[-1], page, order, now)
    assert added[0] == added[1]
