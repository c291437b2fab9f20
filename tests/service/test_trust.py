"""Trust: the stream's word lowered by failed predictions, told once per change, mended with back-off."""

from __future__ import annotations

import logging

import pytest

from warmroute.core.parity import Bounds, Evidence
from warmroute.service.ports import CacheCounters
from warmroute.service.trust import RESYNC_PAUSE_S, Trusts
from warmroute.types import Trust, TrustState, WorkerId

ONE = WorkerId(1)
HIGH, LOW, HELD = Evidence(160, 160, 0), Evidence(0, 0, 160), Evidence(160, 160, 160)


class Stage:
    def __init__(self) -> None:
        self.now = 0.0
        self.trusts = Trusts(lambda: self.now)
        self.shown: list[Trust] = []
        self.resynced: list[float] = []
        self.trusts.publish = lambda _, trust: self.shown.append(trust)
        self.trusts.resync = lambda *_: self.resynced.append(self.now)
        self.trusts.name_of = lambda _: "w"

    def stream(self, state: TrustState, reason: str = "r") -> None:
        self.trusts.streamed(ONE, Trust(state, reason, self.now))

    def judge(self, evidence: Evidence, times: int) -> None:
        for _ in range(times):
            self.now += 1
            self.trusts.judged(ONE, evidence, self.now)


def test_states_are_told_as_they_change_and_reasons_keep_their_beginning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stage = Stage()
    for now, state, reason in (
        (1.0, TrustState.REPLAYING, "catching up"),
        (2.0, TrustState.LIVE, "in sync"),
        (3.0, TrustState.DEGRADED, "batch 1 lost"),
        (4.0, TrustState.DEGRADED, "batch 2 lost"),
        (5.0, TrustState.DEGRADED, "batch 2 lost"),
    ):
        stage.now = now
        stage.stream(state, reason)
    assert [(t.state, t.reason, t.since) for t in stage.shown[2:]] == [
        (TrustState.DEGRADED, "batch 1 lost", 3.0),
        (TrustState.DEGRADED, "batch 2 lost", 3.0),
    ]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "w is DEGRADED (was LIVE): batch 1 lost"
    ]
    assert stage.trusts.transitions == {("w", "REPLAYING"): 1, ("w", "LIVE"): 1, ("w", "DEGRADED"): 1}
    stage.trusts.forget_name("w")
    assert not stage.trusts.transitions


def test_a_worker_whose_predictions_fail_is_degraded_until_they_hold() -> None:
    stage = Stage()
    stage.stream(TrustState.LIVE)
    stage.judge(HIGH, 5)
    assert stage.shown[-1].state is TrustState.LIVE
    stage.judge(HIGH, 1)
    assert stage.shown[-1].state is TrustState.DEGRADED
    assert stage.shown[-1].reason == "parity: it predicts too much, as the engine reports"
    assert stage.shown[-1].belief < 0.3
    assert stage.resynced == [6.0]
    stage.stream(TrustState.REPLAYING)  # the resync itself does not lift it
    stage.stream(TrustState.LIVE)
    assert stage.shown[-1].state is TrustState.DEGRADED
    stage.judge(HELD, 16)
    assert (stage.shown[-1].state, stage.shown[-1].belief) == (TrustState.LIVE, 1.0)


def test_what_a_stream_knows_to_be_worse_is_not_covered_up() -> None:
    stage = Stage()
    stage.stream(TrustState.LIVE)
    stage.judge(HIGH, 6)
    stage.stream(TrustState.DEGRADED, "batch 7 lost")
    assert (stage.shown[-1].reason, stage.shown[-1].belief < 0.3) == ("batch 7 lost", True)
    stage.stream(TrustState.BLIND, "gone")
    assert stage.shown[-1].state is TrustState.BLIND


@pytest.mark.parametrize(
    ("state", "evidence", "failed"),
    [
        (TrustState.LIVE, LOW, 3),
        (TrustState.LIVE, HIGH, 3),
        (TrustState.DEGRADED, LOW, 0),
        (TrustState.DEGRADED, HIGH, 3),
        (TrustState.REPLAYING, HIGH, 0),
        (TrustState.BLIND, LOW, 0),
    ],
)
def test_a_view_is_held_to_what_its_stream_claims_for_it(state: TrustState, evidence: Evidence, failed: int) -> None:
    stage = Stage()
    stage.stream(state)
    stage.judge(evidence, 3)
    parity = stage.trusts.of(ONE).parity
    assert parity.high + parity.low == failed
    stage.stream(TrustState.LIVE)
    stage.trusts.judged(ONE, HIGH, stage.now - 1)  # decided when it was not
    assert parity.high + parity.low == failed


def test_resyncs_that_do_not_help_become_rare() -> None:
    stage = Stage()
    stage.stream(TrustState.LIVE)
    stage.judge(HIGH, 3600)
    pauses = [later - earlier for earlier, later in zip(stage.resynced, stage.resynced[1:], strict=False)]
    assert pauses == [RESYNC_PAUSE_S * 2**n for n in range(6)]
    assert stage.trusts.of(ONE).view()["resyncs"] == 7


def test_engines_that_report_nothing_are_judged_by_their_counters() -> None:
    stage = Stage()
    stage.stream(TrustState.LIVE)
    queries = hits = 0
    for number in range(7):
        stage.now += 1
        stage.trusts.began(ONE, number, Bounds(160, 160, 200))
        stage.trusts.ended(ONE, number, served=True, reported=False)
        queries += 200
        stage.now += 1
        assert stage.trusts.wants_counters(ONE)
        stage.trusts.counted(ONE, CacheCounters(queries, hits), stage.now)
        assert not stage.trusts.wants_counters(ONE)
    assert stage.shown[-1].state is TrustState.DEGRADED
    assert stage.trusts.of(ONE).parity.judged == 6  # the first reading is where counting begins


def test_what_was_reported_needs_no_counters_and_a_worker_that_is_gone_nothing() -> None:
    stage = Stage()
    stage.trusts.began(ONE, 1, Bounds(160, 160, 200))
    stage.trusts.ended(ONE, 1, served=True, reported=True)
    assert not stage.trusts.wants_counters(ONE)
    stage.trusts.forget(ONE)
    stage.trusts.ended(ONE, 2, served=True, reported=False)
    assert not stage.trusts.wants_counters(ONE)
    assert not stage.trusts.workers
