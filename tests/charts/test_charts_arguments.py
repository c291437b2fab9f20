"""Real vLLM's own parser takes what the model's chart starts it with, and knows no flag of the original documents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from charts_rig import MODEL, ROOT, Document, pod_of, rendered
from charts_values import MODEL_AXES, combined

sys.path.insert(0, str(ROOT / "scripts" / "vllm"))

import vllm_engine

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("tools")]
NO_RELEASE_HAS = (
    "--enable-kv-cache-events",
    "--kv-events-publisher=zmq",
    "--kv-events-endpoint=tcp://*:5557",
    "--kv-events-replay-endpoint=tcp://*:5558",
    "--kv-events-buffer-steps=10000",
    "--kv-events-topic=m",
)


@pytest.fixture(scope="module")
def pods(tools: None) -> list[Document]:
    return [pod_of(rendered(MODEL, values)) for name, values in combined(MODEL_AXES) if "simulated" not in name]


@pytest.fixture(scope="module")
def answers(pods: list[Document]) -> list[dict[str, Any]]:
    """vLLM's, to every pod's arguments and then to every flag: one start of it for all."""
    charts = [container["args"] for pod in pods for container in pod["spec"]["containers"]]
    return parsed(charts + [["model", flag] for flag in NO_RELEASE_HAS])


def parsed(lists: list[list[str]]) -> list[dict[str, Any]]:
    if not vllm_engine.is_installed():
        if os.environ.get("WARMROUTE_REQUIRE_VLLM") == "1":
            pytest.fail("real vLLM is not installed: run `make vllm`", pytrace=False)
        pytest.skip("real vLLM is not installed: run `make vllm`")
    command = [vllm_engine.vllm_environment() / "bin" / "python", ROOT / "scripts" / "vllm" / "parse_arguments.py"]
    done = subprocess.run(command, input=json.dumps(lists), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_vllm_understands_the_charts_arguments(pods: list[Document], answers: list[dict[str, Any]]) -> None:
    for pod, answer in zip(pods, answers, strict=False):
        (container,) = pod["spec"]["containers"]
        assert container["command"] == ["vllm", "serve"]
        values = answer.get("values")
        assert values, (answer, container["args"])
        labels, annotations = pod["metadata"]["labels"], pod["metadata"]["annotations"]
        prefix = "warmroute.dev" if "warmroute.dev/name" in labels else "model.aibrix.ai"
        assert values["served_model_name"] == [labels[f"{prefix}/name"]]
        assert str(values["port"]) == labels[f"{prefix}/port"]
        assert str(values["data_parallel_size"]) == annotations["warmroute.dev/data-parallel-size"]
        events = values["kv_events_config"]
        assert bool(events) == (f"{prefix}/kv-events-enabled" in labels)
        if events:
            assert events["enable_kv_cache_events"] is True
            assert events["publisher"] == "zmq"
            assert events["endpoint"] == f"tcp://*:{annotations['warmroute.dev/events-port']}"
            assert events["replay_endpoint"] == f"tcp://*:{annotations['warmroute.dev/replay-port']}"
            assert events["topic"] == annotations.get("warmroute.dev/topic", "")


def test_vllm_has_none_of_the_original_documents_flags(answers: list[dict[str, Any]]) -> None:
    refusals = [answer.get("error", "") for answer in answers[-len(NO_RELEASE_HAS) :]]
    assert [refusal.partition("unrecognized arguments: ")[2] for refusal in refusals] == list(NO_RELEASE_HAS)
    page = (ROOT / "docs" / "coming-from-aibrix.md").read_text()
    assert all(f"`{flag.partition('=')[0]}`" in page for flag in NO_RELEASE_HAS)
