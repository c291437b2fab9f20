"""The gateway before real engines: what it predicts is what they report, and nobody's request is lost.

vLLM itself is the judge: `usage.prompt_tokens_details.cached_tokens` of every answer against the answer's
`x-warmroute-overlap-tokens`.
"""

# ruff: noqa: T201  (what was missed and why is printed: pytest shows it when a test fails)

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Self

import pytest
from gateway_process import GatewayProcess, is_live
from mixed_workload import Mixed, Step
from openai_client import CHAT, COMPLETIONS, Answer, Client, Json
from prompts import Prompts
from real_engines import empty_cache, generated, running
from vllm_engine import VllmEngine

Engines = Sequence[VllmEngine]

REQUESTS = 220
BLOCK_SIZE = 32
BACK_S = 2.0
"""So long after an engine's return its worker is LIVE again."""


async def test_predictions_are_exact_and_warmer_than_round_robin(cold: Engines, tmp_path: Path) -> None:
    with GatewayProcess(cold, tmp_path / "gateway.log") as gateway:
        steps = await mixed(gateway, seed=1)
        report(gateway, steps)
    # A gateway that comes later learns what the engines hold from their replay sockets.
    with GatewayProcess(cold, tmp_path / "second.log") as second:
        again = await mixed(second, seed=1, count=60)
        report(second, again)
    for engine in cold:
        empty_cache(engine)
    with GatewayProcess(cold, tmp_path / "blind.log", "--routing.policy", "round_robin") as blind:
        spread = await mixed(blind, seed=1)
        report(blind, spread)
    assert len(steps) >= 200
    assert_exact(gateway, steps, 0.99)
    assert_exact(second, again, 0.98)
    talks = [hit_rate([step for step in run if step.kind == "talk"]) for run in (steps, spread)]
    assert talks[0] > talks[1] + 0.03, f"of conversations, {talks[0]:.1%} was cached, and {talks[1]:.1%} blindly"
    assert len({step.answer.worker for step in steps}) == len(cold), "one engine got everything"


async def test_predictions_are_exact_with_the_local_tokenizer(cold: Engines, tmp_path: Path) -> None:
    model = str(cold[0].options.model)
    with GatewayProcess(cold, tmp_path / "gateway.log", "--tokenizer.path", model) as gateway:
        steps = await mixed(gateway, seed=2)
        report(gateway, steps)
        assert_exact(gateway, steps, 0.99)


