"""Prompts that are made of other forms are believed only where engines count them alike."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from routing_stage import CHAT, Stage, named, worker

from warmroute.core.forms import MESSAGES, RESPONSES
from warmroute.core.openai import RoutingRequest
from warmroute.core.usage import prompt_tokens, total_tokens
from warmroute.service.access_log import AccessLog
from warmroute.service.agreements import AGREEING_AGAIN, KINDS_MAX, PAUSE_S, Agreements, Made
from warmroute.service.ports import Outcome
from warmroute.service.tokens import Tokenized
from warmroute.service.tracking import Attempt
from warmroute.testing.fakes import FakeTokenizer

IDS = list(range(100, 140))
KIND = RoutingRequest(path=MESSAGES, model="m", body=b"", chat=True, shape="text")
MADE = Made(MESSAGES, "m", "text", len(IDS))
FOUND = Tokenized(IDS)


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def test_what_is_no_other_form_is_not_asked_about() -> None:
    agreements = Agreements(Clock())
    own = RoutingRequest(path="/v1/chat/completions", model="m", body=b"", chat=True)
    assert agreements.paused(own) is None
    assert agreements.believed(own, FOUND) == (FOUND, None)
    unknown = Tokenized(None, "refused")
    assert agreements.believed(KIND, unknown) == (unknown, None)


def test_a_kind_is_believed_after_an_engine_has_counted_the_same() -> None:
    agreements = Agreements(Clock())
    assert agreements.believed(KIND, FOUND) == (Tokenized(None, "unproven"), MADE)
    assert agreements.compare(MADE, len(IDS))
    assert agreements.believed(KIND, FOUND) == (FOUND, MADE)
    assert agreements.counts == {(MESSAGES, "equal"): 1}


def test_what_was_not_counted_proves_nothing() -> None:
    agreements = Agreements(Clock())
    assert not agreements.compare(MADE, None)
    assert agreements.believed(KIND, FOUND)[0].reason == "unproven"
    assert agreements.counts == {(MESSAGES, "unreported"): 1}


@pytest.mark.parametrize("other", [{"path": RESPONSES}, {"model": "n"}, {"shape": "tools"}])
def test_each_kind_is_proven_for_itself(other: dict[str, str]) -> None:
    agreements = Agreements(Clock())
    agreements.compare(Made(**{"path": MESSAGES, "model": "m", "shape": "text", "tokens": 5, **other}), 5)  # type: ignore[arg-type]
    assert agreements.believed(KIND, FOUND)[0].reason == "unproven"


def test_a_kind_that_differs_is_left_alone_then_proven_again(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    agreements = Agreements(clock)
    agreements.compare(MADE, len(IDS))
    with caplog.at_level(logging.WARNING):
        assert not agreements.compare(MADE, 41)
        assert not agreements.compare(MADE, 41)  # it was sent before
        assert "counts 41 prompt tokens where 40 were expected" in caplog.text
        assert agreements.paused(KIND) == Tokenized(None, "differs")
        clock.now += PAUSE_S
        assert agreements.paused(KIND) is None
        for _ in range(AGREEING_AGAIN):
            assert agreements.believed(KIND, FOUND)[0].reason == "unproven"
            agreements.compare(MADE, len(IDS))
        assert agreements.believed(KIND, FOUND)[0] == FOUND
        agreements.compare(MADE, 39)
        clock.now += PAUSE_S
        assert agreements.paused(KIND) is not None, "the pause is doubled"
    assert len(caplog.records) == 1, "logged once"
    assert agreements.counts[MESSAGES, "different"] == 3


def test_one_that_holds_does_not_undo_doubt() -> None:
    clock = Clock()
    agreements = Agreements(clock)
    for counted in (41, *[len(IDS)] * (AGREEING_AGAIN - 1), 41, len(IDS)):
        agreements.compare(MADE, counted)
    clock.now += PAUSE_S
    assert agreements.believed(KIND, FOUND)[0].reason == "unproven"


def test_of_too_many_kinds_the_one_compared_longest_ago_begins_anew() -> None:
    agreements = Agreements(Clock())
    agreements.compare(MADE, len(IDS))
    for number in range(KINDS_MAX):
        agreements.compare(Made(MESSAGES, str(number), "text", 1), 1)
        agreements.compare(MADE, len(IDS))
    assert len(agreements._kinds) == KINDS_MAX
    assert agreements.believed(KIND, FOUND)[0] is FOUND
    assert (MESSAGES, "0", "text") not in agreements._kinds


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (b'{"usage": {"input_tokens": 12, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 8}}}', 12),
        (b'"usage":{"input_tokens":4,"output_tokens":1,"cache_read_input_tokens":32}', 36),
        (b'"usage":{"input_tokens":4,"cache_creation_input_tokens": 2,"cache_read_input_tokens":32}', 38),
        (b'{"input_tokens":9,"output_tokens":0} data: {"input_tokens":1,"cache_read_input_tokens":8}', 9),
        (b'"text": "\\"input_tokens\\": 7"', None),
        (b'"usage": {"prompt_tokens": 7}', None),
        (b"", None),
    ],
)
def test_an_engine_says_how_long_the_prompt_was(tail: bytes, expected: int | None) -> None:
    assert prompt_tokens(tail) == expected


def test_keys_are_charged_what_was_counted() -> None:
    assert total_tokens(b'"usage":{"input_tokens":4,"output_tokens":3,"cache_read_input_tokens":32}') == 39
    assert total_tokens(b'"input_tokens":4') is None
    assert total_tokens(b'"output_tokens":4') is None


# In the routing service.

BODY = {"model": "m", "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}]}


async def ask(stage: Stage, counted: int | None, cached: int = 0, **more: Any) -> Attempt:
    found = stage.send(MESSAGES.encode() + b"?beta=true", {**BODY, **more})
    attempt = found if isinstance(found, Attempt) else await found  # type: ignore[misc]
    assert isinstance(attempt, Attempt)
    usage = {"output_tokens": 3, "input_tokens": (counted or 0) - cached, "cache_read_input_tokens": cached}
    attempt.answering(200)
    attempt.finished(Outcome.COMPLETE, json.dumps({"usage": usage}).encode() if counted is not None else b"")
    return attempt


async def test_the_second_request_goes_where_the_first_is_cached() -> None:
    stage = Stage(tokenizer=FakeTokenizer(IDS))
    stage.store(20, IDS)
    first = await ask(stage, len(IDS))
    assert first.trail.no_tokens_reason == "unproven"
    second = await ask(stage, len(IDS), 32)
    assert (named(second), second.trail.no_tokens_reason) == ("10.0.0.1:8002", None)
    assert (b"x-warmroute-overlap-tokens", b"32") in second.response_headers
    assert stage.routing.tracking.predictions == {("10.0.0.1:8002", "exact"): 1}


async def test_the_access_log_has_what_the_engine_counted() -> None:
    stage, written = Stage(tokenizer=FakeTokenizer(IDS)), list[bytes]()
    stage.routing.access_log = AccessLog(written.append, stage.clock, stage.clock)
    await ask(stage, 48, 32)
    line = json.loads(written[0])
    assert (line["path"], line["prompt_tokens"]) == (MESSAGES, 48)
    assert (line["cached_tokens"], line["completion_tokens"]) == (32, 3)


async def test_what_differs_is_routed_by_load_and_says_nothing_of_the_worker() -> None:
    stage = Stage(worker(1), tokenizer=FakeTokenizer(IDS))
    stage.store(10, IDS)
    stage.routing.agreements.compare(MADE, len(IDS))
    wrong = await ask(stage, len(IDS) + 1, 0)
    assert wrong.trail.decision.overlap_tokens == 32
    assert stage.routing.trusts.of(wrong.trail.decision.worker.id).parity.judged == 0
    asked = len(stage.routing._tokens._remote.asked)  # type: ignore[union-attr]
    after = await ask(stage, len(IDS))
    assert after.trail.no_tokens_reason == "differs"
    assert len(stage.routing._tokens._remote.asked) == asked, "nobody is asked in vain"  # type: ignore[union-attr]


async def test_what_cannot_be_rewritten_says_why() -> None:
    stage = Stage(tokenizer=FakeTokenizer(IDS))
    attempt = await ask(stage, 5, kv_transfer_params={"prompt_token_ids": [1]})
    assert attempt.trail.no_tokens_reason == "forwarded"
    assert stage.routing.agreements.counts == {}
    nameless = stage.attempt(MESSAGES.encode(), {"messages": []})
    assert nameless.trail.no_tokens_reason == "path"


async def test_a_refusal_proves_nothing() -> None:
    stage = Stage(tokenizer=FakeTokenizer(IDS))
    attempt = await stage.send(MESSAGES.encode(), BODY)  # type: ignore[misc]
    attempt.answering(400)
    attempt.finished(Outcome.COMPLETE, b'{"input_tokens": 1}')
    assert stage.routing.agreements.counts == {}


async def test_a_client_that_left_before_the_count_proves_nothing() -> None:
    stage = Stage(tokenizer=FakeTokenizer(IDS))
    attempt = await stage.send(MESSAGES.encode(), BODY)  # type: ignore[misc]
    attempt.answering(200)
    attempt.finished(Outcome.CLIENT_GONE, b'{"cache_read_input_tokens": 16}')
    assert stage.routing.agreements.counts == {}
    assert stage.routing.trusts.of(attempt.trail.decision.worker.id).parity.judged == 0


async def test_chats_are_as_before() -> None:
    stage = Stage(tokenizer=FakeTokenizer(IDS))
    attempt = await stage.send(CHAT, {"model": "m", "messages": BODY["messages"]})  # type: ignore[misc]
    assert attempt.trail.no_tokens_reason is None
    assert attempt.job.made is None
