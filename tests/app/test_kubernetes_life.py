"""The life of 200 pods, at random but always the same: after every step the fleet is what an oracle says.

The oracle is written from the contract's words, not from the code: it looks at the pods that the server has.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster_stage import ClusterStage, cluster_stage

from warmroute.testing.kubernetes import FakeKubernetes, pod

PODS = 200
STEPS = 2500
EVENTS, MODEL = "model.aibrix.ai/kv-events-enabled", "model.aibrix.ai/name"


class Oracle:
    """What there must be, from the pods as they are and the requests that run."""

    def __init__(self) -> None:
        self.running: dict[str, list[Any]] = {}
        """URL -> its decisions that are not over."""
        self.listed: dict[str, tuple[str, bool, bool]] = {}
        """URL -> identity, ready, events: of engines that the pods make, and of those that drain."""

    def look(self, pods: list[dict[str, Any]]) -> None:
        now = {}
        for each in pods:
            meta, status, labels = each["metadata"], each["status"], each["metadata"]["labels"]
            alive = status["phase"] == "Running" and status.get("podIP") and "deletionTimestamp" not in meta
            if alive and MODEL in labels:
                identity = f"{meta['uid']}/{status['containerStatuses'][0]['containerID']}"
                ready = status["conditions"][0]["status"] == "True"
                now[f"http://{status['podIP']}:8000"] = (identity, ready, labels.get(EVENTS) == "true")
        for url, (identity, _, events) in self.listed.items():
            if url in now and now[url][0] != identity:
                self.running.pop(url, None)  # another engine: the old one's requests are not waited for
            elif url not in now and self.running.get(url):
                now[url] = (identity, False, events)
        self.listed = now

    def ready(self) -> set[str]:
        return {url for url, (_, ready, _) in self.listed.items() if ready}

    def subscribed(self) -> dict[str, int]:
        return {f"tcp://{url[7:-5]}:5557": 1 for url, (_, _, events) in self.listed.items() if events}


class Life:
    def __init__(self, stage: ClusterStage, seed: int) -> None:
        self.stage = stage
        self.oracle = Oracle()
        self.dice = random.Random(seed)
        self.ips = (f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in range(1, 1 << 20))
        self.born = 0

    @property
    def store(self) -> Any:
        return self.stage.server.store

    def names(self) -> list[str]:
        return [name for _, _, name in self.store.objects]

    def step(self) -> None:
        """One thing happens to one pod, or to a request."""
        names = self.names()
        if self.born < PODS and (not names or self.dice.random() < 0.3):
            self.born += 1
            self.store.put("pods", pod(f"p{self.born}", None, phase="Pending", ready=False))
            return
        self.dice.choice(TRANSITIONS)(self, self.dice.choice(names))

    def edit(self, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        self.store.change("pods", name, change)

    def starts(self, name: str) -> None:
        self.edit(name, lambda p: p["status"].update(phase="Running", podIP=p["status"].get("podIP") or next(self.ips)))
        self.ready(name)

    def ready(self, name: str) -> None:
        self.edit(name, lambda p: p["status"]["conditions"][0].update(status="True"))

    def unready(self, name: str) -> None:
        self.edit(name, lambda p: p["status"]["conditions"][0].update(status="False"))

    def moves(self, name: str) -> None:
        self.edit(name, lambda p: p["status"].update(podIP=next(self.ips)) if p["status"].get("podIP") else None)

    def restarts(self, name: str) -> None:
        self.edit(name, lambda p: p["status"]["containerStatuses"][0].update(containerID=str(self.dice.random())))

    def labels(self, name: str) -> None:
        label = self.dice.choice([EVENTS, MODEL])
        value = {EVENTS: "true", MODEL: "m"}[label]
        self.edit(
            name, lambda p: p["metadata"]["labels"].pop(label, None) or p["metadata"]["labels"].update({label: value})
        )

    def fails(self, name: str) -> None:
        if self.dice.random() < 0.3:
            self.edit(name, lambda p: p["status"].update(phase="Failed"))

    def terminates(self, name: str) -> None:
        self.edit(name, lambda p: p["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z"))

    def goes(self, name: str) -> None:
        meta = self.store.objects["pods", "default", name]["metadata"]
        if "deletionTimestamp" in meta or self.dice.random() < 0.3:
            self.store.delete("pods", name)

    def comes_again(self, name: str) -> None:
        """Under its name, at its address: as a StatefulSet's pod may, before anybody has noticed."""
        ip = self.store.objects["pods", "default", name]["status"].get("podIP")
        self.store.delete("pods", name)
        self.store.put("pods", pod(name, ip))

    def asks(self, name: str) -> None:
        if self.oracle.ready():
            decision = self.stage.pick()
            self.oracle.running.setdefault(decision.worker.endpoint.url, []).append(decision)

    def answers(self, name: str) -> None:
        for decisions in self.oracle.running.values():
            if decisions and self.dice.random() < 0.5:
                self.stage.router.release(decisions.pop(), 0.0, served=True)
                break

    async def check(self, what: str) -> None:
        """Sooner or later the fleet is as it should be, and in between requests can be routed."""
        stage, oracle = self.stage, self.oracle
        oracle.look([each for (kind, _, _), each in self.store.objects.items() if kind == "pods"])

        def holds() -> bool:
            stage.reconciler.tick()
            return (
                stage.ready() == oracle.ready()
                and dict(stage.sockets.open) == oracle.subscribed()
                and stage.identities() == {url: identity for url, (identity, _, _) in oracle.listed.items()}
            )

        if oracle.ready() & stage.ready():
            decision = stage.pick()
            assert decision.worker.endpoint.url in stage.ready()
            stage.router.release(decision, 0.0, served=True)
        try:
            await stage.until(holds, what)
        except AssertionError as error:
            for url in stage.identities().keys() ^ oracle.listed.keys() | stage.ready() ^ oracle.ready():
                error.add_note(f"{url}: {oracle.listed.get(url)}, {len(oracle.running.get(url, ()))} requests run; is")
                error.add_note(str([e for at, e in stage.reconciler.view().items() if at.url == url]))
            raise


