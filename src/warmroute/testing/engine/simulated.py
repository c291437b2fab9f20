"""The simulated engine as a whole: a process and the HTTP server before it, started, killed and restarted together."""

from __future__ import annotations

import asyncio
import time as clock
from types import TracebackType
from typing import Self

from aiohttp import web

from warmroute.service.ports import EventAddress
from warmroute.testing.engine.api import build_app
from warmroute.testing.engine.cache import Pages
from warmroute.testing.engine.options import EngineOptions, Faults
from warmroute.testing.engine.process import Process, Time
from warmroute.types import Endpoint

REAL_TIME = Time(now=clock.time, sleep=asyncio.sleep)


class SimulatedEngine:
    """A vLLM without a model, on real sockets.

    Like this::

        async with SimulatedEngine(EngineOptions(block_size=32)) as engine:
            ...  # requests to engine.url, events from engine.events[0].endpoint

    `faults` may be changed at any time. Addresses are known once it has started, and stay the same over a restart.
    """

    def __init__(self, options: EngineOptions | None = None, *, time: Time = REAL_TIME) -> None:
        self.options = options or EngineOptions()
        self.faults = Faults()
        self.endpoint = Endpoint(self.options.host, self.options.port)
        self._time = time
        self._events: tuple[EventAddress, ...] = ()
        self._connections: set[asyncio.Transport] = set()
        self._process: Process | None = None
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Base URL of its HTTP surface."""
        return self.endpoint.url

    @property
    def events(self) -> tuple[EventAddress, ...]:
        """Where each rank publishes, by rank; empty if events are off."""
        return self._events

    @property
    def process(self) -> Process:
        """What runs now. Raises RuntimeError if nothing does."""
        if self._process is None:
            raise RuntimeError("The simulated engine is not running: start it first.")
        return self._process

    def held_tokens(
        self, token_ids: list[int], *, rank: int = 0, model: str | None = None, salt: str | None = None
    ) -> int:
        """The truth: how many leading tokens of this prompt would be served from the cache now."""
        process = self.process
        cache = process.ranks[rank].scheduler.cache
        return len(cache.match(Pages(list(token_ids), process.content(model, salt, None)))) * cache.block_size

    async def start(self) -> None:
        """Listen and work. Raises OSError or zmq.ZMQError if an address is taken."""
        process = self._process = Process(self.options, self.faults, self._time)
        try:
            process.start(self._events)
            app = build_app(process)
            app.on_response_prepare.append(self._remember_connection)
            self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
            await self._runner.setup()
            await web.TCPSite(self._runner, self.endpoint.host, self.endpoint.port).start()
        except BaseException:
            await self.kill()
            raise
        self._events = process.events
        self.endpoint = Endpoint(self.options.host, self._runner.addresses[0][1])

    async def stop(self) -> None:
        """End: no new connections, a moment for running answers, then everything is released."""
        runner, self._runner = self._runner, None
        process, self._process = self._process, None
        if runner:
            await runner.cleanup()
        if process:
            await process.stop()

    async def kill(self) -> None:
        """Die as a crashed process does: every connection is reset in the middle of whatever it was at."""
        for transport in tuple(self._connections):
            transport.abort()
        self._connections.clear()
        await self.stop()

    async def restart(self) -> None:
        """Die and start again on the same addresses: empty caches, batch numbers from 0, another start time."""
        await self.kill()
        await self.start()

    async def _remember_connection(self, request: web.Request, _: web.StreamResponse) -> None:
        transport = request.transport
        if transport is not None:
            self._connections = {each for each in self._connections if not each.is_closing()} | {transport}
