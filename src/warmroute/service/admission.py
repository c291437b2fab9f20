"""Admission before routing: rates of keys, then room; what finds none waits for it, in order.

A `GatewayService` around another one, put there only if a limit is configured: without, requests do not pass here.
Only POSTs are counted: everything that makes engines compute is one.

Invariant: whatever becomes of a request, what it holds of the gate is given back exactly once, and tokens that were
charged on a guess are settled with what the engine reports.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import msgspec

from warmroute.core import openai
from warmroute.core.admission import Charge, Gate, GateLimits, Rates, Verdict, Visit
from warmroute.core.keys import PRIORITY_MAX, ApiKey, Keys
from warmroute.core.usage import total_tokens
from warmroute.errors import ClientError, LimitError
from warmroute.service.access import KEY_HEADER
from warmroute.service.ports import Dispatch, GatewayService, Headers, Outcome, Reply, RequestHead
from warmroute.types import Endpoint

PRIORITY_HEADER = b"x-warmroute-priority"
"""Lower goes first, as in vLLM; a request cannot go before its key's own priority."""

BYTES_PER_TOKEN = 4
"""Of a body: what its tokens are charged at until the engine has counted them."""

_ALARM_LATE_S = 0.005
"""Event loops count in milliseconds: an alarm must not come before its deadline."""

_PRIORITY = re.compile(rb"-?[0-9]{1,7}")

Charges = tuple[Charge, ...]
_REASONS = {
    "queue_full": (429, "Too many requests are waiting already; come again."),
    "displaced": (429, "Requests of higher priority took the places that there are to wait; come again."),
    "deadline": (503, "No engine had room in time; come again."),
}


class RateLimits(Protocol):
    """Who keeps what keys have used: this process, or one that gateways share."""

    def take(self, charges: Charges) -> float | Awaitable[float]:
        """Take all charges or none: 0 if taken, else after how many seconds they could be."""
        ...

    def settle(self, charges: Charges) -> None:
        """Take without asking, or give back."""
        ...


class OwnRates:
    """The port `RateLimits` in this process."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.rates = Rates()
        self._clock = clock

    def take(self, charges: Charges) -> float:
        """Take all charges or none."""
        return self.rates.take(charges, self._clock())

    def settle(self, charges: Charges) -> None:
        """Take without asking, or give back."""
        self.rates.settle(charges, self._clock())


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What keys may use that have no limits of their own. None: as much as they like."""

    requests_per_min: int | None = None
    tokens_per_min: int | None = None


class _Request(msgspec.Struct):
    """One request on its way."""

    head: RequestHead
    body: bytes
    key: ApiKey | None
    tokens: Charge | None
    """What it was charged for its tokens, on a guess."""
    visit: Visit | None = None
    sent: bool = False
    """Whether an engine may have computed for it."""


