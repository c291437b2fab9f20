"""What is ambiguous, too large or too slow is refused in OpenAI's form, and reaches no engine."""

from __future__ import annotations

import asyncio
import json

import pytest
from wires import JSON, Stage, World, until

HEAD = b"POST / HTTP/1.1\r\nHost: g\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

MALFORMED = {
    "both framings": HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both framings, other order": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "length list": HEAD + b"Content-Length: 3, 3\r\n\r\nabc",
    "length with sign": HEAD + b"Content-Length: +3\r\n\r\nabc",
    "length overflow": HEAD + b"Content-Length: 99999999999999999999999\r\n\r\nabc",
    "chunk size": CHUNKED + b"zz\r\n",
    "chunk size overflow": CHUNKED + b"fffffffffffffffff\r\n",
    "chunk size LF": CHUNKED + b"3\nabc\r\n0\r\n\r\n",
    "chunk longer than said": CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    "chunk end LF": CHUNKED + b"3\r\nabc\n0\r\n\r\n",
    "coding behind chunked": HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "coding twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding of HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "control in value": HEAD + b"A: b\x01c\r\n\r\n",
    "NUL in value": HEAD + b"A: b\0c\r\n\r\n",
    "control in name": HEAD + b"A\x01: b\r\n\r\n",
    "space before colon": HEAD + b"Content-Length : 3\r\n\r\nabc",
    "folded line": HEAD + b"A: b\r\n c\r\n\r\n",
    "bare LF": HEAD + b"A: b\nB: c\r\n\r\n",
    "bare CR": HEAD + b"A: b\rB: c\r\n\r\n",
    "LF behind request line": b"GET / HTTP/1.1\nHost: g\r\n\r\n",
    "control in target": b"GET /\x01 HTTP/1.1\r\nHost: g\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: g\r\nHost: h\r\n\r\n",
    "no name": HEAD + b": b\r\n\r\n",
    "no colon": HEAD + b"abc\r\n\r\n",
}
REFUSED = {
    "CONNECT": (b"CONNECT a:1 HTTP/1.1\r\nHost: g\r\n\r\n", 405),
    "TRACE": (b"TRACE / HTTP/1.1\r\nHost: g\r\n\r\n", 405),
    "another protocol's method": (b"MKCOL / HTTP/1.1\r\nHost: g\r\n\r\n", 501),
    "unknown method": (b"BREW / HTTP/1.1\r\nHost: g\r\n\r\n", 501),
    "HTTP/2": (b"GET / HTTP/2.0\r\nHost: g\r\n\r\n", 505),
    "unknown coding": (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "coding hidden": (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    "a response": (b"HTTP/1.1 200 OK\r\n\r\n", 501),
    "TLS": (bytes.fromhex("16030100a5010000a10303"), 501),
    "unknown expectation": (HEAD + b"Expect: the-best\r\nContent-Length: 1\r\n\r\n", 417),
    "body by length": (HEAD + b"Content-Length: 1001\r\n\r\n", 413),
    "body by length, waiting": (HEAD + b"Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n", 413),
    "body by chunks": (CHUNKED + b"3e8\r\n" + b"x" * 1000 + b"\r\n1\r\nx", 413),
    "head at once": (HEAD + b"A: " + b"x" * 2000 + b"\r\n\r\n", 431),
    "head without end": (b"GET /" + b"x" * 2000, 431),
    "many headers": (HEAD + b"A:b\r\n" * 500 + b"\r\n", 431),
} | {name: (data, 400) for name, data in MALFORMED.items()}


@pytest.mark.parametrize("name", REFUSED)
async def test_refused(world: World, name: str) -> None:
    data, status = REFUSED[name]
    stage = await world.stage(max_head_bytes=1000, max_body_bytes=1000)
    await stage.client.send(data)
    head, body = await stage.client.message()
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Connection: close\r\n" in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert await stage.client.rest() == b""
    assert stage.server.counts.refused == {status: 1}
    assert not stage.service.dispatches
    assert stage.engine.connections == 0


@pytest.mark.parametrize(
    ("begin", "more"), [(CHUNKED + b"1;", b"x"), (CHUNKED + b"1\r\nx\r\n0\r\n", b"A:b\r\n"), (HEAD, b"A:b\r\n")]
)
async def test_what_has_no_end_is_refused(world: World, begin: bytes, more: bytes) -> None:
    stage = await world.stage(max_head_bytes=1000)
    await stage.client.send(begin)
    async with asyncio.timeout(60):
        while not stage.server.counts.refused:
            await stage.client.send(more)
            await asyncio.sleep(0)
    assert stage.server.counts.refused == {431: 1}


async def test_refused_byte_by_byte(world: World) -> None:
    stage = await world.stage()
    for byte in MALFORMED["both framings"][:-5]:
        await stage.client.send(bytes([byte]))
    head, _ = await stage.client.message()
    assert head.startswith(b"HTTP/1.1 400 ")


async def test_limits_are_inclusive(world: World) -> None:
    stage = await world.stage(max_body_bytes=1000)
    await stage.client.send(HEAD + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000)
    assert (await (await stage.engine.accept()).message())[1] == b"x" * 1000


@pytest.mark.parametrize(("size", "answer"), [(1000, b"HTTP/1.1 200 "), (1100, b"HTTP/1.1 431 ")])
async def test_heads_have_a_limit(world: World, size: int, answer: bytes) -> None:
    stage = await world.stage(max_head_bytes=1000)
    head = HEAD + b"Content-Length: 1\r\nA: "
    await stage.client.send(head + b"x" * (size - len(head) - 4) + b"\r\n\r\nb")
    if size == 1000:
        wire = await stage.engine.accept()
        await wire.message()
        await wire.send(JSON)
    assert (await stage.client.message())[0].startswith(answer)


async def test_refusal_survives_a_client_that_still_sends(world: World) -> None:
    stage = await world.stage(max_body_bytes=1000)
    await stage.client.send(HEAD + b"Content-Length: 3000000\r\n\r\n")
    for _ in range(30):
        await stage.client.send(b"x" * 100_000)
    head, _ = await stage.client.message()
    assert head.startswith(b"HTTP/1.1 413 ")


async def test_refused_only_after_what_came_before_is_answered(stage: Stage) -> None:
    await stage.client.send(b"GET /1 HTTP/1.1\r\nHost: g\r\n\r\nGET /2\r\n\r\n nonsense")
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(JSON)
    assert (await stage.client.message())[1] == b'{"ok":true}'
    head, _ = await stage.client.message()
    assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 505 "))
    assert await stage.client.rest() == b""


@pytest.mark.parametrize("part", [b"P", HEAD, HEAD + b"Content-Length: 3\r\n\r\nab", CHUNKED + b"3\r\n"])
async def test_slow_request_is_answered_408(world: World, part: bytes) -> None:
    stage = await world.stage(head_timeout_s=0.02)
    await stage.client.send(part)
    head, _ = await stage.client.message()
    assert head.startswith(b"HTTP/1.1 408 ")
    assert await stage.client.rest() == b""


async def test_slow_head_is_not_saved_by_trickling(world: World) -> None:
    stage = await world.stage(head_timeout_s=0.3)
    await stage.client.send(HEAD)
    async with asyncio.timeout(60):
        while not stage.server.counts.refused:
            await stage.client.send(b"A: b\r\n")
            await asyncio.sleep(0.005)
    assert stage.server.counts.refused == {408: 1}


async def test_linger_has_an_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmroute.edge.http.client._LINGER_S", 0.01)
    stage = await world.stage(head_timeout_s=0.02)
    await stage.client.send(b"nonsense\r\n\r\n")
    await until(lambda: stage.server.counts.refused)
    await until(lambda: not stage.server.clients)  # though the client never closes
