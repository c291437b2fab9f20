"""Circuit breakers on virtual time."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from warmroute.config.tree import BreakerConfig
from warmroute.core.breaker import Breakers, BreakerState
from warmroute.types import Endpoint

ENGINE, OTHER = Endpoint("10.0.0.1", 8000), Endpoint("10.0.0.2", 8000)
CONFIG = BreakerConfig(failures_max=3, open_s=5.0, open_max_s=15.0)


def failing(breakers: Breakers, now: float, times: int = 3) -> None:
    for _ in range(times):
        breakers.failed(ENGINE, now, now)


def test_failures_in_a_row_open_it_and_others_are_not_harmed() -> None:
    breakers = Breakers(CONFIG)
    failing(breakers, 0.0, 2)
    assert not breakers.shut(0.0)
    breakers.failed(OTHER, 0.0, 0.0)
    failing(breakers, 1.0, 1)
    assert breakers.shut(1.0) == {ENGINE}
    assert breakers.opened == 1


def test_a_complete_answer_between_forgives() -> None:
    breakers = Breakers(CONFIG)
    failing(breakers, 0.0, 2)
    breakers.succeeded(ENGINE, 0.0)
    assert not breakers.known
    failing(breakers, 1.0, 2)
    assert not breakers.shut(1.0)


def test_one_request_tries_it_and_brings_it_back_on_parole() -> None:
    breakers = Breakers(CONFIG)
    failing(breakers, 0.0)
    assert breakers.shut(4.9) == {ENGINE}
    assert not breakers.shut(5.0)
    breakers.sent(ENGINE, 5.0)
    assert breakers.shut(5.1) == {ENGINE}  # the others wait for what becomes of it
    breakers.began(ENGINE, 5.0, 5.5)
    assert not breakers.shut(5.6)
    breakers.failed(ENGINE, 5.6, 6.0)
    assert breakers.shut(6.0) == {ENGINE}
    assert breakers.of(ENGINE, 6.0).pause_s == 10.0


def test_each_failed_try_doubles_the_pause_up_to_the_longest() -> None:
    breakers, now, pauses = Breakers(CONFIG), 0.0, []
    failing(breakers, now)
    for _ in range(3):
        pauses.append(breakers.of(ENGINE, now).pause_s)
        now += pauses[-1]
        assert breakers.of(ENGINE, now).state is BreakerState.HALF_OPEN
        breakers.sent(ENGINE, now)
        breakers.failed(ENGINE, now, now)
    assert pauses == [5.0, 10.0, 15.0]
    now += 15.0
    breakers.shut(now)
    breakers.sent(ENGINE, now)
    breakers.began(ENGINE, now, now)
    breakers.succeeded(ENGINE, now)
    failing(breakers, now)
    assert breakers.of(ENGINE, now).pause_s == 5.0  # all was forgotten


def test_what_was_sent_before_says_nothing() -> None:
    breakers = Breakers(CONFIG)
    failing(breakers, 10.0)
    breakers.began(ENGINE, 9.0, 11.0)
    breakers.succeeded(ENGINE, 9.0)
    assert breakers.shut(11.0) == {ENGINE}
    breakers.shut(15.0)
    breakers.failed(ENGINE, 9.0, 15.0)  # one that was under way all the time
    assert breakers.of(ENGINE, 15.0).state is BreakerState.HALF_OPEN


def test_a_client_that_leaves_makes_way_for_another_try() -> None:
    breakers = Breakers(CONFIG)
    failing(breakers, 0.0)
    breakers.shut(5.0)
    breakers.sent(ENGINE, 5.0)
    breakers.gave_up(ENGINE, 4.0)
    assert breakers.shut(5.1) == {ENGINE}
    breakers.gave_up(ENGINE, 5.0)
    assert not breakers.shut(5.1)
    breakers.sent(ENGINE, 5.2)
    assert not breakers.shut(10.2)  # and one that does not come back does not hold it shut for ever


def test_it_can_be_turned_off() -> None:
    breakers = Breakers(BreakerConfig(failures_max=0))
    failing(breakers, 0.0, 100)
    assert (breakers.known, breakers.opened, breakers.shut(0.0)) == ({}, 0, frozenset())


class BreakerMachine(RuleBasedStateMachine):
    """Any history: it opens for failures only, never for ever, and good answers always bring an engine back."""

    def __init__(self) -> None:
        super().__init__()
        self.breakers, self.now, self.running = Breakers(CONFIG), 0.0, [0.0]
        self.row = 0

    @rule(seconds=st.floats(0.01, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def send(self) -> None:
        self.now += 0.001
        shut = ENGINE in self.breakers.shut(self.now)
        if not shut:
            self.breakers.sent(ENGINE, self.now)
            self.running.append(self.now)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), end=st.sampled_from(["fails", "completes", "breaks", "client leaves"]))
    def end(self, data: st.DataObject, end: str) -> None:
        sent_at = data.draw(st.sampled_from(self.running))
        self.running.remove(sent_at)
        before = self.breakers.of(ENGINE, self.now).state
        opened = self.breakers.opened
        if end in ("completes", "breaks"):
            self.breakers.began(ENGINE, sent_at, self.now)
        if end == "completes":
            self.breakers.succeeded(ENGINE, sent_at)
            assert self.breakers.opened == opened
        elif end == "client leaves":
            self.breakers.gave_up(ENGINE, sent_at)
            assert self.breakers.of(ENGINE, self.now).state is before
        else:
            self.breakers.failed(ENGINE, sent_at, self.now)

    @invariant()
    def never_for_ever(self) -> None:
        breaker = self.breakers.of(ENGINE, self.now)
        assert breaker.pause_s <= 15.0
        if breaker.state is BreakerState.OPEN:
            assert self.now < breaker.since + breaker.pause_s
        if breaker.state is BreakerState.CLOSED:
            assert breaker.failures < 3

    def teardown(self) -> None:
        self.now += 100.0
        assert not self.breakers.shut(self.now)
        self.breakers.sent(ENGINE, self.now)
        self.breakers.began(ENGINE, self.now, self.now)
        self.breakers.succeeded(ENGINE, self.now)
        assert len(self.breakers.known) == 0


TestBreaker = BreakerMachine.TestCase