class Admission:
    """The port `GatewayService`, around another one."""

    def __init__(
        self,
        inner: GatewayService,
        gate: Gate,
        rates: RateLimits,
        clock: Callable[[], float],
        *,
        key_limits: KeyLimits | None = None,
        body_bytes_max: Mapping[str, int] | None = None,
    ) -> None:
        self.keys: Callable[[], Keys | None] = lambda: None
        """The keys that are in force now."""
        self.gate = gate
        self.refused: Counter[str] = Counter()
        """Reason -> requests."""
        self.waited = 0
        """Requests that had to wait, whatever became of them."""
        self._inner = inner
        self._rates = rates
        self._clock = clock
        self._key_limits = key_limits or KeyLimits()
        self._body_bytes_max = body_bytes_max or {}
        self._by_model = bool(gate.by_models or self._body_bytes_max)
        self._waits: dict[Visit, asyncio.Future[None]] = {}

    def dispatch(self, head: RequestHead, body: bytes) -> Dispatch | Reply | Awaitable[Dispatch | Reply]:
        """Let in, have wait, or refuse. Raises LimitError, and what the inner service raises."""
        if head.method != b"POST":
            return self._inner.dispatch(head, body)
        request = self._request(head, body)
        model = openai.model_of(body) if self._by_model else None
        self._check_size(model, body)
        charges = self._charges(request)
        if not charges and self.gate.stands_open:
            return self._inner.dispatch(head, body)
        wait_s = self._rates.take(charges) if charges else 0.0
        if isinstance(wait_s, float):
            self._check_rate(wait_s, charges)
            return self._enter(request, model)
        return self._enter_later(request, model, charges, wait_s)

    def reconfigure(self, limits: GateLimits, key_limits: KeyLimits, body_bytes_max: Mapping[str, int]) -> None:
        """Take up what is configured now; who is inside stays."""
        self.gate.limits = limits
        self._key_limits, self._body_bytes_max = key_limits, body_bytes_max
        self._by_model = bool(self.gate.by_models or body_bytes_max)
        self.advance()

    def retry(self, dispatch: Dispatch) -> Dispatch | None:
        """Another worker for it; it keeps its place inside."""
        if not isinstance(dispatch, Admitted):
            return self._inner.retry(dispatch)
        request, again = dispatch.request, None
        try:
            again = self._inner.retry(dispatch.inner)
        finally:
            if again is None:
                request.sent = False
                self._leave(request, b"")
        return None if again is None else Admitted(self, request, again)

    def advance(self) -> None:
        """Room may have come: let in who waits for it, and refuse who has waited too long."""
        for visit in self.gate.expire(self._clock()):
            self._refuse_waiting(visit)
        for visit in self.gate.advance():
            waiting = self._waits.pop(visit, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    def bucket_limits(self) -> dict[str, int]:
        """Bucket -> its size, of all keys in force."""
        keys = self.keys()
        found: dict[str, int | None] = {}
        for key in keys.by_name.values() if keys is not None else ():
            found[f"{key.name}:requests"] = key.requests_per_min or self._key_limits.requests_per_min
            found[f"{key.name}:tokens"] = key.tokens_per_min or self._key_limits.tokens_per_min
        return {bucket: limit for bucket, limit in found.items() if limit is not None}

    def ended(self, request: _Request, outcome: Outcome, tail: bytes) -> None:
        """An attempt is over; the request is too, unless it may be tried elsewhere."""
        if not outcome.retried:  # else `retry` is asked at once
            self._leave(request, tail)

    # Rates

    def _request(self, head: RequestHead, body: bytes) -> _Request:
        keys = self.keys()
        name = None if keys is None else head.header(KEY_HEADER)
        key = None if keys is None or name is None else keys.by_name.get(name.decode("latin-1"))
        limit = None if key is None else key.tokens_per_min or self._key_limits.tokens_per_min
        guess = len(body) // BYTES_PER_TOKEN + 1
        tokens = None if key is None or limit is None else Charge(f"{key.name}:tokens", limit, guess)
        return _Request(head, body, key, tokens)

    def _charges(self, request: _Request) -> Charges:
        key = request.key
        if key is None:
            return ()
        limit = key.requests_per_min or self._key_limits.requests_per_min
        charges = () if limit is None else (Charge(f"{key.name}:requests", limit, 1.0),)
        return charges if request.tokens is None else (*charges, request.tokens)

    def _check_rate(self, wait_s: float, charges: Charges) -> None:
        if wait_s > 0:
            self.refused["rate"] += 1
            limits = " and ".join(f"{charge.per_min} {charge.bucket.rpartition(':')[2]}" for charge in charges)
            raise LimitError(429, "rate_limit_exceeded", f"This key may use {limits} per minute.", wait_s)

    def _check_size(self, model: str | None, body: bytes) -> None:
        most = self._body_bytes_max.get(model or "", self._body_bytes_max.get("*"))
        if most is not None and len(body) > most:
            self.refused["body"] += 1
            raise ClientError(413, f"Bodies of requests for this model may have {most} bytes.")

    # Room

    async def _enter_later(
        self, request: _Request, model: str | None, charges: Charges, wait_s: Awaitable[float]
    ) -> Dispatch | Reply:
        self._check_rate(await wait_s, charges)
        verdict = self._enter(request, model)
        return await verdict if isinstance(verdict, Awaitable) else verdict

    def _enter(self, request: _Request, model: str | None) -> Dispatch | Reply | Awaitable[Dispatch | Reply]:
        visit, displaced = self.gate.arrive(model, self._priority(request), self._clock())
        request.visit = visit
        if displaced is not None:
            self._refuse_waiting(displaced)
        if visit.verdict is Verdict.ADMITTED:
            return self._serve(request)
        if visit.verdict is Verdict.REFUSED:
            self._give_back(request)
            raise self._refusal(visit)
        self.waited += 1
        return self._wait(request, visit)

    def _priority(self, request: _Request) -> int:
        own = request.key.priority if request.key is not None else -PRIORITY_MAX
        asked = request.head.header(PRIORITY_HEADER)
        if asked is None or not _PRIORITY.fullmatch(asked):
            return 0 if request.key is None else own
        return max(own, int(asked))

    async def _wait(self, request: _Request, visit: Visit) -> Dispatch | Reply:
        loop = asyncio.get_running_loop()
        waiting = self._waits[visit] = loop.create_future()
        alarm = loop.call_later(visit.deadline - self._clock() + _ALARM_LATE_S, self.advance)
        try:
            await waiting
            verdict = self._serve(request)
        except BaseException:
            self._waits.pop(visit, None)
            self._leave(request, b"")
            raise
        finally:
            alarm.cancel()
        return await verdict if isinstance(verdict, Awaitable) else verdict

    def _serve(self, request: _Request) -> Dispatch | Reply | Awaitable[Dispatch | Reply]:
        try:
            verdict = self._inner.dispatch(request.head, request.body)
        except BaseException:
            self._leave(request, b"")
            raise
        return self._serve_later(request, verdict) if isinstance(verdict, Awaitable) else self._served(request, verdict)

    async def _serve_later(self, request: _Request, verdict: Awaitable[Dispatch | Reply]) -> Dispatch | Reply:
        try:
            found = await verdict
        except BaseException:
            self._leave(request, b"")
            raise
        return self._served(request, found)

    def _served(self, request: _Request, verdict: Dispatch | Reply) -> Dispatch | Reply:
        if isinstance(verdict, Reply):
            self._leave(request, b"")
            return verdict
        request.body, request.sent = b"", True  # the data plane holds the body as long as it is needed
        if request.visit is not None:
            self.gate.booked(request.visit)
        return Admitted(self, request, verdict)

    def _leave(self, request: _Request, tail: bytes) -> None:
        visit, request.visit = request.visit, None
        if visit is None:
            return
        self.gate.release(visit)
        self._settle(request, tail)
        self.advance()

    def _settle(self, request: _Request, tail: bytes) -> None:
        """Charge what the engine counted; without its word, the guess stands if it computed, else nothing."""
        total = None if request.tokens is None else total_tokens(tail)
        if total is not None and request.tokens is not None:
            more = total - request.tokens.cost
            self._rates.settle((msgspec.structs.replace(request.tokens, cost=more),))
        elif not request.sent:
            self._give_back(request)

    def _give_back(self, request: _Request) -> None:
        if request.tokens is not None:
            self._rates.settle((msgspec.structs.replace(request.tokens, cost=-request.tokens.cost),))

    def _refuse_waiting(self, visit: Visit) -> None:
        waiting = self._waits.pop(visit, None)
        if waiting is not None and not waiting.done():
            waiting.set_exception(self._refusal(visit))

    def _refusal(self, visit: Visit) -> LimitError:
        self.refused[visit.reason] += 1
        status, message = _REASONS[visit.reason]
        return LimitError(status, visit.reason, message)


class Admitted:
    """A dispatch of a request that was let in."""

    __slots__ = ("_admission", "_ended", "inner", "request")

    def __init__(self, admission: Admission, request: _Request, inner: Dispatch) -> None:
        self._admission = admission
        self._ended = False
        self.request = request
        self.inner = inner

    @property
    def endpoint(self) -> Endpoint:
        """Where to send it."""
        return self.inner.endpoint

    @property
    def request_headers(self) -> Headers:
        """Headers to set on the request to the engine."""
        return self.inner.request_headers

    @property
    def response_headers(self) -> Headers:
        """Headers to set on the answer to the client."""
        return self.inner.response_headers

    @property
    def retriable(self) -> bool:
        """Whether it may be sent again if no byte of an answer came."""
        return self.inner.retriable

    def answering(self, status: int) -> None:
        """The first byte of the answer's body came."""
        self.inner.answering(status)

    def progressed(self) -> None:
        """A further piece of the answer's body came."""
        self.inner.progressed()

    def finished(self, outcome: Outcome, tail: bytes = b"", status: int | None = None) -> None:
        """The attempt is over. Only the first call counts."""
        if self._ended:
            return
        self._ended = True
        try:
            self.inner.finished(outcome, tail, status)
        finally:
            self._admission.ended(self.request, outcome, tail)
