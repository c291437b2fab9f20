"""A gateway that has no socket left says so itself, and blames no engine."""

from __future__ import annotations

import asyncio
import errno
import json
from typing import Never

import pytest
from test_http_faults import outcomes
from test_http_relay import post
from wires import JSON, World

from warmroute.service.ports import Outcome
from warmroute.testing.http import StaticService


async def test_no_socket_left_is_503_and_the_next_request_is_served(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await world.engine()
    service = StaticService([engine.endpoint], retries=2)
    server, port = await world.gateway(service)
    client = await world.client(port)

    async def nothing_left(*_: object, **__: object) -> Never:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(asyncio.get_running_loop(), "create_connection", nothing_left, raising=False)
        await client.send(post(b"body"))
        head, body = await client.message()
    assert head.startswith(b"HTTP/1.1 503 ")
    error = json.loads(body)["error"]
    assert error["code"] == "gateway_exhausted"
    assert "Too many open files" in error["message"]
    assert server.counts.connect_failures == 1
    await client.send(post(b"body"))
    wire = await engine.accept()
    await wire.message()
    await wire.send(JSON)
    assert (await client.message())[1] == b'{"ok":true}'
    assert outcomes(service) == [Outcome.UNASKED, Outcome.COMPLETE]
