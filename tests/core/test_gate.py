"""The gate and the buckets on virtual time."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from warmroute.core.admission import Charge, Gate, GateLimits, Rates, Verdict, Visit

MODELS = ("a", "b", None)


def test_the_line_is_ordered_by_priority_then_arrival() -> None:
    gate = Gate(GateLimits(requests_max=1, queue_max=9, wait_s_max=10))
    first, _ = gate.arrive("a", 0, 0)
    visits = [gate.arrive("a", priority, 0)[0] for priority in (5, 0, 5, -1)]
    order = []
    current = first
    for _ in visits:
        gate.release(current)
        (current,) = gate.advance()
        order.append(visits.index(current))
    assert order == [3, 1, 0, 2]


def test_the_last_in_line_is_refused_for_a_better_one() -> None:
    gate = Gate(GateLimits(requests_max=1, queue_max=2, wait_s_max=10))
    gate.arrive("a", 0, 0)
    low, middle = gate.arrive("a", 9, 0)[0], gate.arrive("b", 5, 0)[0]
    lower, displaced = gate.arrive("a", 9, 0)
    assert (lower.verdict, lower.reason, displaced) == (Verdict.REFUSED, "queue_full", None)
    better, displaced = gate.arrive("a", 0, 0)
    assert displaced is low
    assert (low.reason, better.verdict, middle.verdict) == ("displaced", Verdict.WAITING, Verdict.WAITING)


def test_who_waits_too_long_is_refused() -> None:
    gate = Gate(GateLimits(requests_max=1, queue_max=9, wait_s_max=10))
    gate.arrive("a", 0, 0)
    early, late = gate.arrive("a", 9, 1)[0], gate.arrive("a", 0, 2)[0]
    assert gate.expire(10.9) == []
    assert gate.expire(11.0) == [early]
    assert (early.reason, late.verdict, len(gate)) == ("deadline", Verdict.WAITING, 1)


def test_a_model_without_room_holds_up_no_other() -> None:
    gate = Gate(GateLimits(models={"a": 1, "*": 2}, queue_max=9))
    assert [gate.arrive("a", 0, 0)[0].verdict for _ in range(2)] == [Verdict.ADMITTED, Verdict.WAITING]
    assert [gate.arrive("b", 0, 0)[0].verdict for _ in range(3)] == [Verdict.ADMITTED] * 2 + [Verdict.WAITING]
    assert gate.arrive("c", 0, 0)[0].verdict is Verdict.ADMITTED
    assert (gate.lack("a"), gate.lack("c")) == ("model", None)


def test_engines_have_room_for_those_without_a_booking_too() -> None:
    load = 0
    gate = Gate(GateLimits(queue_max=9), lambda _, booking: load + booking < 2)
    visits = [gate.arrive("a", 0, 0)[0] for _ in range(3)]
    assert [visit.verdict for visit in visits] == [Verdict.ADMITTED] * 2 + [Verdict.WAITING]
    load = 2
    gate.booked(visits[0])
    gate.booked(visits[1])
    assert (gate.advance(), gate.lack("a")) == ([], "engines")
    load = 1
    gate.release(visits[0])
    assert gate.advance() == [visits[2]]


class GateMachine(RuleBasedStateMachine):
    """Any order of arrivals, ends, bookings and time against the promises in the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.engines: Counter[str | None] = Counter()
        self.limits = GateLimits(requests_max=4, models={"a": 2}, queue_max=3, wait_s_max=5.0)
        self.gate = Gate(self.limits, self.room)
        self.visits: list[Visit] = []

    def room(self, model: str | None, booking: int) -> bool:
        return self.engines.total() + booking < 3 or model is None

    def of(self, *verdicts: Verdict) -> list[Visit]:
        return [visit for visit in self.visits if visit.verdict in verdicts]

    @rule(model=st.sampled_from(MODELS), priority=st.integers(-1, 1))
    def arrive(self, model: str | None, priority: int) -> None:
        before = self.of(Verdict.WAITING)
        visit, displaced = self.gate.arrive(model, priority, self.now)
        self.visits.append(visit)
        if visit.verdict is Verdict.REFUSED:
            assert (visit.reason, displaced) == ("queue_full", None)
            assert all(other < visit for other in before)
        if displaced is not None:
            assert displaced.verdict is Verdict.REFUSED
            assert all(other < displaced for other in [*before, visit] if other is not displaced)

    @precondition(lambda self: self.of(Verdict.ADMITTED, Verdict.WAITING))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        visit = data.draw(st.sampled_from(self.of(Verdict.ADMITTED, Verdict.WAITING)))
        if visit.decided:
            self.engines[visit.model] -= 1
        self.gate.release(visit)
        self.gate.release(visit)
        self.gate.advance()

    @precondition(lambda self: any(not visit.decided for visit in self.of(Verdict.ADMITTED)))
    @rule(data=st.data())
    def book(self, data: st.DataObject) -> None:
        visit = data.draw(st.sampled_from([visit for visit in self.of(Verdict.ADMITTED) if not visit.decided]))
        self.engines[visit.model] += 1
        self.gate.booked(visit)
        self.gate.advance()

    @rule(seconds=st.floats(0, 4))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for late in self.gate.expire(self.now):
            assert late.deadline <= self.now
        assert all(visit.deadline > self.now for visit in self.of(Verdict.WAITING))

    @invariant()
    def limits_hold(self) -> None:
        inside = self.of(Verdict.ADMITTED)
        assert self.gate.inside == len(inside) <= 4
        assert self.gate.by_model == Counter(visit.model for visit in inside)
        assert self.gate.by_model["a"] <= 2
        assert len(self.gate) == len(self.of(Verdict.WAITING)) <= 3

    @invariant()
    def nobody_waits_while_there_is_room(self) -> None:
        assert all(self.gate.lack(visit.model) is not None for visit in self.of(Verdict.WAITING))


