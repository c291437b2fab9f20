"""The routing service without sockets: what becomes of a request, what is booked for it, and that it is released."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest
from routing_stage import CHAT, COMPLETIONS, PROMPT, Stage, named, worker

from warmroute.config.tree import BreakerConfig
from warmroute.core.breaker import Breakers
from warmroute.errors import ClientError, NoWorkerError, TokenizeError
from warmroute.service.ports import Outcome, Reply
from warmroute.service.tracking import Attempt
from warmroute.testing.fakes import FakeTokenizer
from warmroute.types import Endpoint, Fleet, ModelInfo, Trust, TrustState, Worker, WorkerId


def test_token_ids_are_routed_at_once_to_the_warm_worker() -> None:
    stage = Stage()
    stage.store(20, PROMPT)
    attempt = stage.attempt(x_request_id="mine")
    assert attempt.endpoint == Endpoint("10.0.0.1", 8002)
    assert attempt.request_headers == ((b"x-request-id", b"mine"),)
    assert attempt.response_headers == (
        (b"x-request-id", b"mine"),
        (b"x-warmroute-worker", b"10.0.0.1:8002"),
        (b"x-warmroute-overlap-tokens", b"32"),
    )
    assert stage.requests(20) == 1
    assert stage.routing.tracking.trail("mine") is attempt.trail


async def test_text_waits_for_its_token_ids() -> None:
    tokenizer = FakeTokenizer(PROMPT)
    stage = Stage(tokenizer=tokenizer)
    stage.store(20, PROMPT)
    waiting = stage.send(CHAT, {"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    assert isinstance(waiting, Awaitable)
    attempt = await waiting
    assert isinstance(attempt, Attempt)
    assert (named(attempt), attempt.trail.decision.overlap_tokens) == ("10.0.0.1:8002", 32)
    assert [asked.chat for asked, _ in tokenizer.asked] == [True]


async def test_text_without_token_ids_goes_by_load() -> None:
    stage = Stage(tokenizer=FakeTokenizer(TokenizeError("unreachable", "it is a fake")))
    stage.store(20, PROMPT)
    for _ in range(2):
        waiting = stage.send(COMPLETIONS, {"model": "m", "prompt": "hello"})
        assert isinstance(waiting, Awaitable)
        attempt = await waiting
        assert isinstance(attempt, Attempt)
        assert attempt.trail.no_tokens_reason == "unreachable"
    assert stage.routing.tracking.no_tokens == {"unreachable": 2}
    assert (stage.requests(10), stage.requests(20)) == (1, 1)


async def test_the_engine_that_is_asked_for_token_ids_is_one_that_is_ready() -> None:
    tokenizer = FakeTokenizer(PROMPT)
    stage = Stage(worker(1, ready=False), worker(2), tokenizer=tokenizer)
    waiting = stage.send(COMPLETIONS, {"model": "m", "prompt": "hello"})
    assert isinstance(waiting, Awaitable)
    await waiting
    assert [endpoint.port for _, endpoint in tokenizer.asked] == [8002]


def test_adapters_and_salts_have_blocks_of_their_own() -> None:
    stage = Stage()
    stage.store(20, PROMPT, lora="sql")
    overlaps = {
        (model, salt): stage.attempt(body={"model": model, "prompt": PROMPT, "cache_salt": salt}).trail.decision
        for model, salt in (("sql", "s"), ("m", None), ("sql", None))
    }
    assert {key: decision.overlap_tokens for key, decision in overlaps.items()} == {
        ("sql", "s"): 0,
        ("m", None): 0,
        ("sql", None): 32,
    }


def test_a_rank_is_pinned_by_a_header() -> None:
    stage = Stage(worker(1, rank=0, ranks=2), worker(1, rank=1, ranks=2))
    stage.store(11, PROMPT)
    attempt = stage.attempt()
    assert (b"x-data-parallel-rank", b"1") in attempt.request_headers
    assert (b"x-warmroute-worker", b"10.0.0.1:8001#1") in attempt.response_headers


def test_request_ids_are_made_where_there_are_none() -> None:
    stage = Stage(decision_headers=False)
    first, second = stage.attempt(), stage.attempt()
    assert first.trail.request_id != second.trail.request_id
    assert first.response_headers == ((b"x-request-id", first.trail.request_id.encode()),)


def test_other_paths_go_by_load_to_whoever_serves_the_model() -> None:
    only = worker(3)
    other = Worker(id=WorkerId(40), endpoint=Endpoint("10.0.0.1", 8004), models=(ModelInfo("embedder"),))
    stage = Stage(only, other)
    for _ in range(3):
        assert named(stage.attempt(b"/v1/embeddings", {"model": "embedder", "input": "x"})) == "10.0.0.1:8004"
    with pytest.raises(ClientError) as refused:
        stage.attempt(b"/v1/embeddings", {"model": "none"})
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")
    assert stage.attempt(b"/version?x=1", b"", b"GET").trail.no_tokens_reason == "path"


def test_own_pages_are_answered_locally_and_only_to_readers() -> None:
    stage = Stage()
    stage.routing.answer_locally(
        {"/health": lambda path: Reply(200, path.encode()), "/decisions/": lambda path: Reply(201, path.encode())}
    )
    for target, method, expected in (
        (b"/health", b"GET", Reply(200, b"/health")),
        (b"/health?verbose=1", b"HEAD", Reply(200, b"/health?verbose=1")),
        (b"/decisions/abc", b"GET", Reply(201, b"/decisions/abc")),
    ):
        assert stage.send(target, None, method) == expected
    for target, method in ((b"/health", b"POST"), (b"/healthy", b"GET"), (b"/decisions/a/b", b"GET")):
        assert isinstance(stage.send(target, None, method), Attempt)


# Refusing.


def test_what_is_refused_is_counted() -> None:
    stage = Stage()
    with pytest.raises(ClientError, match="Models served here: m, sql"):
        stage.send(COMPLETIONS, {"model": "none", "prompt": PROMPT})
    with pytest.raises(ClientError):
        stage.send(COMPLETIONS, b"{")
    stage.membership.fleet = Fleet([worker(1, ready=False)])
    with pytest.raises(NoWorkerError, match="none of the 1 known engines"):
        stage.send(COMPLETIONS, {"model": "m", "prompt": PROMPT})
    stage.membership.fleet = Fleet()
    with pytest.raises(NoWorkerError, match="no engine has answered yet"):
        stage.send(COMPLETIONS, {"model": "m", "prompt": PROMPT})
    assert stage.routing.tracking.refused == {404: 1, 400: 1, 503: 2}


async def test_a_fleet_that_goes_while_token_ids_are_made() -> None:
    stage = Stage(tokenizer=FakeTokenizer(PROMPT))
    waiting = stage.send(COMPLETIONS, {"model": "m", "prompt": "hello"})
    stage.membership.fleet = Fleet()
    assert isinstance(waiting, Awaitable)
    with pytest.raises(NoWorkerError, match="there is no engine that serves the model 'm' now"):
        await waiting
    assert stage.routing.tracking.refused == {503: 1}


# Ending.


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("status", [None, 200, 400])
def test_load_is_released_whatever_the_end(outcome: Outcome, status: int | None) -> None:
    stage = Stage(worker(1))
    attempt = stage.attempt()
    assert stage.requests(10) == 1
    if status is not None:
        attempt.answering(status)
    attempt.finished(outcome)
    attempt.finished(Outcome.COMPLETE)  # only the first call counts
    assert stage.requests(10) == 0
    assert stage.routing.tracking.outcomes == {("10.0.0.1:8001", outcome.value): 1}
    assert (attempt.trail.outcome, attempt.trail.status) == (outcome, status)
    stage.router.load.check()


def test_who_comes_right_after_a_step_began_goes_where_the_next_is_due_sooner() -> None:
    stage = Stage(worker(1), worker(2))
    streams = [stage.attempt(body={"model": "m", "prompt": [n] * 64, "stream": True}) for n in (1, 2)]
    assert {stream.trail.decision.worker.id for stream in streams} == {10, 20}
    for stream in streams:
        stream.answering(200)
    for _ in range(100):  # steps of 20 ms each, those of one engine 10 ms after those of the other
        for stream in streams:
            stage.now += 0.010
            stream.progressed()
    for _ in range(10):
        for late, soon in (streams[::-1], streams):
            del late
            stage.now += 0.001
            attempt = stage.attempt(body={"model": "m", "prompt": [3] * 64, "stream": True})
            assert attempt.trail.decision.worker.id == soon.trail.decision.worker.id
            attempt.finished(Outcome.UNREACHABLE)
            stage.now += 0.009
            soon.progressed()


def test_counters_are_asked_only_of_engines_whose_events_are_followed() -> None:
    stage = Stage(worker(1))
    trusts = stage.routing.trusts
    for state, asked in ((TrustState.BLIND, False), (TrustState.LIVE, True)):
        trusts.streamed(WorkerId(10), Trust(state, "said so", 0.0))
        stage.attempt().finished(Outcome.COMPLETE, b"{}", 200)
        assert trusts.wants_counters(WorkerId(10)) is asked


def test_an_answer_that_comes_at_once_says_that_its_prefill_is_done_to_those_behind_it() -> None:
    waits = []
    for at_once in (True, False):
        stage = Stage(worker(1))
        first, second = (stage.attempt(body={"model": "m", "prompt": [n] * 4000}) for n in (1, 2))
        stage.now += 0.1  # long before it was expected
        if at_once:
            first.finished(Outcome.COMPLETE, b"{}", 200)
        else:
            first.answering(200)
            first.finished(Outcome.COMPLETE, b"{}")
        waits.append(stage.attempt().trail.decision.candidates.wait_s[0])
        assert second.trail.decision.lease.prefilling
    assert waits[0] == waits[1]


@pytest.mark.parametrize("status", [200, 404, 500])
def test_an_answer_that_comes_at_once_is_one_that_began_and_ended(status: int) -> None:
    ends = []
    for at_once in (True, False):
        stage = Stage(worker(1))
        engine = Endpoint("10.0.0.1", 8001)
        breakers = stage.routing.breakers = Breakers(BreakerConfig(failures_max=1, open_s=1.0))
        breakers.failed(engine, 50.0, 50.0)
        breakers.shut(60.0)  # tried again from now on
        attempt = stage.attempt()
        stage.now += 2.0
        if at_once:
            attempt.finished(Outcome.COMPLETE, b"{}", status)
        else:
            attempt.answering(status)
            attempt.finished(Outcome.COMPLETE, b"{}")
        trail, state = attempt.trail, breakers.of(engine, stage.now).state
        seen = trail.decision.first_byte_s, trail.status, trail.decision.candidates.token_ids, trail.decision.chain
        ends.append((state, stage.predicted(), *seen, stage.routing.tracking.outcomes, stage.requests(10)))
    assert ends[0] == ends[1]
    assert ends[0][2] == (2.0 if status == 200 else None)


@pytest.mark.parametrize(
    ("outcome", "shut"),
    [(Outcome.UNREACHABLE, True), (Outcome.ENGINE_LOST, True), (Outcome.CLIENT_GONE, False), (Outcome.UNASKED, False)],
)
def test_only_what_an_engine_is_at_fault_for_opens_its_breaker(outcome: Outcome, shut: bool) -> None:
    stage = Stage(worker(1))
    breakers = stage.routing.breakers = Breakers(BreakerConfig(failures_max=1, open_s=1.0))
    stage.attempt().finished(outcome)
    assert bool(breakers.shut(stage.now)) is shut


@pytest.mark.parametrize(
    ("status", "outcome", "believed"),
    [
        (200, Outcome.COMPLETE, 32),
        (200, Outcome.CLIENT_GONE, 32),
        (200, Outcome.ENGINE_LOST, 32),
        (400, Outcome.COMPLETE, 0),
        (503, Outcome.COMPLETE, 0),
        (None, Outcome.CLIENT_GONE, 0),
        (None, Outcome.ENGINE_LOST, 0),
        (None, Outcome.UNREACHABLE, 0),
        (None, Outcome.UNASKED, 0),
    ],
)
def test_only_what_was_computed_is_assumed_to_be_cached(status: int | None, outcome: Outcome, believed: int) -> None:
    stage = Stage(worker(1))
    attempt = stage.attempt()
    if status is not None:
        attempt.answering(status)
    attempt.finished(outcome)
    assert stage.predicted() == believed


def test_a_claim_stands_while_its_request_runs() -> None:
    stage = Stage(worker(1))
    attempt = stage.attempt()
    assert stage.predicted() == 32
    attempt.answering(503)
    assert stage.requests(10) == 1
    attempt.finished(Outcome.COMPLETE)
    assert stage.predicted() == 0


TAILS = [
    (b'..."usage":{"prompt_tokens":40,"prompt_tokens_details":{"cached_tokens":32}}}', 32, "low"),
    (b'data: {"usage":{"prompt_tokens_details": {"cached_tokens" : 0}}}\n\ndata: [DONE]\n\n', 0, "exact"),
    (b'"cached_tokens":5 ... "cached_tokens":7', 7, "low"),
    (b'{"text":"\\"cached_tokens\\": 9", "usage": null}', None, None),
    (b'"usage":{"input_tokens":12,"cache_creation_input_tokens":160,"cache_read_input_tokens":0}}', 0, "exact"),
    (b'{"usage":{"input_tokens":8,"cache_read_input_tokens":32}}\n\ndata: {"type":"message_stop"}', 32, "low"),
    (b'"input_tokens_details":{"cached_tokens":32,"cached_tokens_per_turn":[]},"output_tokens":4', 32, "low"),
    (b"", None, None),
]


@pytest.mark.parametrize(("tail", "reported", "result"), TAILS)
def test_what_the_engine_reports_is_compared(tail: bytes, reported: int | None, result: str | None) -> None:
    stage = Stage(worker(1))
    attempt = stage.attempt()
    attempt.answering(200)
    attempt.finished(Outcome.COMPLETE, tail)
    tracking = stage.routing.tracking
    assert attempt.trail.reported_tokens == reported
    assert tracking.predictions == ({} if result is None else {("10.0.0.1:8001", result): 1})
    assert tracking.reported_tokens["10.0.0.1:8001"] == (reported or 0)


def test_an_engine_that_cannot_be_reached_is_left_alone_and_one_that_broke_is_asked() -> None:
    stage = Stage(worker(1))
    here = Endpoint("10.0.0.1", 8001)
    for outcome in (Outcome.COMPLETE, Outcome.CLIENT_GONE, Outcome.UNREACHABLE, Outcome.ENGINE_LOST):
        stage.attempt().finished(outcome)
    assert stage.membership.told == [("unreachable", here), ("refresh", here)]


# Retrying.


def test_a_retry_goes_elsewhere_and_ends() -> None:
    stage = Stage(worker(1), worker(2), worker(3), retries=2)
    attempts = [stage.attempt(x_request_id="r")]
    for _ in range(2):
        attempts[-1].finished(Outcome.UNREACHABLE)
        again = stage.routing.retry(attempts[-1])
        assert isinstance(again, Attempt)
        attempts.append(again)
    assert len({named(attempt) for attempt in attempts}) == 3
    attempts[-1].finished(Outcome.UNREACHABLE)
    assert stage.routing.retry(attempts[-1]) is None
    assert stage.routing.tracking.retries == 2
    assert stage.routing.tracking.trail("r") is attempts[-1].trail
    assert sum(stage.requests(n) for n in (10, 20, 30)) == 0


def test_when_everybody_was_tried_it_is_said_so() -> None:
    stage = Stage(worker(1), retries=2)
    attempt = stage.attempt()
    attempt.finished(Outcome.UNREACHABLE)
    with pytest.raises(NoWorkerError, match="was tried and could not be reached"):
        stage.routing.retry(attempt)
    assert stage.routing.tracking.refused == {503: 1}


@pytest.mark.parametrize(
    ("target", "method", "body", "retriable"),
    [
        (b"/reset_prefix_cache", b"POST", b"", False),
        (b"/v1/load_lora_adapter", b"POST", {"lora_name": "x"}, False),
        (b"/version", b"GET", b"", True),
        (b"/v1/embeddings", b"POST", {"model": "m"}, True),
        (COMPLETIONS, b"POST", {"model": "m", "prompt": PROMPT}, True),
    ],
)
def test_what_an_engine_may_have_acted_on_is_not_sent_twice(
    target: bytes, method: bytes, body: Any, retriable: bool
) -> None:
    stage = Stage()
    attempt = stage.attempt(target, body, method)
    assert attempt.retriable is retriable
    attempt.finished(Outcome.UNREACHABLE)
    assert (stage.routing.retry(attempt) is not None) is retriable


# What engines did because they were asked to.


@pytest.mark.parametrize(
    ("target", "status", "tail", "outcome", "reset"),
    [
        (b"/reset_prefix_cache", 200, b'{"success":true}', Outcome.COMPLETE, True),
        (b"/reset_prefix_cache?reset_running_requests=true", 200, b"", Outcome.COMPLETE, True),
        (b"/sleep?level=1", 200, b"", Outcome.COMPLETE, True),
        (b"/reset_prefix_cache", 200, b'{"success": false}', Outcome.COMPLETE, False),
        (b"/reset_prefix_cache", 404, b"", Outcome.COMPLETE, False),
        (b"/reset_prefix_cache", 200, b"", Outcome.CLIENT_GONE, False),
        (b"/wake_up", 200, b"", Outcome.COMPLETE, False),
    ],
)
def test_a_reset_that_succeeded_empties_all_ranks_of_that_engine(
    target: bytes, status: int, tail: bytes, outcome: Outcome, reset: bool
) -> None:
    stage = Stage(worker(1, rank=0, ranks=2), worker(1, rank=1, ranks=2))
    attempt = stage.attempt(target, b"")
    stage.membership.fleet = Fleet([*stage.membership.fleet.workers, worker(2)])
    attempt.answering(status)
    attempt.finished(outcome, tail)
    assert stage.reset == ([10, 11] if reset else [])


@pytest.mark.parametrize(("status", "asked"), [(200, True), (400, False)])
@pytest.mark.parametrize("target", [b"/v1/load_lora_adapter", b"/v1/unload_lora_adapter"])
def test_a_change_of_models_is_looked_at_at_once(target: bytes, status: int, asked: bool) -> None:
    stage = Stage(worker(1))
    attempt = stage.attempt(target, {"lora_name": "x", "lora_path": "y"})
    attempt.answering(status)
    attempt.finished(Outcome.COMPLETE)
    assert stage.membership.told == ([("refresh", Endpoint("10.0.0.1", 8001))] if asked else [])
