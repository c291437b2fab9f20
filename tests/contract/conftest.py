"""The implementations that tests/contract holds to `warmroute.core.index.contract`: a new one is one line here."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from warmroute.core.index.contract import PrefixIndex
from warmroute.core.index.native import NativeIndex
from warmroute.core.index.reference import ReferenceIndex

MakeIndex = Callable[..., PrefixIndex]

IMPLEMENTATIONS: dict[str, MakeIndex] = {
    "reference": ReferenceIndex,
    "native": NativeIndex,
}


@pytest.fixture(params=IMPLEMENTATIONS)
def make_index(request: pytest.FixtureRequest) -> MakeIndex:
    """`make_index(orphan_blocks_max, blocks_max=None, worker_blocks_max=None)`."""
    return IMPLEMENTATIONS[request.param]