TRANSITIONS = [
    *(Life.starts, Life.starts, Life.starts, Life.ready, Life.unready, Life.moves, Life.restarts, Life.labels),
    *(Life.fails, Life.terminates, Life.goes, Life.comes_again, Life.asks, Life.asks, Life.answers),
]


async def disturb(life: Life) -> None:
    """The API server has a bad moment; half of the time it forgets what was."""
    server = life.stage.server
    if life.dice.random() < 0.5:
        server.cut()
        return
    await server.stop()
    await life.stage.until(lambda: all(r.problem for r in life.stage.reflectors), "the server is away")
    before = life.stage.ready()
    if life.dice.random() < 0.7:  # of several changes only the last may be seen, or each: two right answers
        life.step()
    assert life.stage.ready() == before  # what was known stays in force
    if life.dice.random() < 0.5:
        server.store.compact()
    await server.start()


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_life_of_200_pods(tmp_path: Path, seed: int) -> None:
    async with FakeKubernetes() as server, cluster_stage(server, tmp_path, ["model.aibrix.ai/name"]) as stage:
        life = Life(stage, seed)
        for number in range(STEPS):
            if number % 50 == 49:
                await disturb(life)
                await life.check(f"after a disturbance before step {number}")
            life.step()
            await life.check(f"step {number}")
        assert life.born == PODS
        reflector = stage.reflectors[0]
        assert server.counted()["list"] <= 1 + reflector.counts["expired"] + reflector.counts["error_unreachable"]
        for name in life.names():
            server.store.delete("pods", name)
        for url in tuple(life.oracle.running):
            for decision in life.oracle.running[url]:
                stage.router.release(decision, 0.0, served=True)
            life.oracle.running[url] = []
        await life.check("nothing is left")
        assert not stage.membership.fleet.workers
        assert not stage.following.streams
        assert not stage.membership.keys
