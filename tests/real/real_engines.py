"""What the tests ask of an engine directly."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterable

from vllm_engine import VllmEngine


def empty_cache(engine: VllmEngine) -> None:
    """Reset an engine's prefix cache, and have it say so: the event leaves with the next step only."""
    for path, body in (
        ("/reset_prefix_cache", b""),
        ("/v1/completions", b'{"model": "tiny", "prompt": [300], "max_tokens": 1}'),
    ):
        request = urllib.request.Request(engine.url + path, body, {"content-type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 200


def running(engine: VllmEngine) -> float:
    """How many requests the engine says it is running. An engine that generates lets this wait for seconds."""
    return metric(engine, "vllm:num_requests_running")


def generated(engines: Iterable[VllmEngine]) -> float:
    """How many tokens they have generated since they started."""
    return sum(metric(engine, "vllm:generation_tokens_total") for engine in engines)


def metric(engine: VllmEngine, name: str) -> float:
    """One of its metrics, summed over labels."""
    with urllib.request.urlopen(f"{engine.url}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE))
