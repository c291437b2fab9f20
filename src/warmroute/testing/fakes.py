"""Shipped fakes of the ports that ask engines: what a test sets is what the services see."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from warmroute.core.openai import RoutingRequest
from warmroute.errors import EngineError, TokenizeError
from warmroute.service.ports import CacheCounters, EngineFacts, Health
from warmroute.types import Endpoint, TokenIds


class FakeEngineApi:
    """The port `EngineApi`. An endpoint without facts is down; one in `hanging` never answers."""

    def __init__(self) -> None:
        self.known: dict[Endpoint, EngineFacts] = {}
        self.unhealthy: set[Endpoint] = set()
        """Their facts can be had all the same."""
        self.exhausted = False
        """Whether there is no socket to ask anybody with."""
        self.factless: set[Endpoint] = set()
        """Healthy, but their facts cannot be had."""
        self.hanging: set[Endpoint] = set()
        self.counters: dict[Endpoint, dict[int, CacheCounters]] = {}
        self.calls: list[tuple[str, Endpoint]] = []

    async def facts(self, endpoint: Endpoint) -> EngineFacts:
        """What the test set. Raises EngineError if it set nothing."""
        await self._asked("facts", endpoint)
        if endpoint not in self.known or endpoint in self.factless:
            raise EngineError(f"{endpoint.url} cannot be reached (it is a fake); set its facts")
        return self.known[endpoint]

    async def health(self, endpoint: Endpoint) -> Health:
        """GOOD if facts are set and it is not said to be unhealthy; REFUSED if no facts are."""
        await self._asked("health", endpoint)
        if self.exhausted:
            return Health.UNASKED
        if endpoint not in self.known:
            return Health.REFUSED
        return Health.FAILING if endpoint in self.unhealthy else Health.GOOD

    async def cache_counters(self, endpoint: Endpoint) -> Mapping[int, CacheCounters]:
        """What the test set."""
        await self._asked("cache_counters", endpoint)
        return self.counters.get(endpoint, {})

    async def _asked(self, what: str, endpoint: Endpoint) -> None:
        self.calls.append((what, endpoint))
        if endpoint in self.hanging:
            await asyncio.Event().wait()


class FakeTokenizer:
    """The port `Tokenizer`. Gives `answer`, raises it if it is an error, or never answers if it is None.

    Without an answer set, ids are the code points of the prompt, or the bytes of a chat's body.
    """

    def __init__(self, answer: Sequence[int] | TokenizeError | None = ()) -> None:
        self.answer = answer
        self.asked: list[tuple[RoutingRequest, Endpoint]] = []

    async def tokens(self, request: RoutingRequest, endpoint: Endpoint) -> TokenIds:
        """What the test set."""
        self.asked.append((request, endpoint))
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, TokenizeError):
            raise self.answer
        return self.answer or [ord(letter) for letter in request.prompt or request.body.decode()]
