"""Requests go on while the network between engines' event sockets and the gateway stalls, cuts, swallows and refuses.

What a LIVE worker's view shows is what its engine's cache held after the very batch that the stream says was its last,
never a mixture; and when the network is well again, every view equals its engine's cache and predictions are exact.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from e2e_fleet import QUICK, Stack, before, config_for, engines_of, until

from warmroute.config.tree import EngineConfig
from warmroute.testing.engine import EngineOptions, SimulatedEngine
from warmroute.testing.engine.cache import CacheEvent, Cleared, Stored
from warmroute.testing.relay import Relay

ROUNDS = 30
CONFIG = replace(QUICK, events=replace(QUICK.events, probe_idle_s=0.3))
OPTIONS = EngineOptions(hash_form="bytes", block_size=16, num_blocks=64, max_model_len=400)

Held = Counter[Any]


class Witness:
    """What an engine's cache held after each batch that it published, whoever heard of it."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self.engine = engine
        self.after: list[Held] = [Counter()]
        publisher = engine.process.ranks[0].publisher
        assert publisher is not None
        publish = publisher.publish

        def noted(ts: float, events: tuple[CacheEvent, ...]) -> None:
            held = Counter(self.after[-1])
            for event in events:
                if isinstance(event, Cleared):
                    held.clear()
                elif isinstance(event, Stored):
                    held.update(event.digests)
                else:
                    held[event.digest] -= 1
            self.after.append(+held)
            publish(ts, events)

        publisher.publish = noted  # type: ignore[method-assign]


class Wire:
    """An engine whose events pass two relays."""

    def __init__(self, engine: SimulatedEngine, events: Relay, replay: Relay) -> None:
        self.witness, self.relays = Witness(engine), (events, replay)
        self.engine = engine
        self.config = EngineConfig(
            url=engine.url,
            events_endpoint=f"tcp://127.0.0.1:{events.port}",
            replay_endpoint=f"tcp://127.0.0.1:{replay.port}",
        )

    def trouble(self, luck: random.Random) -> None:
        """Something happens to one of the connections, or to what is published next."""
        relay = luck.choice(self.relays)
        match luck.randrange(6):
            case 0:
                relay.stall()
            case 1:
                relay.cut()
            case 2:
                relay.refusing = True
                relay.cut()
            case 3:
                relay.swallowing = True
            case 4:
                relay.truncate_after_bytes = luck.randrange(5_000)
            case _:
                self.engine.faults.drop_batches = luck.randint(1, 3)

    def mend(self) -> None:
        """All is well again. A connection that lost bytes in its middle is of no use to anybody: it is cut."""
        self.engine.faults.drop_batches = 0
        for relay in self.relays:
            if relay.swallowing or relay.truncate_after_bytes is not None:
                relay.cut()
            relay.refusing = relay.swallowing = False
            relay.truncate_after_bytes = None
            relay.flow()

    def view(self, stack: Stack) -> Held:
        worker = stack.stream(self.engine).worker
        dump = stack.gateway.router.index.dump(worker)
        return Counter({entry.block_hash: sum(n for *_, n in entry.copies) for entry in dump if entry.copies})

    def look(self, stack: Stack) -> bool:
        """Whether the worker is LIVE; then its view must be what the cache held after the last batch applied."""
        stream = stack.stream(self.engine)
        if stack.trust(self.engine) != "LIVE":
            return False
        applied = stream.view()["next_seq"]
        assert self.view(stack) == self.witness.after[applied], f"after batch {applied}: {stream}"
        return True

    def exact(self, stack: Stack) -> bool:
        return self.look(stack) and self.view(stack) == self.witness.after[-1]


@asynccontextmanager
async def wired(count: int) -> AsyncIterator[tuple[Stack, list[Wire]]]:
    async with engines_of(*[replace(OPTIONS, seed=n) for n in range(count)]) as engines, AsyncExitStack() as relays:
        wires = []
        for engine in engines:
            address = engine.events[0]
            ports = [int((at or "").rpartition(":")[2]) for at in (address.endpoint, address.replay_endpoint)]
            pair = [await relays.enter_async_context(Relay("127.0.0.1", port)) for port in ports]
            wires.append(Wire(engine, *pair))
        async with before(engines, config_for([wire.config for wire in wires], CONFIG)) as stack:
            yield stack, wires


async def test_requests_go_on_while_event_streams_break_and_heal() -> None:
    luck = random.Random(4)
    async with wired(3) as (stack, wires):

        async def client(number: int) -> None:
            while not over.is_set():
                beginning = [number % 2] * 16 * luck.randint(0, 4)
                answer = await stack.client.ask(prompt=[*beginning, *range(luck.randrange(60), 90)], max_tokens=2)
                assert answer.status == 200
                lives.update(wire.look(stack) for wire in wires)

        over, lives = asyncio.Event(), Counter[bool]()
        async with asyncio.TaskGroup() as tasks:
            clients = [tasks.create_task(client(number)) for number in range(4)]
            for _ in range(ROUNDS):
                for wire in luck.sample(wires, 2):
                    wire.trouble(luck)
                asked = sum(lives.values())
                await until(lambda asked=asked: sum(lives.values()) > asked + 20, "requests are answered")  # type: ignore[misc]
                luck.choice(wires).mend()
            over.set()
            await asyncio.gather(*clients)
        for wire in wires:
            wire.mend()
        await until(lambda: all(wire.exact(stack) for wire in wires), "every view equals its cache", 60.0)
        assert lives[True], "nobody was ever LIVE: nothing was looked at"
        assert lives[False], "nobody was ever in trouble"
        for wire in wires:
            held = wire.engine.process.ranks[0].scheduler.cache._copies
            assert wire.view(stack) == Counter({digest: len(blocks) for digest, blocks in held.items()})
        prompt = list(range(1000, 1100))
        await stack.client.ask(prompt=prompt, max_tokens=1)
        await until(lambda: all(wire.exact(stack) for wire in wires), "what was stored is known", 60.0)
        answer = await stack.client.ask(prompt=prompt, max_tokens=1)
        assert (answer.predicted, answer.reported) == (96, 96)
