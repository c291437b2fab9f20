"""The stage is set on asyncio's loop and on uvloop: what holds must not depend on the loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop
from wires import Stage, World


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    for wire in world.wires:
        wire.abort()
    for cleanup in reversed(world.cleanups):
        await cleanup()
    await asyncio.sleep(0)


@pytest.fixture
async def stage(world: World) -> Stage:
    return await world.stage()
