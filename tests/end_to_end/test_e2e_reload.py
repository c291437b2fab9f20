"""Configuration, keys and engines change while the gateway runs, in one process and in several, all or nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e_client import Answer, Client, Json
from e2e_fleet import engines_of
from e2e_process import Command, serve

from warmroute.testing.engine import EngineOptions, SimulatedEngine

LISTENING = r"listening on (http://\S+),"
OPERATORS = r"operators are served on (http://\S+)"
DEADLINE_S = 60.0
PROMPT = list(range(300, 400))


@dataclass
class Site:
    """A gateway whose configuration is a file, its engines, its clients and its operators."""

    gateway: Command
    file: Path
    engines: list[SimulatedEngine]
    client: Client
    operator: Client
    processes: int
    client_url: str
    operator_url: str

    def write(self, engines: list[SimulatedEngine], **sections: Any) -> None:
        _write(self.file, engines, **sections)

    async def reload(self) -> Answer:
        return await self.operator.post("/admin/reload", b"")

    async def engines_are(self, expected: list[SimulatedEngine]) -> None:
        """Wait until every process has exactly these engines, ready."""
        wanted = sorted(engine.url for engine in expected)
        async with asyncio.timeout(DEADLINE_S):
            while True:
                # A connection of its own each time: it leads to another process now and then.
                async with Client(self.operator_url) as operator:
                    workers = (await operator.get("/workers")).body["workers"]
                    ready = [w for w in workers if w["ready"] and w.get("processes", 1) == self.processes]
                    if sorted(w["address"] for w in ready) == wanted == sorted(w["address"] for w in workers):
                        return
                await asyncio.sleep(0.02)


def _write(file: Path, engines: list[SimulatedEngine], **sections: Any) -> None:
    quick = {"probe_interval_s": 0.1, "retry_interval_s": 0.1}
    document = {"engines": [engine.url for engine in engines], "membership": quick, "gateway": {"port": 0}, **sections}
    file.write_text(yaml.safe_dump(document))


@pytest.fixture(params=[1, 2], ids=["one process", "two processes"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with site_of(tmp_path, request.param) as started:
        yield started


@asynccontextmanager
async def site_of(folder: Path, processes: int) -> AsyncIterator[Site]:
    file = folder / "warmroute.yaml"
    async with AsyncExitStack() as stack:
        engines = await stack.enter_async_context(engines_of(*(EngineOptions(seed=n) for n in range(3))))
        _write(file, engines[:2])
        flags = ("--processes", str(processes), "--admin.port", "0")
        gateway = await stack.enter_async_context(Command("serve", "--config", str(file), *flags))
        url, operator_url = await gateway.says(LISTENING), await gateway.says(OPERATORS)
        client, operator = [await stack.enter_async_context(Client(each)) for each in (url, operator_url)]
        started = Site(gateway, file, engines, client, operator, processes, url, operator_url)
        await started.engines_are(engines[:2])
        yield started
        assert "Traceback" not in gateway.output, gateway.output


async def test_what_can_be_taken_up_is_and_the_rest_is_named(site: Site) -> None:
    site.write(site.engines[1:], gateway={"retries": 0, "port": 1, "max_body_bytes": 500}, log={"level": "warning"})
    answer = await site.reload()
    assert answer.status == 200
    changed = {row["key"]: (row["old"], row["new"]) for row in answer.body["changed"]}
    assert changed.pop("engines") == ("2 engines", f"+{site.engines[2].url}, -{site.engines[0].url}")
    assert changed == {
        "gateway.retries": ("2", "0"),
        "gateway.max_body_bytes": ("33554432", "500"),
        "log.level": ("info", "warning"),
    }
    await site.engines_are(site.engines[1:])
    async with Client(site.client_url) as fresh:
        assert (await fresh.ask(prompt=PROMPT)).status == 413
        assert (await fresh.ask(prompt=[1, 2])).status == 200
    assert [row["key"] for row in answer.body["needs_restart"]] == ["gateway.port"]
    again = (await site.reload()).body
    assert (again["changed"], again["needs_restart"]) == ([], answer.body["needs_restart"])


async def test_a_mistake_changes_nothing(site: Site) -> None:
    site.write(site.engines[1:], gateway={"port": 0, "retries": -1, "drain_timeout_s": 1})
    answer = await site.reload()
    assert (answer.status, answer.error["code"]) == (400, "bad_config")
    assert "gateway.retries" in answer.error["message"]
    site.write(site.engines[1:], routing={"policy": "nowhere.py:Policy"})
    answer = await site.reload()
    assert answer.status == 400
    assert "routing.policy" in answer.error["message"]
    await site.engines_are(site.engines[:2])
    site.write(site.engines[:2])
    assert (await site.reload()).body == {"changed": [], "needs_restart": []}


async def test_a_policy_of_ones_own_is_loaded_once_a_reload(site: Site, tmp_path: Path) -> None:
    policy, loads = tmp_path / "mine.py", tmp_path / "loads"
    policy.write_text(
        f"with open({str(loads)!r}, 'a') as file:\n    file.write('.')\n\n"
        "class Mine:\n    name = 'mine'\n\n    def costs(self, candidates):\n        return candidates.requests\n"
    )
    site.write(site.engines[:2], routing={"policy": f"{policy}:Mine"})
    assert [row["key"] for row in (await site.reload()).body["changed"]] == ["routing.policy"]
    assert (await site.reload()).body["changed"] == []  # when this is answered, all have taken up what was before
    assert len(loads.read_text()) == 2 * site.processes
    assert (await site.client.ask(prompt=PROMPT)).status == 200


async def test_sighup_reloads(site: Site) -> None:
    site.write(site.engines)
    site.gateway.process.send_signal(signal.SIGHUP)
    await site.engines_are(site.engines)
    await site.gateway.says(r"reload: engines: 2 engines -> \+http://\S+")


async def test_engines_come_drain_and_go_by_an_operators_word(site: Site) -> None:
    first, second, third = site.engines
    added = await site.operator.post("/admin/engines", f'{{"url": "{third.url}"}}'.encode())
    assert added.status == 200
    assert {row["address"]: row["source"] for row in added.body["engines"]}[third.url] == "admin"
    await site.engines_are(site.engines)
    authority = first.endpoint.authority
    assert (await site.operator.post(f"/admin/engines/{authority}/drain", b"")).status == 200
    await until_ready_are(site, {second.url, third.url})
    workers = {(await site.client.ask(prompt=[n])).worker for n in range(12)}
    assert authority not in workers
    assert (await site.operator.post(f"/admin/engines/{authority}/undrain", b"")).status == 200
    await site.engines_are(site.engines)
    refused = await delete(site, authority)
    assert (refused["error"]["code"], "listed by config" in refused["error"]["message"]) == ("engine_not_yours", True)
    await delete(site, third.endpoint.authority)
    await site.engines_are([first, second])


async def test_what_cannot_be_done_is_said(site: Site) -> None:
    for path, body, code in (
        ("/admin/engines", b"no json", "bad_engine"),
        ("/admin/engines", b'{"url": "ftp://x"}', "bad_engine"),
        ("/admin/engines", b'{"url": "http://x:1", "sise": 2}', "bad_engine"),
        ("/admin/engines", b'{"url": "http://x:1", "api_key_file": "/key"}', "bad_engine"),
        (
            "/admin/engines",
            b'{"url": "http://x:1", "events_endpoint": "tcp://x:1", "replay_endpoint": "tcp://x:1"}',
            "bad_engine",
        ),
        ("/admin/engines/nobody:1/drain", b"", "engine_not_found"),
        ("/admin/nothing", b"", "unknown_path"),
    ):
        answer = await site.operator.post(path, body)
        assert (answer.status in (400, 404), answer.error["code"]) == (True, code)
    page = await site.operator.post("/admin/reload", b"", {"origin": "http://evil.example"})
    assert (page.status, page.error["code"]) == (403, "origin")
    assert (await site.client.post("/admin/reload", b"")).status == 404


async def test_a_process_that_comes_later_knows_what_has_changed(tmp_path: Path) -> None:
    async with site_of(tmp_path, 2) as site:
        second, third = site.engines[1:]
        site.write([second], gateway={"port": 0, "max_body_bytes": 300})
        assert (await site.reload()).status == 200
        await site.operator.post("/admin/engines", f'{{"url": "{third.url}"}}'.encode())
        await site.engines_are([second, third])
        for pid in site.gateway.children():
            os.kill(pid, signal.SIGKILL)
        await site.gateway.says(r"process 0 \(pid \d+\) serves")
        await site.gateway.says(r"process 1 \(pid \d+\) serves")
        await site.engines_are([second, third])
        for _ in range(4):
            async with Client(site.client_url) as fresh:
                assert (await fresh.ask(prompt=PROMPT)).status == 413


async def test_a_process_that_comes_later_is_told_of_engines_that_it_does_not_know(tmp_path: Path) -> None:
    async with site_of(tmp_path, 2) as site:
        first, second, third = site.engines
        await site.operator.post("/admin/engines", f'{{"url": "{third.url}/"}}'.encode())
        await site.engines_are(site.engines)
        await delete(site, third.endpoint.authority)
        await site.operator.post(f"/admin/engines/{first.endpoint.authority}/drain", b"")
        site.write([second])
        assert (await site.reload()).status == 200
        await site.engines_are([second])
        crashed = site.gateway.children()
        for pid in crashed:
            os.kill(pid, signal.SIGKILL)
        await site.gateway.says(r"process 0 \(pid \d+\) serves")
        await site.gateway.says(r"process 1 \(pid \d+\) serves")
        await site.engines_are([second])
        successors = site.gateway.children()
        site.write([first, second])
        assert (await site.reload()).status == 200
        await site.engines_are([first, second])
        assert site.gateway.children() == successors


async def test_without_a_listener_for_operators_nobody_administers() -> None:
    async with (
        engines_of(EngineOptions()) as engines,
        serve(engines[0].url) as gateway,
        Client(await gateway.says(LISTENING)) as client,
    ):
        answer = await client.post("/admin/reload", b"")
        assert (answer.status, "admin.port" in answer.error["message"]) == (403, True)


async def delete(site: Site, authority: str) -> Json:
    async with site.operator.http.delete(f"/admin/engines/{authority}") as response:
        return dict(await response.json())


async def until_ready_are(site: Site, urls: set[str]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            async with Client(site.operator_url) as operator:
                workers = (await operator.get("/workers")).body["workers"]
                if {worker["address"] for worker in workers if worker["ready"]} == urls:
                    return
            await asyncio.sleep(0.02)