async def test_predictions_stay_exact_while_engines_evict(gateway: GatewayProcess) -> None:
    prompts = Prompts(3)
    families = [prompts.token_ids(prompts.random.randrange(300, 900)) for _ in range(40)]
    steps: list[Step] = []
    best: dict[int, int] = {}
    colder = 0
    async with Client(gateway.url, gateway.quiet) as client:
        for _ in range(160):
            which = prompts.random.randrange(len(families))
            ids = families[which]
            cut = prompts.random.choice((len(ids), len(ids) // BLOCK_SIZE * BLOCK_SIZE, len(ids) // 2))
            body = {"prompt": ids[:cut], "max_tokens": 3}
            answer = await client.ask(COMPLETIONS, body)
            steps.append(Step("family", COMPLETIONS, body, answer))
            colder += answer.reported < min(best.get(which, 0), (cut - 1) // BLOCK_SIZE * BLOCK_SIZE)
            best[which] = max(best.get(which, 0), cut // BLOCK_SIZE * BLOCK_SIZE)
    report(gateway, steps)
    assert colder > 20, f"only {colder} prompts had been evicted: no pressure"
    assert_exact(gateway, steps, 0.99)
    for engine in gateway.engines:
        assert gateway.workers()[engine.authority]["blocks"] < engine.options.blocks


async def test_what_keys_the_cache_is_known(gateway: GatewayProcess) -> None:
    """Salts part what is equal otherwise; prompt_logprobs reads no cache; n copies share one prompt."""
    prompts = Prompts(4)
    ids = prompts.token_ids(300)
    talk = prompts.chat(prompts.text(60), 20)
    extras: list[Json] = [
        {}, {"cache_salt": "a"}, {"cache_salt": "b"}, {"prompt_logprobs": 1}, {"logprobs": True},
        {"cache_salt": "a"}, {"seed": 3, "temperature": 1.0}, {}, {"prompt_logprobs": 1, "cache_salt": "b"},
    ]  # fmt: skip
    steps = []
    async with Client(gateway.url, gateway.quiet) as client:
        for extra in extras * 2:
            for path, prompt in ((CHAT, {"messages": talk}), (COMPLETIONS, {"prompt": ids})):
                body = {"max_tokens": 2, **prompt, **extra}
                steps.append(Step(str(extra), path, body, await client.ask(path, body)))
    report(gateway, steps)
    assert sum(step.answer.reported for step in steps) > 0
    assert_exact(gateway, steps, 1.0)


async def test_sessions_stay_where_they_are_warm(gateway: GatewayProcess) -> None:
    prompts = Prompts(5)
    talks = [prompts.chat(prompts.text(40), 10) for _ in range(8)]
    workers: list[list[str]] = [[] for _ in talks]
    moved: list[str] = []

    async def turn(client: Client, which: int) -> None:
        answer = await client.ask(CHAT, {"messages": talks[which], "max_tokens": 16})
        if workers[which] and workers[which][-1] != answer.worker:
            moved.append(gateway.why(answer.request_id))
        workers[which].append(answer.worker)
        talks[which] += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": prompts.text(6)}]

    async with Client(gateway.url) as client:
        await asyncio.gather(*(turn(client, which) for which in range(len(talks))))
        for which in list(range(len(talks))) * 4:
            await turn(client, which)
    print(*moved, sep="\n")
    assert len(moved) <= 2, f"of 32 turns, {workers}"  # an engine that the machine has slowed down may lose one
    assert len({each[0] for each in workers}) == 2, "a burst of new sessions went to one engine"


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "completions"])
async def test_a_stream_is_what_the_engine_sends(gateway: GatewayProcess, chat: bool) -> None:
    prompts = Prompts(6)
    path, prompt = (CHAT, {"messages": prompts.chat("", 30)}) if chat else (COMPLETIONS, {"prompt": prompts.text(30)})
    body: Json = {**prompt, "max_tokens": 60, "ignore_eos": True, "stream": True}
    async with Client(gateway.url) as client:
        worker = (await client.ask(path, body)).worker  # warm, so that both answers report the same cached tokens
        relayed = await client.ask(path, body)
    async with Client(f"http://{worker}") as client:
        direct = await client.ask(path, body)
    assert relayed.worker == worker
    assert relayed.done
    assert relayed.events > 20
    assert relayed.text == direct.text
    assert shapes(relayed.raw) == shapes(direct.raw)
    assert relayed.predicted == relayed.reported > 0
    for name, value in direct.headers.items():
        assert name in ("date", "x-request-id") or relayed.headers[name] == value


async def test_what_the_gateway_does_not_know_passes(gateway: GatewayProcess) -> None:
    worker = gateway.engines[0]
    async with Client(gateway.url) as client, Client(worker.url) as direct:
        unknown = await client.ask(COMPLETIONS, {"model": "absent", "prompt": "x"})
        assert unknown.status == 404
        assert unknown.body["error"]["code"] == "model_not_found" or unknown.body["error"]["type"] == "NotFoundError"
        for path, body in (
            (COMPLETIONS, {"prompt": [5] * 3000}),  # longer than the model takes
            (COMPLETIONS, {"prompt": "x", "max_tokens": -1}),
            (COMPLETIONS, {"prompt": "x", "temperature": "hot"}),
            (CHAT, {"messages": [{"role": "user", "content": "x"}], "max_tokens": -1}),
            ("/tokenize", {"prompt": "above account answer"}),
            ("/v1/absent", {}),
        ):
            relayed, expected = await client.ask(path, body), await direct.ask(path, body)
            assert (relayed.status, relayed.body) == (expected.status, expected.body), (path, body)
        for path, broken in (
            (COMPLETIONS, b'{"model": "tiny", "prompt": '),
            (COMPLETIONS, b"[]"),
            (CHAT, b'{"model": "tiny", "messages": "none"}'),
            (CHAT, b'{"model": "tiny"}'),
        ):
            async with client.http.post(path, data=broken, headers={"content-type": "application/json"}) as answer:
                assert answer.status == 400, broken
                assert (await answer.json())["error"]["message"]
        models = (await client.get("/v1/models")).body["data"]
        assert [model["id"] for model in models] == ["tiny"]
        assert (await client.get("/version")).body == (await direct.get("/version")).body


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "waiting"])
async def test_a_client_that_leaves_ends_the_engines_work(gateway: GatewayProcess, stream: bool) -> None:
    body = {"prompt": Prompts(7).token_ids(50), "max_tokens": 1900, "ignore_eos": True, "stream": stream}
    before = generated(gateway.engines)
    async with Client(gateway.url) as client:
        begun = asyncio.Event()
        asking = asyncio.create_task(ask_and_stay(client, {"model": "tiny", **body}, begun))
        await until(lambda: any(row["blocks"] for row in gateway.workers().values()), "an engine is at work")
        if stream:
            await begun.wait()
        assert not asking.done()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: sum(map(running, gateway.engines)) == 0, "the engine has stopped working")
    assert generated(gateway.engines) - before < 1800, "the engine went on to the end"
    await until(lambda: all(row["load"]["requests"] == 0 for row in gateway.workers().values()), "no load is booked")


