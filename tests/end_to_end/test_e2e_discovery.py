"""The gateway as a process that finds its engines: as pods of a fake cluster, as endpoints of a Service, in a file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from e2e_client import Client, Json
from e2e_fleet import engines_of
from e2e_process import Command, serve

from warmroute.testing.engine import EngineOptions, SimulatedEngine
from warmroute.testing.kubernetes import FakeKubernetes, endpoint_slice, pod
from warmroute.types import Endpoint

LISTENING = r"listening on (http://\S+),"
DEADLINE_S = 60.0
OURS = "warmroute.dev/"


def as_pod(name: str, engine: SimulatedEngine, **given: Any) -> dict[str, Any]:
    """An engine on the loopback, as the pod that it would be in."""
    at: Endpoint = engine.endpoint
    return pod(name, at.host, annotations={OURS + "api-port": str(at.port)}, **given)


class Watched:
    """A gateway's client, and how it waits for what `/workers` says."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def until(self, holds: Callable[[Json], object], what: str) -> Json:
        body: Json = {}
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    body = (await self.client.get("/workers")).body
                    if holds(body):
                        return body
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{what}: {json.dumps(body, indent=1)}") from None

    async def serving(self, *engines: SimulatedEngine) -> Json:
        """Wait until exactly these are routed to and followed."""
        wanted = {engine.url for engine in engines}

        def holds(body: Json) -> bool:
            live = {w["address"] for w in body["workers"] if w["ready"] and w["trust"]["state"] == "LIVE"}
            return live == wanted and {e["address"] for e in body["engines"]} == wanted

        return await self.until(holds, f"serving {wanted}")


@asynccontextmanager
async def gateway_of(gateway: Command) -> AsyncIterator[Watched]:
    async with gateway, Client(await gateway.says(LISTENING)) as client:
        yield Watched(client)
    assert "Traceback" not in gateway.output


@pytest.fixture
async def cluster() -> AsyncIterator[FakeKubernetes]:
    async with FakeKubernetes() as cluster:
        yield cluster


def in_cluster(cluster: FakeKubernetes, folder: Path, **settings: str) -> Command:
    kubeconfig = cluster.write_kubeconfig(folder)
    return serve(**{"discovery.kubernetes.kubeconfig": kubeconfig}, **settings)


async def test_a_rollout_without_a_failed_request(cluster: FakeKubernetes, tmp_path: Path) -> None:
    options = [EngineOptions(seed=n, host=f"127.0.0.{1 + n % 2}", decode_per_token_s=0.005) for n in range(4)]
    async with engines_of(*options) as engines:
        store = cluster.store
        for number in (0, 1):
            store.put("pods", as_pod(f"old-{number}", engines[number]))
        command = in_cluster(cluster, tmp_path, **{"discovery.kubernetes.enabled": "true"})
        async with gateway_of(command) as gateway:
            await gateway.serving(*engines[:2])
            failed: list[Any] = []
            served: set[str] = set()
            over = asyncio.Event()

            async def ask(number: int) -> None:
                while not over.is_set():
                    prompt = list(range(number, number + 40))
                    answer = await gateway.client.ask(prompt=prompt, max_tokens=20, stream=True)
                    served.add(answer.headers.get("x-warmroute-worker", ""))
                    if answer.status != 200 or not answer.done:
                        failed.append((answer.status, answer.raw, answer.broken))

            async with asyncio.TaskGroup() as tasks:
                for number in range(8):
                    tasks.create_task(ask(100 * number))
                for number in (0, 1):
                    new, old = engines[2 + number], engines[number]
                    store.put("pods", as_pod(f"new-{number}", new, ready=False))
                    await gateway.until(lambda b, at=new.url: held(b, at), "the new pod is known, and held")
                    store.change("pods", f"new-{number}", lambda p: p["status"]["conditions"][0].update(status="True"))
                    await gateway.until(lambda b, at=new.url: routed(b, at), "the new pod is routed to")
                    store.change("pods", f"old-{number}", terminate)
                    await gateway.until(lambda b, at=old.url: gone(b, at), "the old pod has drained")
                    await old.stop()
                    store.delete("pods", f"old-{number}")
                await gateway.serving(*engines[2:])
                over.set()
            assert failed == []
            assert {engine.endpoint.authority for engine in engines} <= served
            metrics = (await gateway.client.get("/metrics")).raw.decode()
            assert 'warmroute_discovery_in_step{source="kubernetes"} 1.0' in metrics
            assert 'warmroute_discovery_objects{source="kubernetes",state="routed"} 2.0' in metrics
            assert engines[0].endpoint.authority not in metrics  # nothing is left of what has gone


def held(body: Json, at: str) -> bool:
    return any(engine["address"] == at and engine["up"] and engine["held"] for engine in body["engines"])


