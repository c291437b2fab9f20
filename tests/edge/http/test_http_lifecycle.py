"""Connections over time: pipelining, idle limits, slow readers, drain and close."""

from __future__ import annotations

import asyncio
import gc

import pytest
from test_http_relay import post
from wires import JSON, Stage, World, until

from warmroute.config.tree import GatewayConfig
from warmroute.edge.http.client import ClientConnection
from warmroute.edge.http.exchange import Exchange, Request
from warmroute.edge.http.server import HttpServer
from warmroute.edge.http.upstream import EngineConnection
from warmroute.errors import ConfigError
from warmroute.service.ports import Dispatch, Outcome, Reply, RequestHead
from warmroute.testing.http import StaticService


class Echo(StaticService):
    def dispatch(self, head: RequestHead, body: bytes) -> Dispatch | Reply:
        return Reply(200, head.target)


async def test_pipelined_requests_are_answered_in_order(stage: Stage) -> None:
    await stage.client.send(post(b"1") + post(b"2") + post(b"3")[:-1])
    wire = await stage.engine.accept()
    for number in (b"1", b"2", b"3"):
        assert (await wire.message())[1] == number
        assert stage.engine.connections == 1, "one at a time"
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + number)
        assert (await stage.client.message())[1] == number
        if number == b"2":
            await stage.client.send(b"3")
    assert [d.outcome for d in stage.service.dispatches] == [Outcome.COMPLETE] * 3


async def test_thousands_of_pipelined_requests(world: World) -> None:
    _, port = await world.gateway(Echo([]))
    client = await world.client(port)
    count = 5000

    async def read() -> None:
        for number in range(count):
            assert (await client.message())[1] == b"/%d" % number

    reading = asyncio.create_task(read())
    await client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: g\r\n\r\n" % number for number in range(count)))
    await reading


async def test_nothing_is_served_behind_a_last_request(world: World) -> None:
    _, port = await world.gateway(Echo([]))
    client = await world.client(port)
    await client.send(b"GET /1 HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\nGET /2 HTTP/1.1\r\nHost: g\r\n\r\n")
    assert (await client.rest()).endswith(b"/1")


