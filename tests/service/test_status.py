"""The gateway's own pages, without HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest

from warmroute.config.tree import Config, EventsConfig
from warmroute.core.decision import PickRequest
from warmroute.core.index import make_index
from warmroute.core.router import Router
from warmroute.core.wire.events import BlockStored
from warmroute.service.following import Following
from warmroute.service.membership import Membership
from warmroute.service.ports import EventAddress, Outcome, Reply
from warmroute.service.status import Status
from warmroute.service.tracking import Tracking
from warmroute.service.trail import Trail
from warmroute.service.trust import Trusts
from warmroute.testing.events import FakeEventSource, encode_batch
from warmroute.testing.fakes import FakeEngineApi
from warmroute.types import Endpoint, Fleet, ModelInfo, Trust, TrustState, Worker, WorkerId

PROMPT = list(range(100, 140))
STORED = encode_batch([BlockStored(block_hashes=(1, 2), parent=None, token_ids=tuple(PROMPT[:32]), block_size=16)])
MODELS = (ModelInfo("m", max_model_len=4096, created=7), ModelInfo("sql", parent="m", owned_by="me"))


def worker(number: int, *, ready: bool = True) -> Worker:
    return Worker(
        id=WorkerId(number),
        endpoint=Endpoint("::1" if number == 2 else "10.0.0.1", 8000 + number),
        models=MODELS,
        trust=Trust(TrustState.LIVE, "in sync", 90.0),
        block_size=64,
        ready=ready,
    )


class Stage:
    def __init__(self, *workers: Worker) -> None:
        self.now = 100.0
        self.router = Router(make_index(1000))
        self.source = FakeEventSource()
        self.following = Following(
            self.router, lambda _: self.source, EventsConfig(), lambda: self.now, lambda: 1_700_000_001.0
        )
        self.membership = Membership(Config(), FakeEngineApi(), self.following, lambda: self.now)
        self.fleet = self.membership.fleet = Fleet(workers)
        self.tracking = Tracking()
        self.status = Status(
            self.router,
            self.membership,
            self.following.streams,
            Trusts(lambda: self.now),
            self.tracking,
            lambda: self.now,
        )

    def get(self, path: str) -> tuple[int, Any]:
        replies = self.status.replies()
        reply: Reply = (replies.get(path) or replies[path[: path.rfind("/") + 1]])(path)
        assert reply.content_type == b"application/json"
        return reply.status, json.loads(reply.body)


def test_health_is_that_it_answers() -> None:
    assert Stage().get("/health") == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("workers", "draining", "status"),
    [
        ([], False, 503),
        ([worker(1, ready=False)], False, 503),
        ([worker(1), worker(2, ready=False)], False, 200),
        ([worker(1)], True, 503),
    ],
)
def test_ready_is_that_somebody_can_serve(workers: list[Worker], draining: bool, status: int) -> None:
    stage = Stage(*workers)
    stage.status.draining = draining
    expected = {
        "ready": status == 200,
        "draining": draining,
        "workers": len(workers),
        "workers_ready": sum(each.ready for each in workers),
    }
    assert stage.get("/ready") == (status, expected)


def test_models_are_in_openais_form() -> None:
    common = {"object": "model"}
    status, body = Stage(worker(1), worker(2)).get("/v1/models")
    assert (status, body["object"]) == (200, "list")
    assert body["data"] == [
        {"id": "m", **common, "created": 7, "owned_by": "vllm", "parent": None, "max_model_len": 4096},
        {"id": "sql", **common, "created": 0, "owned_by": "me", "parent": "m", "max_model_len": None},
    ]
    assert Stage().get("/v1/models") == (200, {"object": "list", "data": []})


def test_workers_say_how_far_they_are_believed_and_what_they_hold() -> None:
    stage = Stage(worker(1), worker(2, ready=False))
    stage.following.worker_added(worker(1), EventAddress("tcp://10.0.0.1:5557"))
    stage.source.connect()
    stage.source.answer([(0, STORED)])
    running = stage.router.pick(PickRequest(model="m", token_ids=list(range(500, 540))), Fleet([worker(1)]), stage.now)
    status, body = stage.get("/workers")
    assert status == 200
    first, second = body["workers"]
    events = first.pop("events")
    assert first == {
        "worker": "10.0.0.1:8001",
        "address": "http://10.0.0.1:8001",
        "rank": 0,
        "ready": True,
        "models": ["m", "sql"],
        "trust": {"state": "LIVE", "reason": "in sync", "since_s": 10.0},
        "parity": {
            "judged": 0,
            "too_high": 0,
            "too_low": 0,
            "predicted_tokens": 0,
            "reported_tokens": 0,
            "alarm": None,
            "pressure": 0.0,
            "belief": 1.0,
            "resyncs": 0,
        },
        "blocks": 2,
        "orphan_blocks": 0,
        "block_size": 16,  # what its events say holds before what its metrics say
        "load": {"requests": 1, "prefill_tokens": 40, "decoding": 0},
        "step_s": 0.0,
    }
    assert (events["state"], events["next_seq"], events["batches"], events["lag_s"]) == ("live", 1, 1, 0.5)
    assert (second["worker"], second["ready"], second["block_size"], second["events"]) == (
        "[::1]:8002",
        False,
        64,
        None,
    )
    stage.router.release(running, stage.now, served=True)
    assert stage.get("/workers")[1]["workers"][0]["load"] == {"requests": 0, "prefill_tokens": 0, "decoding": 0}


def test_a_decision_is_explained() -> None:
    stage = Stage(worker(1), worker(2))
    stage.following.worker_added(worker(1), EventAddress("tcp://10.0.0.1:5557"))
    stage.source.connect()
    stage.source.answer([(0, STORED)])
    decision = stage.router.pick(PickRequest(model="m", token_ids=PROMPT), stage.fleet, stage.now)
    trail = Trail(request_id="a/b c é", decision=decision, no_tokens_reason=None)
    stage.tracking.decided(trail)
    path = "/decisions/a%2Fb%20c%20%E9"
    status, body = stage.get(path)
    candidates = body.pop("candidates")
    assert (status, body) == (
        200,
        {
            "request_id": "a/b c é",
            "age_s": 0.0,
            "worker": "10.0.0.1:8001",
            "reason": "overlap",
            "policy": "warmroute",
            "no_tokens_reason": None,
            "prompt_tokens": 40,
            "overlap_tokens": 32,
            "claimed_tokens": 0,
            "predicted_tokens": 32,
            "reported_tokens": None,
            "expected_s": pytest.approx(0.021, rel=0.01),
            "first_byte_s": None,
            "outcome": None,
            "status": None,
            "left_out": 0,
        },
    )
    assert [(c["worker"], c["chosen"], c["overlap_tokens"]) for c in candidates] == [
        ("10.0.0.1:8001", True, 32),
        ("[::1]:8002", False, 0),
    ]
    trail.outcome, trail.status, trail.reported_tokens = Outcome.ENGINE_LOST, 200, 16
    body = stage.get(path)[1]
    assert (body["outcome"], body["status"], body["reported_tokens"]) == ("engine_lost", 200, 16)


def test_a_decision_that_is_not_kept() -> None:
    status, body = Stage().get("/decisions/none")
    assert status == 404
    assert body["error"]["message"] == "No decision is kept for the request 'none'."
