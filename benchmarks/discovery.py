"""A thousand pods: how long a new gateway needs to know them, and what a change costs.

    python benchmarks/discovery.py [--pods 1000] [--changes 200] [--engines 4] [--prompts 200] [--out FILE.json]

First part: the API server is the fake one, in this process, so its work is in the figures too; engines are not asked
over sockets. Printed: until all pods are listed and routed to; how long a change of one pod takes to reach the fleet
(median and 99th percentile); what was asked of the server, also while every watch is cut again and again.

Second part: a gateway that starts while simulated engines hold what `prompts` requests left in their caches, with real
sockets throughout. Printed: until every engine is LIVE, and whether what the gateway then predicts is what the engines
report.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp

from warmroute.app.discovery import Sources
from warmroute.app.gateway import running
from warmroute.config.tree import Config, DiscoveryConfig, GatewayConfig, KubernetesConfig, MembershipConfig
from warmroute.core.index import make_index
from warmroute.core.router import Router
from warmroute.service.following import Following
from warmroute.service.membership import Membership
from warmroute.service.ports import EngineFacts, EventAddress, EventSink, Health
from warmroute.service.reconciler import Reconciler
from warmroute.testing.engine import EngineOptions, SimulatedEngine
from warmroute.testing.fakes import FakeEngineApi
from warmroute.testing.kubernetes import FakeKubernetes, pod
from warmroute.types import Endpoint, ModelInfo

CUTS = 20
DEADLINE_S = 60.0


class Answering(FakeEngineApi):
    async def facts(self, endpoint: Endpoint) -> EngineFacts:  # noqa: ARG002 - the port's signature
        return EngineFacts((ModelInfo("m"),), None, process_start=1.0)

    async def health(self, endpoint: Endpoint) -> Health:  # noqa: ARG002 - the port's signature
        return Health.GOOD


class Silent:
    """An event source that brings nothing."""

    def __init__(self, address: EventAddress) -> None: ...

    def start(self, sink: EventSink) -> None: ...

    def replay(self, start: int) -> None: ...

    def end_replay(self) -> None: ...

    def close(self) -> None: ...


async def until(holds: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline, "it does not come"
        await asyncio.sleep(0.0005)


def discovering(server: FakeKubernetes, folder: str) -> Config:
    kubernetes = KubernetesConfig(enabled=True, kubeconfig=server.write_kubeconfig(Path(folder)))
    membership = MembershipConfig(probe_interval_s=3600.0)
    return Config(
        discovery=DiscoveryConfig(kubernetes=kubernetes), membership=membership, gateway=GatewayConfig(port=0)
    )


async def follow_pods(pods: int, changes: int) -> dict[str, Any]:
    async with FakeKubernetes() as server:
        for n in range(pods):
            server.store.put("pods", pod(f"p{n}", f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"))
        with tempfile.TemporaryDirectory() as folder:
            config = discovering(server, folder)
        following = Following(Router(make_index(1000)), Silent, config.events, time.monotonic, time.time)
        membership = Membership(config, Answering(), following, time.monotonic)
        reconciler = Reconciler(config, membership, lambda _: 0, time.monotonic)
        with tempfile.TemporaryDirectory() as folder:
            config = discovering(server, folder)
            sources = Sources(config, reconciler)
            began = time.perf_counter()
            await sources.start()
        tasks = [asyncio.create_task(membership.run()), asyncio.create_task(sources.run())]

        def ready() -> int:
            return sum(worker.ready for worker in membership.fleet.workers)

        await until(lambda: ready() == pods)
        found_s = time.perf_counter() - began
        await server.watched(2)
        took = []
        for n in range(changes):
            wanted = pods - 1 + n % 2
            status = "True" if n % 2 else "False"
            began = time.perf_counter()
            server.store.change("pods", "p0", lambda p, s=status: p["status"]["conditions"][0].update(status=s))
            await until(lambda w=wanted: ready() == w)
            took.append(time.perf_counter() - began)
        asked = dict(server.counted())
        server.requests.clear()
        for _ in range(CUTS):
            server.cut()
            await until(lambda: not server.watching)
            await server.watched(2)
        again = dict(server.counted())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await sources.close()
    return {
        "pods": pods,
        "all_routed_s": round(found_s, 3),
        "change_ms_median": round(1e3 * statistics.median(took), 2),
        "change_ms_p99": round(1e3 * sorted(took)[int(0.99 * len(took))], 2),
        "asked": asked,
        f"asked_while_cut_{CUTS}_times": again,
    }


async def ask(session: aiohttp.ClientSession, url: str, prompt: list[int]) -> tuple[int, int]:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 1}
    async with session.post(f"{url}/v1/completions", json=body) as response:
        usage = (await response.json())["usage"]
        predicted = int(response.headers.get("x-warmroute-overlap-tokens", 0))
        return predicted, int(usage["prompt_tokens_details"]["cached_tokens"])


async def new_replica(engines: int, prompts: int) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(FakeKubernetes())
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for n in range(engines):
            engine = await stack.enter_async_context(SimulatedEngine(EngineOptions(seed=n)))
            port = str(engine.endpoint.port)
            server.store.put("pods", pod(f"p{n}", "127.0.0.1", annotations={"warmroute.dev/api-port": port}))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        asked = [list(range(1000 * n, 1000 * n + 320)) for n in range(prompts)]
        first = await stack.enter_async_context(running(discovering(server, folder)))
        await first.until_ready(engines)
        for prompt in asked:
            await ask(session, first.url, prompt)
        began = time.perf_counter()
        second = await stack.enter_async_context(running(discovering(server, folder)))
        await second.until_ready(engines)
        known_s = time.perf_counter() - began
        answers = [await ask(session, second.url, prompt) for prompt in asked[: prompts // 2]]
    return {
        "engines": engines,
        "prompts": prompts,
        "all_live_s": round(known_s, 3),
        "predicted_as_reported": sum(predicted == reported for predicted, reported in answers),
        "asked": len(answers),
        "warm": sum(reported > 0 for _, reported in answers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("pods", 1000), ("changes", 200), ("engines", 4), ("prompts", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = {
        "pods": asyncio.run(follow_pods(given.pods, given.changes)),
        "new_replica": asyncio.run(new_replica(given.engines, given.prompts)),
    }
    print(json.dumps(found, indent=2))
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