def routed(body: Json, at: str) -> bool:
    return any(w["address"] == at and w["ready"] for w in body["workers"])


def gone(body: Json, at: str) -> bool:
    return all(engine["address"] != at for engine in body["engines"])


def terminate(found: dict[str, Any]) -> None:
    found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"


async def test_it_serves_on_while_the_api_server_is_away(cluster: FakeKubernetes, tmp_path: Path) -> None:
    async with engines_of(EngineOptions()) as (engine,):
        cluster.store.put("pods", as_pod("a", engine))
        command = in_cluster(cluster, tmp_path, **{"discovery.kubernetes.enabled": "true"})
        async with gateway_of(command) as gateway:
            await gateway.serving(engine)
            await cluster.stop()
            body = await gateway.until(lambda b: not b["discovery"][0]["in_step"], "it is known to be away")
            assert "is the API server up" in json.dumps(body["discovery"])
            assert (await gateway.client.ask(prompt=[1, 2, 3])).status == 200
            await cluster.start()
            await gateway.until(lambda b: b["discovery"][0]["in_step"], "it is back")
    assert command.output.count("cannot be followed") in (1, 2)  # once at most for each label's collection


async def test_engines_of_a_headless_service(cluster: FakeKubernetes, tmp_path: Path) -> None:
    async with engines_of(EngineOptions(), EngineOptions(seed=1)) as engines:
        for number, engine in enumerate(engines):
            endpoints = {engine.endpoint.host: {"ready": True}}
            cluster.store.put("endpointslices", endpoint_slice(f"s{number}", "vllm", endpoints, engine.endpoint.port))
        cluster.store.put("endpointslices", endpoint_slice("other", "other", {"127.0.0.1": {"ready": True}}, 9))
        command = in_cluster(cluster, tmp_path, **{"discovery.service.name": "vllm"})
        async with gateway_of(command) as gateway:
            await gateway.serving(*engines)
            at = engines[1].endpoint.host
            leaving = endpoint_slice("s1", "vllm", {at: {"terminating": True}}, engines[1].endpoint.port)
            cluster.store.put("endpointslices", leaving)
            await gateway.serving(engines[0])


async def test_engines_of_a_file_that_changes(tmp_path: Path) -> None:
    path = tmp_path / "engines.yaml"
    async with engines_of(EngineOptions(), EngineOptions(seed=1)) as engines:
        path.write_text(f"- {engines[0].url}\n")
        command = serve(**{"discovery.file.path": str(path)})
        async with gateway_of(command) as gateway:
            await gateway.serving(engines[0])
            path.write_text(json.dumps({"engines": [{"url": engine.url} for engine in engines]}))
            await gateway.serving(*engines)
            path.write_text("- not a url\n")
            await gateway.until(lambda b: not b["discovery"][0]["in_step"], "the broken file is said")
            await gateway.serving(*engines)
            path.write_text(f"engines: [{engines[1].url}]\n")
            await gateway.serving(engines[1])


async def test_a_file_that_is_not_there_is_refused_at_start(tmp_path: Path) -> None:
    async with serve(**{"discovery.file.path": str(tmp_path / "missing")}) as command:
        assert await command.exit_code() == 2
    assert "discovery.file.path: " in command.output


async def test_without_a_cluster_it_is_refused_at_start(tmp_path: Path) -> None:
    settings = {"discovery.kubernetes.enabled": "true", "discovery.kubernetes.kubeconfig": str(tmp_path / "missing")}
    async with serve(**settings) as command:
        assert await command.exit_code() == 2
    assert "no API server is known" in command.output


async def test_a_new_replica_knows_what_the_first_one_knows(cluster: FakeKubernetes, tmp_path: Path) -> None:
    """Nothing is shared between gateways: each follows all events, and a new one has them replayed."""
    async with engines_of(EngineOptions(), EngineOptions(seed=1)) as engines:
        for number, engine in enumerate(engines):
            cluster.store.put("pods", as_pod(f"p{number}", engine))
        settings = {"discovery.kubernetes.enabled": "true"}
        async with gateway_of(in_cluster(cluster, tmp_path, **settings)) as first:
            await first.serving(*engines)
            prompts = [list(range(100 * n, 100 * n + 64)) for n in range(6)]
            workers = [(await first.client.ask(prompt=prompt)).worker for prompt in prompts]
            await first.until(lambda b: sum(w["blocks"] for w in b["workers"]) == 24, "events may be late")
            async with gateway_of(in_cluster(cluster, tmp_path, **settings)) as second:
                await second.serving(*engines)
                for prompt, worker in zip(prompts, workers, strict=True):
                    answer = await second.client.ask(prompt=prompt)
                    now = (await second.client.get("/workers")).body["workers"]
                    assert (answer.worker, answer.predicted, answer.reported) == (worker, 48, 48), now
