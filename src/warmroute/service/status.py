"""What the gateway says of itself: health, readiness, workers, models, and why a request went where it went."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec

from warmroute.core.router import Router
from warmroute.errors import ClientError
from warmroute.service.ingest import WorkerStream
from warmroute.service.membership import Membership
from warmroute.service.ports import Reply
from warmroute.service.tracking import Tracking
from warmroute.service.trail import Trail
from warmroute.service.trust import Trusts
from warmroute.types import Endpoint, Worker, WorkerId


class Status:
    """Answers the gateway's own paths with JSON."""

    def __init__(  # noqa: PLR0917 - what it reads, nothing to choose
        self,
        router: Router,
        membership: Membership,
        streams: Mapping[WorkerId, WorkerStream],
        trusts: Trusts,
        tracking: Tracking,
        clock: Callable[[], float],
    ) -> None:
        self._router = router
        self._membership = membership
        self._streams = streams
        self._trusts = trusts
        self._tracking = tracking
        self._clock = clock
        self.draining = False
        self.breaker: Callable[[Endpoint], str] = lambda _: "closed"
        """The state of an engine's breaker."""
        self.listed: Callable[[], Mapping[Endpoint, Mapping[str, Any]]] = dict
        """Of each engine who lists it, and why it gets no requests if it is held or drains."""
        self.discovered: Callable[[], list[dict[str, Any]]] = list
        """What the sources of engines that come and go see, and whether they are in step."""

    def replies(self) -> dict[str, Callable[[str], Reply]]:
        """Path -> what answers it."""
        return {
            "/health": self.health,
            "/ready": self.ready,
            "/workers": self.workers,
            "/v1/models": self.models,
            "/decisions/": self.decision,
            "/decisions": self.decisions,
        }

    def health(self, _: str) -> Reply:
        """200 as long as the process serves."""
        return _json({"status": "ok"})

    def ready(self, _: str) -> Reply:
        """200 if requests can be served now: at least one worker is ready and the gateway is not draining."""
        workers = self._membership.fleet.workers
        ready = sum(worker.ready for worker in workers)
        body = {"ready": bool(ready) and not self.draining, "draining": self.draining, "workers": len(workers)}
        return _json(body | {"workers_ready": ready}, status=200 if body["ready"] else 503)

    def workers(self, _: str) -> Reply:
        """Every worker: where it is, what it serves, how far it is believed, what it holds, what it has to do."""
        now = self._clock()
        workers = [self._worker(worker, now) for worker in self._membership.fleet.workers]
        listed = self.listed()
        engines = [
            {"address": endpoint.url, "up": up, "problem": problem, "breaker": self.breaker(endpoint)}
            | dict(listed.get(endpoint, {}))
            for endpoint, up, problem in self._membership.engines()
        ]
        return _json({"workers": workers, "engines": engines, "discovery": self.discovered()})

    def models(self, _: str) -> Reply:
        """The union of the engines' models, in OpenAI's form."""
        return _json(
            {
                "object": "list",
                "data": [
                    {
                        "id": model.id,
                        "object": "model",
                        "created": model.created,
                        "owned_by": model.owned_by,
                        "parent": model.parent,
                        "max_model_len": model.max_model_len,
                    }
                    for model in self._membership.fleet.models
                ],
            }
        )

    def decision(self, path: str) -> Reply:
        """Why one of the last requests went where it went, by its `x-request-id`."""
        request_id = unquote(path.partition("?")[0].removeprefix("/decisions/"), "latin-1")
        trail = self._tracking.trail(request_id)
        if trail is None:
            message = f"No decision is kept for the request {request_id!r}."
            error = {"message": message, "type": "not_found_error", "param": None, "code": "decision_not_found"}
            return _json({"error": error}, status=404)
        return _json(_decision(trail, self._clock()))

    def decisions(self, target: str) -> Reply:
        """The last decisions, the newest first; `?last=N` says how many (10)."""
        trails = self._tracking.last(last_asked(target))
        return _json({"decisions": [_decision(trail, self._clock()) for trail in trails]})

    def _worker(self, worker: Worker, now: float) -> dict[str, Any]:
        load = self._router.load.of(worker.id, now)
        sizes = self._router.index.worker_sizes(worker.id)
        stream = self._streams.get(worker.id)
        return {
            "worker": worker.name,
            "address": worker.endpoint.url,
            "rank": worker.rank,
            "ready": worker.ready,
            "models": [model.id for model in worker.models],
            "trust": {
                "state": worker.trust.state,
                "reason": worker.trust.reason,
                "since_s": round(now - worker.trust.since, 3),
            },
            "parity": self._trusts.of(worker.id).view(),
            "blocks": sizes.blocks,
            "orphan_blocks": sizes.orphans,
            "block_size": sizes.block_sizes[0] if sizes.block_sizes else worker.block_size,
            "load": {
                "requests": load.requests,
                "prefill_tokens": load.prefill_tokens,
                "decoding": load.decoding,
            },
            "step_s": round(load.step_s, 6),
            "events": None if stream is None else stream.view(),
        }


def last_asked(target: str) -> int:
    """How many decisions `/decisions?last=N` asks for. Raises ClientError."""
    asked = parse_qs(target.partition("?")[2]).get("last", ["10"])[0]
    if not re.fullmatch(r"[0-9]{1,9}", asked):
        raise ClientError(400, "`last` takes how many decisions are wanted: a number.", param="last")
    return int(asked)


def _decision(trail: Trail, now: float) -> dict[str, Any]:
    decision = trail.decision
    return {
        "request_id": trail.request_id,
        "age_s": round(now - decision.at, 6),
        "worker": decision.worker.name,
        "reason": decision.reason,
        "policy": decision.policy,
        "no_tokens_reason": trail.no_tokens_reason,
        "prompt_tokens": decision.prompt_tokens,
        "overlap_tokens": decision.overlap_tokens,
        "claimed_tokens": decision.claimed_tokens,
        "predicted_tokens": decision.predicted_tokens,
        "reported_tokens": trail.reported_tokens,
        "expected_s": decision.expected_s,
        "first_byte_s": decision.first_byte_s,
        "outcome": trail.outcome.value if trail.outcome else None,
        "status": trail.status,
        "candidates": decision.explain(),
        "left_out": decision.left_out,
    }


def _json(body: Any, status: int = 200) -> Reply:
    return Reply(status, msgspec.json.encode(body))
