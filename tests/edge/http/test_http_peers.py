"""Independent implementations on both sides: aiohttp as client and engine, curl as client."""

from __future__ import annotations

import asyncio
import json
import shutil

import aiohttp
import pytest
from aiohttp import web
from wires import World

from warmroute.service.ports import Outcome
from warmroute.testing.http import StaticService
from warmroute.types import Endpoint


async def echo(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    if request.path == "/json":
        return web.json_response({"bytes": len(body), "header": request.headers.get("X-A")})
    stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await stream.prepare(request)
    for number in range(20):
        await stream.write(b"data: %d\n\n" % number)
        if request.path == "/broken" and number == 10:
            assert request.transport is not None
            request.transport.abort()
            return stream
    await stream.write(b"data: [DONE]\n\n")
    return stream


@pytest.fixture
async def gateway(world: World) -> tuple[StaticService, str]:
    app = web.Application(client_max_size=2**25)
    app.router.add_route("*", "/{any}", echo)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    world.cleanups.append(runner.cleanup)
    service = StaticService([Endpoint("127.0.0.1", runner.addresses[0][1])])
    _, port = await world.gateway(service)
    return service, f"http://127.0.0.1:{port}"


async def test_aiohttp(gateway: tuple[StaticService, str]) -> None:
    service, url = gateway

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        body = bytes(number * 997)
        async with session.post(f"{url}/json", data=body, headers={"X-A": str(number)}) as response:
            assert await response.json() == {"bytes": len(body), "header": str(number)}

        async def pieces() -> object:
            yield b"a"
            yield body

        async with session.post(f"{url}/json", data=pieces(), expect100=True) as response:
            assert (await response.json())["bytes"] == len(body) + 1
        async with session.post(f"{url}/stream", data=b"x") as response:
            events = await response.read()
        assert events == b"".join(b"data: %d\n\n" % n for n in range(20)) + b"data: [DONE]\n\n"
        async with session.head(f"{url}/json") as response:
            assert response.status == 200

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(one(session, number) for number in range(50)))
    assert {dispatch.outcome for dispatch in service.dispatches} == {Outcome.COMPLETE}


async def test_aiohttp_sees_a_broken_stream_as_broken(gateway: tuple[StaticService, str]) -> None:
    service, url = gateway
    async with aiohttp.ClientSession() as session, session.post(f"{url}/broken", data=b"x") as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert service.dispatches[0].outcome is Outcome.ENGINE_LOST


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("options", [["--http1.1"], ["--http1.0"], ["--http2"], ["-H", "Transfer-Encoding: chunked"]])
async def test_curl(gateway: tuple[StaticService, str], options: list[str]) -> None:
    _, url = gateway

    async def curl(path: str) -> bytes:
        process = await asyncio.create_subprocess_exec(
            "curl",
            "-sS",
            "--noproxy",
            "*",
            "--data-binary",
            "x" * 2000,
            *options,
            url + path,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        return out

    expected = None if "--http1.0" in options and "chunked" in options else 2000
    assert json.loads(await curl("/json"))["bytes"] == expected
    assert (await curl("/stream")).endswith(b"data: [DONE]\n\n")
