from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from warmroute.config.tree import Config, EngineConfig
from warmroute.service.membership import FACTS_EVERY, Membership
from warmroute.service.ports import CacheCounters, EngineFacts, EventAddress
from warmroute.testing.fakes import FakeEngineApi
from warmroute.types import Endpoint, Fleet, ModelInfo, Trust, TrustState, Worker, WorkerId

A = Endpoint("10.0.0.1", 8000)
B = Endpoint("10.0.0.2", 8000)
MODEL = ModelInfo("m")
PUB = EventAddress("tcp://10.0.0.1:5557", "tcp://10.0.0.1:5567", "kv")


def facts(*addresses: EventAddress, start: float = 1.0, models: tuple[ModelInfo, ...] = (MODEL,)) -> EngineFacts:
    return EngineFacts(models, dict(enumerate(addresses)), version="0.32.0", process_start=start)


class VirtualTime:  # sleeps end when `advance` passes them, and only then
    def __init__(self) -> None:
        self.now = 0.0
        self.sleeping: list[tuple[float, int, asyncio.Event]] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        done = asyncio.Event()
        heapq.heappush(self.sleeping, (self.now + seconds, id(done), done))
        await done.wait()

    async def advance(self, seconds: float) -> None:
        end = self.now + seconds
        await settle()
        while self.sleeping and self.sleeping[0][0] <= end:
            self.now, _, done = heapq.heappop(self.sleeping)
            done.set()
            await settle()
        self.now = end


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Recorder:
    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.fleets: list[Fleet] = []

    def worker_added(self, worker: Worker, address: EventAddress | None) -> None:
        self.said.append(("added", worker.id, address))

    def worker_removed(self, worker: WorkerId) -> None:
        self.said.append(("removed", worker))

    def worker_restarted(self, worker: WorkerId, process_start: float | None) -> None:
        self.said.append(("restarted", worker))

    def fleet_changed(self, fleet: Fleet) -> None:
        self.fleets.append(fleet)

    def take(self) -> list[tuple[Any, ...]]:
        said, self.said = self.said, []
        return said


class Stage:
    def __init__(self, *engines: EngineConfig) -> None:
        self.api = FakeEngineApi()
        self.time = VirtualTime()
        self.heard = Recorder()
        config = Config(engines=engines or (EngineConfig(url=A.url), EngineConfig(url=B.url)))
        self.membership = Membership(config, self.api, self.heard, self.time.clock, self.time.sleep)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Stage]:
        task = asyncio.create_task(self.membership.run())
        await settle()
        yield self
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    def ready(self) -> list[str]:
        return [worker.name for worker in self.membership.fleet.workers if worker.ready]


async def test_an_engine_that_is_down_at_start_is_waited_for_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with Stage(EngineConfig(url=A.url)).running() as stage:
        await stage.time.advance(30)
        assert stage.membership.fleet.workers == ()
        assert len(caplog.records) == 1
        assert stage.membership.engines() == [(A, False, "it refuses to be connected to")]
        stage.api.known[A] = facts(PUB)
        await stage.time.advance(1)
        assert stage.ready() == [A.authority]
        assert stage.membership.engines() == [(A, True, None)]
        assert stage.heard.take() == [("added", 0, PUB)]


async def test_a_system_without_sockets_is_no_engines_fault(caplog: pytest.LogCaptureFixture) -> None:
    async with Stage(EngineConfig(url=A.url)).running() as stage:
        stage.api.known[A] = facts(PUB)
        await stage.time.advance(2)
        stage.api.exhausted = True
        await stage.time.advance(60)
        assert stage.ready() == [A.authority]
        assert sum("open files" in record.message for record in caplog.records) == 1
        assert stage.membership.unasked > 10, "each is counted, one is logged"


async def test_one_worker_per_rank_each_with_its_own_address() -> None:
    addresses = (PUB, EventAddress("tcp://10.0.0.1:5558", "tcp://10.0.0.1:5568", "kv"))
    stage = Stage()
    stage.api.known[A] = facts(*addresses)
    async with stage.running():
        workers = stage.membership.fleet.workers
        assert [(w.id, w.rank, w.ranks, w.name) for w in workers] == [
            (0, 0, 2, "10.0.0.1:8000#0"),
            (1, 1, 2, "10.0.0.1:8000#1"),
        ]
        assert stage.heard.take() == [("added", 0, addresses[0]), ("added", 1, addresses[1])]
        assert workers[0].trust.state is TrustState.BLIND


