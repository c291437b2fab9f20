"""Two plain engines behind a gateway, for tests that need nothing special."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from e2e_fleet import Stack, stack_of

from warmroute.testing.engine import EngineOptions


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with stack_of(EngineOptions(loras=("sql",)), EngineOptions(loras=("sql",), seed=1)) as started:
        yield started
