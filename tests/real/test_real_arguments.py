"""What `warmroute k8s enable` writes is what real vLLM takes: its own parser reads it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import vllm_engine
import yaml

from warmroute.core.deployments import enabled

DATA = Path(__file__).parents[1] / "data" / "deployments"
SAMPLES = sorted(DATA.glob("*.yaml"))

PARSE = """
import json, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

def parsed(words):
    parser = make_arg_parser(FlexibleArgumentParser())
    args = parser.parse_args(words)
    validate_parsed_serve_args(args)
    events = AsyncEngineArgs.from_cli_args(args).kv_events_config
    names = "enable_kv_cache_events", "publisher", "endpoint", "replay_endpoint", "buffer_steps", "hwm", "topic"
    return {name: getattr(events, name) for name in names}

print(json.dumps([parsed(words) for words in json.load(sys.stdin)]))
"""


def words_of(deployment: dict[str, Any]) -> list[str]:
    """The arguments of the container that runs vLLM, without how it is started."""
    container = deployment["spec"]["template"]["spec"]["containers"][-1]
    words = [*container.get("command", ()), *container.get("args", ())]
    return words[next((i for i, word in enumerate(words) if word.startswith("--")), len(words)) :]


@pytest.mark.vllm
def test_the_arguments_of_every_sample_are_accepted(installed: None) -> None:
    before = [next(yaml.safe_load_all(path.read_text())) for path in SAMPLES]
    words = [words_of(enabled(each).deployment) for each in before]
    python = vllm_engine.vllm_environment() / "bin" / "python"
    done = subprocess.run([python, "-c", PARSE], input=json.dumps(words), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for path, events in zip(SAMPLES, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert events["enable_kv_cache_events"], path
        assert (events["publisher"], events["endpoint"]) == ("zmq", "tcp://*:5557"), path
        assert events["replay_endpoint"] in ("tcp://*:5558", "tcp://*:5567"), path
    assert json.loads(done.stdout.splitlines()[-1])[-1]["hwm"] == 100_000  # of the variables


@pytest.mark.vllm
def test_the_flags_that_documents_name_are_refused(installed: None) -> None:
    """Why they are taken out: no release has them."""
    words = [words_of(next(yaml.safe_load_all((DATA / "args.yaml").read_text())))]
    python = vllm_engine.vllm_environment() / "bin" / "python"
    done = subprocess.run([python, "-c", PARSE], input=json.dumps(words), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unrecognized arguments: --enable-kv-cache-events" in done.stderr
