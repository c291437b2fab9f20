"""What the tests ask of an engine directly."""

from __future__ import annotations

import re
import urllib.request

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
    """How many requests the engine says it is running."""
    with urllib.request.urlopen(f"{engine.url}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return sum(float(value) for value in re.findall(r"^vllm:num_requests_running\{[^}]*\} (\S+)$", text, re.MULTILINE))
