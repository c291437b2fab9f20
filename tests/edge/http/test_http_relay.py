"""Bytes go through verbatim, and both sides agree where every message ends."""

from __future__ import annotations

import asyncio
import socket

import pytest
from wires import JSON, Stage, World, until

from warmroute.service.ports import Outcome
from warmroute.testing.http import StaticService

POST = b"POST /v1/completions HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d\r\n\r\n%b"


def post(body: bytes) -> bytes:
    return POST % (len(body), body)


async def test_request_and_answer_are_verbatim(world: World) -> None:
    engine = await world.engine()
    service = StaticService(
        [engine.endpoint],
        request_headers=((b"x-request-id", b"ours"), (b"x-data-parallel-rank", b"3")),
        response_headers=((b"x-warmroute-worker", b"w"), (b"X-Request-Id", b"ours")),
    )
    _, port = await world.gateway(service)
    client = await world.client(port)
    body = b'{ "temperature" : 0.70000000000000001,\n "x":"\xc3\xa9" }'
    await client.send(
        b"POST /v1/chat/completions?a=%%20b HTTP/1.1\r\nX-ODD-Case:  spaced  out \r\nhost: gateway\r\n"
        b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n"
        b"X-Request-ID: theirs\r\nProxy-Authorization: secret\r\nAuthorization: Bearer k\r\nX-Odd-Case: again\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    wire = await engine.accept()
    head, got = await wire.message()
    assert got == body
    assert head.split(b"\r\n") == [
        b"POST /v1/chat/completions?a=%20b HTTP/1.1",
        b"Host: " + engine.endpoint.authority.encode(),
        b"X-ODD-Case: spaced  out ",
        b"Authorization: Bearer k",
        b"X-Odd-Case: again",
        b"Content-Length: %d" % len(body),
        b"x-request-id: ours",
        b"x-data-parallel-rank: 3",
        b"",
        b"",
    ]
    await wire.send(
        b"HTTP/1.1 418 I'm a Teapot\r\nserver:mock\r\nX-Request-ID: engine's\r\nKeep-Alive: timeout=5\r\n"
        b"Connection: X-Hop\r\nX-Hop: 1\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 3\r\n\r\nabc"
    )
    head, got = await client.message()
    assert got == b"abc"
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 418 I'm a Teapot",
        b"server:mock",
        b"Set-Cookie: a",
        b"Set-Cookie: b",
        b"Content-Length: 3",
        b"x-warmroute-worker: w",
        b"X-Request-Id: ours",
        b"",
        b"",
    ]
    (dispatch,) = service.dispatches
    assert (dispatch.status, dispatch.outcome, dispatch.tail) == (418, Outcome.COMPLETE, b"abc")


async def test_connection_cannot_take_away_what_frames_or_authorizes(stage: Stage) -> None:
    await stage.client.send(
        b"POST / HTTP/1.1\r\nHost: g\r\nAuthorization: k\r\nConnection: content-length, authorization\r\n"
        b"Content-Length: 3\r\n\r\nabc"
    )
    head, body = await (await stage.engine.accept()).message()
    assert b"Authorization: k\r\n" in head
    assert body == b"abc"


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        (b"http://any.example:8080/v1/models?a=b", b"/v1/models?a=b"),
        (b"HTTPS://any.example", b"/"),
        (b"http://any.example?a=b", b"/?a=b"),
        (b"/http://any.example/v1", b"/http://any.example/v1"),
    ],
)
async def test_a_target_in_absolute_form_is_one_of_ours(stage: Stage, target: bytes, asked: bytes) -> None:
    await stage.client.send(b"POST %b HTTP/1.1\r\nHost: other\r\nContent-Length: 2\r\n\r\n{}" % target)
    wire = await stage.engine.accept()
    head, body = await wire.message()
    assert head.startswith(b"POST %b HTTP/1.1\r\n" % asked)
    assert body == b"{}"


async def test_chunked_request_arrives_with_its_length(stage: Stage) -> None:
    request = (
        b"POST / HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;x=y\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nTrailer: t\r\n\r\n"
    )
    for byte in request:
        await stage.client.send(bytes([byte]))
    wire = await stage.engine.accept()
    head, body = await wire.message()
    assert body == b"abc0123456789abcdef"
    assert b"Content-Length: 19\r\n" in head
    assert b"ransfer-" not in head
    assert b"railer" not in head


async def test_large_body_both_ways(stage: Stage) -> None:
    body = bytes(range(256)) * 8192  # 2 MiB
    sending = asyncio.create_task(stage.client.send(post(body)))
    wire = await stage.engine.accept()
    assert (await wire.message())[1] == body
    await sending
    answering = asyncio.create_task(wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body))
    assert (await stage.client.message())[1] == body
    await answering
    assert stage.dispatch.outcome is Outcome.COMPLETE
    assert stage.dispatch.tail.endswith(body[-4096:])


