from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web

from warmroute.types import Endpoint

Answering = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Answering], Awaitable[Endpoint]]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Answers every request to a fresh port with a function of the request."""
    runners: list[web.ServerRunner] = []

    async def start(answer: Answering) -> Endpoint:
        async def respond(request: web.BaseRequest) -> web.StreamResponse:
            return await answer(request)  # type: ignore[arg-type]  # nothing of an application is used

        runner = web.ServerRunner(web.Server(respond), shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return Endpoint("127.0.0.1", runner.addresses[0][1])

    yield start
    for runner in runners:
        await runner.cleanup()
