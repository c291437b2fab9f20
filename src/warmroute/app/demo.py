"""`warmroute demo`: three simulated engines, the gateway, traffic, and why each request went where it went.

Everything is real but the engines' arithmetic: sockets, HTTP, events over ZMQ, tokenizing by the engines' /tokenize.
The same conversations run twice, each time on fresh engines: once routed in turn, once by Warmroute. Nothing is
asserted about time; the exit code says whether every request was answered, nine of ten predictions were exactly what
the engine reported, and more came from caches than in turn.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from warmroute.app.gateway import running
from warmroute.config.tree import Config, EngineConfig, GatewayConfig, RoutingConfig
from warmroute.testing.engine import EngineOptions, SimulatedEngine

ENGINES = 3
APPS = 8
USERS_PER_APP = 3
TURNS = 3
CLIENTS = 4
BLOCKS_PER_ENGINE = 240
"""Room for about four conversations: no engine can hold every application's prompt."""
WORDS = [
    "cache", "prefix", "block", "engine", "token", "route", "warm", "cold", "batch", "decode", "prefill", "queue",
    "event", "replay", "worker", "shard", "tensor", "page", "attention", "head", "layer", "window", "stream", "budget",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Served:
    """One answered request."""

    number: int
    conversation: str
    worker: str
    reason: str
    prompt_tokens: int
    predicted_tokens: int
    reported_tokens: int
    seconds: float


@dataclass(slots=True)
class Conversation:
    """One user of one application: a shared system prompt, then turn after turn."""

    name: str
    messages: list[dict[str, str]]
    questions: list[str]


def conversations(seed: int) -> list[Conversation]:
    """The demo's users, in an order that mixes the applications."""
    rng = random.Random(seed)  # noqa: S311 - words for a demo
    made = []
    for app in range(APPS):
        system = f"You are assistant {app}. " + " ".join(rng.choices(WORDS, k=350))
        for user in range(USERS_PER_APP):
            questions = [" ".join(rng.choices(WORDS, k=rng.randint(8, 30))) for _ in range(TURNS)]
            made.append(Conversation(f"app {app}, user {user}", [{"role": "system", "content": system}], questions))
    rng.shuffle(made)
    return made


async def drive(base_url: str, seed: int) -> list[Served]:
    """Hold all conversations, `CLIENTS` at a time, through the gateway at `base_url`."""
    served: list[Served] = []
    numbers = count(1)
    waiting = conversations(seed)
    async with aiohttp.ClientSession(base_url) as session:

        async def client() -> None:
            while waiting:
                conversation = waiting.pop()
                for question in conversation.questions:
                    conversation.messages.append({"role": "user", "content": question})
                    answer, text = await ask(session, conversation, next(numbers))
                    served.append(answer)
                    conversation.messages.append({"role": "assistant", "content": text})

        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(client())
    return served


async def ask(session: aiohttp.ClientSession, conversation: Conversation, number: int) -> tuple[Served, str]:
    """One turn: the answer's text, and what became of the request."""
    body = {"model": "demo", "messages": conversation.messages, "max_tokens": 24}
    began = time.perf_counter()
    async with session.post("/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        answer: dict[str, Any] = await response.json()
    seconds = time.perf_counter() - began
    async with session.get(f"/decisions/{response.headers['x-request-id']}") as explained:
        decision = await explained.json()
    usage = answer["usage"]
    return Served(
        number=number,
        conversation=conversation.name,
        worker=response.headers["x-warmroute-worker"],
        reason=decision["reason"],
        prompt_tokens=usage["prompt_tokens"],
        predicted_tokens=int(response.headers["x-warmroute-overlap-tokens"]),
        reported_tokens=usage["prompt_tokens_details"]["cached_tokens"],
        seconds=seconds,
    ), answer["choices"][0]["message"]["content"]


@asynccontextmanager
async def fleet(policy: str) -> AsyncIterator[str]:
    """Fresh engines behind a fresh gateway with `policy`; yields the gateway's URL."""
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(
                SimulatedEngine(
                    EngineOptions(
                        model="demo",
                        num_blocks=BLOCKS_PER_ENGINE,
                        max_model_len=2048,
                        prefill_per_token_s=1e-4,
                        decode_per_token_s=1e-3,
                        seed=n,
                    )
                )
            )
            for n in range(ENGINES)
        ]
        config = Config(
            engines=tuple(EngineConfig(url=engine.url) for engine in engines),
            gateway=GatewayConfig(port=0),
            routing=RoutingConfig(policy=policy, prefill_tokens_per_s=10_000.0),
        )
        gateway = await stack.enter_async_context(running(config))
        await gateway.until_ready(workers=ENGINES)
        yield gateway.url


def share(served: list[Served]) -> float:
    """Share of all prompt tokens that came from a cache, as the engines report."""
    return sum(s.reported_tokens for s in served) / sum(s.prompt_tokens for s in served)


def show(console: Console, served: list[Served]) -> None:
    """One line per request."""
    table = Table("#", "conversation", "worker", "why", "prompt", "predicted", "reported", "ms", box=None)
    for s in sorted(served, key=lambda s: s.number):
        mark = "" if s.predicted_tokens == s.reported_tokens else " !"
        row = (s.prompt_tokens, s.predicted_tokens, f"{s.reported_tokens}{mark}", round(s.seconds * 1e3))
        table.add_row(str(s.number), s.conversation, s.worker, s.reason, *map(str, row))
    console.print(table)


def mean_ms(served: list[Served]) -> float:
    """Mean time to the whole answer, in milliseconds."""
    return 1e3 * sum(s.seconds for s in served) / len(served)


async def demo(console: Console, seed: int) -> int:
    """Run it; 0 if every request was answered and every prediction held, else 1."""
    console.print(
        f"{ENGINES} simulated engines, {APPS} applications with a system prompt each, {CLIENTS} clients at once\n"
    )
    async with fleet("round_robin") as url:
        in_turn = await drive(url, seed)
    async with fleet("warmroute") as url:
        warm = await drive(url, seed)
    show(console, warm)
    exact = sum(s.predicted_tokens == s.reported_tokens for s in warm)
    console.print(f"\n{exact} of {len(warm)} predictions are what the engine reported.")
    table = Table("", "prompt tokens from cache", "mean time to answer", box=None)
    for name, served in (("round robin", in_turn), ("warmroute", warm)):
        table.add_row(name, f"{share(served):.1%}", f"{mean_ms(served):.0f} ms")
    console.print(table)
    if exact < len(warm):
        console.print("'!' marks what was predicted wrongly: the engine's events were still on their way.")
    return 0 if exact >= 0.9 * len(warm) and share(warm) > share(in_turn) else 1


def run(seed: int) -> int:
    """Run the demo on its own event loop; its exit code."""
    return asyncio.run(demo(Console(highlight=False), seed))
