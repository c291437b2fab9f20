"""A gateway's fleet before a fake API server: real client, real sockets to the API, engines that always answer."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from warmroute.config.tree import Config, MembershipConfig
from warmroute.core.decision import Decision, PickRequest
from warmroute.core.index import make_index
from warmroute.core.pods import read_pod
from warmroute.core.router import Router
from warmroute.edge.kubernetes import connect
from warmroute.service.discovery import Discovery
from warmroute.service.following import Following
from warmroute.service.membership import Membership
from warmroute.service.ports import EngineFacts, EventAddress, EventSink, Health
from warmroute.service.reconciler import Reconciler
from warmroute.service.reflector import Collection, Reflector
from warmroute.testing.fakes import FakeEngineApi
from warmroute.testing.kubernetes import FakeKubernetes
from warmroute.types import Endpoint, ModelInfo, WorkerId

DEADLINE_S = 60.0
PODS = "/api/v1/namespaces/default/pods"
PREFIXES = ("warmroute.dev/", "model.aibrix.ai/")
FACTS = EngineFacts((ModelInfo("m"),), None, process_start=1.0)


class AnsweringEngines(FakeEngineApi):
    """Whoever is asked is well."""

    async def facts(self, endpoint: Endpoint) -> EngineFacts:
        return FACTS

    async def health(self, endpoint: Endpoint) -> Health:
        return Health.GOOD


class Sockets:
    """Event sockets that are open now, and every one that ever was, by address."""

    def __init__(self) -> None:
        self.open: Counter[str] = Counter()
        self.opened: Counter[str] = Counter()

    def __call__(self, address: EventAddress) -> _Socket:
        return _Socket(self, address.endpoint)


class _Socket:
    def __init__(self, sockets: Sockets, address: str) -> None:
        self.sockets, self.address = sockets, address

    def start(self, sink: EventSink) -> None:
        self.sockets.opened[self.address] += 1
        self.sockets.open[self.address] += 1

    def replay(self, start: int) -> None: ...

    def end_replay(self) -> None: ...

    def close(self) -> None:
        self.sockets.open[self.address] -= 1
        self.sockets.open += Counter()


class ClusterStage:
    def __init__(self, server: FakeKubernetes) -> None:
        config = Config(membership=MembershipConfig(probe_interval_s=3600.0))
        self.server = server
        self.sockets = Sockets()
        self.router = Router(make_index(1000))
        self.following = Following(self.router, self.sockets, config.events, time.monotonic, time.time)
        self.membership = Membership(config, AnsweringEngines(), self.following, time.monotonic)
        self.reconciler = Reconciler(config, self.membership, self.in_flight, time.monotonic)
        self.reflectors: list[Reflector] = []

    def in_flight(self, worker: WorkerId) -> int:
        return self.router.load.of(worker, time.monotonic()).requests

    def pick(self) -> Decision:
        return self.router.pick(PickRequest(model="m", prompt_bytes=100), self.membership.fleet, time.monotonic())

    def ready(self) -> set[str]:
        return {worker.endpoint.url for worker in self.membership.fleet.workers if worker.ready}

    def present(self) -> set[str]:
        return {endpoint.url for endpoint, *_ in self.membership.engines()}

    def identities(self) -> dict[str, str]:
        return {at.url: entry.listed.identity for at, entry in self.reconciler.roster.entries.items()}

    async def until(self, holds: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < deadline, (
                f"{what}: {self.ready()} {self.sockets.open} {self.reflectors[0].view()}"
            )
            await asyncio.sleep(0.002)

    async def in_step(self) -> None:
        """Wait until what the server has now is what is known here."""
        version = str(self.server.store.version)

        def there() -> bool:
            self.server.bookmark()  # again and again: a watch that is not open yet has not heard of it
            return all(r.problem is None and r._version == version for r in self.reflectors)

        await self.until(there, f"at version {version}")


@contextlib.asynccontextmanager
async def cluster_stage(
    server: FakeKubernetes, folder: Path, selectors: Sequence[str] = tuple(prefix + "name" for prefix in PREFIXES)
) -> AsyncIterator[ClusterStage]:
    stage = ClusterStage(server)
    api = await connect(server.write_kubeconfig(folder))
    chance = random.Random(1).random
    stage.reflectors = [
        Reflector(
            api,
            Collection(PODS, selector),
            read_pod,
            time.monotonic,
            chance,
            sleep=lambda seconds: asyncio.sleep(seconds / 1000),
        )
        for selector in selectors
    ]
    discovery = Discovery("kubernetes", stage.reflectors, stage.reconciler)
    tasks = [asyncio.create_task(stage.membership.run()), asyncio.create_task(discovery.run())]
    try:
        yield stage
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await api.close()
