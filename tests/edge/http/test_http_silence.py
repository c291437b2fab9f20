"""Engines that fall silent and clients that leave: each is noticed, and told to the other side."""

from __future__ import annotations

import json

import pytest
from test_http_relay import post
from wires import JSON, Stage, World, until

from warmroute.service.ports import Outcome

STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PIECE = b"3\r\nabc\r\n"


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n", STREAM])
async def test_an_engine_that_gives_no_first_byte_is_given_up(world: World, head: bytes) -> None:
    stage = await world.stage(first_byte_timeout_s=0.05)
    await stage.client.send(post(b"x"))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(head)
    answer, body = await stage.client.message()
    assert answer.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
    error = json.loads(body)["error"]
    assert (error["code"], error["type"]) == ("engine_timeout", "server_error")
    assert stage.dispatch.outcome is Outcome.ENGINE_LOST
    assert stage.server.counts.engine_faults == {"first_byte_timeout": 1}
    assert await wire.rest() == b"", "the engine is told"
    await stage.client.send(post(b"y"))  # the client's connection lives on
    assert (await (await stage.engine.accept()).message())[1] == b"y"


async def test_an_engine_that_falls_silent_is_cut_and_no_end_is_made_up(world: World) -> None:
    stage = await world.stage(idle_timeout_s=0.05)
    await stage.client.send(post(b"x"))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(STREAM + PIECE)
    assert (await stage.client.rest()).endswith(PIECE), "and no last chunk"
    assert stage.dispatch.outcome is Outcome.ENGINE_LOST
    assert stage.server.counts.engine_faults == {"idle_timeout": 1}
    assert await wire.rest() == b""


async def test_an_engine_that_goes_on_is_not_cut(world: World) -> None:
    stage = await world.stage(idle_timeout_s=0.4, first_byte_timeout_s=0.4)
    await stage.client.send(post(b"x"))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(STREAM)
    sweeps = 0
    sweep = stage.server._sweep

    def counted() -> None:
        nonlocal sweeps
        sweeps += 1
        sweep()

    stage.server._sweep = counted  # type: ignore[method-assign]
    for turn in range(12):  # three times as long as it may be silent
        await wire.send(PIECE)
        await stage.client.until(PIECE)
        await until(lambda turn=turn: sweeps > turn)
    await wire.send(b"0\r\n\r\n")
    await stage.client.until(b"0\r\n\r\n")
    await until(lambda: stage.dispatch.outcome is Outcome.COMPLETE)


async def test_a_client_that_does_not_read_is_not_the_engines_silence(world: World) -> None:
    stage = await world.stage(idle_timeout_s=0.05)
    await stage.client.send(post(b"x"))
    wire = await stage.engine.accept()
    await wire.message()
    (client,) = stage.server.clients
    await wire.send(STREAM + PIECE)
    await stage.client.until(PIECE)
    client.pause_writing()  # as a full socket does
    began = stage.server.now
    await until(lambda: stage.server.now > began + 0.2)
    assert stage.dispatch.outcome is None
    client.resume_writing()
    await until(lambda: stage.dispatch.outcome is Outcome.ENGINE_LOST)


@pytest.mark.parametrize("begun", [b"", STREAM, STREAM + PIECE, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"])
@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_client_that_leaves_is_told_to_the_engine_at_once(stage: Stage, begun: bytes, how: str) -> None:
    await stage.client.send(post(b"x"))
    wire = await stage.engine.accept()
    await wire.message()
    await wire.send(begun)
    if begun.endswith((b"c", PIECE)):
        await stage.client.until(b"abc")
    if how == "reset":
        stage.client.abort()
    else:
        stage.client.close()
    assert await wire.rest() == b""  # without waiting for any sweep or timeout: nothing else would end it
    await until(lambda: stage.dispatch.outcome is Outcome.CLIENT_GONE)
    assert len(stage.server.pool) == 0
    assert stage.server.counts.clients_gone == 1


async def test_an_answer_in_time_is_not_cut(world: World) -> None:
    stage = await world.stage(first_byte_timeout_s=5.0)
    for number in range(3):
        await stage.client.send(post(b"x"))
        if not number:
            wire = await stage.engine.accept()
        await wire.message()
        await wire.send(JSON)
        assert (await stage.client.message())[1] == b'{"ok":true}'
