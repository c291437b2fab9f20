from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from warmroute.config.tree import Config, EngineConfig, EventsConfig, MembershipConfig
from warmroute.core.decision import PickRequest
from warmroute.core.index import make_index
from warmroute.core.roster import Listed
from warmroute.core.router import Router
from warmroute.service.following import Following
from warmroute.service.membership import Membership
from warmroute.service.ports import EngineFacts, EventAddress, EventSink
from warmroute.service.reconciler import Reconciler
from warmroute.testing.fakes import FakeEngineApi
from warmroute.types import Endpoint, ModelInfo, WorkerId

A, B = Endpoint("10.0.0.1", 8000), Endpoint("10.0.0.2", 8000)


class Sources:
    """Sockets that are open now, and every one that ever was."""

    def __init__(self) -> None:
        self.open: Counter[str] = Counter()
        self.opened: list[str] = []

    def __call__(self, address: EventAddress) -> _Socket:
        return _Socket(self, address.endpoint)


class _Socket:
    def __init__(self, sources: Sources, address: str) -> None:
        self.sources, self.address = sources, address

    def start(self, sink: EventSink) -> None:
        self.sources.opened.append(self.address)
        self.sources.open[self.address] += 1

    def replay(self, start: int) -> None: ...

    def end_replay(self) -> None: ...

    def close(self) -> None:
        self.sources.open[self.address] -= 1
        if not self.sources.open[self.address]:
            del self.sources.open[self.address]


class Stage:
    def __init__(self, *engines: EngineConfig, drain_timeout_s: float = 300.0) -> None:
        self.now = 0.0
        self.api = FakeEngineApi()
        self.sources = Sources()
        config = Config(
            engines=engines, events=EventsConfig(), membership=MembershipConfig(drain_timeout_s=drain_timeout_s)
        )
        self.router = Router(make_index(1000))
        self.following = Following(self.router, self.sources, config.events, self.clock, self.clock)
        self.membership = Membership(config, self.api, self.following, self.clock)
        self.reconciler = Reconciler(config, self.membership, self.in_flight, self.clock)
        self.removed: list[Endpoint] = []
        self.reconciler.on_removed = self.removed.append
        for endpoint in (A, B):
            self.api.known[endpoint] = EngineFacts((ModelInfo("m"),), None)

    def clock(self) -> float:
        return self.now

    def in_flight(self, worker: WorkerId) -> int:
        return self.router.load.of(worker, self.now).requests

    def pick(self):  # type: ignore[no-untyped-def]
        return self.router.pick(PickRequest(model="m", prompt_bytes=4000), self.membership.fleet, self.now)

    def ready(self) -> list[str]:
        return [worker.name for worker in self.membership.fleet.workers if worker.ready]

    async def list(self, *engines: Listed, source: str = "kubernetes") -> None:
        self.reconciler.replace(source, engines)
        await settle()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Stage]:
        task = asyncio.create_task(self.membership.run())
        await settle()
        yield self
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def listed(endpoint: Endpoint, identity: str = "1", held: str | None = None, **engine: object) -> Listed:
    return Listed(EngineConfig(url=endpoint.url, **engine), identity, held)  # type: ignore[arg-type]


async def test_engines_come_and_go_while_it_runs() -> None:
    async with Stage().running() as stage:
        await stage.list(listed(A), listed(B))
        assert stage.ready() == [A.authority, B.authority]
        assert stage.sources.open == {"tcp://10.0.0.1:5557": 1, "tcp://10.0.0.2:5557": 1}
        await stage.list(listed(B))
        assert stage.ready() == [B.authority]
        assert stage.sources.open == {"tcp://10.0.0.2:5557": 1}
        assert stage.removed == [A]
        assert stage.membership.engines() == [(B, True, None)]
        assert stage.following.streams.keys() == {1}


async def test_an_engine_with_requests_drains_until_they_are_done() -> None:
    async with Stage().running() as stage:
        await stage.list(listed(A))
        running = stage.pick()
        await stage.list()
        assert stage.ready() == []
        assert stage.reconciler.view()[A]["draining"]
        stage.now = 299.0
        stage.reconciler.tick()
        assert stage.sources.open  # it is followed as long as it is there
        stage.router.release(running, stage.now, served=True)
        stage.reconciler.tick()
        assert (stage.removed, stage.sources.open, stage.membership.fleet.workers) == ([A], {}, ())


