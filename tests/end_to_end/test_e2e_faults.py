"""Engines that fail, lose events or die: what the gateway then knows is true, and no answer is lost for nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import aiohttp
import pytest
from e2e_client import CHAT, COMPLETIONS, Answer, Json
from e2e_fleet import MODEL, QUICK, Stack, before, config_for, engines_of, stack_of, until

from warmroute.config.tree import EngineConfig
from warmroute.testing.engine import EngineOptions, SimulatedEngine

PROMPT = list(range(300, 400))
"""100 tokens: six blocks and a bit."""


async def exact(stack: Stack, prompt: list[int], cached: int) -> Answer:
    """A request that must be predicted and reported as `cached`."""
    await stack.settled()
    answer = await stack.client.ask(prompt=prompt, max_tokens=1)
    assert (answer.status, answer.predicted, answer.reported) == (200, cached, cached)
    return answer


# Answers that break.


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_stream_that_an_engine_breaks_is_seen_to_be_broken(path: str) -> None:
    async with stack_of(EngineOptions()) as stack:
        stack.engines[0].faults.break_answers = 1
        stack.engines[0].faults.break_after_tokens = 3
        prompt: Json = {"messages": [{"role": "user", "content": "x"}]} if path == CHAT else {"prompt": PROMPT}
        answer = await stack.client.ask(path, **prompt, stream=True, max_tokens=50)
        assert answer.status == 200
        assert answer.broken
        assert not answer.done
        assert len([e for e in answer.events if e["choices"] and e["choices"][0]["finish_reason"]]) == 0
        decision = (await stack.client.get(f"/decisions/{answer.request_id}")).body
        assert decision["outcome"] == "engine_lost"
        # The engine lives: nobody else is turned away for it, and no load is left behind.
        assert (await stack.client.ask(prompt=[1, 2, 3])).status == 200
        worker = await stack.worker(stack.engines[0])
        assert worker["load"] == {"requests": 0, "prefill_tokens": 0, "decoding": 0}


async def test_an_answer_that_had_not_begun_is_made_elsewhere(stack: Stack) -> None:
    first = await exact(stack, PROMPT, 0)
    await stack.settled()
    # Twice: a kept connection that closes without a byte says nothing of the engine, so it gets another one first.
    stack.engine_of(first.worker).faults.break_answers = 2
    answer = await stack.client.ask(prompt=PROMPT)
    assert (answer.status, answer.reported) == (200, 0)
    assert answer.worker != first.worker
    page = (await stack.client.get("/metrics")).raw.decode()
    assert "warmroute_retries_total 1.0" in page


async def test_a_stream_whose_engine_dies_behind_the_head_is_made_elsewhere(stack: Stack) -> None:
    first = await exact(stack, PROMPT, 0)
    await stack.settled()
    faults = stack.engine_of(first.worker).faults
    faults.break_answers, faults.break_after_tokens = 1, 0
    answer = await stack.client.ask(prompt=PROMPT, stream=True, max_tokens=20)
    assert (answer.status, answer.done, answer.reported) == (200, True, 0)
    assert answer.worker != first.worker
    assert len(answer.events) == 21


async def test_an_engine_that_refuses_is_passed_on() -> None:
    async with stack_of(EngineOptions()) as stack:
        stack.engines[0].faults.refuse_requests = 1
        answer = await stack.client.ask(prompt=PROMPT)
        assert (answer.status, answer.error["type"]) == (503, "ServiceUnavailableError")
        assert answer.worker
        await exact(stack, PROMPT, 0)


async def test_a_client_that_leaves_ends_the_engines_work() -> None:
    async with stack_of(EngineOptions(decode_per_token_s=0.01)) as stack:
        scheduler = stack.engines[0].process.ranks[0].scheduler
        for stream in (True, False):
            body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 5000, "stream": stream}
            request = asyncio.create_task(_begin(stack, body))
            await until(lambda: scheduler.busy, "the engine works")
            if stream:
                (await request).close()
            else:
                request.cancel()
                await asyncio.gather(request, return_exceptions=True)
            await until(lambda: not scheduler.busy, "the engine has stopped")
        worker = await stack.worker(stack.engines[0])
        assert worker["load"]["requests"] == 0
        page = (await stack.client.get("/metrics")).raw.decode()
        assert f'warmroute_attempts_total{{outcome="client_gone",worker="{worker["worker"]}"}} 2.0' in page
        await stack.settled()
        answer = await stack.client.ask(prompt=PROMPT)  # what it had computed is kept, and known
        assert answer.predicted == answer.reported == 96


async def _begin(stack: Stack, body: Json) -> aiohttp.ClientResponse:
    response = await stack.client.http.post(COMPLETIONS, json=body)
    await response.content.readany()
    return response


# Events that go wrong.


async def test_a_dropped_batch_is_replayed() -> None:
    async with stack_of(EngineOptions()) as stack:
        (engine,) = stack.engines
        await exact(stack, PROMPT, 0)
        await stack.settled()
        engine.faults.drop_batches = 2
        other = list(range(1000, 1100))
        for _ in range(2):
            await stack.client.ask(prompt=other, max_tokens=20)  # two batches at least, and nobody hears of them
        assert engine.faults.drop_batches == 0
        await exact(stack, list(range(5000, 5040)), 0)  # the next one shows the gap
        await exact(stack, other, 96)
        await exact(stack, PROMPT, 96)
        counts = stack.counts(engine)
        assert (stack.trust(engine), counts.stream["gaps"], counts.stream["missed"]) == ("LIVE", 1, 2)
        assert (counts.stream["lost"], counts.purges) == (0, 0)
        assert (await stack.worker(engine))["events"]["missed"] == 2


async def test_a_lost_batch_leaves_nothing_that_may_be_wrong() -> None:
    async with stack_of(EngineOptions()) as stack:
        (engine,) = stack.engines
        await exact(stack, PROMPT, 0)
        await stack.settled()
        engine.faults.lose_batches = 1
        await stack.client.ask(prompt=list(range(1000, 1100)), max_tokens=1)
        await stack.client.ask(prompt=list(range(2000, 2100)), max_tokens=1)
        await until(lambda: stack.trust(engine) == "DEGRADED", "the loss is known")
        await stack.settled()
        assert stack.counts(engine).stream["lost"] == 1
        before_loss = await stack.client.ask(prompt=PROMPT, max_tokens=1)
        assert (before_loss.predicted, before_loss.reported) == (0, 96)  # a removal may have been among the lost
        await stack.settled()
        after_loss = await stack.client.ask(prompt=list(range(2000, 2100)), max_tokens=1)
        assert after_loss.predicted == after_loss.reported == 96
        # A cleared cache is known again whole.
        await stack.client.post("/reset_prefix_cache", b"")
        await exact(stack, PROMPT, 0)
        await exact(stack, PROMPT, 96)
        assert stack.trust(engine) == "LIVE"


async def test_an_event_of_an_unknown_kind_costs_itself_only() -> None:
    async with stack_of(EngineOptions(), EngineOptions(seed=1)) as stack:
        for engine in stack.engines:
            engine.faults.foreign_events = 1
        first = await exact(stack, PROMPT, 0)
        engine = stack.engine_of(first.worker)
        await exact(stack, PROMPT, 96)  # its neighbours in the batch were applied
        assert stack.counts(engine).rejected == {"unknown_tag": 1}
        worker = await stack.worker(engine)
        assert worker["trust"]["state"] == "DEGRADED"
        assert "unknown_tag" in worker["trust"]["reason"]
        other = next(each for each in stack.engines if each is not engine)
        assert stack.trust(other) == "LIVE"
        assert stack.counts(engine).purges == 0
        page = (await stack.client.get("/metrics")).raw.decode()
        assert f'warmroute_events_rejected_total{{reason="unknown_tag",worker="{first.worker}"}} 1.0' in page
        assert f'warmroute_worker_trust{{state="DEGRADED",worker="{first.worker}"}} 1.0' in page


async def test_a_batch_that_is_no_msgpack_costs_itself_only() -> None:
    async with stack_of(EngineOptions()) as stack:
        (engine,) = stack.engines
        await exact(stack, PROMPT, 0)
        await stack.settled()
        engine.faults.garble_batches = 1
        lost = await exact(stack, list(range(1000, 1100)), 0)
        await until(lambda: stack.trust(engine) == "DEGRADED", "the worker is known to be incomplete")
        assert (await stack.worker(engine))["worker"] == lost.worker
        await exact(stack, PROMPT, 96)  # known before
        await exact(stack, list(range(2000, 2100)), 0)
        await exact(stack, list(range(2000, 2100)), 96)  # and after
        counts = stack.counts(engine)
        assert sum(counts.rejected.values()) == 1
        assert counts.stream["undecodable"] == 1
        assert counts.stream["gaps"] == counts.purges == 0


async def test_a_replay_without_an_answer_is_asked_again() -> None:
    async with stack_of(EngineOptions()) as stack:
        (engine,) = stack.engines
        await exact(stack, PROMPT, 0)
        await stack.settled()
        engine.faults.drop_batches = 1
        other = list(range(1000, 1100))
        await stack.client.ask(prompt=other, max_tokens=1)
        engine.faults.silent_replays = 1
        await stack.client.ask(prompt=list(range(2000, 2100)), max_tokens=1)
        await until(lambda: stack.counts(engine).stream["replay_failures"], "the replay has failed")
        await until(lambda: stack.trust(engine) == "LIVE", "it is in sync again")
        await exact(stack, other, 96)


@pytest.mark.parametrize("wrong", ["events", "replay"])
async def test_a_wrong_port_blinds_that_worker_alone(wrong: str) -> None:
    async with engines_of(EngineOptions(), EngineOptions(seed=1)) as engines, engines_of(EngineOptions()) as (gone,):
        nowhere = gone.events[0]
        await gone.stop()
        mistaken, right = engines
        told = EngineConfig(
            url=mistaken.url,
            events_endpoint=nowhere.endpoint if wrong == "events" else None,
            replay_endpoint=nowhere.replay_endpoint if wrong == "replay" else None,
        )
        async with before(engines, config_for([told, right]), ready=0) as stack:
            # Something was published before anybody listened.
            async with aiohttp.ClientSession(mistaken.url) as session:
                for _ in range(2):
                    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 1}
                    async with session.post(COMPLETIONS, json=body) as response:
                        assert response.status == 200
            await until(lambda: stack.trust(right) == "LIVE", "the other worker is in sync")
            states = Counter[str]()
            for number in range(12):
                prompt = list(range(1000 * (number % 4 + 1), 1000 * (number % 4 + 1) + 100))
                await stack.settled([right])
                answer = await stack.client.ask(prompt=prompt, max_tokens=1)
                assert answer.status == 200
                assert answer.predicted <= answer.reported
                if answer.worker == right.endpoint.authority:
                    assert answer.predicted == answer.reported
                states[stack.trust(mistaken)] += 1
            assert stack.trust(right) == "LIVE"
            worker = await stack.worker(mistaken)
            assert worker["ready"]
            assert set(states) <= ({"BLIND"} if wrong == "events" else {"REPLAYING", "BLIND", "DEGRADED"})
            if wrong == "replay":
                await until(lambda: stack.trust(mistaken) in ("BLIND", "DEGRADED"), "its replay is given up")


# Engines that are not there.


async def test_an_engine_that_is_down_at_first_is_waited_for() -> None:
    async with engines_of(EngineOptions(), EngineOptions(seed=1)) as engines:
        late, early = engines
        await late.stop()
        async with before(engines, ready=1) as stack:
            answer = await exact(Stack(stack.gateway, [early], stack.client), PROMPT, 0)
            assert answer.worker == early.endpoint.authority
            ready = (await stack.client.get("/ready")).body
            assert ready["ready"]
            await late.start()
            await until(lambda: stack.trust(late) == "LIVE", "the late engine is taken in")
            served = Counter[str]()
            for number in range(8):
                prompt = list(range(1000 * number + 1000, 1000 * number + 1100))
                served[(await exact(stack, prompt, 0)).worker] += 1
            assert set(served) == {engine.endpoint.authority for engine in engines}


async def test_all_engines_down_is_said_so_and_they_are_taken_back() -> None:
    async with stack_of(EngineOptions(), EngineOptions(seed=1)) as stack:
        await exact(stack, PROMPT, 0)
        for engine in stack.engines:
            await engine.kill()
        for _ in range(6):
            answer = await stack.client.ask(prompt=PROMPT)
            assert answer.status == 503
            assert answer.error["type"] == "server_error"
            assert set(answer.error) == {"message", "type", "param", "code"}
            assert int(answer.headers["retry-after"]) >= 1
        ready = await stack.client.get("/ready")
        assert (ready.status, ready.body["workers_ready"]) == (503, 0)
        for engine in stack.engines:
            await engine.start()
        await until(lambda: {stack.trust(engine) for engine in stack.engines} == {"LIVE"}, "they are in sync again")
        await until(lambda: len([w for w in stack.gateway.membership.fleet.workers if w.ready]) == 2, "both are ready")
        await exact(stack, PROMPT, 0)
        await exact(stack, PROMPT, 96)


async def test_an_unhealthy_engine_gets_nothing() -> None:
    async with stack_of(EngineOptions(), EngineOptions(seed=1)) as stack:
        sick = stack.engine_of((await exact(stack, PROMPT, 0)).worker)
        sick.faults.unhealthy_probes = -1
        fleet = stack.gateway.membership
        await until(lambda: len([w for w in fleet.fleet.workers if w.ready]) == 1, "it is known to be ill")
        answer = await exact(stack, PROMPT, 0)
        assert answer.worker != sick.endpoint.authority
        sick.faults.unhealthy_probes = 0
        await until(lambda: len([w for w in fleet.fleet.workers if w.ready]) == 2, "it is well again")
        assert stack.trust(sick) == "LIVE"
        assert (await stack.worker(sick))["blocks"] == 6  # it never forgot, so neither did we


@pytest.mark.parametrize("streams", [False, True], ids=["whole answers", "streams"])
async def test_an_engine_that_dies_under_load_loses_nothing_that_had_not_begun(streams: bool) -> None:
    options = [EngineOptions(prefill_per_token_s=1e-5, decode_per_token_s=2e-3, seed=n) for n in range(2)]
    config = replace(QUICK, gateway=replace(QUICK.gateway, connect_timeout_s=10.0))
    async with stack_of(*options, config=config) as stack:
        dying = stack.engines[0]
        answers: list[Answer] = []
        enough = asyncio.Event()

        async def user(number: int) -> None:
            turn = 0
            while not enough.is_set():
                turn += 1
                first = 1000 * number
                body: Json = {"prompt": list(range(first, first + 40 + 16 * (turn % 5))), "max_tokens": 8}
                answers.append(await stack.client.ask(**body, stream=streams))

        async with asyncio.TaskGroup() as users:
            for number in range(12):
                users.create_task(user(number + 1))
            await until(lambda: len(answers) > 60 and _busy(dying), "traffic runs")
            at = len(answers)
            await dying.restart()
            await until(lambda: len(answers) > at + 60, "traffic goes on")
            await until(lambda: _served(answers[at:], dying), "the engine is taken back")
            enough.set()
        lost = [a for a in answers if a.status != 200 or (a.broken and not (streams and a.headers))]
        assert not lost
        broken = sum(bool(answer.broken) for answer in answers)
        assert stack.gateway.routing.tracking.retries + broken > 0  # it was at work when it died
        assert stack.counts(dying).stream["restarts"] + stack.counts(dying).purges > 0
        await _forgotten_and_exact_again(stack, dying)


def _busy(engine: SimulatedEngine) -> bool:
    return engine.process.ranks[0].scheduler.busy


def _served(answers: list[Answer], engine: SimulatedEngine) -> bool:
    return any(a.worker == engine.endpoint.authority and not a.broken for a in answers)


async def _forgotten_and_exact_again(stack: Stack, engine: SimulatedEngine) -> None:
    """An idle engine restarts: nothing of it is believed any more, and from then on everything is exact."""
    await stack.settled()
    await stack.client.ask(prompt=PROMPT)
    await engine.restart()
    await until(
        lambda: stack.trust(engine) == "LIVE" and stack.counts(engine).last_seq is not None, "it is in sync again"
    )
    worker_id = next(w.id for w in stack.gateway.membership.fleet.workers if w.endpoint == engine.endpoint)
    index = stack.gateway.router.index
    await until(lambda: index.worker_sizes(worker_id).copies == 0, "nothing is known of its cache")
    await until(lambda: all(w.ready for w in stack.gateway.membership.fleet.workers), "it is ready")
    for prompt in ([*range(50_000, 50_100)], [*range(60_000, 60_100)], [*range(70_000, 70_100)]):
        await exact(stack, prompt, 0)
        await exact(stack, prompt, 96)
    index.check()
