"""What is kept of decisions and their ends: bounded, by name, and gone with the worker."""

from __future__ import annotations

import pytest

from warmroute.core.decision import PickRequest
from warmroute.core.index import make_index
from warmroute.core.router import Router
from warmroute.errors import ClientError, NoWorkerError
from warmroute.service import tracking as module
from warmroute.service.ports import Outcome
from warmroute.service.tracking import Attempt, Tracking
from warmroute.service.trail import Job, Trail
from warmroute.types import Endpoint, Fleet, ModelInfo, Worker, WorkerId


def trail(request_id: str, *, workers: int = 1, reason: str | None = None) -> Trail:
    fleet = Fleet(
        [
            Worker(id=WorkerId(n), endpoint=Endpoint("10.0.0.1", 8000 + n), models=(ModelInfo("m"),))
            for n in range(workers)
        ]
    )
    decision = Router(make_index(10)).pick(PickRequest(model="m", token_ids=list(range(40))), fleet, 0.0)
    return Trail(request_id=request_id, decision=decision, no_tokens_reason=reason)


def test_decisions_are_counted_by_worker_and_reason() -> None:
    tracking = Tracking()
    tracking.decided(trail("a"))
    tracking.decided(trail("b", reason="timeout"))
    assert tracking.decisions == {("10.0.0.1:8000", "load"): 2}
    assert tracking.prompt_tokens == {"10.0.0.1:8000": 40}  # what is not known is not summed up
    assert tracking.no_tokens == {"timeout": 1}


def test_the_oldest_decisions_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DECISIONS_KEPT_MAX", 3)
    tracking = Tracking()
    for name in "abcd":
        tracking.decided(trail(name))
    assert [name for name in "abcd" if tracking.trail(name)] == ["b", "c", "d"]
    tracking.decided(trail("b"))  # a retry is news again
    tracking.decided(trail("e"))
    assert [name for name in "abcde" if tracking.trail(name)] == ["b", "d", "e"]


def test_reports_are_compared_with_predictions() -> None:
    tracking = Tracking()
    for tokens, reason in ((0, None), (16, None), (16, "timeout")):
        kept = trail("a", reason=reason)
        tracking.reported(kept, tokens)
        assert kept.reported_tokens == tokens
    high = trail("b")
    high.decision.predicted_tokens = 32
    tracking.reported(high, 16)
    worker = "10.0.0.1:8000"
    assert tracking.predictions == {(worker, "exact"): 1, (worker, "low"): 1, (worker, "high"): 1}
    assert tracking.reported_tokens == {worker: 48}


def test_a_worker_that_left_takes_its_numbers_along() -> None:
    tracking = Tracking()
    for other in ("10.0.0.1:8000", "10.0.0.2:8000"):
        tracking.decisions[other, "load"] += 1
        tracking.outcomes[other, "complete"] += 1
        tracking.predictions[other, "exact"] += 1
        tracking.prompt_tokens[other] += 1
        tracking.predicted_tokens[other] += 1
        tracking.reported_tokens[other] += 1
    tracking.forget_worker("10.0.0.1:8000")
    tracking.forget_worker("unknown")
    left = (tracking.decisions, tracking.outcomes, tracking.predictions)
    assert [[key[0] for key in counter] for counter in left] == [["10.0.0.2:8000"]] * 3
    assert tracking.prompt_tokens == tracking.predicted_tokens == tracking.reported_tokens == {"10.0.0.2:8000": 1}


def test_refusals_are_counted_by_status() -> None:
    tracking = Tracking()
    for error in (ClientError(400, "x"), ClientError(404, "x"), NoWorkerError("x"), NoWorkerError("x")):
        tracking.refuse(error)
    assert tracking.refused == {400: 1, 404: 1, 503: 2}


class Told:
    """The port Tracker."""

    def __init__(self) -> None:
        self.news: list[object] = []

    def answering(self, attempt: Attempt, status: int) -> None:
        self.news.append(status)

    def finished(self, attempt: Attempt, outcome: Outcome, tail: bytes, status: int | None) -> None:
        self.news.append((outcome, tail, status))


def test_an_attempt_ends_once() -> None:
    told = Told()
    job = Job(pick=PickRequest(model="m"), request_id="a", path="/x", retriable=False)
    attempt = Attempt(told, job, trail("a"), Endpoint("10.0.0.1", 8000), (), ())
    assert (attempt.endpoint, attempt.retriable) == (Endpoint("10.0.0.1", 8000), False)
    attempt.answering(200)
    attempt.finished(Outcome.COMPLETE, b"end")
    attempt.finished(Outcome.CLIENT_GONE)
    assert told.news == [200, (Outcome.COMPLETE, b"end", None)]
