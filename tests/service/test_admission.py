"""Admission around a service that decides nothing: what a request holds is given back, whatever becomes of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any

import pytest

from warmroute.core.admission import Gate, GateLimits
from warmroute.core.keys import digest_of, parse_keys
from warmroute.errors import ClientError, LimitError, NoWorkerError
from warmroute.service.access import KEY_HEADER
from warmroute.service.admission import PRIORITY_HEADER, Admission, Admitted, KeyLimits, OwnRates
from warmroute.service.ports import Dispatch, Outcome, Reply, RequestHead
from warmroute.testing.http import StaticService
from warmroute.types import Endpoint

KEYS = parse_keys(
    f"alice {digest_of('a')} requests_per_min=2\nbob {digest_of('b')} tokens_per_min=100 priority=5\n"
    f"carol {digest_of('c')}",
    "k",
)
USAGE = b'{"usage":{"prompt_tokens":10,"total_tokens":%d}}'


class Inner(StaticService):
    """Raises, answers or delays on request."""

    then: Any = None

    def dispatch(self, head: RequestHead, body: bytes) -> Any:
        if isinstance(self.then, Exception):
            raise self.then
        if isinstance(self.then, Reply):
            return self.then
        if isinstance(self.then, asyncio.Future):
            return self.later(self.then)
        return super().dispatch(head, body)

    async def later(self, when: asyncio.Future[None]) -> Dispatch:
        await when
        return self._next()


class Stage:
    def __init__(self, *, key_limits: KeyLimits | None = None, **limits: Any) -> None:
        self.now = 0.0
        self.inner = Inner([Endpoint("10.0.0.1", 8000)])
        self.rates = OwnRates(lambda: self.now)
        self.gate = Gate(GateLimits(**{"queue_max": 9, "wait_s_max": 30.0} | limits))
        self.admission = Admission(
            self.inner, self.gate, self.rates, lambda: self.now, key_limits=key_limits, body_bytes_max={"small": 100}
        )
        self.admission.keys = lambda: KEYS

    def send(
        self, key: str = "", model: str = "m", priority: int | None = None, method: bytes = b"POST", size: int = 0
    ) -> Dispatch | Reply | Awaitable[Dispatch | Reply]:
        headers = ((KEY_HEADER, key.encode()),) if key else ()
        if priority is not None:
            headers += ((PRIORITY_HEADER, str(priority).encode()),)
        body = json.dumps({"model": model, "prompt": "x" * size}).encode()
        return self.admission.dispatch(RequestHead(method, b"/v1/completions", headers), body)

    def served(self, **request: Any) -> Admitted:
        dispatch = self.send(**request)
        assert isinstance(dispatch, Admitted)
        return dispatch

    def waiting(self, **request: Any) -> asyncio.Future[Dispatch | Reply]:
        waiting = self.send(**request)
        assert isinstance(waiting, Awaitable)
        return asyncio.ensure_future(waiting)

    def idle(self) -> bool:
        return (self.gate.inside, len(self.gate), dict(self.gate.by_model)) == (0, 0, {})


def refusal(stage: Stage, **request: Any) -> LimitError:
    with pytest.raises(LimitError) as caught:
        stage.send(**request)
    return caught.value


async def started(*futures: asyncio.Future[Any]) -> None:
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(future.done() for future in futures)


# Room


async def test_who_finds_no_room_waits_and_is_served_in_order() -> None:
    stage = Stage(requests_max=1)
    first = stage.served()
    low, high = stage.waiting(priority=5), stage.waiting(priority=-5)
    await started(low, high)
    assert stage.admission.waited == 2
    first.finished(Outcome.COMPLETE)
    second = await high
    assert not low.done()
    second.finished(Outcome.CLIENT_GONE)
    second.finished(Outcome.CLIENT_GONE)
    (await low).finished(Outcome.ENGINE_LOST)
    assert stage.idle()


async def test_keys_bound_the_priority_that_a_client_may_ask_for() -> None:
    stage = Stage(requests_max=1)
    first = stage.served()
    bob = stage.waiting(key="bob", priority=-100)
    carol = stage.waiting(key="carol", priority=1)
    await started(bob, carol)
    first.finished(Outcome.COMPLETE)
    await carol
    assert not bob.done()
    bob.cancel()


async def test_a_client_that_leaves_the_line_leaves_no_trace() -> None:
    stage = Stage(requests_max=1)
    first = stage.served()
    waiting = stage.waiting()
    await started(waiting)
    waiting.cancel()
    await asyncio.wait([waiting])
    first.finished(Outcome.COMPLETE)
    assert stage.idle()


async def test_a_client_that_leaves_as_its_turn_comes_passes_it_on() -> None:
    stage = Stage(requests_max=1)
    first = stage.served()
    one, two = stage.waiting(), stage.waiting()
    await started(one, two)
    first.finished(Outcome.COMPLETE)  # it is one's turn, who has not heard of it yet
    one.cancel()
    await asyncio.wait([one])
    (await two).finished(Outcome.COMPLETE)
    assert stage.idle()


async def test_a_wait_has_an_end() -> None:
    stage = Stage(requests_max=1)
    first = stage.served()
    waiting = stage.waiting()
    await started(waiting)
    stage.now = 30.0
    stage.admission.advance()
    with pytest.raises(LimitError) as caught:
        await waiting
    assert (caught.value.status, caught.value.reason) == (503, "deadline")
    first.finished(Outcome.COMPLETE)
    assert stage.idle()


async def test_a_full_line_refuses_the_last() -> None:
    stage = Stage(requests_max=1, queue_max=1)
    first = stage.served()
    low = stage.waiting(priority=5)
    await started(low)
    error = refusal(stage, priority=5)
    assert (error.status, error.reason) == (429, "queue_full")
    high = stage.waiting(priority=0)
    with pytest.raises(LimitError) as caught:
        await low
    assert (caught.value.status, caught.value.reason) == (429, "displaced")
    assert stage.admission.refused == {"queue_full": 1, "displaced": 1}
    first.finished(Outcome.COMPLETE)
    (await high).finished(Outcome.COMPLETE)
    assert stage.idle()


async def test_models_have_room_of_their_own() -> None:
    stage = Stage(models={"m": 1})
    stage.served()
    waiting = stage.waiting()
    other = stage.served(model="other")
    await started(waiting)
    other.finished(Outcome.COMPLETE)
    assert not waiting.done()
    waiting.cancel()


def test_bodies_are_bounded_by_model() -> None:
    stage = Stage(requests_max=1)
    with pytest.raises(ClientError) as caught:
        stage.send(model="small", size=200)
    assert caught.value.status == 413
    stage.served(model="m", size=200).finished(Outcome.COMPLETE)
    assert stage.idle()


def test_only_posts_stand_at_the_gate() -> None:
    stage = Stage(requests_max=1)
    stage.served()
    assert not isinstance(stage.send(method=b"GET"), Admitted)


def test_without_any_limit_nothing_is_held() -> None:
    stage = Stage()
    assert not isinstance(stage.send(key="carol"), Admitted)
    assert isinstance(stage.send(key="alice"), Admitted)
    assert stage.gate.inside == 1


# What the inner service does


@pytest.mark.parametrize("error", [ClientError(404, "no"), NoWorkerError("none"), ValueError("a slip")])
async def test_what_is_refused_behind_it_is_given_back(error: Exception) -> None:
    stage = Stage(requests_max=1)
    stage.inner.then = error
    for _ in range(2):
        with pytest.raises(type(error)):
            stage.send(key="bob", size=80)
    assert stage.idle()
    stage.inner.then = None
    stage.served(key="bob", size=80)  # its tokens were given back too


async def test_what_is_refused_behind_it_later_is_given_back() -> None:
    stage = Stage(requests_max=1)
    for end in ("fails", "is cancelled", "answers"):
        stage.inner.then = asyncio.get_running_loop().create_future()
        deciding = stage.waiting()
        await started(deciding)
        if end == "fails":
            stage.inner.then.set_exception(NoWorkerError("none"))
        elif end == "is cancelled":
            deciding.cancel()
        else:
            stage.inner.then.set_result(None)
        await asyncio.wait([deciding])
        if end == "answers":
            deciding.result().finished(Outcome.COMPLETE)  # type: ignore[union-attr]
        assert stage.idle(), end


def test_replies_of_our_own_hold_nothing() -> None:
    stage = Stage(requests_max=1)
    stage.inner.then = Reply(200, b"")
    assert stage.send() == stage.send() == stage.inner.then
    assert stage.idle()


def test_a_retry_keeps_its_place() -> None:
    stage = Stage(requests_max=1)
    stage.inner.retries_left = 1
    first = stage.served()
    first.finished(Outcome.UNREACHABLE)
    assert stage.gate.inside == 1
    again = stage.admission.retry(first)
    assert isinstance(again, Admitted)
    assert stage.gate.inside == 1
    again.finished(Outcome.UNREACHABLE)
    assert stage.admission.retry(again) is None
    assert stage.idle()


# Rates


def test_a_keys_requests_are_limited() -> None:
    stage = Stage()
    for _ in range(2):
        stage.served(key="alice").finished(Outcome.COMPLETE)
    error = refusal(stage, key="alice")
    assert (error.status, error.reason, error.retry_after_s) == (429, "rate_limit_exceeded", 30.0)
    assert "2 requests per minute" in str(error)
    assert not isinstance(stage.send(key="carol"), Awaitable)
    stage.now = 30.0
    stage.served(key="alice").finished(Outcome.COMPLETE)
    assert stage.idle()


def test_a_keys_tokens_are_charged_as_the_engine_counts_them() -> None:
    stage = Stage()
    stage.served(key="bob", size=100).finished(Outcome.COMPLETE, USAGE % 90)
    assert refusal(stage, key="bob", size=100).retry_after_s == pytest.approx(
        0.6 * (len(b"x" * 130) // 4 + 1 - 10), abs=3
    )
    stage.now = 12.0
    stage.served(key="bob").finished(Outcome.COMPLETE, USAGE % 500)  # nobody could have known
    stage.now = 60.0
    assert refusal(stage, key="bob").retry_after_s > 100


def test_tokens_of_messages_are_charged_by_their_sum() -> None:
    stage = Stage()
    counted = b'"usage":{"input_tokens":20,"output_tokens":30,"cache_read_input_tokens":400}'
    stage.served(key="bob").finished(Outcome.COMPLETE, counted)
    stage.now = 60.0
    assert refusal(stage, key="bob").retry_after_s > 100


def test_without_the_engines_word_the_guess_stands() -> None:
    stage = Stage()
    stage.served(key="bob", size=300).finished(Outcome.CLIENT_GONE)
    assert refusal(stage, key="bob", size=300)


def test_keys_without_limits_have_those_of_all() -> None:
    stage = Stage(key_limits=KeyLimits(requests_per_min=1))
    stage.served(key="carol")
    assert refusal(stage, key="carol")
    stage.served(key="alice")
    stage.served(key="alice")
    assert stage.admission.bucket_limits() == {
        "alice:requests": 2,
        "bob:requests": 1,
        "bob:tokens": 100,
        "carol:requests": 1,
    }
