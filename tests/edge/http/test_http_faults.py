"""Engines and clients that fail: who is told what, and that load is released exactly once, whatever happens."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable
from typing import Any

import pytest
from test_http_relay import post
from wires import JSON, Stage, World, until

from warmroute.errors import ClientError, NoWorkerError
from warmroute.service.ports import Dispatch, Outcome, Reply, RequestHead
from warmroute.testing.http import StaticDispatch, StaticService
from warmroute.types import Endpoint

STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def closed_port() -> Endpoint:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return Endpoint("127.0.0.1", sock.getsockname()[1])


def outcomes(service: StaticService) -> list[Outcome | None]:
    return [dispatch.outcome for dispatch in service.dispatches]


# Before the first byte


async def test_refused_connection_is_retried_elsewhere(world: World) -> None:
    engine = await world.engine()
    service = StaticService([closed_port(), closed_port(), engine.endpoint], retries=2)
    server, port = await world.gateway(service)
    client = await world.client(port)
    await client.send(post(b"body"))
    wire = await engine.accept()
    assert (await wire.message())[1] == b"body"
    await wire.send(JSON)
    assert (await client.message())[1] == b'{"ok":true}'
    assert outcomes(service) == [Outcome.UNREACHABLE, Outcome.UNREACHABLE, Outcome.COMPLETE]
    assert server.counts.connect_failures == 2


async def test_nothing_left_to_try_is_502(world: World) -> None:
    service = StaticService([closed_port()], retries=1, response_headers=((b"x-request-id", b"r1"),))
    _, port = await world.gateway(service)
    client = await world.client(port)
    for _ in range(2):
        service.retries_left = 1
        await client.send(post(b"body"))
        head, body = await client.message()
        assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert b"x-request-id: r1\r\n" in head
        assert json.loads(body)["error"]["code"] == "engine_unreachable"
        assert json.loads(body)["error"]["type"] == "server_error"
    assert outcomes(service) == [Outcome.UNREACHABLE] * 4


async def test_connect_timeout_is_retried(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await world.engine()
    silent = Endpoint("127.0.0.1", 9)
    service = StaticService([silent, engine.endpoint], retries=1)
    _, port = await world.gateway(service, connect_timeout_s=0.01)
    loop = asyncio.get_running_loop()

    class Blackhole:
        """This loop, except that nobody answers on the silent endpoint."""

        def __getattr__(self, name: str) -> Any:
            return getattr(loop, name)

        async def create_connection(self, factory: Any, host: str, port: int, **options: Any) -> Any:
            if port == silent.port:
                await asyncio.Event().wait()
            return await loop.create_connection(factory, host, port, **options)

    monkeypatch.setattr("warmroute.edge.http.upstream.asyncio.get_running_loop", Blackhole)
    client = await world.client(port)
    await client.send(post(b"x"))
    monkeypatch.setattr("warmroute.edge.http.upstream.asyncio.get_running_loop", lambda: loop)
    await (await engine.accept()).message()
    assert outcomes(service) == [Outcome.UNREACHABLE, None]


@pytest.mark.parametrize("reset", [False, True])
async def test_fresh_connection_without_an_answer_is_retried_elsewhere(world: World, reset: bool) -> None:
    first, second = await world.engine(), await world.engine()
    service = StaticService([first.endpoint, second.endpoint], retries=1)
    server, port = await world.gateway(service)
    client = await world.client(port)
    await client.send(post(b"x"))
    wire = await first.accept()
    await wire.message()
    if reset:
        wire.abort()
    else:
        wire.close()
    await (await second.accept()).message()
    assert server.counts.unanswered == 1
    assert outcomes(service) == [Outcome.UNREACHABLE, None]


async def test_stale_connection_is_replaced_by_a_fresh_one(stage: Stage) -> None:
    await stage.client.send(post(b"1"))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(JSON)
    await stage.client.message()
    await stage.client.send(post(b"2"))
    await wire.message()
    wire.close()  # as an idle timeout that crossed the request would
    fresh = await stage.engine.accept()
    assert (await fresh.message())[1] == b"2"
    await fresh.send(JSON)
    await stage.client.message()
    assert stage.server.counts.stale_connections == 1
    assert outcomes(stage.service) == [Outcome.COMPLETE] * 2


async def test_request_that_must_not_act_twice_is_not_sent_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StaticDispatch, "retriable", False)
    await stage.client.send(post(b"1"))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(JSON)
    await stage.client.message()
    await stage.client.send(post(b"2"))
    await wire.message()
    wire.close()
    head, _ = await stage.client.message()
    assert head.startswith(b"HTTP/1.1 502 ")
    assert stage.server.counts.stale_connections == 0
    assert outcomes(stage.service) == [Outcome.COMPLETE, Outcome.UNREACHABLE]


async def test_connection_that_ends_or_speaks_while_idle_is_dropped(stage: Stage) -> None:
    for last_words in (b"", b"HTTP/1.1 408 Timeout\r\n\r\n"):
        await stage.client.send(post(b"1"))
        wire = await stage.engine.accept()
        await wire.message()
        await wire.send(JSON)
        await stage.client.message()
        assert len(stage.server.pool) == 1
        await (wire.send(last_words) if last_words else asyncio.sleep(0))
        wire.close()
        await until(lambda: len(stage.server.pool) == 0)
    assert stage.server.counts.stale_connections == 0


async def test_last_used_connection_is_reused_first(world: World) -> None:
    stage = await world.stage()
    other = await world.client(stage.port)
    await stage.client.send(post(b"a"))
    a = await stage.engine.accept()
    await other.send(post(b"b"))
    b = await stage.engine.accept()
    for wire, client in ((b, other), (a, stage.client)):
        await wire.message()
        await wire.send(JSON)
        await client.message()
    await stage.client.send(post(b"c"))
    assert (await a.message())[1] == b"c"


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("head", [STREAM, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"])
async def test_head_is_held_back_so_that_a_request_can_still_be_served_elsewhere(
    world: World, head: bytes, reset: bool
) -> None:
    dying, other = await world.engine(), await world.engine()
    service = StaticService([dying.endpoint, other.endpoint], retries=1)
    server, port = await world.gateway(service)
    client = await world.client(port)
    await client.send(post(b"x"))
    wire = await dying.accept()
    await wire.message()
    await wire.send(head)
    wire.abort() if reset else wire.close()
    second = await other.accept()
    assert (await second.message())[1] == b"x"
    await second.send(JSON)
    answer, _ = await client.message()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert outcomes(service) == [Outcome.UNREACHABLE, Outcome.COMPLETE]
    assert server.counts.unanswered == 1


# After the first byte


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    ("answer", "sent"),
    [
        (STREAM + b"3\r\nabc\r\n", b"3\r\nabc\r\n"),
        (STREAM + b"5\r\nab", b"5\r\nab"),
        (STREAM + b"3\r\nabc\r\n0\r\n", b"3\r\nabc\r\n0\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", b"abc"),
    ],
)
async def test_broken_stream_is_broken_for_the_client(stage: Stage, answer: bytes, sent: bytes, reset: bool) -> None:
    await stage.client.send(post(b"x"))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(answer)
    await stage.client.until(b"\r\n\r\n")
    assert await stage.client.exactly(len(sent)) == sent
    if reset:
        wire.abort()
    else:
        wire.close()
    assert await stage.client.rest() == b"", "cut, and nothing that looks like an end"
    assert stage.dispatch.outcome is Outcome.ENGINE_LOST
    assert stage.server.counts.engine_faults == {"cut_short": 1}


@pytest.mark.parametrize("request_line", [b"POST / HTTP/1.1", b"POST / HTTP/1.0"])
async def test_where_close_is_the_end_a_broken_stream_is_reset(stage: Stage, request_line: bytes) -> None:
    await stage.client.send(request_line + b"\r\nHost: g\r\nContent-Length: 0\r\n\r\n")
    wire = await stage.engine.accept()
    await wire.message()
    endless = request_line.endswith(b"1")
    await wire.send(b"HTTP/1.1 200 OK\r\n\r\nabc" if endless else STREAM + b"3\r\nabc\r\n")
    await stage.client.until(b"abc")
    if endless:
        sock = wire.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wire.abort()
    with pytest.raises(ConnectionResetError):
        await stage.client.rest()
    assert stage.dispatch.outcome is Outcome.ENGINE_LOST


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"nonsense\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\nInjected: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 300_000,
    ],
)
async def test_answer_that_cannot_be_understood_is_502(stage: Stage, answer: bytes) -> None:
    await stage.client.send(post(b"x"))
    wire = await stage.engine.accept()
    await wire.message()
    wire.writer.write(answer)
    wire.close()
    head, body = await stage.client.message()
    assert head.startswith(b"HTTP/1.1 502 ")
    assert json.loads(body)["error"]["code"] == "engine_failed"
    assert stage.dispatch.outcome is Outcome.ENGINE_LOST
    await stage.client.send(post(b"y"))  # the client's connection lives on
    await (await stage.engine.accept()).message()


@pytest.mark.parametrize("piece", [b"zz\r\n", b"3\r\nabcd\r\n", b"0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"])
async def test_malformed_chunk_cuts_the_stream_and_is_not_passed_on(stage: Stage, piece: bytes) -> None:
    await stage.client.send(post(b"x"))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(STREAM + b"1\r\na\r\n")
    await stage.client.until(b"1\r\na\r\n")
    await wire.send(piece)
    assert await stage.client.rest() == b""
    assert stage.server.counts.engine_faults == {"malformed_body": 1}
    assert stage.dispatch.outcome is Outcome.ENGINE_LOST


async def test_answer_before_the_request_was_taken_whole(stage: Stage) -> None:
    body = b"x" * 20_000_000
    sending = asyncio.create_task(stage.client.send(post(body)))
    wire = await stage.engine.accept()
    await wire.until(b"\r\n\r\n")
    await wire.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
    head, answer = await stage.client.message()
    await sending
    assert (head[:12], answer) == (b"HTTP/1.1 413", b"no")
    assert len(stage.server.pool) == 0, "half a request is still in that connection"


# Clients that go away


@pytest.mark.parametrize("how", ["reset", "close", "half_close"])
@pytest.mark.parametrize("answer", [b"", STREAM + b"1\r\na\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"])
async def test_client_that_leaves_reaches_the_engine_at_once(stage: Stage, how: str, answer: bytes) -> None:
    await stage.client.send(post(b"x"))
    wire = await stage.engine.accept()
    await wire.message()
    if answer:
        await wire.send(answer)
        await stage.client.until(b"\r\n\r\n")
    if how == "half_close":
        stage.client.writer.write_eof()
    elif how == "close":
        stage.client.close()
    else:
        stage.client.abort()
    assert await wire.rest() == b""
    await until(lambda: stage.dispatch.outcome is not None)
    assert stage.dispatch.outcome is Outcome.CLIENT_GONE
    assert stage.server.counts.clients_gone == 1
    await until(lambda: not stage.server.clients)


class Deciding(StaticService):
    """A service that takes its time, or fails."""

    def __init__(self, endpoints: list[Endpoint], error: Exception | None = None) -> None:
        super().__init__(endpoints)
        self.error = error
        self.asked = asyncio.Event()
        self.go = asyncio.Event()
        self.cancelled = False

    def dispatch(self, head: RequestHead, body: bytes) -> Any:
        return self.decide(head, body)

    async def decide(self, head: RequestHead, body: bytes) -> Dispatch | Reply:
        self.asked.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        return super().dispatch(head, body)


async def test_decision_may_be_awaited(world: World) -> None:
    engine = await world.engine()
    service = Deciding([engine.endpoint])
    _, port = await world.gateway(service)
    client = await world.client(port)
    await client.send(post(b"x"))
    await service.asked.wait()
    service.go.set()
    wire = await engine.accept()
    await wire.message()
    await wire.send(JSON)
    assert (await client.message())[1] == b'{"ok":true}'


async def test_client_that_leaves_cancels_the_decision(world: World) -> None:
    service = Deciding([closed_port()])
    _, port = await world.gateway(service)
    client = await world.client(port)
    await client.send(post(b"x"))
    await service.asked.wait()
    client.abort()
    await until(lambda: service.cancelled)
    assert not service.dispatches


async def test_decision_that_comes_as_the_client_leaves_is_released(world: World) -> None:
    dispatch = StaticDispatch(closed_port())
    future: asyncio.Future[Dispatch | Reply] = asyncio.get_running_loop().create_future()

    class Later(StaticService):
        def dispatch(self, head: RequestHead, body: bytes) -> Any:
            return future

    server, port = await world.gateway(Later([]))
    client = await world.client(port)
    await client.send(post(b"x"))
    await until(lambda: server.counts.requests)
    (connection,) = server.clients
    future.set_result(dispatch)  # its callback is due, but has not run
    assert connection.exchange is not None
    connection.connection_lost(None)
    await until(lambda: dispatch.outcome)
    assert dispatch.outcome is Outcome.CLIENT_GONE


async def test_client_that_leaves_while_connecting(world: World) -> None:
    stage = await world.stage()
    await stage.client.send(post(b"x"))
    await until(lambda: stage.server.counts.requests)
    stage.client.abort()
    await until(lambda: stage.service.dispatches and stage.dispatch.outcome)
    assert stage.dispatch.outcome is Outcome.CLIENT_GONE
    await until(lambda: not stage.server.clients)
    assert len(stage.server.pool) == 0


# The service's own answers and failures


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (
            ClientError(404, "no such model", code="model_not_found", param="model"),
            404,
            "not_found_error",
            "model_not_found",
        ),
        (NoWorkerError("none is ready"), 503, "server_error", "no_worker"),
        (ZeroDivisionError("secret"), 500, "server_error", "internal_error"),
    ],
)
async def test_service_errors(
    world: World, caplog: pytest.LogCaptureFixture, awaited: bool, error: Exception, status: int, kind: str, code: str
) -> None:
    class Failing(StaticService):
        def dispatch(self, head: RequestHead, body: bytes) -> Dispatch | Reply:
            raise error

    service: StaticService = Failing([])
    if awaited:
        service = Deciding([], error)
        service.go.set()
    _, port = await world.gateway(service)
    client = await world.client(port)
    for _ in range(2):  # the connection survives
        await client.send(b"GET / HTTP/1.1\r\nHost: g\r\nX-Request-Id: r7\r\n\r\n")
        head, body = await client.message()
        assert head.startswith(b"HTTP/1.1 %d " % status)
        answer = json.loads(body)["error"]
        assert (answer["type"], answer["code"]) == (kind, code)
        assert (b"Retry-After: " in head) is (status == 503)
        assert ("r7" in caplog.text) is (status == 500)
        assert "secret" not in answer["message"]


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_reply_of_the_service(world: World, method: bytes) -> None:
    class Answering(StaticService):
        def dispatch(self, head: RequestHead, body: bytes) -> Dispatch | Reply | Awaitable[Dispatch | Reply]:
            return Reply(200, head.target, b"text/plain", ((b"x-a", b"b"),))

    _, port = await world.gateway(Answering([]))
    client = await world.client(port)
    await client.send(method + b" /metrics HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
    assert await client.rest() == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 8\r\nx-a: b\r\nConnection: close\r\n\r\n"
        + (b"/metrics" if method == b"GET" else b"")
    )


async def test_retry_that_fails_is_answered(world: World) -> None:
    class Failing(StaticService):
        def retry(self, dispatch: Dispatch) -> Dispatch | None:
            raise NoWorkerError("all gone")

    _, port = await world.gateway(Failing([closed_port()], response_headers=((b"x-request-id", b"r1"),)))
    client = await world.client(port)
    await client.send(post(b"x"))
    head = (await client.message())[0]
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nx-request-id: r1\r\n" in head, "by which its decision is kept"


@pytest.mark.parametrize("when", ["answering", "progressed"])
async def test_a_service_that_fails_at_a_piece_costs_no_answer(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def fail(*_: object) -> None:
        raise IndexError

    monkeypatch.setattr(StaticDispatch, "progressed", lambda *_: None)
    monkeypatch.setattr(StaticDispatch, when, fail)
    await stage.client.send(post(b"x"))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    assert (await stage.client.until(b"abc\r\n")).endswith(b"3\r\nabc\r\n")
    await wire.send(b"0\r\n\r\n")
    await stage.client.until(b"0\r\n\r\n")
    assert stage.server.counts.service_failures == 1
    assert outcomes(stage.service) == [Outcome.COMPLETE]
