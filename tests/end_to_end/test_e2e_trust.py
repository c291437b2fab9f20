"""Engines that lie or lose events without a trace: predictions show it, the trust is lowered, and heals by itself."""

from __future__ import annotations

from dataclasses import replace

from e2e_fleet import QUICK, Stack, before, config_for, engines_of, stack_of, until

from warmroute.config.tree import EngineConfig
from warmroute.testing.engine import EngineOptions


def prompt(number: int) -> list[int]:
    """100 tokens that no other number begins with: six blocks and a bit."""
    return list(range(1000 * number, 1000 * number + 100))


async def ask(stack: Stack, number: int) -> tuple[int, int]:
    """(predicted, reported) of a prompt, once everything that was published is applied."""
    await stack.settled()
    answer = await stack.client.ask(prompt=prompt(number), max_tokens=1)
    assert answer.status == 200
    return answer.predicted, answer.reported


async def good_again(stack: Stack, first: int) -> None:
    """Predictions that hold, until the worker is LIVE again."""
    for number in range(first, first + 30):
        assert await ask(stack, number) == (0, 0)
        assert await ask(stack, number) == (96, 96)
        if stack.trust(stack.engines[0]) == "LIVE":
            return
    raise AssertionError(await stack.worker(stack.engines[0]))


async def test_an_engine_that_lies_is_believed_less_until_it_does_not() -> None:
    async with stack_of(EngineOptions()) as stack:
        engine = stack.engines[0]
        assert await ask(stack, 1) == (0, 0)
        engine.faults.misreport_answers = -1
        for _ in range(5):
            assert await ask(stack, 1) == (96, 0)
            assert stack.trust(engine) == "LIVE"
        assert await ask(stack, 1) == (96, 0)
        worker = await stack.worker(engine)
        assert worker["trust"]["state"] == "DEGRADED"
        assert worker["trust"]["reason"] == "parity: it predicts too much, as the engine reports"
        assert (worker["parity"]["alarm"], worker["parity"]["resyncs"]) == ("predicts too much", 1)
        await stack.settled()
        assert stack.counts(engine).stream["resyncs"] == 1
        assert (await stack.worker(engine))["blocks"] == 6  # the replay has brought it all back
        engine.faults.misreport_answers = 0
        await good_again(stack, 50)
        page = (await stack.client.get("/metrics")).raw.decode()
        name = engine.endpoint.authority
        assert f'warmroute_trust_transitions_total{{state="DEGRADED",worker="{name}"}} 1.0' in page
        assert f'warmroute_parity_resyncs_total{{worker="{name}"}} 1.0' in page


async def test_stores_that_are_lost_without_a_trace_are_noticed_and_healed() -> None:
    async with stack_of(EngineOptions()) as stack:
        engine = stack.engines[0]
        engine.faults.swallow_batches = -1
        for number in range(12):
            await ask(stack, number)
        engine.faults.swallow_batches = 0
        stack.gateway.router.forget(stack.gateway.membership.fleet.workers[0].id)  # as if their claims had run out
        for number in range(9):
            assert stack.trust(engine) == "LIVE"
            assert await ask(stack, number) == (0, 96)
        worker = await stack.worker(engine)
        assert worker["trust"]["reason"] == "parity: it predicts too little, as the engine reports"
        await good_again(stack, 50)


async def test_a_clear_that_is_lost_without_a_trace_is_noticed_and_healed() -> None:
    async with stack_of(EngineOptions()) as stack:
        engine = stack.engines[0]
        for number in range(20):
            await ask(stack, number)
        await stack.settled()
        engine.faults.swallow_batches = 1
        assert engine.process.ranks[0].scheduler.cache.reset()
        await ask(stack, 99)  # its batch was to bring the news
        for number in range(6):
            assert stack.trust(engine) == "LIVE"
            assert await ask(stack, number) == (96, 0)
        assert stack.trust(engine) in ("DEGRADED", "REPLAYING")
        await good_again(stack, 50)


async def test_an_engine_that_reports_nothing_is_judged_by_its_counters() -> None:
    async with stack_of(EngineOptions(prompt_tokens_details=False)) as stack:
        engine = stack.engines[0]

        worker = stack.gateway.membership.fleet.workers[0].id
        trusts = stack.gateway.trusts
        for judged, number in enumerate((1, 1, 2, 1)):  # the first reading is where counting begins
            await stack.settled()
            assert (await stack.client.ask(prompt=prompt(number), max_tokens=1)).status == 200
            read = engine.process.ranks[0].scheduler.totals.cache_queries
            await until(lambda read=read: trusts.of(worker).counters.queries == read, "the counters are read")
            assert trusts.of(worker).parity.judged == judged
        parity = (await stack.worker(engine))["parity"]
        assert (parity["too_high"], parity["too_low"], parity["reported_tokens"]) == (0, 0, 192)


async def test_an_engine_with_a_key_is_asked_with_it() -> None:
    async with engines_of(EngineOptions(api_key="sesame"), EngineOptions(api_key="open")) as engines:
        own = EngineConfig(url=engines[0].url, api_key="sesame")
        config = config_for([own, EngineConfig(url=engines[1].url)])
        config = replace(config, membership=replace(QUICK.membership, api_key="open"))
        async with before(engines, config, ready=2) as stack:
            for number in range(4):
                answer = await stack.client.ask(prompt=prompt(number), max_tokens=1)
                assert answer.status == 200
            chat = await stack.client.ask("/v1/chat/completions", messages=[{"role": "user", "content": "x"}])
            assert chat.status == 200
            refused = await stack.client.ask(prompt=prompt(9), headers={"Authorization": "Bearer mine"})
            assert refused.status == 401  # the client's own goes through as it is


async def test_an_engine_whose_key_is_missing_is_not_ready_and_says_what_to_do() -> None:
    async with engines_of(EngineOptions(api_key="sesame")) as engines, before(engines, ready=0) as stack:

        def problem() -> str:
            return stack.gateway.membership.engines()[0][2] or ""

        await until(lambda: "it wants a key; set engines[].api_key_file" in problem(), "the problem is named")
