"""The gateway as a process: started by the command line, ended by signals, and nothing of a running answer lost."""

from __future__ import annotations

import asyncio
import signal
import socket

import pytest
from e2e_client import COMPLETIONS, Client
from e2e_fleet import MODEL, until
from e2e_process import engine, serve

from warmroute.testing.engine import EngineOptions, SimulatedEngine

LISTENING = r"listening on (http://\S+),"


async def ready(client: Client, workers: int) -> None:
    """Wait until the gateway has so many workers in sync."""
    seen: list[str] = []

    async def look() -> None:
        while not (len(seen) == workers and set(seen) == {"LIVE"}):
            listed = (await client.get("/workers")).body["workers"]
            seen[:] = [worker["trust"]["state"] for worker in listed if worker["ready"]]
            await asyncio.sleep(0.01)

    async with asyncio.timeout(20):
        await look()


async def test_engines_and_gateway_from_the_command_line() -> None:
    async with engine() as first, engine(seed="1") as second:
        urls = [await each.says(r"serving tiny at (http://\S+)") for each in (first, second)]
        async with serve(*urls) as gateway, Client(await gateway.says(LISTENING)) as client:
            await ready(client, 2)
            prompt = list(range(300, 400))
            cold = await client.ask(prompt=prompt)
            warm = await client.ask(prompt=prompt)
            assert (cold.predicted, cold.reported, warm.predicted, warm.reported) == (0, 0, 96, 96)
            assert cold.worker == warm.worker
            streamed = await client.ask(prompt=prompt, stream=True)
            assert streamed.done
            for each in (gateway, first, second):
                each.terminate()
            assert [await each.exit_code() for each in (gateway, first, second)] == [0, 0, 0]
    assert "Traceback" not in gateway.output + first.output + second.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains(number: signal.Signals) -> None:
    async with SimulatedEngine(EngineOptions(decode_per_token_s=0.02)) as slow, serve(slow.url) as gateway:
        url = await gateway.says(LISTENING)
        async with Client(url) as client:
            await ready(client, 1)
            body = {"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 40, "stream": True}
            async with client.http.post(COMPLETIONS, json=body) as running:
                received = await running.content.readany()
                gateway.process.send_signal(number)
                await gateway.says("draining")
                await until(lambda: _refuses(url), "new connections are refused")
                received += await running.content.read()
        assert received.endswith(b"data: [DONE]\n\n")
        assert received.count(b"data: ") == 41
        assert await gateway.exit_code() == 0
    assert "Traceback" not in gateway.output


async def test_a_drain_ends_in_time_whatever_runs() -> None:
    async with (
        SimulatedEngine(EngineOptions(decode_per_token_s=0.02)) as slow,
        serve(slow.url, gateway__drain_timeout_s="0.2") as gateway,
        Client(await gateway.says(LISTENING)) as client,
    ):
        await ready(client, 1)
        asked = asyncio.create_task(client.ask(prompt=[1, 2, 3], max_tokens=5000, stream=True))
        scheduler = slow.process.ranks[0].scheduler
        await until(lambda: scheduler.busy, "the engine works")
        gateway.terminate()
        assert await gateway.exit_code() == 0
        answer = await asked
        assert answer.broken
        assert not answer.done
        await until(lambda: not scheduler.busy, "the engine has stopped")


async def test_a_port_that_is_taken_is_said_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        async with serve("http://127.0.0.1:9", gateway__port=port) as gateway:
            assert await gateway.exit_code() == 2
    assert f"cannot listen on 127.0.0.1:{port}" in gateway.output
    assert "Traceback" not in gateway.output


def _refuses(url: str) -> bool:
    host, _, port = url.removeprefix("http://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False