async def test_a_burst_spreads_and_predictions_hold_while_requests_run(gateway: GatewayProcess) -> None:
    prompts = Prompts(8)
    systems = [prompts.text(60) for _ in range(4)]

    async def client_of(client: Client, seed: int) -> list[Step]:
        own, steps = Prompts(seed), []
        for _ in range(15):
            body = {"messages": own.chat(own.random.choice(systems), 10), "max_tokens": 8}
            steps.append(Step("concurrent", CHAT, body, await client.ask(CHAT, body)))
        return steps

    async with Client(gateway.url) as client:
        steps = list(chain(*await asyncio.gather(*(client_of(client, seed) for seed in range(8)))))
    report(gateway, steps)
    assert {step.answer.worker for step in steps} == {engine.authority for engine in gateway.engines}
    assert_exact(gateway, steps, 0.9)  # what is computed right now may or may not be there in time


async def test_an_engine_is_killed_under_load_and_taken_back(gateway: GatewayProcess) -> None:
    victim, other = gateway.engines
    name = victim.authority
    load = Load(gateway)
    async with load:
        await until(lambda: load.served_by(name) > 10 and load.running_on(name) > 0, "the victim is at work")
        victim.kill()
        load.mark()
        await until(lambda: len(load.since_mark()) > 60, "the other engine has taken over")
    assert {answer.worker for answer in load.since_mark()[-40:]} == {other.authority}
    load.assert_nothing_lost()
    assert not gateway.workers()[name]["ready"]

    victim.spawn()
    await asyncio.to_thread(victim.wait_ready)
    await until(lambda: is_live(gateway.workers()[name]), "the engine is taken back", BACK_S)
    assert gateway.workers()[name]["blocks"] == 0, "an index of a cache that is gone"

    returned = Load(gateway)
    async with returned:
        await until(lambda: returned.served_by(name) > 20, "the returned engine is at work")
    returned.assert_nothing_lost()
    steps = await mixed(gateway, seed=9, count=100)
    report(gateway, steps)
    assert_exact(gateway, steps, 0.99)


