"""Real vLLM engines for the tests: two, started side by side once, and ended with the session whatever happens."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "vllm"))

import vllm_engine  # noqa: E402  (found by the path above)
from gateway_process import GatewayProcess  # noqa: E402
from real_engines import empty_cache  # noqa: E402
from vllm_engine import EngineOptions, VllmEngine  # noqa: E402

Engines = Sequence[VllmEngine]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs real vLLM."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)


@pytest.fixture(scope="session")
def installed() -> None:
    """Skips if vLLM is not installed; fails instead where WARMROUTE_REQUIRE_VLLM=1 promises that it is."""
    if vllm_engine.is_installed():
        return
    problem = f"real vLLM is not installed in {vllm_engine.vllm_environment()}: run `make vllm`"
    if os.environ.get("WARMROUTE_REQUIRE_VLLM") == "1":
        pytest.fail(problem, pytrace=False)
    pytest.skip(problem)


@pytest.fixture(scope="session")
def engines(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Two engines with room for 5 kilotokens each: enough for a workload, little enough to be put under pressure."""
    logs = tmp_path_factory.mktemp("engines")
    options = EngineOptions(
        model=vllm_engine.make_model(),
        blocks=160,
        arguments=("--enable-scale-out", "--enable-lora", "--max-loras", "2", "--max-lora-rank", "8"),
        environment={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"},
    )
    with vllm_engine.running([VllmEngine(options, logs / f"engine-{i}.log") for i in range(2)]) as started:
        yield started


@pytest.fixture
def cold(engines: Engines) -> Engines:
    """The engines with empty caches."""
    for engine in engines:
        empty_cache(engine)
    return engines


@pytest.fixture
def gateway(cold: Engines, tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway with default settings in front of both engines, whose caches are empty."""
    with GatewayProcess(cold, tmp_path / "gateway.log") as started:
        yield started
