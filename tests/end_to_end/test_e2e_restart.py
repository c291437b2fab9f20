"""A new gateway takes the place of the running one: under load, nobody notices."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from e2e_client import COMPLETIONS, Client
from e2e_fleet import MODEL, engines_of, until
from e2e_process import Command, serve

from warmroute.testing.engine import EngineOptions, SimulatedEngine

LISTENING = r"listening on (http://\S+),"
DEADLINE_S = 60.0


class Load:
    """Clients that ask all the time: half keep their connections, half open one per request; half of them stream."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.outcomes: Counter[str] = Counter()

    async def run(self, clients: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(clients):
                tasks.create_task(self._client(number))

    async def _client(self, number: int) -> None:
        stream = number % 4 >= 2
        prompt = [1000 * number + n for n in range(64)]
        body = json.dumps({"model": MODEL, "prompt": prompt, "max_tokens": 8, "stream": stream})
        connector = aiohttp.TCPConnector(force_close=bool(number % 2))
        async with aiohttp.ClientSession(self._url, connector=connector) as session:
            while True:
                await asyncio.sleep(0.002 * number)  # so that connections are idle now and then
                self.outcomes[await self._ask(session, body, stream=stream)] += 1

    async def _ask(self, session: aiohttp.ClientSession, body: str, *, stream: bool) -> str:
        headers = {"content-type": "application/json"}
        try:
            async with session.post(COMPLETIONS, data=body, headers=headers) as response:
                raw = await response.read()
        except aiohttp.ClientError as error:
            return repr(error)
        whole = raw.endswith(b"data: [DONE]\n\n") if stream else b'"usage"' in raw
        return "ok" if response.status == 200 and whole else f"{response.status}: {raw[-100:]!r}"


@asynccontextmanager
async def loaded(url: str, clients: int = 8) -> AsyncIterator[Load]:
    load = Load(url)
    running = asyncio.create_task(load.run(clients))
    try:
        yield load
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def more(load: Load, requests: int) -> None:
    """Wait until so many further requests have ended."""
    goal = load.outcomes.total() + requests
    await until(lambda: load.outcomes.total() >= goal, "requests end", DEADLINE_S)


async def ready(url: str, engines: int) -> None:
    async with Client(url) as client, asyncio.timeout(DEADLINE_S):
        while (await client.get("/ready")).body["workers_ready"] < engines:  # noqa: ASYNC110 - a process is polled
            await asyncio.sleep(0.02)


def gateway(engines: list[SimulatedEngine], path: Path, port: str, processes: int, **settings: str) -> Command:
    return serve(
        *(engine.url for engine in engines),
        gateway__handover=str(path),
        gateway__port=port,
        gateway__processes=str(processes),
        **settings,
    )


@pytest.mark.parametrize("processes", [(1, 1, 1), (2, 1, 3)], ids=["one process", "two, one, three"])
async def test_no_request_fails_while_gateways_take_over_from_each_other(
    tmp_path: Path, processes: tuple[int, ...]
) -> None:
    path = tmp_path / "handover"
    options = (EngineOptions(decode_per_token_s=0.002), EngineOptions(seed=1, decode_per_token_s=0.002))
    async with engines_of(*options) as engines, AsyncExitStack() as stack:
        old = await stack.enter_async_context(gateway(engines, path, "0", processes[0]))
        url = await old.says(LISTENING)
        await ready(url, 2)
        async with loaded(url) as load:
            await more(load, 100)
            for count in processes[1:]:
                new = await stack.enter_async_context(gateway(engines, path, url.rpartition(":")[2], count))
                assert await new.says(LISTENING) == url
                assert await old.exit_code() == 0
                await more(load, 100)
                old = new
        assert set(load.outcomes) == {"ok"}
        old.terminate()
        assert await old.exit_code() == 0
        assert "Traceback" not in old.output


async def test_no_request_fails_while_engines_are_restarted_one_after_the_other(tmp_path: Path) -> None:
    """Drained by an operator's word, waited for, restarted, taken back: as the page on running a gateway says."""
    options = (EngineOptions(decode_per_token_s=0.002), EngineOptions(seed=1, decode_per_token_s=0.002))
    async with (
        engines_of(*options) as engines,
        gateway(engines, tmp_path / "handover", "0", 2, admin__port="0") as running,
        Client(await running.says(r"operators are served on (http://\S+)")) as operator,
        loaded(await running.says(LISTENING)) as load,
    ):
        for engine in engines:
            await taken_back(operator, engine)
        load.outcomes.clear()  # before there was an engine, there was nobody to serve
        for engine in engines:
            path = f"/admin/engines/{engine.endpoint.authority}"
            assert (await operator.post(f"{path}/drain", b"")).status == 200
            await more(load, 30)
            await drained(operator, engine)
            await engine.restart()
            assert (await operator.post(f"{path}/undrain", b"")).status == 200
            await taken_back(operator, engine)
            await more(load, 30)
        assert set(load.outcomes) == {"ok"}


async def drained(operator: Client, engine: SimulatedEngine) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            engines = (await operator.get("/admin/engines")).body["engines"]
            if next(each["requests"] for each in engines if each["address"] == engine.url) == 0:
                return
            await asyncio.sleep(0.02)


async def taken_back(operator: Client, engine: SimulatedEngine) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            workers = (await operator.get("/workers")).body["workers"]
            if any(each["ready"] and each["processes"] == 2 for each in workers if each["address"] == engine.url):
                return
            await asyncio.sleep(0.02)


async def test_a_successor_that_cannot_begin_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "handover"
    async with engines_of(EngineOptions()) as engines, gateway(engines, path, "0", 1) as old:
        url = await old.says(LISTENING)
        port = url.rpartition(":")[2]
        await ready(url, 1)
        async with gateway(engines, path, port, 1, tls__certificate="/no", tls__key="/no") as broken:
            assert await broken.exit_code() == 2
        async with gateway(engines, path, port, 2, tls__certificate="/no", tls__key="/no") as broken:
            assert await broken.exit_code() == 2
        await old.says("has gone before it was ready")
        async with Client(url) as client:
            for _ in range(10):
                assert (await client.ask(prompt=[1, 2, 3])).status == 200
        async with serve(engines[0].url, gateway__port=port) as stranger:
            assert await stranger.exit_code() == 2
        assert "cannot listen" in stranger.output
        old.terminate()
        assert await old.exit_code() == 0


async def test_a_path_that_a_dead_gateway_left_is_nobodys(tmp_path: Path) -> None:
    path = tmp_path / "handover"
    async with engines_of(EngineOptions()) as engines:
        async with gateway(engines, path, "0", 1) as old:
            await old.says(LISTENING)
            old.process.kill()
        assert path.is_socket()
        async with gateway(engines, path, "0", 2) as new:
            await new.says(LISTENING)
            new.terminate()
            assert await new.exit_code() == 0


async def test_a_client_that_holds_its_connection_may_send_once_more_while_the_gateway_drains() -> None:
    async with engines_of(EngineOptions()) as engines, serve(engines[0].url) as draining:
        url = await draining.says(LISTENING)
        await ready(url, 1)
        async with Client(url) as client:
            assert (await client.ask(prompt=[1, 2, 3])).status == 200
            draining.process.send_signal(signal.SIGTERM)
            await draining.says("draining")
            last = await client.ask(prompt=[1, 2, 3])
            assert (last.status, last.headers["connection"]) == (200, "close")
        assert await draining.exit_code() == 0
