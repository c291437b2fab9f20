"""A stream for every worker that publishes: begun, ticked, cleared and ended with it."""

from __future__ import annotations

import pytest

from warmroute.config.tree import EventsConfig
from warmroute.core.decision import PickRequest
from warmroute.core.index import make_index
from warmroute.core.router import Router
from warmroute.core.wire.events import BlockStored
from warmroute.errors import ConfigError
from warmroute.service.following import AGAIN_S, Following
from warmroute.service.ports import EventAddress, EventSource
from warmroute.testing.events import FakeEventSource, encode_batch
from warmroute.types import Endpoint, Fleet, ModelInfo, Trust, TrustState, Worker, WorkerId

ADDRESS = EventAddress("tcp://10.0.0.1:5557", "tcp://10.0.0.1:5558")
PROMPT = list(range(100, 140))
STORED = encode_batch([BlockStored(block_hashes=(1, 2), parent=None, token_ids=tuple(PROMPT[:32]), block_size=16)])
ONE = WorkerId(1)


def worker(number: int = 1) -> Worker:
    return Worker(
        id=WorkerId(number), endpoint=Endpoint("10.0.0.1", 8000 + number), models=(ModelInfo("m"),), block_size=16
    )


class Stage:
    """Following with fake sources, and a router to see what is known."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sources: list[FakeEventSource] = []
        self.router = Router(make_index(1000))
        self.following = Following(self.router, self.source, EventsConfig(), lambda: self.now, lambda: self.now)
        self.trusts: list[tuple[WorkerId, TrustState]] = []
        self.gone: list[str] = []
        self.fleets: list[Fleet] = []
        self.following.set_trust = self.trusted
        self.following.on_removed = lambda _, name: self.gone.append(name)
        self.following.on_fleet = self.fleets.append

    def source(self, address: EventAddress) -> EventSource:
        if "no address" in address.endpoint:
            raise ConfigError("events_endpoint", f"{address.endpoint!r} is no ZMQ address", "Write tcp://HOST:PORT.")
        self.sources.append(FakeEventSource(address))
        return self.sources[-1]

    def trusted(self, worker: WorkerId, trust: Trust) -> None:
        self.trusts.append((worker, trust.state))

    def live(self, number: int = 1) -> FakeEventSource:
        """A worker that is followed and in sync, with two blocks."""
        self.following.worker_added(worker(number), ADDRESS)
        source = self.sources[-1]
        source.connect()
        source.answer([(0, STORED)])
        return source

    def predicted(self) -> int:
        fleet = Fleet([worker()])
        decision = self.router.pick(PickRequest(model="m", token_ids=PROMPT), fleet, self.now)
        self.router.release(decision, self.now, served=False)
        return decision.overlap_tokens


def test_a_worker_is_followed_from_its_first_batch() -> None:
    stage = Stage()
    source = stage.live()
    assert source.address == ADDRESS
    assert source.replays == [0]
    assert stage.trusts == [(ONE, TrustState.REPLAYING), (ONE, TrustState.LIVE)]
    assert stage.predicted() == 32
    assert list(stage.following.streams) == [ONE]


def test_a_worker_that_publishes_nothing_has_no_stream() -> None:
    stage = Stage()
    stage.following.worker_added(worker(), None)
    assert stage.following.streams == {}
    stage.following.worker_restarted(ONE, 5.0)
    stage.following.cleared(ONE)
    stage.following.worker_removed(ONE)
    assert stage.gone == ["10.0.0.1:8001"]


def test_an_address_that_is_none_leaves_the_worker_blind_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    stage.following.worker_added(worker(), EventAddress("no address"))
    assert stage.trusts == [(ONE, TrustState.BLIND)]
    assert stage.following.streams == {}
    assert "its events cannot be followed, it is routed to by load" in caplog.text


def test_what_a_removed_worker_held_is_forgotten() -> None:
    stage = Stage()
    source = stage.live()
    stage.following.worker_removed(ONE)
    assert source.closed
    assert stage.router.index.sizes().copies == 0
    assert stage.predicted() == 0
    assert (stage.following.streams, stage.gone) == ({}, ["10.0.0.1:8001"])


def test_a_restart_purges_and_follows_again() -> None:
    stage = Stage()
    source = stage.live()
    stage.following.worker_restarted(ONE, None)
    assert stage.router.index.sizes().copies == 0
    assert source.replays == [0, 0]
    source.answer([])
    assert stage.trusts[-1] == (ONE, TrustState.LIVE)


def test_a_restart_that_the_stream_has_seen_is_no_news() -> None:
    stage = Stage()
    stage.live()
    stage.following.worker_restarted(ONE, 1_000.0)  # the batches are younger than that process
    assert stage.predicted() == 32


@pytest.mark.parametrize("how", ["cleared", "restarted", "removed"])
def test_claims_go_with_what_they_rested_on(how: str) -> None:
    stage = Stage()
    stage.live()
    other = list(range(500, 540))
    fleet = Fleet([worker()])
    running = stage.router.pick(PickRequest(model="m", token_ids=other), fleet, stage.now)
    assert running.claims
    match how:
        case "cleared":
            stage.following.cleared(ONE)
        case "restarted":
            stage.following.worker_restarted(ONE, None)
        case _:
            stage.following.worker_removed(ONE)
    assert stage.router.pick(PickRequest(model="m", token_ids=other), fleet, stage.now).overlap_tokens == 0


def test_a_reset_through_the_gateway_empties_at_once_and_the_stream_goes_on() -> None:
    stage = Stage()
    source = stage.live()
    stage.following.cleared(ONE)
    assert stage.predicted() == 0
    assert stage.trusts[-1] == (ONE, TrustState.LIVE)
    source.publish(1, STORED)
    assert stage.predicted() == 32


def test_ticks_reach_every_stream() -> None:
    stage = Stage()
    sources = [stage.live(1), stage.live(2)]
    stage.now += 31.0  # so long a silence is looked into
    stage.following.tick()
    assert [source.replays for source in sources] == [[0, 0]] * 2


def test_a_worker_in_doubt_is_dropped_and_rebuilt_from_a_replay() -> None:
    stage = Stage()
    source = stage.live()
    stage.following.resync(ONE, "its predictions fail")
    assert stage.router.index.worker_sizes(ONE).blocks == 0
    assert source.replays[-1] == 0
    assert stage.trusts[-1] == (ONE, TrustState.REPLAYING)
    assert stage.following.streams[ONE].counts.stream["resyncs"] == 1
    source.answer([(0, STORED)])
    assert stage.router.index.worker_sizes(ONE).blocks == 2
    assert stage.trusts[-1] == (ONE, TrustState.LIVE)
    stage.following.resync(WorkerId(99), "unknown workers are no error")


def test_closing_ends_everybody() -> None:
    stage = Stage()
    sources = [stage.live(1), stage.live(2)]
    stage.following.close()
    assert all(source.closed for source in sources)
    assert stage.following.streams == {}


def test_a_new_fleet_is_passed_on() -> None:
    stage = Stage()
    fleet = Fleet([worker()])
    stage.following.fleet_changed(fleet)
    assert stage.fleets == [fleet]


def test_an_engine_that_is_back_is_connected_to_at_once() -> None:
    stage = Stage()
    source = stage.live()
    source.disconnect()
    stage.following.worker_restarted(ONE, None)
    assert source.closed
    assert len(stage.sources) == 2
    stage.sources[-1].connect()
    stage.sources[-1].answer([(0, STORED)])
    assert stage.trusts[-1] == (ONE, TrustState.LIVE)
    stage.following.worker_restarted(ONE, None)  # connected already: nothing to hurry
    assert len(stage.sources) == 2


def test_a_system_without_sockets_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    class Exhausted(Stage):
        sockets = 0

        def source(self, address: EventAddress) -> EventSource:
            if not self.sockets:
                raise ConfigError("events.enabled", "no socket can be had", "Allow more open files.")
            return super().source(address)

    stage = Exhausted()
    stage.following.worker_added(worker(), ADDRESS)
    for _ in range(100):
        stage.now += 1
        stage.following.tick()
    assert stage.following.streams == {}
    assert stage.trusts[-1] == (ONE, TrustState.BLIND)
    assert len(caplog.records) == 1
    stage.sockets = 1
    stage.now += AGAIN_S
    stage.following.tick()
    stage.sources[-1].connect()
    stage.sources[-1].answer([(0, STORED)])
    assert stage.predicted() == 32
    stage.sources[-1].disconnect()
    stage.sockets = 0
    stage.following.worker_restarted(ONE, 7.0)
    assert (stage.following.streams, stage.trusts[-1]) == ({}, (ONE, TrustState.BLIND))
    stage.following.worker_removed(ONE)
    stage.now += AGAIN_S
    stage.following.tick()
    assert (stage.following.streams, stage.gone) == ({}, ["10.0.0.1:8001"])