async def test_one_that_never_drains_is_forgotten_in_the_end_and_that_is_counted() -> None:
    async with Stage(drain_timeout_s=10.0).running() as stage:
        await stage.list(listed(A))
        stage.pick()
        await stage.list()
        stage.now = 10.0
        stage.reconciler.tick()
        assert stage.removed == [A]
        assert stage.reconciler.changes["drain_timeout",] == 1


async def test_one_that_is_listed_again_while_it_drains_keeps_its_worker_and_its_stream() -> None:
    async with Stage().running() as stage:
        await stage.list(listed(A))
        stage.pick()
        await stage.list()
        await stage.list(listed(A))
        stage.now = 1000.0
        stage.reconciler.tick()
        assert stage.ready() == [A.authority]
        assert stage.sources.opened == ["tcp://10.0.0.1:5557"]


async def test_another_engine_at_the_same_address_begins_with_an_empty_cache() -> None:
    async with Stage().running() as stage:
        await stage.list(listed(A, "pod-1"))
        stage.pick()
        await stage.list(listed(A, "pod-2"))
        assert [worker.id for worker in stage.membership.fleet.workers] == [1]
        assert stage.sources.opened == ["tcp://10.0.0.1:5557"] * 2
        assert stage.sources.open == {"tcp://10.0.0.1:5557": 1}


async def test_an_engine_that_is_held_is_followed_and_gets_no_requests() -> None:
    async with Stage().running() as stage:
        await stage.list(listed(A, held="the pod is not ready"))
        assert (stage.ready(), len(stage.sources.open)) == ([], 1)
        await stage.list(listed(A))
        assert stage.ready() == [A.authority]
        stage.reconciler.hold(A, "maintenance")
        assert stage.ready() == []
        stage.membership.refresh()
        await settle()
        assert stage.ready() == []  # whatever its probes say
        stage.reconciler.release(A)
        assert stage.ready() == [A.authority]
        assert stage.sources.opened == ["tcp://10.0.0.1:5557"]


async def test_events_switched_off_and_on_again_need_no_answer_of_the_engine() -> None:
    async with Stage().running() as stage:
        await stage.list(listed(A))
        stage.api.hanging.add(A)
        await stage.list(listed(A, events=False))
        assert (stage.ready(), stage.sources.open) == ([A.authority], {})
        await stage.list(listed(A, events_endpoint="tcp://10.0.0.1:7000"))
        assert stage.sources.open == {"tcp://10.0.0.1:7000": 1}


async def test_keys_come_and_go_with_their_engines() -> None:
    async with Stage(EngineConfig(url=B.url, api_key="b")).running() as stage:
        await stage.list(listed(A, api_key="a"))
        assert stage.membership.keys == {A: "a", B: "b"}
        await stage.list(listed(A, api_key="other"))
        assert stage.membership.keys[A] == "other"
        await stage.list()
        assert stage.membership.keys == {B: "b"}


async def test_the_configurations_engines_can_be_changed_like_any_others() -> None:
    async with Stage(EngineConfig(url=A.url), EngineConfig(url=B.url)).running() as stage:
        await stage.list(Listed(EngineConfig(url=B.url)), source="config")
        assert stage.ready() == [B.authority]
        assert stage.sources.opened.count("tcp://10.0.0.2:5557") == 1


async def test_an_engine_that_leaves_before_it_answered_is_asked_no_more() -> None:
    async with Stage().running() as stage:
        stage.api.hanging.add(A)
        await stage.list(listed(A))
        await stage.list()
        assert (stage.removed, stage.membership.engines()) == ([A], [])
        stage.api.hanging.clear()
        await settle()
        assert stage.membership.fleet.workers == ()


async def test_weights_share_the_work_and_zero_takes_none() -> None:
    async with Stage().running() as stage:
        await stage.list(listed(A, weight=3.0), listed(B))
        chosen = [stage.pick().worker.name for _ in range(40)]
        assert 25 <= chosen.count(A.authority) <= 35
        await stage.list(listed(A, weight=0.0), listed(B))
        assert stage.ready() == [B.authority]
        await stage.list(listed(A), listed(B))
        assert stage.ready() == [A.authority, B.authority]