async def test_an_engine_that_is_one_rank_of_several_is_one_worker() -> None:
    stage = Stage()
    stage.api.known[A] = EngineFacts((MODEL,), {1: PUB})
    async with stage.running():
        assert [(w.id, w.rank, w.ranks, w.name) for w in stage.membership.fleet.workers] == [(0, 1, 1, A.authority)]
        assert stage.heard.take() == [("added", 0, PUB)]
        stage.api.known[A] = EngineFacts((MODEL,), {0: PUB})
        await stage.time.advance(60)
        assert [(w.id, w.rank, w.ranks) for w in stage.membership.fleet.workers] == [(0, 0, 1)]
        assert stage.heard.take() == [("removed", 0), ("added", 0, PUB)]


async def test_two_engines_are_not_credited_with_one_publishers_events(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    stage.api.known[A] = stage.api.known[B] = facts(PUB)
    async with stage.running():
        await stage.time.advance(60)
        assert sorted(stage.ready()) == [A.authority, B.authority]
        assert [said[2] for said in stage.heard.take()] == [PUB, None]
        assert [r.levelname for r in caplog.records if PUB.endpoint in r.message].count("WARNING") == 1


async def test_a_slow_engine_delays_no_other() -> None:
    stage = Stage()
    stage.api.hanging.add(A)
    stage.api.known[B] = facts()
    async with stage.running():
        assert stage.ready() == [B.authority]


async def test_a_failed_probe_takes_requests_away_and_a_good_one_gives_them_back() -> None:
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = facts(PUB)
    async with stage.running():
        stage.heard.take()
        stage.api.unhealthy.add(A)
        await stage.time.advance(3)  # two probes: it may only be busy
        assert stage.ready() == [A.authority]
        await stage.time.advance(1)
        assert stage.ready() == []
        assert stage.membership.fleet.serving("m") != ()
        stage.api.unhealthy.clear()
        await stage.time.advance(1)
        assert stage.ready() == [A.authority]
        assert stage.membership.fleet.workers[0].id == 0
        assert stage.heard.take() == []


async def test_a_failed_connection_takes_requests_away_at_once_and_is_probed_at_once() -> None:
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = facts(PUB)
    async with stage.running():
        del stage.api.known[A]
        stage.membership.report_unreachable(A)
        assert stage.ready() == []
        stage.api.known[A] = facts(PUB)
        await settle()
        assert stage.ready() == [A.authority]
        stage.membership.report_unreachable(B)


async def test_a_restart_is_told_and_keeps_the_worker() -> None:
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = facts(PUB)
    async with stage.running():
        stage.heard.take()
        stage.api.known[A] = facts(PUB, start=2.0)
        stage.membership.report_unreachable(A)
        await settle()
        assert stage.heard.take() == [("restarted", 0)]
        await stage.time.advance(60)
        assert stage.heard.take() == []


async def test_an_unknown_process_start_is_no_restart() -> None:
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = facts(PUB)
    async with stage.running():
        stage.heard.take()
        stage.api.known[A] = replace(facts(PUB), process_start=None)
        stage.membership.refresh(A)
        await settle()
        stage.api.known[A] = facts(PUB)
        stage.membership.refresh()
        await settle()
        assert stage.heard.take() == []


async def test_an_engine_that_comes_back_publishing_elsewhere_is_followed_there() -> None:
    elsewhere = EventAddress("tcp://10.0.0.1:40000", None, "kv")
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = facts(PUB)
    async with stage.running():
        stage.membership.set_trust(WorkerId(0), Trust(TrustState.LIVE, "in sync", 1.0))
        stage.heard.take()
        stage.api.known[A] = facts(elsewhere, start=2.0)
        stage.membership.report_unreachable(A)
        await settle()
        assert stage.heard.take() == [("removed", 0), ("added", 0, elsewhere)]
        assert stage.membership.fleet.workers[0].trust.state is TrustState.BLIND


async def test_fewer_ranks_remove_workers_and_their_ids_are_not_used_again() -> None:
    second = EventAddress("tcp://10.0.0.1:5558", None, "kv")
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = facts(PUB, second)
    async with stage.running():
        stage.heard.take()
        for known in (facts(PUB, start=2.0), facts(PUB, second, start=2.0)):
            stage.api.known[A] = known
            stage.membership.refresh()
            await settle()
        assert stage.heard.take() == [("removed", 1), ("restarted", 0), ("added", 2, second)]
        assert [worker.id for worker in stage.membership.fleet.workers] == [0, 2]


async def test_models_are_asked_for_again_now_and_then_and_on_demand() -> None:
    adapter = ModelInfo("m-lora", parent="m")
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = facts(PUB)
    async with stage.running():
        stage.api.known[A] = facts(PUB, models=(MODEL, adapter))
        await stage.time.advance(2 * FACTS_EVERY)
        assert stage.membership.fleet.serving("m-lora") == ()
        await stage.time.advance(2)
        assert stage.membership.fleet.serving("m-lora") == stage.membership.fleet.workers
        assert stage.api.calls.count(("facts", A)) == 2
        stage.api.known[A] = facts(PUB)
        stage.membership.refresh(A)
        await settle()
        assert stage.membership.fleet.serving("m-lora") == ()


async def test_a_healthy_engine_whose_facts_fail_keeps_what_is_known() -> None:
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = facts(PUB)
    async with stage.running():
        stage.api.factless.add(A)
        await stage.time.advance(30)
        assert stage.ready() == [A.authority]


async def test_nothing_changed_makes_no_new_fleet() -> None:
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = facts(PUB)
    async with stage.running():
        fleet = stage.membership.fleet
        stage.api.known[A] = facts(PUB, models=(replace(MODEL, created=99),))
        await stage.time.advance(60)
        assert stage.membership.fleet is fleet is stage.heard.fleets[-1]


async def test_trust_makes_a_new_fleet_and_leaves_old_snapshots_alone() -> None:
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = facts(PUB)
    async with stage.running():
        old = stage.membership.fleet
        live = Trust(TrustState.LIVE, "in sync", 3.0)
        stage.membership.set_trust(WorkerId(0), live)
        stage.membership.set_trust(WorkerId(77), live)
        assert stage.membership.fleet.workers[0].trust == live
        assert old.workers[0].trust != live
        stage.membership.refresh()
        await settle()
        assert stage.membership.fleet.workers[0].trust == live


async def test_a_replay_that_cannot_be_is_said(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(EngineConfig(url=A.url, data_parallel_size=2))
    stage.api.known[A] = EngineFacts((MODEL,), None)
    with caplog.at_level(logging.WARNING):
        async with stage.running():
            await stage.time.advance(60)
    assert [record.message.split(" publishes")[0] for record in caplog.records] == [
        "http://10.0.0.1:8000 rank 0",
        "http://10.0.0.1:8000 rank 1",
    ]


async def test_an_engine_that_refuses_connections_is_left_alone_at_once() -> None:
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = facts(PUB)
    async with stage.running():
        del stage.api.known[A]
        await stage.time.advance(2)
        assert stage.ready() == []


async def test_a_good_probe_between_bad_ones_begins_the_count_anew() -> None:
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = facts(PUB)
    async with stage.running():
        for _ in range(5):
            stage.api.unhealthy.add(A)
            await stage.time.advance(3)
            stage.api.unhealthy.clear()
            await stage.time.advance(1)
            assert stage.ready() == [A.authority]


async def test_counters_are_read_only_where_they_are_wanted() -> None:
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = facts(PUB)
    stage.api.counters[A] = {0: CacheCounters(100, 50), 7: CacheCounters(1, 1)}
    heard: list[tuple[WorkerId, float]] = []
    stage.membership.on_counters = lambda worker, counters, _: heard.append((worker, counters.hits))
    async with stage.running():
        await stage.time.advance(10)
        assert ("cache_counters", A) not in stage.api.calls
        stage.membership.wants_counters = lambda _: True
        await stage.time.advance(2)
        assert heard == [(WorkerId(0), 50)]


async def test_counters_are_those_of_the_rank_not_of_its_position() -> None:
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = EngineFacts((MODEL,), {1: PUB})
    stage.api.counters[A] = {0: CacheCounters(1, 1), 1: CacheCounters(100, 50)}
    heard: list[tuple[WorkerId, float]] = []
    stage.membership.on_counters = lambda worker, counters, _: heard.append((worker, counters.hits))
    stage.membership.wants_counters = lambda _: True
    async with stage.running():
        await stage.time.advance(2)
        assert heard == [(WorkerId(0), 50)]


async def test_an_engine_asleep_takes_no_requests_until_it_is_woken() -> None:
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = facts(PUB)
    async with stage.running():
        stage.membership.sleeps(A, asleep=True)
        assert (stage.ready(), stage.membership.asleep()) == ([], {0})
        await stage.time.advance(60)
        assert stage.ready() == []
        stage.membership.sleeps(A, asleep=False)
        assert (stage.ready(), stage.membership.asleep()) == ([A.authority], set())
        stage.membership.sleeps(A, asleep=True)
        stage.api.known[A] = replace(facts(PUB), asleep=False)  # woken past us, as its metrics say
        await stage.time.advance(2)
        assert stage.ready() == [A.authority]


async def test_a_refresh_while_the_facts_are_on_their_way_is_not_overlooked() -> None:
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = facts(PUB)
    async with stage.running():
        ask = stage.api.facts

        async def interrupted(endpoint: Endpoint) -> EngineFacts:
            found = await ask(endpoint)
            stage.api.facts = ask  # type: ignore[method-assign]
            stage.api.known[A] = facts(PUB, models=(MODEL, ModelInfo("sql", parent="m")))
            stage.membership.refresh(A)
            return found

        stage.api.facts = interrupted  # type: ignore[method-assign]
        stage.membership.refresh(A)
        await settle()
        assert stage.membership.fleet.serving("sql")


async def test_facts_from_before_an_adapter_came_through_us_do_not_take_it_away() -> None:
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = facts(PUB)
    async with stage.running():
        ask, seen = stage.api.facts, []

        async def overtaken(endpoint: Endpoint) -> EngineFacts:
            found = await ask(endpoint)
            stage.api.known[A] = facts(PUB, models=(MODEL, ModelInfo("sql", parent="m", root="/a")))
            stage.membership.adapter_changed(A, "sql", "/a")
            stage.api.facts = then  # type: ignore[method-assign]
            return found

        async def then(endpoint: Endpoint) -> EngineFacts:
            seen.append(len(stage.membership.fleet.serving("sql")))
            return await ask(endpoint)

        stage.api.facts = overtaken  # type: ignore[method-assign]
        stage.membership.refresh(A)
        await settle()
        assert seen, "it is asked again"
        assert seen[0] == 1, "what it said before does not count"
        assert stage.membership.fleet.serving("sql")


async def test_an_engine_that_is_described_otherwise_keeps_the_adapter_that_came_through_us() -> None:
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = facts(PUB)
    async with stage.running():
        stage.api.factless.add(A)
        stage.membership.adapter_changed(A, "sql", "/a")
        stage.membership.alter(EngineConfig(url=A.url, weight=2.0))
        (worker,) = stage.membership.fleet.serving("sql")
        assert worker.weight == 2.0


async def test_an_adapter_that_came_or_went_through_us_is_known_at_once() -> None:
    stage = Stage(EngineConfig(url=A.url))
    stage.api.known[A] = facts(PUB)
    async with stage.running():
        stage.api.factless.add(A)
        stage.membership.adapter_changed(A, "sql", "/a")
        (worker,) = stage.membership.fleet.serving("sql")
        assert worker.models == (MODEL, ModelInfo("sql", parent="m", root="/a"))
        assert stage.membership.fleet.lora("sql") == "sql"
        stage.membership.adapter_changed(A, "sql", None)
        assert stage.membership.fleet.serving("sql") == ()
        stage.membership.adapter_changed(B, "sql", "/a")  # unknown engines are no error


def test_keys_are_kept_by_engine() -> None:
    assert Stage(EngineConfig(url=A.url, api_key="own"), EngineConfig(url=B.url)).membership.keys == {A: "own"}
