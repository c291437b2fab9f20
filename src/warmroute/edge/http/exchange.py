"""One request's way through: from the decision to the last byte of its answer, over as many attempts as it takes.

The state is what the engine connection's `receive` points at, or what is waited for:

    deciding -> connecting -> head -> first byte -> length | chunked | dechunked | until_close -> over
                    ^          |          |
                    '- retry --'----------'   only while no byte of an answer's body has come, or it is a 503

Engines send the head of a stream before they begin to compute. It is held back until the first byte of the body, so a
request whose engine dies meanwhile can still be served by another. A 503 says that the engine has not begun: another
one is tried, and the client sees the 503 only if there is none.

Invariants: every dispatch is finished exactly once; the client's connection gets exactly one of an answer, an error of
ours, or a cut that cannot be taken for an end; nothing happens after `over`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import traceback
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol, cast

import msgspec

from warmroute.config.tree import GatewayConfig
from warmroute.edge.http.body import Body, ChunkedBody, LengthBody, body_of
from warmroute.edge.http.counts import Counts
from warmroute.edge.http.head import (
    Framing,
    ResponseHead,
    error_reply,
    parse_response_head,
    request_bytes,
    response_bytes,
)
from warmroute.edge.http.plain import PlainHead, Relayed, relay_answer
from warmroute.edge.http.upstream import EngineConnection, EnginePool
from warmroute.errors import ClientError, EngineError, LimitError, NoWorkerError
from warmroute.service.ports import Dispatch, GatewayService, Guard, Headers, Outcome, Reply, RequestHead

log = logging.getLogger(__name__)

ENGINE_HEAD_BYTES_MAX = 256 * 1024
"""An answer whose head is larger is malformed: no engine sends a hundredth of it."""

_TAIL_PIECES = 8
_TAIL_BYTES = 4096
"""What is kept of an answer's end: a stream's usage comes two or three pieces before it."""

_COPY_BYTES_MAX = 32 * 1024
"""Up to here, copying a body behind its head is cheaper than a second write."""

_NO_ROOM = int(HTTPStatus.SERVICE_UNAVAILABLE)

_SIZED = frozenset({Framing.LENGTH, Framing.NONE})


class Request(msgspec.Struct, eq=False):
    """One request, read to its end."""

    head: RequestHead
    body: bytes
    """Forgotten when its answer begins: answers take minutes, and there may be thousands of them."""
    keep_alive: bool
    http11: bool
    """Whether the client understands chunked answers."""
    plain: PlainHead | None = None
    """The head, if it is plain."""


class RefusalLog(Protocol):
    """Who keeps the access log."""

    def refused(self, status: int, reason: str | None, head: RequestHead | None, request_id: str) -> None:
        """The gateway refused a request itself; `head` None: it could not be read."""
        ...


@dataclass(slots=True)
class Plane:
    """What all exchanges share."""

    service: GatewayService
    pool: EnginePool
    counts: Counts
    guard: Guard | None = None
    draining: bool = False
    log: RefusalLog | None = None
    """Told of the requests that no engine has served, if anybody wants to know."""


class Client(Protocol):
    """The client connection, as an exchange sees it."""

    @property
    def transport(self) -> asyncio.Transport:
        """Where the answer is written."""
        ...

    def answer(self, reply: Reply) -> None:
        """Send an answer of our own; the exchange is over."""
        ...

    def finished(self, *, close: bool) -> None:
        """The answer was written whole; the exchange is over."""
        ...

    def cut(self, *, reset: bool) -> None:
        """The answer cannot be completed: close so that nobody takes it for whole; the exchange is over."""
        ...


class Exchange:
    """One request, its dispatch, and the engine connection that serves it now."""

    __slots__ = (
        "_answered", "_body", "_buffer", "_client", "_close", "_dispatch", "_dispatched", "_endless", "_engaged",
        "_engine", "_engine_reusable", "_gone", "_held", "_pieces", "_plane", "_quiet_since", "_request",
        "_seen_pieces", "_status", "_tail", "_waiting",
    )  # fmt: skip

    _dispatch: Dispatch
    """Set once the service has decided; not finished yet while `_dispatched`."""
    _engine: EngineConnection
    """Set once there is a connection; ours while `_engaged`."""
    _body: Body
    """Set once the answer's head is there; it was sent on if `_answered`."""

    def __init__(self, plane: Plane, client: Client, request: Request) -> None:
        self._plane = plane
        self._client = client
        self._request = request
        self._waiting: asyncio.Future[Dispatch | Reply] | asyncio.Task[None] | None = None
        """The decision or the connection that is waited for."""
        self._dispatched = self._engaged = self._answered = self._gone = False
        self._pieces = 0
        """Of the answer's body, so far: what shows a sweep that the engine is alive."""
        self._buffer: bytes | None = None
        """Part of the answer's head; None: not a byte has come."""
        self._held: bytes | None = None
        """The answer's head as it will be sent on, while not a byte of its body has come."""

    # Deciding

    def start(self) -> None:
        """Ask the service, and go on at once if it answers at once."""
        try:
            verdict = self._plane.service.dispatch(self._request.head, self._request.body)
        except Exception as error:
            self._service_failed(error)
            return
        if hasattr(verdict, "__await__"):
            # A callback on the future, not a wrapping task: what it brings is never lost to a late cancellation.
            self._waiting = asyncio.ensure_future(cast("Awaitable[Dispatch | Reply]", verdict))
            self._waiting.add_done_callback(self._decided)
        else:
            self._take(verdict)

    def _decided(self, future: asyncio.Future[Dispatch | Reply]) -> None:
        self._waiting = None
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        if error is None:
            self._take(future.result())
        elif not self._gone:
            self._service_failed(error)

    def _take(self, verdict: Dispatch | Reply) -> None:
        if isinstance(verdict, Reply):
            self._answer(verdict)
            return
        self._dispatch, self._dispatched = verdict, True
        if self._gone:  # while the service was deciding
            self._finish(Outcome.CLIENT_GONE)
        else:
            engine = self._plane.pool.take(verdict.endpoint)
            if engine is None:
                self._connect()
            else:
                self.connected(engine)

    def _service_failed(self, error: BaseException, tried: Dispatch | None = None) -> None:
        """Answer with what the error is; `tried`: where it was sent before, under the id that its decision has."""
        given = None if tried is None else dict(tried.response_headers).get(b"x-request-id")
        request_id = given or self._request.head.header(b"x-request-id") or secrets.token_hex(8).encode()
        logged = tried is not None and isinstance(error, NoWorkerError)
        headers: Headers = ((b"x-request-id", request_id),)
        code: str | None
        param: str | None = None
        match error:
            case ClientError():
                status, message, code, param = error.status, error.message, error.code, error.param
            case LimitError():
                status, message, code = error.status, str(error), error.reason
                headers += ((b"Retry-After", b"%d" % max(1, math.ceil(error.retry_after_s))),)
            case NoWorkerError():
                status, message, code = 503, str(error), "no_worker"
            case _:
                status, code = 500, "internal_error"
                message = "The gateway failed to serve this request; its log says why, under this x-request-id."
                self._plane.counts.service_failures += 1
                self._log_failure(error, request_id)
        if self._plane.log is not None and not logged:
            self._plane.log.refused(status, code, self._request.head, request_id.decode("latin-1"))
        self._answer(error_reply(status, message, code=code, param=param, headers=headers))

    def _log_failure(self, error: BaseException, request_id: bytes) -> None:
        """Where it failed, not with what: an exception's message may hold what a client sent."""
        where = "".join(traceback.format_tb(error.__traceback__))
        log.error("request %r failed: %s in\n%s", request_id.decode("latin-1"), type(error).__name__, where)
        log.debug("request %r failed with", request_id.decode("latin-1"), exc_info=error)

    # Attempting

    def _connect(self) -> None:
        self._waiting = self._plane.pool.connect(self._dispatch.endpoint, self)

    def connected(self, engine: EngineConnection) -> None:
        """There is a connection to the engine, a fresh one that was asked for or a reused one."""
        self._waiting = None
        self._engine, self._engaged = engine, True
        engine.attach(self, self._on_head)
        self._seen_pieces = -1
        request, authority, headers = self._request, engine.authority, self._dispatch.request_headers
        body = request.body
        copied = len(body) <= _COPY_BYTES_MAX
        if request.plain is not None:
            message = request.plain.message(authority, headers, body if copied else b"")
        else:
            message = request_bytes(request.head, body, authority, headers)
            if copied:
                message += body
        engine.transport.write(message)
        if not copied:
            engine.transport.write(body)

    def connect_failed(self, reason: str, *, here: bool = False) -> None:
        """No connection could be made in time."""
        self._waiting = None
        if here:  # nor could one to any other engine
            self._finish(Outcome.UNASKED)
            message = f"This gateway can open no connection to an engine ({reason}): raise its limit of open files."
            self._answer(error_reply(503, message, code="gateway_exhausted", headers=self._dispatch.response_headers))
        else:
            self._unreachable(reason)

    def engine_closed(self, *, clean: bool) -> None:
        """The engine closed the connection, cleanly or by a reset."""
        self._engaged = False
        if self._buffer is None and self._engine.reused and self._dispatch.retriable:
            self._plane.counts.stale_connections += 1
            self._connect()
        elif self._buffer is None:
            self._plane.counts.unanswered += 1
            self._unreachable("closed the connection without an answer")
        elif clean and (self._answered or self._held is not None) and self._body.ends_by_close:
            self._client.transport.write(self._begun())
            self._complete(b"".join(self._tail))
        elif self._held is not None and self._dispatched:
            self._plane.counts.unanswered += 1
            self._buffer = self._held = None
            self._unreachable("closed the connection behind the head of its answer")
        else:
            self._engine_fault("cut_short", "the connection was closed before the answer was complete")

    def _unreachable(self, reason: str) -> None:
        dispatch = self._dispatch
        self._finish(Outcome.UNREACHABLE)
        try:
            again = self._plane.service.retry(dispatch)
        except Exception as error:
            self._service_failed(error, dispatch)
            return
        if again is None:
            message = f"Engine {dispatch.endpoint.authority} cannot be reached: {reason}. No byte of an answer came."
            self._answer(error_reply(502, message, code="engine_unreachable", headers=dispatch.response_headers))
        else:
            self._take(again)

    # The answer

    def _on_head(self, data: bytes) -> None:
        request = self._request
        if self._buffer is None and request.http11 and request.head.method != b"HEAD":
            self._close = not request.keep_alive or self._plane.draining
            answer = relay_answer(data, self._dispatch.response_headers, self._close)
            if answer is not None and answer[0] != _NO_ROOM:
                self._relay(answer, data)
                return
        data = self._buffer + data if self._buffer else data
        while True:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                self._buffer = data
                if len(data) > ENGINE_HEAD_BYTES_MAX:
                    self._engine_fault("malformed_head", "its head has no end")
                return
            try:
                head = parse_response_head(data[:end], request.head.method)
            except EngineError as error:
                self._engine_fault("malformed_head", str(error))
                return
            data = data[end:]
            if head.status >= 200:
                break
        self._buffer = b""
        self._begin(head, data)

    def _begin(self, head: ResponseHead, data: bytes) -> None:
        """The head is there: hold it until the body begins, and take that as its framing wants it."""
        if head.status == _NO_ROOM and self._goes_elsewhere(head, data):
            return
        http11, framing, transport = self._request.http11, head.framing, self._client.transport
        chunked = framing is Framing.CHUNKED
        self._endless = framing is Framing.UNTIL_CLOSE or (chunked and not http11)
        self._close = self._endless or not self._request.keep_alive or self._plane.draining
        self._engine_reusable = head.keep_alive
        out = response_bytes(head, self._dispatch.response_headers, chunked=chunked and http11, close=self._close)
        if len(data) == head.length and framing in _SIZED:
            transport.write(out + data)
            self._complete(data[-_TAIL_BYTES:], head.status)
        else:
            self._hold(head.status, out, body_of(framing, head.length, chunks=http11), data)

    def _relay(self, answer: Relayed, data: bytes) -> None:
        """What `_begin` does, for a plain answer: as nearly all are."""
        status, length, end, out = answer
        self._buffer = b""
        self._endless, self._engine_reusable = False, True
        if length == len(data) - end:
            self._client.transport.write(out)
            self._complete(data[max(end, len(data) - _TAIL_BYTES) :], status)
        else:
            self._hold(status, out, ChunkedBody() if length < 0 else LengthBody(length), data[end:])

    def _hold(self, status: int, out: bytes, body: Body, data: bytes) -> None:
        self._status, self._held, self._body = status, out, body
        self._tail: deque[bytes] = deque(maxlen=_TAIL_PIECES)
        self._engine.receive = self._on_first_byte
        if data:
            self._on_first_byte(data)

    def _goes_elsewhere(self, head: ResponseHead, data: bytes) -> bool:
        """The engine has no room, or is not ready: whether another one is tried."""
        dispatch = self._dispatch
        if not dispatch.retriable:
            return False
        self._answering(head.status)
        self._finish(Outcome.REFUSED)
        try:
            again = self._plane.service.retry(dispatch)
        except NoWorkerError:
            again = None  # the engine's own answer says more than ours would
        except Exception as error:
            self._plane.counts.service_failures += 1
            self._log_failure(error, b"to be retried")
            again = None
        if again is None:
            return False
        self._engaged, self._buffer = False, None
        if head.keep_alive and head.framing in _SIZED and len(data) == head.length:
            self._engine.release()
        else:
            self._engine.abort()
        self._take(again)
        return True

    def _on_first_byte(self, data: bytes) -> None:
        self._answering(self._status)
        self._engine.receive = self._on_piece
        self._on_body(data)

    def _on_piece(self, data: bytes) -> None:
        if self._dispatched:
            try:
                self._dispatch.progressed()
            except Exception as error:  # as at the first byte
                self._plane.counts.service_failures += 1
                self._log_failure(error, b"on its way")
        self._on_body(data)

    def _answering(self, status: int) -> None:
        if not self._dispatched:
            return  # a 503 that another engine could not mend: its attempt is over
        try:
            self._dispatch.answering(status)
        except Exception as error:  # the answer goes on: it is the client's
            self._plane.counts.service_failures += 1
            self._log_failure(error, b"at its first byte")

    def _begun(self) -> bytes:
        """The head that was held back, which is about to be sent; empty if it was sent before."""
        held, self._held, self._answered = self._held or b"", None, True
        self._request.body = b""  # it will not be sent again, and a stream may last for minutes
        return held

    def _on_body(self, data: bytes) -> None:
        body = self._body
        try:
            data = body.take(data)
        except EngineError as error:
            self._client.transport.write(self._begun())
            self._engine_fault("malformed_body", str(error))
            return
        self._pieces += 1
        self._client.transport.write(data if self._held is None else self._begun() + data)
        self._tail.append(data if len(data) <= _TAIL_BYTES else data[-_TAIL_BYTES:])
        if body.ended:
            if body.excess:
                self._plane.counts.engine_faults["excess"] += 1
                self._engine_reusable = False
            self._complete(b"".join(self._tail))

    # Flow control, driven by the client's write buffer

    def pause(self) -> None:
        """The client is slower than the engine."""
        if self._engaged:
            self._engine.pause_reading()

    def resume(self) -> None:
        """The client has caught up."""
        if self._engaged:
            self._engine.resume_reading()

    # Ends

    def _complete(self, tail: bytes, status: int | None = None) -> None:
        """The answer is over; `status`: it came all at once."""
        if self._engaged:
            self._engaged = False
            if self._engine_reusable:
                self._engine.release()
            else:
                self._engine.abort()
        self._finish(Outcome.COMPLETE, tail, status)
        self._client.finished(close=self._close)

    def _engine_fault(self, reason: str, message: str, status: int = 502) -> None:
        """The answer went wrong after its first byte: an error if the client got nothing of it yet, else a cut."""
        self._plane.counts.engine_faults[reason] += 1
        self._disengage()
        self._finish(Outcome.ENGINE_LOST)
        if self._answered:
            self._client.cut(reset=self._endless)
        else:
            code, fault = ("engine_failed", "gave a bad answer") if status == 502 else ("engine_timeout", "is silent")
            message = f"Engine {self._dispatch.endpoint.authority} {fault}: {message}."
            self._answer(error_reply(status, message, code=code, headers=self._dispatch.response_headers))

    def sweep(self, now: float, config: GatewayConfig, *, paused: bool) -> None:
        """Once per sweep: give up an engine that is silent for too long, while the client is ready to take more."""
        if not self._engaged:
            return
        if paused or self._pieces != self._seen_pieces:
            self._seen_pieces, self._quiet_since = self._pieces, now
            return
        name, limit_s = "first_byte_timeout", config.first_byte_timeout_s
        if self._answered:
            name, limit_s = "idle_timeout", config.idle_timeout_s
        if now - self._quiet_since >= limit_s:
            self._engine_fault(name, f"nothing came for {limit_s:g} s", status=504)

    def _answer(self, reply: Reply) -> None:
        if not self._gone:
            self._client.answer(reply)

    def client_gone(self) -> None:
        """The client went away: whatever runs for it stops at once."""
        self._gone = True
        self._plane.counts.clients_gone += 1
        if self._waiting is not None:
            self._waiting.cancel()
        self._disengage()
        self._finish(Outcome.CLIENT_GONE)

    def _disengage(self) -> None:
        if self._engaged:
            self._engaged = False
            self._engine.abort()

    def _finish(self, outcome: Outcome, tail: bytes = b"", status: int | None = None) -> None:
        if not self._dispatched:
            return
        self._dispatched = False
        try:
            self._dispatch.finished(outcome, tail, status)
        except Exception as error:
            self._plane.counts.service_failures += 1
            self._log_failure(error, f"with outcome {outcome.value}".encode())