async def test_expect_continue_is_answered_and_not_forwarded(stage: Stage) -> None:
    await stage.client.send(b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert await stage.client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await stage.client.send(b"abc")
    head, body = await (await stage.engine.accept()).message()
    assert body == b"abc"
    assert b"xpect" not in head


async def test_stream_is_passed_chunk_by_chunk_with_its_bytes(stage: Stage) -> None:
    await stage.client.send(post(b"{}"))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    assert stage.dispatch.status is None, "a head alone is no token"
    for n, piece in enumerate((b"5;e=1\r\nda", b"ta:\r\n", b"0000A\r\n0123456789\r\n")):
        await wire.send(piece)
        if n == 0:
            assert b"Transfer-Encoding: chunked\r\n" in await stage.client.until(b"\r\n\r\n")
        assert await stage.client.exactly(len(piece)) == piece
    assert (stage.dispatch.status, stage.dispatch.pieces) == (200, 2)
    assert stage.dispatch.outcome is None
    await wire.send(b"0\r\nX-Trailer: t\r\n\r\n")
    assert await stage.client.until(b"t\r\n\r\n") == b"0\r\nX-Trailer: t\r\n\r\n"
    await until(lambda: stage.dispatch.outcome is Outcome.COMPLETE)
    assert stage.dispatch.tail.endswith(b"0123456789\r\n0\r\nX-Trailer: t\r\n\r\n")
    # Both connections live on.
    await stage.client.send(post(b"again"))
    assert (await wire.message())[1] == b"again"


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n"),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (b"GET", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"),
    ],
)
async def test_answers_without_a_body_end_with_their_head(stage: Stage, method: bytes, answer: bytes) -> None:
    for _ in range(2):
        await stage.client.send(b"%b / HTTP/1.1\r\nHost: g\r\n\r\n" % method)
        if method == b"HEAD" or stage.engine.connections == 0:
            wire = await stage.engine.accept()
        await wire.until(b"\r\n\r\n")
        await wire.send(answer)
        head = await stage.client.until(b"\r\n\r\n")
        assert head.startswith(answer[answer.rfind(b"HTTP/") :][:12])
        assert b"ransfer-" not in head
        assert b" 204 " not in head or b"ontent-" not in head.partition(b"\r\n")[2]
    assert [d.outcome for d in stage.service.dispatches] == [Outcome.COMPLETE] * 2


async def test_answer_without_length_ends_by_close(stage: Stage) -> None:
    await stage.client.send(post(b""))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(b"HTTP/1.1 200 OK\r\n\r\nfirst")
    head = await stage.client.until(b"\r\n\r\n")
    assert b"Connection: close\r\n" in head
    assert await stage.client.exactly(5) == b"first"
    await wire.send(b"second")
    wire.close()
    assert await stage.client.rest() == b"second"
    assert stage.dispatch.outcome is Outcome.COMPLETE


async def test_http10_client_gets_bare_data(stage: Stage) -> None:
    await stage.client.send(b"POST / HTTP/1.0\r\nContent-Length: 1\r\n\r\nx")
    wire = await stage.engine.accept()
    head, _ = await wire.message()
    assert head.startswith(b"POST / HTTP/1.1\r\n")
    await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2")
    await wire.send(b"\r\nde\r\n0\r\n\r\n")
    assert await stage.client.rest() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcde"
    assert stage.dispatch.outcome is Outcome.COMPLETE


async def test_close_from_either_side_is_its_own(stage: Stage) -> None:
    await stage.client.send(post(b"1"))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\n1")
    head, _ = await stage.client.message()
    assert b"onnection" not in head
    assert await wire.rest() == b"", "the engine's connection is closed, the client's is not"
    await stage.client.send(b"POST / HTTP/1.1\r\nHost: g\r\nConnection: close\r\nContent-Length: 1\r\n\r\n2")
    wire = await stage.engine.accept()
    head, _ = await wire.message()
    assert b"onnection" not in head
    await wire.send(JSON)
    head, _ = await stage.client.message()
    assert b"Connection: close\r\n" in head
    assert await stage.client.rest() == b""
    assert len(stage.server.pool) == 1


async def test_upgrade_is_ignored_and_the_body_kept(stage: Stage) -> None:
    for _ in range(2):  # as Java's client sends it, on a connection that goes on
        await stage.client.send(
            b"POST / HTTP/1.1\r\nHost: g\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: AAEAAEAA\r\nContent-Length: 3\r\n\r\nabc"
        )
        if stage.engine.connections == 0:
            wire = await stage.engine.accept()
        head, body = await wire.message()
        assert body == b"abc"
        assert b"pgrade" not in head
        assert b"HTTP2" not in head
        await wire.send(JSON)
        assert (await stage.client.message())[1] == b'{"ok":true}'


async def test_excess_bytes_reach_nobody(stage: Stage) -> None:
    await stage.client.send(post(b"1"))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    assert (await stage.client.message())[1] == b"ok"
    assert await wire.rest() == b""
    assert stage.server.counts.engine_faults == {"excess": 1}
    await stage.client.send(post(b"2"))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(JSON)
    assert (await stage.client.message())[1] == b'{"ok":true}'


async def test_no_delay_on_both_sides(stage: Stage) -> None:
    await stage.client.send(post(b"1"))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(JSON)
    await stage.client.message()
    (client,) = stage.server.clients
    engine = stage.server.pool.take(stage.engine.endpoint)
    assert engine is not None
    for transport in (client.transport, engine.transport):
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    engine.release()
