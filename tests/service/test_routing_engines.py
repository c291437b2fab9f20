"""What engines did because they were asked to, whom a client may name, and whether predictions hold."""

from __future__ import annotations

from typing import Any

import pytest
from routing_stage import COMPLETIONS, PROMPT, Stage, named, worker

from warmroute.errors import ClientError
from warmroute.service.ports import Outcome
from warmroute.types import Endpoint, Fleet, Trust, TrustState, WorkerId


def test_an_adapter_that_was_loaded_from_elsewhere_is_known_at_once() -> None:
    stage = Stage(worker(1))
    for source in ("/a", "/b"):
        attempt = stage.attempt(b"/v1/load_lora_adapter", {"lora_name": "sql", "lora_path": source})
        assert stage.router.adapters.key(WorkerId(10), "sql") == "sql"
        attempt.answering(200)
        attempt.finished(Outcome.COMPLETE)
    assert stage.router.adapters.key(WorkerId(10), "sql") == "sql\0/b"


def test_sleep_and_waking_up_are_taken_at_once() -> None:
    stage = Stage(worker(1), worker(2))
    stage.membership.asleep = lambda: frozenset({WorkerId(20)})  # type: ignore[method-assign]
    stage.membership.fleet = Fleet([worker(1), worker(2, ready=False)])
    attempt = stage.attempt(b"/wake_up", b"")
    assert named(attempt) == "10.0.0.1:8002"  # where else
    attempt.answering(200)
    attempt.finished(Outcome.COMPLETE)
    asleep = stage.attempt(b"/sleep?level=1", b"")
    asleep.answering(200)
    asleep.finished(Outcome.COMPLETE)
    two, one = Endpoint("10.0.0.1", 8002), Endpoint("10.0.0.1", 8001)
    assert stage.membership.told == [("awake", two), ("refresh", two), ("asleep", one)]


# Who is asked for by name.


def test_a_client_may_name_the_rank_or_the_worker() -> None:
    stage = Stage(worker(1, rank=0, ranks=2), worker(1, rank=1, ranks=2))
    body = {"model": "m", "prompt": PROMPT}
    for rank in ("1", "1", "0"):
        attempt = stage.attempt(COMPLETIONS, body, X_Data_Parallel_Rank=rank)
        assert (b"x-data-parallel-rank", rank.encode()) in attempt.request_headers
    pinned = stage.attempt(b"/reset_prefix_cache", b"", x_warmroute_worker="10.0.0.1:8001#1")
    assert named(pinned) == "10.0.0.1:8001#1"
    with pytest.raises(ClientError, match="There is no worker 'nobody'"):
        stage.attempt(COMPLETIONS, body, x_warmroute_worker="nobody")
    # what is no rank is the engine's to refuse
    assert stage.attempt(COMPLETIONS, body, x_data_parallel_rank="first").endpoint.port == 8001


def test_the_engines_key_is_added_where_the_client_sends_none() -> None:
    stage = Stage(worker(1))
    stage.membership.keys = {Endpoint("10.0.0.1", 8001): "secret"}
    body = {"model": "m", "prompt": PROMPT}
    key = (b"authorization", b"Bearer secret")
    assert key in stage.attempt(COMPLETIONS, body).request_headers
    assert key in stage.attempt(b"/v1/embeddings", {"model": "m"}).request_headers
    own = stage.attempt(COMPLETIONS, body, Authorization="Bearer mine")
    assert all(name != b"authorization" for name, _ in own.request_headers)
    assert all(value != b"Bearer secret" for _, value in own.response_headers)


# Parity.


def report(stage: Stage, cached: int, **more: Any) -> None:
    stage.routing.trusts.of(WorkerId(10)).stream = Trust(TrustState.LIVE, "in sync", 0.0)
    attempt = stage.attempt(COMPLETIONS, {"model": "m", "prompt": PROMPT, **more})
    attempt.answering(200)
    attempt.finished(Outcome.COMPLETE, b'"cached_tokens":%d' % cached)


def test_predictions_that_keep_failing_lower_the_trust_and_resync() -> None:
    stage = Stage(worker(1))
    stage.store(10, PROMPT)
    trusts, resynced = stage.routing.trusts, list[tuple[WorkerId, str]]()
    trusts.resync = lambda worker, why: resynced.append((worker, why))
    for _ in range(6):
        report(stage, 0)
    assert resynced == [(WorkerId(10), "its predictions fail: it predicts too much")]
    assert trusts.of(WorkerId(10)).parity.high == 6


def test_what_may_have_been_evicted_meanwhile_is_no_failure() -> None:
    stage = Stage(worker(1))
    stage.store(10, PROMPT)
    removed = iter(range(0, 1000, 2))
    stage.routing.removed_blocks = lambda _: next(removed)
    for _ in range(20):
        report(stage, 0)
    assert stage.routing.trusts.of(WorkerId(10)).parity.high == 0


def test_several_answers_and_unknown_tokens_are_not_judged() -> None:
    stage = Stage(worker(1))
    stage.store(10, PROMPT)
    report(stage, 0, n=2)
    report(stage, 0, suffix="x")
    assert stage.routing.trusts.of(WorkerId(10)).parity.judged == 0