class Load:
    """Eight clients that never pause, half of their requests streamed; use as `async with`."""

    def __init__(self, gateway: GatewayProcess, clients: int = 8) -> None:
        self.gateway = gateway
        self.answers: list[tuple[bool, Answer]] = []
        self._marked = 0
        self._clients = clients
        self._stopping = False

    async def __aenter__(self) -> Self:
        self._http = await Client(self.gateway.url).__aenter__()
        self._tasks = [asyncio.create_task(self._ask(seed)) for seed in range(self._clients)]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)
        await self._http.__aexit__(*error)

    async def _ask(self, seed: int) -> None:
        prompts = Prompts(100 + seed)
        talk = prompts.chat(prompts.text(30), 10)
        while not self._stopping:
            stream = prompts.random.random() < 0.5
            messages = [*talk, {"role": "user", "content": prompts.text(8)}]
            body = {"messages": messages, "max_tokens": prompts.random.randrange(1, 60), "stream": stream}
            self.answers.append((stream, await self._http.ask(CHAT, body)))

    def mark(self) -> None:
        """Remember how much was answered by now."""
        self._marked = len(self.answers)

    def since_mark(self) -> list[Answer]:
        """Answers since then."""
        return [answer for _, answer in self.answers[self._marked :]]

    def running_on(self, worker: str) -> int:
        """How many requests the gateway has there now."""
        return int(self.gateway.workers()[worker]["load"]["requests"])

    def served_by(self, worker: str) -> int:
        """How many answers came from there."""
        return sum(answer.worker == worker for _, answer in self.answers)

    def assert_nothing_lost(self) -> None:
        """Only streams that had begun may have been broken: the engine had sent the first byte of the body.

        The gateway says so, because a client that sees the cut may drop the bytes it had not taken up yet.
        """
        for stream, answer in self.answers:
            assert answer.status == 200, answer
            if not answer.done:
                decision = self.gateway.get(f"/decisions/{answer.request_id}")
                assert stream, answer
                assert (decision["outcome"], decision["status"]) == ("engine_lost", 200), (decision, answer)
        cut = [answer.events for _, answer in self.answers if not answer.done]
        print(f"{len(self.answers)} answers, {len(cut)} streams cut, {cut.count(0)} of them before their first event")


async def mixed(gateway: GatewayProcess, seed: int, count: int = REQUESTS) -> list[Step]:
    """Send the mixture through the gateway."""
    async with Client(gateway.url, gateway.quiet) as client:
        return [step async for step in Mixed(seed, BLOCK_SIZE).run(client, count)]


def report(gateway: GatewayProcess, steps: Sequence[Step]) -> None:
    """Print how exact it was, and every miss with the decision's reasons (while the gateway lives)."""
    misses = [step for step in steps if not step.exact]
    print(f"{len(steps) - len(misses)} of {len(steps)} exact, {hit_rate(steps):.1%} of the prompt tokens were cached")
    for step in misses:
        print(f"  {step}\n    {gateway.why(step.answer.request_id)}")


def assert_exact(gateway: GatewayProcess, steps: Sequence[Step], share: float) -> None:
    """At least this share was predicted exactly."""
    misses = [str(step) for step in steps if not step.exact]
    assert len(misses) <= (1 - share) * len(steps), misses


def hit_rate(steps: Sequence[Step]) -> float:
    """Share of all prompt tokens that engines found cached."""
    return sum(s.answer.reported for s in steps) / sum(s.answer.prompt_tokens for s in steps)


def shapes(stream: bytes) -> list[bytes]:
    """A stream's events without id, time and text; like neighbours once: vLLM joins tokens as its time allows."""
    stream = re.sub(rb'"id":"[^"]*"', b'"id":""', stream)
    stream = re.sub(rb'"created":\d+', b'"created":0', stream)
    stream = re.sub(rb'"(content|text)":"(?:[^"\\]|\\.)+"', rb'"\1":"..."', stream)
    return [event for event, _ in groupby(stream.split(b"\n\n"))]


async def ask_and_stay(client: Client, body: Json, begun: asyncio.Event) -> None:
    """Ask for a completion, tell when it begins, and read on until cancelled: then the connection is closed."""
    async with client.http.post(COMPLETIONS, json=body) as answer:
        assert answer.status == 200, await answer.text()
        await answer.content.readline()
        begun.set()
        await answer.read()


async def until(condition: Callable[[], bool], what: str, deadline_s: float = 20.0) -> None:
    """Poll until `condition` holds; fails after the deadline."""
    async with asyncio.timeout(deadline_s):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110  (other processes set no event)
            await asyncio.sleep(0.02)
