"""Warmroute as a library: the page's own code is run, and importing the package costs nothing."""

from __future__ import annotations

import ast
import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import zmq

import warmroute
from warmroute.core.wire.events import BlockRemoved, BlockStored
from warmroute.testing.engine import EngineOptions, SimulatedEngine
from warmroute.testing.events import encode_batch

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "library.md"
PROMPT = list(range(100, 170))


@pytest.fixture
def page() -> dict[str, Any]:
    """What the page's examples define, run one after the other."""
    namespace: dict[str, Any] = {}
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), namespace)
    return namespace


def announced(first_hash: int = 1) -> bytes:
    stored = BlockStored(
        block_hashes=tuple(range(first_hash, first_hash + 4)), parent=None, token_ids=tuple(PROMPT[:64]), block_size=16
    )
    return encode_batch([stored])


def test_a_request_goes_where_it_is_cached(page: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    one = warmroute.WorkerId(1)
    page["published"](one, announced())
    decision = page["route"](PROMPT)
    assert capsys.readouterr().out == "to 10.0.0.1:8001: overlap, 64 tokens are cached there\n"
    assert page["router"].load.of(one, time.monotonic()).prefill_tokens == len(PROMPT) - 64
    page["answered"](decision)
    page["ended"](decision)
    assert page["router"].load.of(one, time.monotonic()).requests == 0
    assert [row.chosen for row in decision.explain()] == [True, False]
    page["published"](one, encode_batch([BlockRemoved(block_hashes=(1, 2, 3, 4))]))
    assert page["route"](list(PROMPT)).overlap_tokens == 0


def test_what_was_not_taken_up_is_not_believed(page: dict[str, Any]) -> None:
    page["published"](warmroute.WorkerId(0), encode_batch([]))
    page["published"](warmroute.WorkerId(1), announced())
    other = list(range(500, 600))
    decision = page["route"](other)
    page["ended"](decision, served=False)
    assert page["route"](other).overlap_tokens == 0


def test_a_model_that_nobody_serves_is_an_error_by_name(page: dict[str, Any]) -> None:
    with pytest.raises(warmroute.NoWorkerError, match="'other'"):
        page["router"].pick(warmroute.PickRequest(model="other"), page["fleet"], 0.0)


def test_a_policy_of_ones_own(page: dict[str, Any]) -> None:
    page["published"](warmroute.WorkerId(1), announced())
    decision = page["own"].pick(warmroute.PickRequest(model="llama", token_ids=PROMPT), page["fleet"], 0.0)
    assert (decision.worker.id, decision.policy, decision.reason) == (1, "fewest_tokens", "policy")
    assert list(decision.costs) == [70, 6]


async def test_engines_are_followed(page: dict[str, Any]) -> None:
    worker = warmroute.WorkerId(1)
    context = zmq.Context()
    async with SimulatedEngine(EngineOptions(model="llama")) as engine, aiohttp.ClientSession(engine.url) as client:
        body = {"model": "llama", "prompt": PROMPT, "max_tokens": 1}
        async with client.post("/v1/completions", json=body) as response:  # before anybody listens
            assert response.status == 200
        stream = page["follow"](context, worker, engine.events[0])
        ticking = asyncio.create_task(page["ticking"]([stream]))
        await until(lambda: page["fleet"].get(worker).trust.state is warmroute.TrustState.LIVE)
        assert page["fleet"].get(warmroute.WorkerId(0)).trust.state is warmroute.TrustState.BLIND
        decision = page["route"](PROMPT)
        assert (decision.worker.id, decision.overlap_tokens) == (worker, 64)
        ticking.cancel()
        stream.retire()
        assert page["index"].sizes().copies == 0
    context.term()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - what is polled has no event to wait for
            await asyncio.sleep(0.005)


def test_the_stub_names_what_the_package_exports() -> None:
    stub = ast.parse((ROOT / "src" / "warmroute" / "__init__.pyi").read_text())
    imported = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.asname: node.module for node in imported for alias in node.names}
    exported = vars(warmroute)["__all__"]
    assert sorted(map(str, typed)) == exported == sorted(exported)
    for name, home in typed.items():
        assert getattr(warmroute, str(name)) is getattr(sys.modules[str(home)], str(name))
    assert set(exported) <= set(dir(warmroute))


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(AttributeError, match="'warmroute' has no attribute 'Rooter'"):
        warmroute.Rooter  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import warmroute; assert warmroute.__version__; "
        "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT / "src")}
    )
    assert ran.stdout.split() == ["warmroute"]
    code = "import sys; from warmroute import Router, make_index, decode_batch; print('zmq' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT / "src")}
    )
    assert ran.stdout.split() == ["False"]
