"""A routing service without sockets, over a fleet that the test sets."""

from __future__ import annotations

import json
from collections.abc import Awaitable
from typing import Any

from warmroute.config.tree import Config, GatewayConfig, RoutingConfig, TokenizerConfig
from warmroute.core.index import make_index
from warmroute.core.router import Router
from warmroute.core.wire.events import BlockStored
from warmroute.service.membership import Membership
from warmroute.service.ports import Dispatch, Outcome, Reply, RequestHead
from warmroute.service.routing import Routing
from warmroute.service.tokens import Tokens
from warmroute.service.tracking import Attempt
from warmroute.testing.fakes import FakeEngineApi, FakeTokenizer
from warmroute.types import Endpoint, Fleet, ModelInfo, Trust, TrustState, Worker, WorkerId

PROMPT = list(range(100, 140))
"""Two blocks of 16, and 8 tokens."""
COMPLETIONS, CHAT = b"/v1/completions", b"/v1/chat/completions"


class WatchedMembership(Membership):
    """Keeps what it is told; its fleet is what the test sets."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(Config(), FakeEngineApi(), None, lambda: 0.0)  # type: ignore[arg-type]  # never runs
        self.fleet = fleet
        self.told: list[tuple[str, Endpoint | None]] = []

    def report_unreachable(self, endpoint: Endpoint) -> None:
        self.told.append(("unreachable", endpoint))

    def refresh(self, endpoint: Endpoint | None = None) -> None:
        self.told.append(("refresh", endpoint))

    def sleeps(self, endpoint: Endpoint, asleep: bool) -> None:
        self.told.append(("asleep" if asleep else "awake", endpoint))


def worker(number: int, *, rank: int = 0, ranks: int = 1, ready: bool = True) -> Worker:
    return Worker(
        id=WorkerId(number * 10 + rank),
        endpoint=Endpoint("10.0.0.1", 8000 + number),
        rank=rank,
        ranks=ranks,
        models=(ModelInfo("m"), ModelInfo("sql", parent="m")),
        trust=Trust(TrustState.LIVE, "in sync", 0.0),
        block_size=16,
        ready=ready,
    )


class Stage:
    """A routing service over a fleet, and the time."""

    def __init__(self, *workers: Worker, tokenizer: FakeTokenizer | None = None, **gateway: Any) -> None:
        self.now = 100.0
        self.membership = WatchedMembership(Fleet(workers or (worker(1), worker(2))))
        self.router = Router(make_index(1000), RoutingConfig(policy="warmroute"))
        tokens = Tokens(TokenizerConfig(), self.clock, None, tokenizer)
        self.routing = Routing(self.router, self.membership, tokens, GatewayConfig(**gateway), self.clock)
        self.reset: list[WorkerId] = []
        self.routing.on_reset = self.reset.append

    def clock(self) -> float:
        return self.now

    def store(self, number: int, prompt: list[int], lora: str | None = None) -> None:
        blocks = len(prompt) // 16
        stored = BlockStored(
            block_hashes=tuple(range(blocks)),
            parent=None,
            token_ids=tuple(prompt[: blocks * 16]),
            block_size=16,
            lora=lora,
        )
        self.router.index.apply(WorkerId(number), [stored])

    def send(
        self, target: bytes, body: Any = None, method: bytes = b"POST", **headers: str
    ) -> Dispatch | Reply | Awaitable[Dispatch | Reply]:
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        fields = tuple((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())
        return self.routing.dispatch(RequestHead(method, target, fields), raw)

    def attempt(
        self, target: bytes = COMPLETIONS, body: Any = None, method: bytes = b"POST", **headers: str
    ) -> Attempt:
        body = {"model": "m", "prompt": PROMPT} if body is None else body
        dispatch = self.send(target, body, method, **headers)
        assert isinstance(dispatch, Attempt)
        return dispatch

    def requests(self, number: int) -> int:
        return self.router.load.of(WorkerId(number), self.now).requests

    def predicted(self, prompt: list[int] | None = None) -> int:
        """What is thought to be cached of a prompt now."""
        attempt = self.attempt(body={"model": "m", "prompt": prompt or PROMPT})
        attempt.finished(Outcome.UNREACHABLE)
        self.membership.told.clear()
        return attempt.trail.decision.overlap_tokens


def named(attempt: Attempt) -> str:
    return attempt.trail.decision.worker.name


# Dispatching.
