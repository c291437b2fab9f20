"""The prefix index: which worker holds how much of a prompt's beginning.

`contract` says what any implementation promises; `reference` is the slow, obviously right one.
"""

from __future__ import annotations

from warmroute.core.index.contract import PrefixIndex
from warmroute.core.index.reference import ReferenceIndex

__all__ = ["PrefixIndex", "make_index"]


def make_index(orphan_blocks_max: int, blocks_max: int | None = None) -> PrefixIndex:
    """The fastest index there is here. `orphan_blocks_max`: per worker; `blocks_max`: copies in all, None: no limit."""
    return ReferenceIndex(orphan_blocks_max, blocks_max)
