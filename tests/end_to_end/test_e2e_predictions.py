"""What the gateway predicts is what the engine reports, request by request, whatever the requests share.

Everything the engines have published is applied before the next request is sent, so not one miss is forgiven: a miss is
an error in the index, the hashing, the claims or the router, and its decision is printed.
"""

# ruff: noqa: T201  (a miss is printed with its reasons: pytest shows it when a test fails)

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from e2e_client import CHAT, COMPLETIONS, Answer, Json
from e2e_fleet import QUICK, Stack, before, config_for, engines_of, stack_of, until

from warmroute.config.tree import EngineConfig, RoutingConfig
from warmroute.testing.engine import EngineOptions

BLOCK = 16
REQUESTS = 320
WORDS = [
    "cache", "prefix", "block", "engine", "token", "route", "warm", "cold", "batch", "decode", "prefill", "queue",
    "event", "replay", "worker", "shard",
]  # fmt: skip
SPREADING = replace(QUICK, routing=RoutingConfig(policy="round_robin"))
"""Sends equal prompts everywhere, so that all engines hold something of everything."""


@dataclass
class Mixed:
    """Requests of every kind that share some of their beginnings, in an order that a seed decides."""

    seed: int
    kinds: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._prefixes = [[self._rng.randrange(300, 50_000) for _ in range(BLOCK * n)] for n in (3, 6, 9, 14)]
        self._systems = [" ".join(self._rng.choices(WORDS, k=90)) for _ in range(3)]
        self._chats: list[list[Json]] = []
        self._last: tuple[str, Json] = ("", {})
        self._asked: list[Json] | None = None

    def requests(self, count: int) -> Iterator[tuple[str, str, Json]]:
        """(kind, path, body)."""
        kinds = [self._tokens, self._text, self._turn, self._turn, self._edge, self._again, self._keyed]
        for number in range(count):
            make = kinds[number % len(kinds)]
            path, body = make()
            if self._rng.random() < 0.3:
                body = {**body, "stream": True}
            self._last = (path, body)
            kind = make.__name__.strip("_")
            self.kinds[kind] += 1
            yield kind, path, body

    def answered(self, answer: Answer) -> None:
        """A conversation goes on with what was generated."""
        if self._asked is not None:
            self._asked.append({"role": "assistant", "content": answer.text})
            self._asked = None

    def _ids(self, count: int) -> list[int]:
        return [self._rng.randrange(300, 50_000) for _ in range(count)]

    def _tokens(self) -> tuple[str, Json]:
        shared = self._rng.choice(self._prefixes)
        prompt = shared[: self._rng.randint(1, len(shared))] + self._ids(self._rng.randint(1, 70))
        return COMPLETIONS, {"prompt": prompt, "max_tokens": self._rng.randint(1, 40)}

    def _text(self) -> tuple[str, Json]:
        question = " ".join(self._rng.choices(WORDS, k=self._rng.randint(1, 30)))
        return COMPLETIONS, {"prompt": f"{self._rng.choice(self._systems)} {question}", "max_tokens": 8}

    def _turn(self) -> tuple[str, Json]:
        if not self._chats or (len(self._chats) < 6 and self._rng.random() < 0.3):
            self._chats.append([{"role": "system", "content": self._rng.choice(self._systems)}])
        chat = self._rng.choice(self._chats)
        if len(chat) > 11:
            self._chats.remove(chat)
        chat.append({"role": "user", "content": " ".join(self._rng.choices(WORDS, k=self._rng.randint(2, 20)))})
        self._asked = chat
        return CHAT, {"messages": list(chat), "max_tokens": self._rng.randint(5, 40)}

    def _edge(self) -> tuple[str, Json]:
        """Whole blocks, one token less and one more: where the last block's fate is decided."""
        shared = self._rng.choice(self._prefixes)
        length = BLOCK * self._rng.randint(1, len(shared) // BLOCK) + self._rng.choice((-1, 0, 0, 0, 1))
        return COMPLETIONS, {"prompt": shared[:length], "max_tokens": self._rng.choice((1, 2, 17))}

    def _again(self) -> tuple[str, Json]:
        path, body = self._last
        return path, body

    def _keyed(self) -> tuple[str, Json]:
        """The same words under other keys are other blocks."""
        path, body = self._tokens()
        salt = self._rng.choice((None, "tenant-1", "tenant-2"))
        keys: Json = {"model": self._rng.choice(("tiny", "sql", "law"))}
        if salt:
            keys["cache_salt"] = salt
        if self._rng.random() < 0.1:
            keys["prompt_logprobs"] = 0
        return path, {**body, **keys}


async def judge(stack: Stack, kind: str, path: str, body: Json) -> tuple[Answer, bool]:
    """Ask once all news is in; whether the prediction held. A miss is printed with its decision."""
    await stack.settled()
    answer = await stack.client.ask(path, **body)
    assert answer.status == 200, (answer.raw, body)
    exact = answer.predicted == answer.reported
    if not exact:
        decision = (await stack.client.get(f"/decisions/{answer.request_id}")).body
        print(f"MISS {kind}: predicted {answer.predicted}, reported {answer.reported}: {json.dumps(decision)}")
    return answer, exact


@pytest.mark.parametrize("policy", ["warmroute", "round_robin"])
async def test_mixed_requests_under_eviction_are_predicted_to_the_token(policy: str) -> None:
    small = [EngineOptions(loras=("sql", "law"), num_blocks=90, max_model_len=1400, seed=n) for n in range(3)]
    config = replace(QUICK, routing=RoutingConfig(policy=policy))
    async with stack_of(*small, config=config) as stack:
        mixed = Mixed(seed=7)
        served, hits, misses = Counter[str](), 0, 0
        for kind, path, body in mixed.requests(REQUESTS):
            answer, exact = await judge(stack, kind, path, body)
            mixed.answered(answer)
            served[answer.worker] += 1
            hits += answer.reported > 0
            misses += not exact
        await stack.settled()
        removed = [stack.counts(engine).applied.removed for engine in stack.engines]
        states = {stack.trust(engine) for engine in stack.engines}
    assert misses == 0, f"{misses} of {REQUESTS} predictions were wrong"
    # The workload was worth it: everybody served, much was cached, and much was evicted.
    assert len(served) == 3
    assert min(mixed.kinds.values()) > 20
    assert hits > REQUESTS // 4
    assert sorted(removed)[1] > 50, f"two of three had to evict much: {removed}"
    assert states == {"LIVE"}


async def test_what_a_gateway_comes_to_know_late_is_as_exact() -> None:
    async with engines_of(EngineOptions(), EngineOptions(seed=1)) as engines:
        prompts = [list(range(1000 * n, 1000 * n + 100)) for n in range(1, 5)]
        async with before(engines, config_for(engines, SPREADING)) as first:
            for prompt in prompts:
                assert (await first.client.ask(prompt=prompt)).predicted == 0
        async with before(engines) as second:
            for prompt in prompts:
                answer, exact = await judge(second, "late", COMPLETIONS, {"prompt": prompt})
                assert exact
                assert answer.reported == 96


async def test_ranks_are_pinned_and_predicted_one_by_one() -> None:
    async with stack_of(EngineOptions(data_parallel_size=2), config=SPREADING) as stack:
        (engine,) = stack.engines
        prompts = [list(range(1000 * n, 1000 * n + 90)) for n in range(1, 5)]
        seen = Counter[str]()
        for turn in range(12):
            prompt = prompts[turn % 3]
            held = [engine.held_tokens(prompt, rank=rank) for rank in (0, 1)]
            answer, exact = await judge(stack, "rank", COMPLETIONS, {"prompt": prompt})
            assert exact
            rank = int(answer.worker.partition("#")[2])
            assert answer.reported == held[rank]
            seen[answer.worker] += 1
        assert set(seen) == {f"{engine.endpoint.authority}#{rank}" for rank in (0, 1)}
        assert min(seen.values()) > 2
        # A reset of the engine empties both ranks, whichever was asked.
        await stack.settled()
        held = [(await stack.worker(engine, rank))["blocks"] for rank in (0, 1)]
        assert min(held) > 0
        assert (await stack.client.post("/reset_prefix_cache", b"")).body == {"success": True}
        assert [(await stack.worker(engine, rank))["blocks"] for rank in (0, 1)] == [0, 0]


OLD = [
    pytest.param({"release": "0.10.2"}, id="0.10.2: arrays, no lora_name, random seeds"),
    pytest.param({"release": "0.9.2"}, id="0.9.2: arrays, signed hashes, no medium"),
    pytest.param({"release": "0.24.0"}, id="0.24: maps, no event sources"),
    pytest.param({"hash_form": "bytes"}, id="hashes as bytes"),
    pytest.param({"events_form": "array"}, id="arrays"),
    pytest.param({"block_size": 64}, id="blocks of 64"),
]


@pytest.mark.parametrize("options", OLD)
async def test_every_release_is_predicted_alike(options: dict[str, Any]) -> None:
    async with engines_of(*(EngineOptions(**options, topic="kv", seed=n) for n in range(2))) as engines:
        told = [
            EngineConfig(
                url=engine.url,
                events_endpoint=engine.events[0].endpoint,
                replay_endpoint=engine.events[0].replay_endpoint,
            )
            for engine in engines
        ]
        async with before(engines, config_for(told, SPREADING)) as stack:
            mixed = Mixed(seed=3)
            kinds = ("_tokens", "_turn", "_edge")
            hits = 0
            for number in range(36):
                path, body = getattr(mixed, kinds[number % 3])()
                answer, exact = await judge(stack, kinds[number % 3], path, body)
                assert exact
                mixed.answered(answer)
                hits += answer.reported > 0
            assert hits > 8


async def test_workers_of_different_block_sizes_and_releases_share_an_index() -> None:
    mixed_fleet = [EngineOptions(block_size=16), EngineOptions(block_size=64, hash_form="bytes", seed=1)]
    async with stack_of(*mixed_fleet, config=SPREADING) as stack:
        prompt = list(range(500, 700))
        reported = []
        for _ in range(4):
            answer, exact = await judge(stack, "sizes", COMPLETIONS, {"prompt": prompt})
            assert exact
            reported.append(answer.reported)
        assert sorted(reported) == [0, 0, 192, 192]


async def test_a_reset_that_passes_through_is_taken_at_once() -> None:
    async with stack_of(EngineOptions()) as stack:
        (engine,) = stack.engines
        prompt = list(range(400, 500))
        await stack.client.ask(prompt=prompt)
        await stack.settled()
        published = engine.process.ranks[0].publisher.next_seq  # type: ignore[union-attr]
        answer = await stack.client.post("/reset_prefix_cache", b"")
        assert answer.body == {"success": True}
        # Nothing was published: the engine will say so with its next step only.
        assert engine.process.ranks[0].publisher.next_seq == published  # type: ignore[union-attr]
        assert (await stack.worker(engine))["blocks"] == 0
        again = await stack.client.ask(prompt=prompt)
        assert (again.predicted, again.reported) == (0, 0)
        assert (await judge(stack, "after", COMPLETIONS, {"prompt": prompt}))[0].predicted == 96


async def test_a_reset_that_fails_changes_nothing() -> None:
    async with stack_of(EngineOptions(decode_per_token_s=0.02)) as stack:
        (engine,) = stack.engines
        await stack.client.ask(prompt=list(range(400, 500)), max_tokens=1)
        async with stack.client.http.post(
            COMPLETIONS, json={"model": "tiny", "prompt": list(range(900, 950)), "max_tokens": 500, "stream": True}
        ) as running:
            await running.content.readany()
            await stack.settled()
            assert (await stack.client.post("/reset_prefix_cache", b"")).body == {"success": False}
            assert (await stack.worker(engine))["blocks"] >= 6
            running.close()
        answer, exact = await judge(stack, "kept", COMPLETIONS, {"prompt": list(range(400, 500)), "max_tokens": 1})
        assert exact
        assert answer.predicted == 96


async def test_two_equal_requests_at_once_go_to_one_engine() -> None:
    """The second is sent before any event: only the claim of the first can tell where it will be warm."""
    slow = [EngineOptions(decode_per_token_s=0.005, seed=n) for n in range(3)]
    async with stack_of(*slow) as stack:
        prompt = list(range(2000, 2800))
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 200, "stream": True}
        async with stack.client.http.post(COMPLETIONS, json=body) as first:
            second = await stack.client.ask(prompt=prompt)
            assert second.worker == first.headers["x-warmroute-worker"]
            assert second.predicted == second.reported == 784
            first.close()
        await until(lambda: not any(e.process.ranks[0].scheduler.busy for e in stack.engines), "the engines are idle")