TestGate = GateMachine.TestCase


# Buckets


def test_a_bucket_holds_a_minutes_worth_and_is_refilled() -> None:
    rates = Rates()
    charge = (Charge("k", 60, 1.0),)
    assert [rates.take(charge, 0.0) for _ in range(60)] == [0.0] * 60
    assert rates.take(charge, 0.0) == 1.0
    assert rates.take(charge, 0.5) == 0.5
    assert rates.take(charge, 1.0) == 0.0


def test_all_charges_are_taken_or_none() -> None:
    rates = Rates()
    few, many = Charge("few", 1, 1.0), Charge("many", 600, 1.0)
    assert rates.take((few, many), 0.0) == 0.0
    assert rates.take((few, many), 0.0) == 60.0
    assert rates.take((Charge("many", 600, 599.0),), 0.0) == 0.0


def test_what_is_larger_than_the_bucket_goes_when_it_is_full() -> None:
    rates = Rates()
    assert rates.take((Charge("k", 60, 180.0),), 0.0) == 0.0
    assert rates.take((Charge("k", 60, 1.0),), 60.0) == 61.0
    assert rates.take((Charge("k", 60, 180.0),), 180.0) == 0.0


def test_what_was_too_much_is_given_back() -> None:
    rates = Rates()
    rates.take((Charge("k", 60, 60.0),), 0.0)
    rates.settle((Charge("k", 60, -50.0),), 0.0)
    assert rates.take((Charge("k", 60, 50.0),), 0.0) == 0.0
    assert rates.take((Charge("k", 60, 1.0),), 0.0) == 1.0


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 20)), max_size=60))
def test_no_minute_sees_more_than_two_buckets(steps: list[tuple[float, int]]) -> None:
    rates, now, taken = Rates(), 0.0, []
    for pause, cost in steps:
        now += pause
        if rates.take((Charge("k", 20, float(cost)),), now) == 0.0:
            taken.append((now, cost))
    for start, _ in taken:
        assert sum(cost for at, cost in taken if start <= at <= start + 60) <= 40 + 1e-6


def test_full_buckets_are_forgotten() -> None:
    rates = Rates()
    rates.take((Charge("k", 60, 30.0), Charge("gone", 60, 60.0)), 0.0)
    rates.forget_full({"k": 60}, 10.0)
    assert len(rates) == 1
    rates.forget_full({"k": 60}, 30.0)
    assert len(rates) == 0
