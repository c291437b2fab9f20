"""Several processes on one port: one gateway to whoever speaks to it, also while one of them dies."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from e2e_client import COMPLETIONS, Client, Json
from e2e_fleet import MODEL, engines_of, until
from e2e_process import Command, serve

from warmroute.app.control import Control
from warmroute.config import Config, GatewayConfig, Loaded
from warmroute.core.keys import digest_of
from warmroute.testing.engine import EngineOptions, SimulatedEngine

LISTENING = r"listening on (http://\S+),"
PROMPT = list(range(300, 400))
DEADLINE_S = 60.0


@dataclass
class Running:
    gateway: Command
    url: str
    engines: list[SimulatedEngine]

    async def settled(self) -> None:
        """Wait until every process has every worker in sync."""
        async with Client(self.url) as client, asyncio.timeout(DEADLINE_S):
            while True:
                workers = await self.workers(client)
                live = [w for w in workers if w["ready"] and w["trust"]["state"] == "LIVE" and w["processes"] == 2]
                if len(live) == len(self.engines):
                    return
                await asyncio.sleep(0.02)

    async def workers(self, client: Client) -> list[Json]:
        return list((await client.get("/workers")).body["workers"])

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[dict[str, Client]]:
        """Process number -> a client whose one connection leads there."""
        found: dict[str, Client] = {}
        async with AsyncExitStack() as stack, asyncio.timeout(DEADLINE_S):
            while len(found) < 2:
                client = await stack.enter_async_context(Client(self.url))
                found.setdefault(await served_by(client), client)
            yield found


async def served_by(client: Client) -> str:
    """Which process answers: its own samples come first."""
    metrics = (await client.get("/metrics")).raw.decode()
    found = re.search(r'warmroute_build_info\{process="(\d)"', metrics)
    assert found is not None, metrics
    return found[1]


@asynccontextmanager
async def running(*options: EngineOptions, **settings: str) -> AsyncIterator[Running]:
    async with (
        engines_of(*options) as engines,
        serve(*(engine.url for engine in engines), gateway__processes="2", **settings) as gateway,
    ):
        started = Running(gateway, await gateway.says(LISTENING), engines)
        await started.settled()
        yield started
        assert "Traceback" not in gateway.output, gateway.output


async def test_any_process_answers_for_all() -> None:
    async with running(EngineOptions(), EngineOptions(seed=1)) as stage, stage.connected() as clients:
        asked = {process: await client.ask(prompt=PROMPT) for process, client in clients.items()}
        for client in clients.values():
            for answer in asked.values():
                decision = (await client.get(f"/decisions/{answer.request_id}")).body
                assert decision["worker"] == answer.worker
            last = (await client.get("/decisions?last=10")).body["decisions"]
            assert {decision["request_id"] for decision in last} == {answer.request_id for answer in asked.values()}
            assert (await client.get("/decisions/nobody")).status == 404
            metrics = (await client.get("/metrics")).raw.decode()
            counted = re.findall(r'^warmroute_decisions_total\{process="(\d)".* 1.0$', metrics, re.MULTILINE)
            assert sorted(counted) == ["0", "1"]
            assert metrics.count("# TYPE warmroute_decisions_total counter") == 1
        stage.gateway.terminate()
        assert await stage.gateway.exit_code() == 0


async def test_each_process_sees_what_the_other_has_in_flight() -> None:
    """Cold prompts one after the other, by turns of the processes: with one view of load no engine gets more."""
    fleet = (EngineOptions(seed=n, decode_per_token_s=0.01) for n in range(4))
    async with running(*fleet) as stage, stage.connected() as connected:
        clients = list(connected.values())
        streams = []
        for n in range(4):
            prompt = list(range(1000 * n + 1000, 1000 * n + 1100))
            body = {"model": MODEL, "prompt": prompt, "max_tokens": 4000, "stream": True}
            streams.append(await clients[n % 2].http.post(COMPLETIONS, json=body))
        assert sorted(stream.headers["x-warmroute-worker"] for stream in streams) == sorted(
            engine.endpoint.authority for engine in stage.engines
        )
        for client in clients:
            loads = [worker["load"]["requests"] for worker in await stage.workers(client)]
            assert loads == [1, 1, 1, 1]
        for stream in streams:
            stream.close()


async def test_a_limit_holds_for_all_processes_together() -> None:
    limits = {"admission__requests_max": "2", "admission__queue_requests_max": "0"}
    async with running(EngineOptions(decode_per_token_s=0.01), **limits) as stage, stage.connected() as connected:
        clients = list(connected.values())
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 4000, "stream": True}
        streams = [await client.http.post(COMPLETIONS, json=body) for client in clients]
        assert [stream.status for stream in streams] == [200, 200]
        for client in clients:
            refused = await client.ask(prompt=PROMPT)
            assert (refused.status, refused.error["code"]) == (429, "queue_full")
        for stream in streams:
            stream.close()


async def test_a_process_that_crashes_is_replaced_and_takes_nobody_along() -> None:
    options = EngineOptions(decode_per_token_s=0.01), EngineOptions(seed=1)
    async with running(*options) as stage, stage.connected() as clients, AsyncExitStack() as stack:
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 300, "stream": True}
        theirs = await clients["1"].http.post(COMPLETIONS, json=body)
        before = stage.gateway.children()
        os.kill(before[0], signal.SIGKILL)
        await stage.gateway.says(r"process 0 \(pid \d+\) ended with signal 9; another takes its place in 0 s")
        # Some of these the system sends to the dead one's socket.
        fresh = [await stack.enter_async_context(Client(stage.url)) for _ in range(20)]
        answers = await asyncio.gather(*(client.ask(prompt=PROMPT) for client in fresh))
        assert [answer.status for answer in answers] == [200] * 20
        assert (await theirs.content.read()).endswith(b"data: [DONE]\n\n")
        await stage.gateway.says(r"process 0 \(pid \d+\) serves")
        await stage.settled()
        assert len(stage.gateway.children()) == 2
        assert before[1] in stage.gateway.children()
        assert {await served_by(client) for client in fresh} == {"0", "1"}


async def test_a_file_that_broke_meanwhile_keeps_one_from_coming_and_nobody_from_serving(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(line := f"alice {digest_of('secret')}\n")
    async with (
        engines_of(EngineOptions()) as (engine,),
        serve(engine.url, gateway__processes="2", gateway__keys_file=str(keys)) as gateway,
    ):
        await gateway.says(LISTENING)
        first, second = gateway.children()
        keys.write_text("alice secret\n")
        os.kill(first, signal.SIGKILL)
        await gateway.says(r"process 0 \(pid \d+\) ended with exit code 2; another takes its place in [0-9.]+ s")
        assert second in gateway.children()
        keys.write_text(line)
        await gateway.says(r"process 0 \(pid \d+\) serves")
        assert second in gateway.children()
        assert "Traceback" not in gateway.output


def test_a_system_without_room_for_a_process_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    control = Control(Config(gateway=GatewayConfig(processes=2)), lambda *_: 0, lambda: Loaded(Config(), {}))
    process = control._processes[0]
    process.due_at = 10.0
    control._tick(10.0)
    assert (process.pid, process.end, process.due_at) == (0, None, 10.5)


@pytest.mark.parametrize("whom", ["control", "process"])
async def test_sigterm_drains(whom: str) -> None:
    """The control process has all drain; a single one that is told to is replaced when it has."""
    async with running(EngineOptions(decode_per_token_s=0.01)) as stage, stage.connected() as clients:
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 100, "stream": True}
        streams = {process: await client.http.post(COMPLETIONS, json=body) for process, client in clients.items()}
        os.kill(stage.gateway.process.pid if whom == "control" else stage.gateway.children()[0], signal.SIGTERM)
        for stream in streams.values():
            assert (await stream.content.read()).endswith(b"data: [DONE]\n\n")
        if whom == "control":
            assert await stage.gateway.exit_code() == 0
        else:
            await stage.gateway.says(r"process 0 \(pid \d+\) ended with exit code 0; another takes its place in 0 s")
            await stage.gateway.says(r"process 0 \(pid \d+\) serves")


async def test_nobody_is_left_when_the_control_process_dies() -> None:
    async with running(EngineOptions()) as stage:
        pids = stage.gateway.children()
        stage.gateway.process.kill()
        await until(lambda: not any(_runs(pid) for pid in pids), "they have ended", DEADLINE_S)


async def test_what_cannot_begin_says_why() -> None:
    async with running(EngineOptions()) as stage:
        port = stage.url.rpartition(":")[2]
        async with serve("http://127.0.0.1:9", gateway__processes="2", gateway__port=port) as second:
            assert await second.exit_code() == 2
        assert f"cannot listen on 127.0.0.1:{port}" in second.output
        assert "Traceback" not in second.output
    async with serve("http://127.0.0.1:9", gateway__processes="2", tls__certificate="/no", tls__key="/no") as blind:
        assert await blind.exit_code() == 2
    assert "tls.certificate" in blind.output
    assert "Traceback" not in blind.output


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
