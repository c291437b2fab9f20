"""Parity: few false alarms at the failures put up with, quick ones when a view is wrong, and an end to both."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from warmroute.core.parity import Alarm, Bounds, CounterWindow, Evidence, Parity

HELD, HIGH, LOW = Evidence(160, 160, 160), Evidence(160, 160, 0), Evidence(0, 0, 160)


def alarmed_after(failing: Evidence) -> int:
    parity = Parity()
    for number in range(1, 100):
        assert parity.judge(failing)
        if parity.alarm:
            return number
    raise AssertionError("no alarm")


def test_too_much_is_seen_sooner_than_too_little() -> None:
    assert (alarmed_after(HIGH), alarmed_after(LOW)) == (6, 9)


def test_an_alarm_ends_only_when_predictions_have_held_for_long() -> None:
    parity = Parity()
    for _ in range(50):
        parity.judge(HIGH)
    assert (parity.alarm, parity.pressure) == (Alarm.HIGH, 1.0)
    assert parity.belief < 0.01
    for _ in range(15):
        parity.judge(HELD)
        assert parity.alarm is Alarm.HIGH
    parity.judge(HELD)
    assert (parity.alarm, parity.pressure) == (None, 0.0)
    assert parity.belief > 0.9


def test_one_prediction_of_ten_that_fails_is_no_alarm_and_half_of_them_is() -> None:
    draws = random.Random(1)
    quiet, loud = Parity(), Parity()
    for _ in range(10_000):
        quiet.judge(HIGH if draws.random() < 0.1 else HELD)
        assert quiet.alarm is None
    for number in range(60):
        loud.judge(HIGH if number % 2 else HELD)
    assert loud.alarm is Alarm.HIGH


def test_what_could_not_have_failed_says_nothing() -> None:
    parity = Parity()
    for _ in range(5):
        parity.judge(HIGH)
    pressure = parity.pressure
    for _ in range(100):
        assert not parity.judge(Evidence(0, 0, 0))
    assert parity.pressure == pressure


def test_claims_and_single_blocks_of_long_prompts_are_no_failure() -> None:
    parity = Parity()
    assert not parity.judge(Evidence(0, 320, 160))  # only claims said that there is more
    assert not parity.judge(Evidence(3200, 3200, 3184))
    assert parity.judge(Evidence(32, 32, 16))


@given(st.lists(st.tuples(*[st.integers(0, 1000)] * 3), max_size=60))
def test_pressure_and_belief_stay_in_their_range(rows: list[tuple[int, int, int]]) -> None:
    parity = Parity()
    for low, more, reported in rows:
        parity.judge(Evidence(low, low + more, reported))
        assert 0 <= parity.pressure <= 1
        assert 0 <= parity.belief <= 1
    assert parity.judged == len(rows)


# Counters.


def window(*requests: tuple[int, Bounds]) -> CounterWindow:
    """A first reading, then requests that began and ended."""
    counters = CounterWindow()
    assert counters.read(0.0, 1000, 500) is None
    for number, bounds in requests:
        counters.began(number, bounds)
        counters.ended(number, 1.0, served=True)
    return counters


def test_counters_are_held_against_the_sum_of_what_was_predicted() -> None:
    counters = window((1, Bounds(160, 160, 200)), (2, Bounds(0, 32, 100)))
    assert counters.due(2.0)
    assert counters.read(2.0, 1300, 660) == Evidence(160, 192, 160)
    assert not counters.due(3.0)
    assert counters.read(4.0, 1300, 660) is None  # nothing happened


def test_a_request_across_a_reading_bounds_from_above_only() -> None:
    counters = CounterWindow()
    counters.began(1, Bounds(160, 160, 200))
    counters.read(0.0, 0, 0)
    counters.ended(1, 0.1, served=True)
    counters.began(2, Bounds(32, 32, 100))
    counters.ended(2, 0.2, served=True)
    counters.began(3, Bounds(64, 64, 100))
    assert counters.read(1.0, 100, 32) == Evidence(32, 256, 32)


def test_what_ended_a_moment_ago_may_not_be_counted_yet() -> None:
    counters = window((1, Bounds(160, 160, 200)))
    assert not counters.due(1.2)
    assert counters.read(1.2, 1000, 500) is None
    counters.began(2, Bounds(16, 16, 50))
    counters.ended(2, 1.3, served=True)
    assert counters.read(3.0, 1250, 676) == Evidence(16, 176, 176)


def test_other_clients_are_seen_and_no_failure() -> None:
    assert window((1, Bounds(160, 160, 200))).read(2.0, 2200, 1160) == Evidence(160, 660, 660)
    assert window((1, Bounds(0, 0, None))).read(2.0, 1100, 596) == Evidence(0, 96, 96)
    assert window((1, Bounds(160, 160, 200))).read(2.0, 1200, 500) == Evidence(160, 160, 0)


def test_a_reading_waits_until_more_lies_within_than_across() -> None:
    counters = window((1, Bounds(160, 160, 200)))
    for number in (2, 3):
        counters.began(number, Bounds(160, 160, 200))
    assert not counters.due(2.0)
    counters.ended(2, 2.0, served=True)
    assert not counters.due(2.1)
    assert counters.due(2.6)


def test_what_was_not_served_or_was_reported_is_not_owed() -> None:
    counters = CounterWindow()
    counters.read(0.0, 0, 0)
    counters.began(1, Bounds(160, 160, 200))
    counters.ended(1, 0.1, served=False)
    assert not counters.due(1.0)
    counters.began(2, Bounds(160, 160, 200))
    counters.reported(2)
    counters.ended(2, 0.1, served=True)
    assert counters.read(1.0, 0, 0) == Evidence(0, 320, 0)


def test_counters_that_went_back_are_of_another_process() -> None:
    assert window((1, Bounds(160, 160, 200))).read(2.0, 200, 0) is None
