"""`warmroute k8s` as users run it, against a fake API server."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e_process import SOURCES, Command

from warmroute.testing.engine import EngineOptions, SimulatedEngine
from warmroute.testing.kubernetes import FakeKubernetes, pod

DATA = Path(__file__).parents[1] / "data" / "deployments"
NAME = "plain"


@pytest.fixture
async def cluster() -> AsyncIterator[FakeKubernetes]:
    async with FakeKubernetes() as cluster:
        deployment = yaml.safe_load((DATA / "plain.yaml").read_text())
        deployment["metadata"]["managedFields"] = [{"manager": "helm", "operation": "Update"}]
        cluster.store.put("deployments", deployment)
        yield cluster


@pytest.fixture
def k8s(cluster: FakeKubernetes, tmp_path: Path) -> Any:
    kubeconfig = cluster.write_kubeconfig(tmp_path)

    async def run(verb: str, *more: str, name: str = NAME) -> tuple[int, str]:
        async with Command("k8s", verb, name, "--kubeconfig", kubeconfig, *more) as command:
            code = await command.exit_code()
        assert "Traceback" not in command.output
        return code, command.output

    return run


def spec(cluster: FakeKubernetes, name: str = NAME) -> Any:
    return copy.deepcopy(cluster.store.objects["deployments", "default", name]["spec"])


def shown_in(said: str) -> str:
    """What was written to stdout: notes go to stderr."""
    return "".join(line for line in said.splitlines(keepends=True) if not line.startswith("note: "))


async def test_on_and_off_again_is_as_it_was(cluster: FakeKubernetes, k8s: Any) -> None:
    before = spec(cluster)
    code, said = await k8s("enable", "--yes")
    assert code == 0, said
    assert "+        - --kv-events-config" in said
    assert "managed by helm too" in said
    assert "deployment/plain is changed" in said
    assert "1 of 1 pods are new" in said
    changed = spec(cluster)
    assert changed != before
    code, said = await k8s("enable", "--yes")
    assert (code, said) == (0, "nothing to change\n")
    assert spec(cluster) == changed
    code, said = await k8s("disable", "--yes")
    assert code == 0, said
    assert spec(cluster) == before
    meta = cluster.store.objects["deployments", "default", NAME]["metadata"]
    assert "warmroute.dev/before-enable" not in (meta.get("annotations") or {})


async def test_nothing_is_changed_unasked(cluster: FakeKubernetes, k8s: Any) -> None:
    before = spec(cluster)
    code, said = await k8s("enable")  # nobody is there to answer
    assert code != 0
    assert "Apply this?" in said
    code, said = await k8s("enable", "--dry-run", "-o", "yaml")
    assert code == 0
    shown = yaml.safe_load(shown_in(said))
    assert shown["spec"]["template"]["spec"]["containers"][1]["args"][-2] == "--kv-events-config"
    assert spec(cluster) == before
    assert "PATCH" not in cluster.counted()


async def test_events_flow_when_it_is_done(cluster: FakeKubernetes, k8s: Any) -> None:
    async with SimulatedEngine(EngineOptions()) as engine:
        annotations = {"warmroute.dev/api-port": str(engine.endpoint.port)}
        labels = {"app": "plain"}
        cluster.store.put("pods", pod("plain-1", "127.0.0.1", labels=labels, annotations=annotations))
        code, said = await k8s("enable", "--yes")
        assert engine.url in said
        assert code in (0, 1), said  # warnings are the simulated engine's own
        code, said = await k8s("status")
        assert "events: on" in said
        assert engine.url in said


async def test_status_says_what_is(cluster: FakeKubernetes, k8s: Any) -> None:
    code, said = await k8s("status")
    assert code == 1
    assert "events: off, or not as they should be\n" in said
    assert "no pod of it takes requests now" in said


async def test_a_rollout_that_does_not_come_is_said(cluster: FakeKubernetes, k8s: Any) -> None:
    cluster.rolls_out = False
    code, said = await k8s("enable", "--yes", "--timeout", "0")
    assert code == 2
    assert "not rolled out within 0 s: 0 of 1 pods are new" in said


async def test_an_image_that_cannot_is_not_rolled_out(cluster: FakeKubernetes, k8s: Any) -> None:
    old = yaml.safe_load((DATA / "variables.yaml").read_text())
    cluster.store.put("deployments", old)
    code, said = await k8s("enable", "--yes", name="llama-8b-instruct")
    assert code == 2
    assert "name a newer one with --image" in said
    assert "PATCH" not in cluster.counted()
    code, said = await k8s("enable", "--yes", "--image", "vllm/vllm-openai:v0.32.0", name="llama-8b-instruct")
    assert code == 0, said


async def test_from_a_file_without_a_cluster(tmp_path: Path) -> None:
    path = DATA / "flags_in_command.yaml"
    async with Command("k8s", "enable", "deepseek-r1-distill-llama-8b", "-f", str(path), "-o", "yaml") as command:
        assert await command.exit_code() == 0
    documents = list(yaml.safe_load_all(shown_in(command.output)))
    assert [each["kind"] for each in documents] == ["Deployment", "Service"]
    async with Command("k8s", "enable", "other", "-f", str(path)) as command:
        assert await command.exit_code() == 2
    assert "the file has no Deployment called 'other'" in command.output


async def test_without_the_extra_there_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "kubernetes_asyncio.py").write_text("raise ImportError")
    path = f"{tmp_path}:{SOURCES}"
    for arguments in (["k8s", "status", "d"], ["serve", "--discovery.kubernetes.enabled", "true"]):
        async with Command(*arguments, PYTHONPATH=path) as command:
            assert await command.exit_code() == 2
        assert "Install it: pip install 'warmroute[kubernetes]'." in command.output
        assert "Traceback" not in command.output
    manifest = str(DATA / "plain.yaml")
    async with Command("k8s", "enable", NAME, "-f", manifest, PYTHONPATH=path) as command:
        assert await command.exit_code() == 0


async def test_what_is_not_there_is_one_line(k8s: Any) -> None:
    code, said = await k8s("enable", name="other")
    assert code == 2
    assert 'deployments "other" not found' in said
    assert said.count("\n") == 1
