"""What judges the charts: Helm, kubectl and Kubernetes' own schemas, where they are installed."""

from __future__ import annotations

import os

import charts_rig
import pytest


@pytest.fixture(scope="session")
def tools() -> None:
    """Skips if they are not installed; fails instead where WARMROUTE_REQUIRE_HELM=1 promises that they are."""
    if charts_rig.is_installed():
        return
    problem = f"helm and kubectl are not installed in {charts_rig.render.tools()}: run `make helm`"
    if os.environ.get("WARMROUTE_REQUIRE_HELM") == "1":
        pytest.fail(problem, pytrace=False)
    pytest.skip(problem)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever asks for the tools needs them."""
    for item in items:
        if "tools" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.helm)