async def test_nothing_is_served_that_comes_after_a_last_request(stage: Stage) -> None:
    await stage.client.send(b"GET /1 HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
    wire = await stage.engine.accept()
    await wire.message()
    (connection,) = stage.server.clients
    connection.data_received(post(b"2"))
    await wire.send(JSON)
    assert (await stage.client.rest()).endswith(b'{"ok":true}')
    assert len(stage.service.dispatches) == 1


async def test_continue_is_owed_until_it_is_its_turn(stage: Stage) -> None:
    await stage.client.send(
        post(b"1") + b"POST / HTTP/1.1\r\nHost: g\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"
    )
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(JSON)
    assert (await stage.client.message())[1] == b'{"ok":true}'
    assert await stage.client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await stage.client.send(b"2")
    assert (await wire.message())[1] == b"2"


async def test_idle_connections_are_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmroute.edge.http.upstream.IDLE_MAX_S", 0.0)
    stage = await world.stage(keepalive_timeout_s=0.02)
    await stage.client.send(post(b"1"))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(JSON)
    await stage.client.message()
    assert await stage.client.rest() == b""
    assert await wire.rest() == b""
    assert not stage.server.counts.refused


async def test_running_request_has_no_deadline(world: World) -> None:
    stage = await world.stage(keepalive_timeout_s=0.01, head_timeout_s=0.01)
    await stage.client.send(post(b"1"))
    wire = await stage.engine.accept()
    await wire.message()
    swept = stage.server.now
    await until(lambda: stage.server.now > swept + 0.05)
    await wire.send(JSON)
    assert (await stage.client.message())[1] == b'{"ok":true}'


async def test_slow_reader_slows_only_its_own_stream(world: World) -> None:
    stage = await world.stage()
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    stage.client.writer.transport.pause_reading()
    await stage.client.send(post(b"slow"))
    slow = await stage.engine.accept()
    await slow.message()
    await slow.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    (connection,) = stage.server.clients
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while sent < 1000:
            await slow.send(piece)
            sent += 1
        await slow.send(b"0\r\n\r\n")

    flooding = asyncio.create_task(flood())
    await until(lambda: connection.paused)
    before = -1
    while before != sent:  # until the kernel's buffers are full too
        before = sent
        await asyncio.sleep(0.05)
    assert sent < 1000
    assert connection.transport.get_write_buffer_size() < 2**20

    other = await world.client(stage.port)
    await other.send(post(b"fast"))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(JSON)
    assert (await other.message())[1] == b'{"ok":true}'

    stage.client.writer.transport.resume_reading()
    await stage.client.until(b"\r\n\r\n")
    for _ in range(1000):
        assert await stage.client.exactly(len(piece)) == piece
    assert await stage.client.exactly(5) == b"0\r\n\r\n"
    await flooding
    await stage.client.send(post(b"again"))  # the engine's connection was not left paused
    assert (await slow.message())[1] == b"again"
    await slow.send(JSON)
    assert (await stage.client.message())[1] == b'{"ok":true}'


async def test_half_close_behind_a_full_buffer_is_noticed(stage: Stage) -> None:
    stage.client.writer.transport.pause_reading()
    await stage.client.send(post(b"slow"))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
    (connection,) = stage.server.clients
    wire.writer.write(bytes(50_000_000))
    await until(lambda: connection.paused)
    stage.client.writer.write_eof()
    await until(lambda: stage.dispatch.outcome is Outcome.CLIENT_GONE)


async def test_drain_lets_running_requests_end(world: World) -> None:
    stage = await world.stage()
    idle = await world.client(stage.port)
    await stage.client.send(post(b"1"))
    wire = await stage.engine.accept()
    await wire.message()
    draining = asyncio.create_task(stage.server.drain())
    assert await idle.rest() == b""
    with pytest.raises(ConnectionRefusedError):
        await world.client(stage.port)
    await wire.send(JSON)
    head, body = await stage.client.message()
    assert b"Connection: close\r\n" in head
    assert body == b'{"ok":true}'
    assert await stage.client.rest() == b""
    await draining
    assert stage.server.counts.cut_by_drain == 0
    assert await wire.rest() == b""


async def test_drain_cuts_what_takes_too_long(world: World) -> None:
    stage = await world.stage(drain_timeout_s=0.01)
    await stage.client.send(post(b"1"))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    await stage.client.until(b"a\r\n")
    await stage.server.drain()
    assert await stage.client.rest() == b""
    assert stage.server.counts.cut_by_drain == 1
    assert stage.dispatch.outcome is Outcome.CLIENT_GONE


async def test_address_in_use_is_the_operators_fault(stage: Stage) -> None:
    with pytest.raises(ConfigError, match=r"gateway\.port"):
        await HttpServer(stage.service, GatewayConfig(port=stage.port)).start()


async def test_sockets_are_all_released(world: World) -> None:
    stage = await world.stage()
    for _ in range(3):
        client = await world.client(stage.port)
        await client.send(post(b"1"))
        wire = await stage.engine.accept()
        await wire.message()
        await wire.send(JSON)
        await client.message()
        client.close()
        wire.close()
    await until(lambda: len(stage.server.clients) == 1)
    await until(lambda: len(stage.server.pool) == 0)
    await stage.server.close()
    assert not stage.server.clients


@pytest.mark.parametrize("leaves", ["client", "engine", "nobody"])
async def test_what_has_ended_is_free_without_the_collector(world: World, leaves: str) -> None:
    """The gateway all but turns the collector of cycles off: what only it would find is kept for hours."""
    left = ours()  # by other tests; held, so that their numbers are not given again
    others = set(map(id, left))
    stage = await world.stage()
    gc.disable()
    try:
        close = b"Connection: close\r\n\r\n" if leaves == "nobody" else b"\r\n"
        await stage.client.send(post(b"1").replace(b"\r\n\r\n", b"\r\n" + close))
        wire = await stage.engine.accept()
        await wire.message()
        await wire.send(JSON if leaves == "nobody" else b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx")
        await stage.client.until(b"\r\n\r\n")
        assert not others.issuperset(map(id, ours()))
        if leaves == "client":
            stage.client.abort()
        wire.abort()
        await until(lambda: others.issuperset(map(id, ours())))
        assert len(others) == len(left)
    finally:
        gc.enable()


def ours() -> list[object]:
    """What there is of anybody's request or connection."""
    kinds = (ClientConnection, EngineConnection, Exchange, Request)
    return [each for each in gc.get_objects() if isinstance(each, kinds)]
