"""A 503 says that an engine has not begun: another one is tried, and the client sees it only if there is none."""

from __future__ import annotations

from typing import Any

from wires import JSON, Engine, World

from warmroute.errors import NoWorkerError
from warmroute.service.ports import Dispatch, Outcome
from warmroute.testing.http import StaticDispatch, StaticService

BODY = b'{"error": "no  room"}'
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
POST = b"POST /v1/completions HTTP/1.1\r\nHost: g\r\nContent-Length: 2\r\n\r\n{}"


async def two(world: World, **options: Any) -> tuple[list[Engine], StaticService, int]:
    engines = [await world.engine(), await world.engine()]
    service = StaticService([engine.endpoint for engine in engines], **options)
    _, port = await world.gateway(service)
    return engines, service, port


def outcomes(service: StaticService) -> list[tuple[int | None, Outcome | None]]:
    return [(dispatch.status, dispatch.outcome) for dispatch in service.dispatches]


async def test_another_engine_serves_it(world: World) -> None:
    (busy, free), service, port = await two(world, retries=1)
    client = await world.client(port)
    await client.send(POST)
    refusing = await busy.accept()
    head, body = await refusing.message()
    await refusing.send(BUSY)
    serving = await free.accept()
    assert await serving.message() == (_to(free, head, busy), body)
    await serving.send(JSON)
    assert (await client.message())[0].startswith(b"HTTP/1.1 200 OK\r\n")
    assert outcomes(service) == [(503, Outcome.REFUSED), (200, Outcome.COMPLETE)]
    await client.send(POST)  # the connection is used again: its answer was read whole
    await refusing.message()


def _to(engine: Engine, head: bytes, instead_of: Engine) -> bytes:
    return head.replace(instead_of.endpoint.authority.encode(), engine.endpoint.authority.encode())


async def test_an_answer_that_has_not_come_whole_costs_its_connection(world: World) -> None:
    (busy, free), service, port = await two(world, retries=1)
    client = await world.client(port)
    await client.send(POST)
    first = await busy.accept()
    await first.message()
    await first.send(BUSY[:-1])
    second = await free.accept()
    await second.message()
    await second.send(JSON)
    assert (await client.message())[1] == b'{"ok":true}'
    assert await first.rest() == b""
    assert outcomes(service) == [(503, Outcome.REFUSED), (200, Outcome.COMPLETE)]


async def test_the_last_engines_503_is_the_clients(world: World) -> None:
    engines, service, port = await two(world, retries=1)
    client = await world.client(port)
    await client.send(POST)
    for engine in engines:
        wire = await engine.accept()
        await wire.message()
        await wire.send(BUSY)
    head, body = await client.message()
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\n")
    assert body == BODY
    assert outcomes(service) == [(503, Outcome.REFUSED)] * 2


async def test_so_is_one_that_comes_in_pieces(world: World) -> None:
    (busy, _), service, port = await two(world)
    client = await world.client(port)
    await client.send(POST)
    wire = await busy.accept()
    await wire.message()
    await wire.send(BUSY[:-5])
    await wire.send(BUSY[-5:])
    assert (await client.message())[1] == BODY
    assert outcomes(service) == [(503, Outcome.REFUSED)]


async def test_nobody_else_is_no_error_of_ours(world: World) -> None:
    class Alone(StaticService):
        def retry(self, dispatch: Dispatch) -> Dispatch | None:
            raise NoWorkerError("there is nobody else")

    engine = await world.engine()
    _, port = await world.gateway(Alone([engine.endpoint]))
    client = await world.client(port)
    await client.send(POST)
    wire = await engine.accept()
    await wire.message()
    await wire.send(BUSY)
    assert (await client.message())[1] == BODY


async def test_what_may_not_be_sent_twice_is_not(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr(StaticDispatch, "retriable", False)
    (busy, free), service, port = await two(world, retries=1)
    client = await world.client(port)
    await client.send(POST)
    wire = await busy.accept()
    await wire.message()
    await wire.send(BUSY)
    assert (await client.message())[1] == BODY
    assert free.connections == 0
    assert outcomes(service) == [(503, Outcome.COMPLETE)]
