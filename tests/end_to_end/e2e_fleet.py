"""Simulated engines behind the composed gateway, in one process, and how a test waits for them.

Nothing sleeps for a guessed time: what is waited for is polled until it holds or a deadline says that it never will.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from e2e_client import Client, Json

from warmroute.app.gateway import Gateway, running
from warmroute.config.tree import Config, EngineConfig, EventsConfig, GatewayConfig, MembershipConfig
from warmroute.service.ingest import IngestCounts, WorkerStream
from warmroute.testing.engine import EngineOptions, SimulatedEngine

MODEL = "tiny"
DEADLINE_S = 20.0
"""Longer than anything here takes on a starved machine; what waits so long will wait for ever."""

QUICK = Config(
    gateway=GatewayConfig(port=0, drain_timeout_s=10.0),
    events=EventsConfig(reconnect_backoff_s=0.05, reconnect_backoff_max_s=0.2, replay_timeout_s=0.3),
    membership=MembershipConfig(probe_interval_s=0.05, probe_timeout_s=5.0, retry_interval_s=0.05),
)
"""Everything that waits, waits briefly."""


async def until(holds: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Poll until `holds`. Fails, saying `what`, if it does not in time."""
    deadline = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < deadline, f"not in {deadline_s:g} s: {what}"
        await asyncio.sleep(0.002)


def config_for(engines: Sequence[SimulatedEngine | EngineConfig], config: Config = QUICK) -> Config:
    """`config` with these engines; a simulated one is configured by its URL alone."""
    listed = (EngineConfig(url=engine.url) if isinstance(engine, SimulatedEngine) else engine for engine in engines)
    return replace(config, engines=tuple(listed))


@dataclass(slots=True)
class Stack:
    """A gateway, the engines behind it and a client before it."""

    gateway: Gateway
    engines: Sequence[SimulatedEngine]
    client: Client

    def engine_of(self, worker: str) -> SimulatedEngine:
        """The engine behind a worker's name."""
        authority = worker.partition("#")[0]
        return next(engine for engine in self.engines if engine.endpoint.authority == authority)

    async def worker(self, engine: SimulatedEngine, rank: int = 0) -> Json:
        """What the gateway says of one worker."""
        listed = (await self.client.get("/workers")).body["workers"]
        found = [w for w in listed if w["address"] == engine.url and w["rank"] == rank]
        assert len(found) == 1, listed
        return dict(found[0])

    def trust(self, engine: SimulatedEngine, rank: int = 0) -> str:
        """The trust state of one worker; empty if there is no such worker yet."""
        workers = self.gateway.membership.fleet.workers
        return next((w.trust.state.value for w in workers if w.endpoint == engine.endpoint and w.rank == rank), "")

    def stream(self, engine: SimulatedEngine, rank: int = 0) -> WorkerStream:
        """The stream that follows one worker."""
        workers = self.gateway.membership.fleet.workers
        worker = next(w for w in workers if w.endpoint == engine.endpoint and w.rank == rank)
        return self.gateway.following.streams[worker.id]

    def counts(self, engine: SimulatedEngine, rank: int = 0) -> IngestCounts:
        """What one worker's stream has counted."""
        return self.stream(engine, rank).counts

    async def settled(self, engines: Sequence[SimulatedEngine] | None = None) -> None:
        """Wait until everything these engines have published is applied."""
        waited = self.engines if engines is None else engines
        ranks = [(engine, rank.number) for engine in waited for rank in engine.process.ranks]
        await until(lambda: all(self._has_all(engine, rank) for engine, rank in ranks), "all batches are applied")

    def _has_all(self, engine: SimulatedEngine, rank: int) -> bool:
        publisher = engine.process.ranks[rank].publisher
        assert publisher is not None
        expected = self.stream(engine, rank).view()["next_seq"]
        return (expected or 0) >= publisher.next_seq and self.trust(engine, rank) != "REPLAYING"


@asynccontextmanager
async def engines_of(*options: EngineOptions) -> AsyncIterator[list[SimulatedEngine]]:
    """Engines, one per options."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(SimulatedEngine(each)) for each in options]


@asynccontextmanager
async def before(
    engines: Sequence[SimulatedEngine],
    config: Config | None = None,
    *,
    ready: int | None = None,
) -> AsyncIterator[Stack]:
    """A gateway before `engines`, ready to serve; `ready` workers are waited for, all by default, 0: not waited."""
    config = config_for(engines) if config is None else config
    async with running(config) as gateway, Client(gateway.url) as client:
        wanted = sum(engine.options.data_parallel_size for engine in engines) if ready is None else ready
        if wanted:
            async with asyncio.timeout(DEADLINE_S):
                await gateway.until_ready(wanted)
        yield Stack(gateway, engines, client)


@asynccontextmanager
async def stack_of(*options: EngineOptions, config: Config = QUICK) -> AsyncIterator[Stack]:
    """Fresh engines and a fresh gateway before them."""
    async with engines_of(*options) as engines, before(engines, config_for(engines, config)) as stack:
        yield stack
