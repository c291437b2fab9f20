"""The doctor before real vLLM: set up as it should be, and with a publisher that connects instead of binding."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vllm_engine
from vllm_engine import EngineOptions, VllmEngine

Engines = Sequence[VllmEngine]


def examine(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the command as users do: its exit code, and what it says."""
    patience = ("--membership.probe_timeout_s", "20", "--tokenizer.timeout_s", "20")
    command = [sys.executable, "-m", "warmroute", "doctor", "--json", *patience, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


def bad(report: dict[str, Any], engine: int = 0) -> dict[str, str]:
    """Code -> remedy of what is not well with an engine."""
    return {f["code"]: f["remedy"] for f in report["engines"][engine]["findings"] if f["severity"] != "ok"}


def test_engines_as_they_should_be(cold: Engines) -> None:
    model = str(cold[0].options.model)
    status, report = examine("--send-request", "--tokenizer.path", model, *(engine.url for engine in cold))
    assert [bad(report, number) for number in range(len(cold))] == [{}, {}]
    assert (status, report["worst"]) == (0, "ok")
    found = {f["code"]: f["found"] for f in report["engines"][0]["findings"]}
    assert found["version"] == f"vLLM {vllm_engine.VERSION}"
    assert found["trial"] == "rank 0: 64 cached tokens predicted and reported"
    assert found["block_size"].startswith("32 tokens, as its events say")
    assert "chat template included" in found["tokenizer"]


def test_an_engine_that_connects_and_one_that_publishes_nothing(installed: None, tmp_path: Path) -> None:
    """With `tcp://127.0.0.1:PORT` for `tcp://*:PORT`, and without caching or events."""
    model = vllm_engine.make_model()
    connecting = VllmEngine(EngineOptions(model=model, blocks=160), tmp_path / "connecting.log")
    events = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": connecting.events_endpoint,
        "replay_endpoint": connecting.replay_endpoint,
    }
    wrong = EngineOptions(model=model, blocks=160, arguments=("--kv-events-config", json.dumps(events)))
    connecting.options = wrong
    off = ("--no-enable-prefix-caching", "--kv-events-config", json.dumps({"enable_kv_cache_events": False}))
    silent = VllmEngine(EngineOptions(model=model, blocks=160, arguments=off), tmp_path / "silent.log")
    with vllm_engine.running([connecting, silent]):
        status, report = examine(connecting.url, silent.url)
    assert status == 2
    assert bad(report, 0).keys() == {"publisher_connects"}
    assert f'"endpoint":"tcp://*:{connecting.events_port}"' in bad(report, 0)["publisher_connects"]
    assert bad(report, 1).keys() == {"events_off", "prefix_caching_off"}
