"""The exposition: what the services counted, by name, in Prometheus' own format, and gone with the worker."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from warmroute import __version__
from warmroute.config.tree import Config, EventsConfig, GatewayConfig, TokenizerConfig
from warmroute.core.decision import PickRequest
from warmroute.core.index import make_index
from warmroute.core.router import Router
from warmroute.core.wire.events import BlockStored
from warmroute.edge.metrics import Metrics
from warmroute.service.following import Following
from warmroute.service.membership import Membership
from warmroute.service.ports import EventAddress
from warmroute.service.routing import Routing
from warmroute.service.tokens import Tokens
from warmroute.testing.events import FakeEventSource, encode_batch
from warmroute.testing.fakes import FakeEngineApi
from warmroute.types import Endpoint, Fleet, ModelInfo, Trust, TrustState, Worker, WorkerId

PROMPT = list(range(100, 140))
ODD = 'host"with\\quotes\n'


@dataclass
class Plane:
    clients: int = 3
    refused: Counter[int] = field(default_factory=lambda: Counter({413: 2}))


class Stage:
    def __init__(self) -> None:
        self.router = Router(make_index(1000))
        self.source = FakeEventSource()
        self.following = Following(
            self.router, lambda _: self.source, EventsConfig(), lambda: 100.0, lambda: 1_700_000_001.0
        )
        self.membership = Membership(Config(), FakeEngineApi(), self.following, lambda: 100.0)
        tokens = Tokens(TokenizerConfig(), lambda: 100.0)
        self.routing = Routing(self.router, self.membership, tokens, GatewayConfig(), lambda: 100.0)
        self.following.on_removed = lambda _, name: self.routing.tracking.forget_worker(name)
        self.metrics = Metrics(self.routing, self.membership, self.following.streams, tokens, Plane(), lambda: 100.0)
        self.set_fleet(worker(1, TrustState.LIVE), worker(2, TrustState.BLIND))

    def set_fleet(self, *workers: Worker) -> None:
        self.membership.fleet = Fleet(workers)

    def scrape(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Sample name -> label values, in order of their names -> value."""
        reply = self.metrics.reply("/metrics")
        assert (reply.status, reply.content_type) == (200, b"text/plain; version=0.0.4; charset=utf-8")
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(reply.body.decode()):
            assert family.documentation
            for sample in family.samples:
                labels = tuple(value for _, value in sorted(sample.labels.items()))
                assert labels not in found.setdefault(sample.name, {}), (sample.name, labels)
                found[sample.name][labels] = sample.value
        return found


def worker(number: int, state: TrustState, host: str = "10.0.0.1") -> Worker:
    return Worker(
        id=WorkerId(number),
        endpoint=Endpoint(host, 8000 + number),
        models=(ModelInfo("m"),),
        trust=Trust(state, "a test", 0.0),
        ready=number == 1,
    )


def follow(stage: Stage) -> None:
    stored = BlockStored(block_hashes=(1, 2), parent=None, token_ids=tuple(PROMPT[:32]), block_size=16)
    stage.following.worker_added(worker(1, TrustState.LIVE), EventAddress("tcp://10.0.0.1:5557"))
    stage.source.connect()
    stage.source.answer([(0, encode_batch([stored]))])
    stage.source.publish(1, b"\xc1")


def test_workers_are_shown_with_trust_load_and_blocks() -> None:
    stage = Stage()
    follow(stage)
    stage.router.pick(PickRequest(model="m", token_ids=PROMPT), stage.membership.fleet, 100.0)
    seen = stage.scrape()
    assert seen["warmroute_build_info"] == {(__version__,): 1}
    trust = {labels: value for labels, value in seen["warmroute_worker_trust"].items() if value}
    assert trust == {("LIVE", "10.0.0.1:8001"): 1, ("BLIND", "10.0.0.1:8002"): 1}
    assert len(seen["warmroute_worker_trust"]) == 2 * len(TrustState)
    assert seen["warmroute_worker_ready"] == {("10.0.0.1:8001",): 1, ("10.0.0.1:8002",): 0}
    assert seen["warmroute_worker_requests"] == {("10.0.0.1:8001",): 1, ("10.0.0.1:8002",): 0}
    assert seen["warmroute_worker_prefill_tokens"]["10.0.0.1:8001",] == 8
    assert seen["warmroute_worker_blocks"] == {("10.0.0.1:8001",): 2, ("10.0.0.1:8002",): 0}
    assert seen["warmroute_index_copies"] == {(): 2}


def test_streams_show_what_came_and_what_went_wrong() -> None:
    stage = Stage()
    follow(stage)
    seen = stage.scrape()
    here = "10.0.0.1:8001"
    assert seen["warmroute_event_messages_total"] == {(here,): 1}
    assert seen["warmroute_event_batches_total"] == {(here,): 1}
    assert seen["warmroute_events_total"] == {(here,): 1}
    assert seen["warmroute_events_rejected_total"] == {("not_msgpack", here): 1}
    assert seen["warmroute_event_stream_total"]["undecodable", here] == 1
    assert seen["warmroute_event_blocks_total"]["stored", here] == 2
    assert seen["warmroute_event_lag_seconds"] == {(here,): 0.5}


def test_requests_are_shown_by_worker_and_reason() -> None:
    stage = Stage()
    tracking: Any = stage.routing.tracking
    tracking.decisions["w", "overlap"] += 4
    tracking.outcomes["w", "complete"] += 3
    tracking.predictions["w", "exact"] += 2
    tracking.refused[404] += 6
    tracking.no_tokens["timeout"] += 5
    tracking.retries += 1
    seen = stage.scrape()
    assert seen["warmroute_decisions_total"] == {("overlap", "w"): 4}
    assert seen["warmroute_attempts_total"] == {("complete", "w"): 3}
    assert seen["warmroute_predictions_total"] == {("exact", "w"): 2}
    assert seen["warmroute_requests_refused_total"] == {("404",): 6}
    assert seen["warmroute_requests_without_tokens_total"] == {("timeout",): 5}
    assert seen["warmroute_retries_total"] == {(): 1}
    assert seen["warmroute_probes_unasked_total"] == {(): 0}
    assert seen["warmroute_data_plane_total"] == {("clients",): 3, ("refused:413",): 2}


def test_a_worker_that_leaves_takes_its_series_along() -> None:
    stage = Stage()
    follow(stage)
    stage.routing.tracking.decisions["10.0.0.1:8001", "load"] += 1
    stage.set_fleet(worker(2, TrustState.BLIND))
    stage.following.worker_removed(WorkerId(1))
    assert b"10.0.0.1:8001" not in stage.metrics.reply("/metrics").body


def test_a_gateway_without_engines_has_metrics() -> None:
    stage = Stage()
    stage.set_fleet()
    assert stage.scrape()["warmroute_index_workers"] == {(): 0}


def test_names_of_all_kinds_are_escaped() -> None:
    stage = Stage()
    stage.set_fleet(worker(1, TrustState.LIVE, ODD))
    assert (f"{ODD}:8001",) in stage.scrape()["warmroute_worker_ready"]
