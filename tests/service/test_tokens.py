from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from warmroute.config.tree import TokenizerConfig
from warmroute.core import openai
from warmroute.core.openai import RoutingRequest
from warmroute.errors import TokenizeError
from warmroute.service.tokens import FAILURES_MAX, PAUSE_S, Tokens, Verdict, probes
from warmroute.testing.fakes import FakeTokenizer
from warmroute.types import Endpoint, Fleet, ModelInfo, Worker, WorkerId

EP = Endpoint("10.0.0.1", 8000)
MODELS = (ModelInfo("m"), ModelInfo("adapter", parent="m"))
FLEET = Fleet([Worker(WorkerId(0), EP, models=MODELS)])
REFUSED = TokenizeError("refused", "404")
GONE = TokenizeError("unreachable", "no")


def request(model: str = "m", **fields: Any) -> RoutingRequest:
    return openai.parse("/v1/completions", json.dumps({"model": model, "prompt": "hi", **fields}).encode())


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def tokens(mode: Any = "auto", **tokenizers: FakeTokenizer) -> Tokens:
    return Tokens(TokenizerConfig(mode=mode, timeout_s=0.01), Clock(), **tokenizers)


async def test_ids_that_were_given_need_no_tokenizer() -> None:
    remote = FakeTokenizer()
    service = tokens(remote=remote)
    assert (await service.of(request(prompt=[1, 2]), EP)).token_ids == [1, 2]
    assert (remote.asked, service.counts) == ([], {"given": 1})


async def test_remote() -> None:
    remote = FakeTokenizer([7, 8])
    found = await tokens(remote=remote).of(request(), EP)
    assert (found.token_ids, found.reason) == ([7, 8], None)
    assert remote.asked[0][1] == EP


@pytest.mark.parametrize(
    ("service", "fields", "reason"),
    [
        (tokens("off", local=FakeTokenizer(), remote=FakeTokenizer()), {}, "off"),
        (tokens(), {}, "off"),
        (tokens("remote", local=FakeTokenizer()), {}, "off"),
        (tokens(remote=FakeTokenizer()), {"suffix": "x"}, "suffix"),
        (tokens(remote=FakeTokenizer()), {"prompt": [1], "truncate_prompt_tokens": 1}, "truncated"),
        (tokens(remote=FakeTokenizer(REFUSED)), {}, "refused"),
        (tokens(remote=FakeTokenizer(GONE)), {}, "unreachable"),
        (tokens(remote=FakeTokenizer(None)), {}, "timeout"),
        (tokens("local", local=FakeTokenizer(TokenizeError("unsupported", "x"))), {}, "unsupported"),
    ],
)
async def test_without_ids_there_is_a_reason_and_it_is_counted(
    service: Tokens, fields: dict[str, Any], reason: str
) -> None:
    found = await service.of(request(**fields), EP)
    assert (found.token_ids, found.reason) == (None, reason)
    assert service.counts == {reason: 1}


async def test_whatever_a_tokenizer_raises_stays_here() -> None:
    class Broken:
        async def tokens(self, request: RoutingRequest, endpoint: Endpoint) -> list[int]:
            raise RuntimeError("a bug")

    service = Tokens(TokenizerConfig(), Clock(), remote=Broken())
    assert (await service.of(request(), EP)).reason == "bug"


async def test_the_local_one_is_believed_only_after_it_agreed() -> None:
    local, remote = FakeTokenizer(), FakeTokenizer()
    service = tokens(local=local, remote=remote)
    await service.of(request(), EP)
    assert service.counts == {"remote": 1}
    await service.verify(FLEET)
    assert service.verdicts == {"m": Verdict.SAME}
    await service.of(request(), EP)
    await service.of(request("adapter"), EP)
    assert service.counts == {"remote": 1, "local": 2}
    asked = len(remote.asked)
    await service.verify(FLEET)
    assert len(remote.asked) == asked


