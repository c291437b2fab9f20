"""Real vLLM's own parser takes what the model's chart starts it with, and knows no flag of the original documents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from charts_rig import MODEL, ROOT, pod_of, rendered
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


def test_vllm_understands_the_charts_arguments() -> None:
    pods = [pod_of(rendered(MODEL, values)) for name, values in combined(MODEL_AXES) if "simulated" not in name]
    containers = [container for pod in pods for container in pod["spec"]["containers"]]
    assert all(container["command"] == ["vllm", "serve"] for container in containers)
    for pod, container, answer in zip(pods, containers, parsed([each["args"] for each in containers]), strict=True):
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


def test_vllm_has_none_of_the_original_documents_flags() -> None:
    answers = parsed([["model", flag] for flag in NO_RELEASE_HAS])
    assert [answer.get("error", "").split(": ")[-1] for answer in answers] == [
        f"unrecognized arguments: {flag}".split(": ")[-1] for flag in NO_RELEASE_HAS
    ]
    assert all("unrecognized arguments" in answer["error"] for answer in answers)
    page = (ROOT / "docs" / "coming-from-aibrix.md").read_text()
    assert all(f"`{flag.partition('=')[0]}`" in page for flag in NO_RELEASE_HAS)