@pytest.mark.parametrize("mode", ["auto", "local"])
async def test_a_local_one_that_differs_is_switched_off_loudly(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    service = tokens(mode, local=FakeTokenizer([1, 2, 3]), remote=FakeTokenizer([1, 2, 4]))
    await service.verify(FLEET)
    assert service.verdicts == {"m": Verdict.DIFFERS}
    assert "at token 2 of a probe it says 3, http://10.0.0.1:8000 says 4" in caplog.text
    assert (await service.of(request(), EP)).token_ids == [1, 2, 4]
    assert service.counts == {"remote": 1}


async def test_a_shorter_answer_differs() -> None:
    service = tokens(local=FakeTokenizer([1, 2]), remote=FakeTokenizer([1, 2, 4]))
    await service.verify(FLEET)
    assert service.verdicts == {"m": Verdict.DIFFERS}


async def test_an_engine_without_tokenize_leaves_the_local_one_uncompared_but_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = tokens(local=FakeTokenizer([1]), remote=FakeTokenizer(REFUSED))
    await service.verify(FLEET)
    assert service.verdicts == {"m": Verdict.INCOMPARABLE}
    assert "without having been compared" in caplog.text
    assert (await service.of(request(), EP)).token_ids == [1]


async def test_an_engine_that_does_not_answer_is_compared_later() -> None:
    remote = FakeTokenizer(GONE)
    service = tokens(local=FakeTokenizer(), remote=remote)
    await service.verify(FLEET)
    assert service.verdicts == {}
    remote.answer = ()
    await service.verify(FLEET)
    assert service.verdicts == {"m": Verdict.SAME}


async def test_engines_that_are_not_ready_are_not_compared() -> None:
    remote = FakeTokenizer()
    service = tokens(local=FakeTokenizer(), remote=remote)
    await service.verify(Fleet([Worker(WorkerId(0), EP, models=MODELS, ready=False)]))
    assert (service.verdicts, remote.asked) == ({}, [])


async def test_what_the_local_one_cannot_do_the_remote_one_is_asked_for() -> None:
    local, remote = FakeTokenizer(), FakeTokenizer()
    service = tokens(local=local, remote=remote)
    await service.verify(FLEET)
    local.answer = TokenizeError("unsupported", "x")
    remote.answer = [5]
    assert (await service.of(request(), EP)).token_ids == [5]


class Begins(FakeTokenizer):
    """The port `InstantTokenizer`: gives its answer at once, or has it waited for."""

    def __init__(self, answer: Any, *, instant: bool) -> None:
        super().__init__(answer)
        self.begun, self.instant = 0, instant
        self.given_up: Counter[str] = Counter()

    def begin(self, request: RoutingRequest) -> Any:
        self.begun += 1
        if isinstance(self.answer, TokenizeError):
            raise self.answer
        return self.answer if self.instant else self._rest

    async def _rest(self) -> Any:
        return self.answer


@pytest.mark.parametrize("instant", [True, False])
async def test_what_can_be_had_at_once_is_and_what_was_begun_is_not_begun_again(instant: bool) -> None:
    local, remote = Begins([3], instant=instant), FakeTokenizer([3])
    service = tokens("local", local=local, remote=remote)
    found = service.ask(request(), EP)
    assert callable(found) is not instant
    assert (await found() if callable(found) else found).token_ids == [3]
    assert (local.begun, local.asked, remote.asked, service.counts) == (1, [], [], {"local": 1})


async def test_what_fails_at_once_is_not_tried_again_but_elsewhere() -> None:
    local, remote = Begins(TokenizeError("unsupported", "a tool"), instant=True), FakeTokenizer([3])
    service = tokens("local", local=local, remote=remote)
    assert (await service.of(request(), EP)).token_ids == [3]
    assert (local.begun, local.asked, service.counts) == (1, [], {"remote": 1})


async def test_an_engine_that_never_answers_is_left_alone_for_a_while() -> None:
    clock, remote = Clock(), FakeTokenizer(GONE)
    service = Tokens(TokenizerConfig(), clock, remote=remote)
    for _ in range(FAILURES_MAX + 2):
        await service.of(request(), EP)
    assert service.counts == {"unreachable": FAILURES_MAX, "paused": 2}
    assert (await service.of(request(), Endpoint("10.0.0.2", 8000))).reason == "unreachable"
    clock.now = PAUSE_S + 1
    remote.answer = [1]
    assert (await service.of(request(), EP)).token_ids == [1]
    remote.answer = GONE
    assert (await service.of(request(), EP)).reason == "unreachable"
    assert (await service.of(request(), EP)).reason == "unreachable"


async def test_what_takes_the_address_of_an_engine_that_is_gone_begins_anew() -> None:
    remote = FakeTokenizer(GONE)
    service = Tokens(TokenizerConfig(), Clock(), remote=remote)
    for _ in range(FAILURES_MAX):
        await service.of(request(), EP)
    service.forget(EP)
    remote.answer = [1]
    assert (await service.of(request(), EP)).token_ids == [1]
    assert (service._failures, service._paused_until) == ({}, {})


async def test_a_refusal_pauses_nothing() -> None:
    service = tokens(remote=FakeTokenizer(REFUSED))
    for _ in range(FAILURES_MAX + 2):
        await service.of(request(), EP)
    assert service.counts == {"refused": FAILURES_MAX + 2}


def test_probes_are_requests() -> None:
    for probe in probes("m"):
        parsed = openai.parse(probe.path, probe.body)
        assert (parsed.model, parsed.opaque, parsed.prompt, parsed.chat) == ("m", None, probe.prompt, probe.chat)
