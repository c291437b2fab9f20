"""The prefix index: which worker holds how much of a prompt's beginning.

`contract` says what any implementation promises; `reference` is the slow, obviously right one, `native` the fast one.
"""

from __future__ import annotations

from warmroute.core.index.contract import PrefixIndex
from warmroute.core.index.reference import ReferenceIndex

try:
    from warmroute.core.index.native import NativeIndex
except ImportError:
    NATIVE = False
else:
    NATIVE = True
"""Whether the native core is built: without it, indexes are slower and larger, and answer the same."""

__all__ = ["NATIVE", "PrefixIndex", "make_index"]


def make_index(
    orphan_blocks_max: int, blocks_max: int | None = None, worker_blocks_max: int | None = None
) -> PrefixIndex:
    """The fastest index there is here.

    `orphan_blocks_max`: copies that are parked, per worker; `blocks_max`: copies in all, `worker_blocks_max`: of each
    worker (None: no limit).
    """
    return (NativeIndex if NATIVE else ReferenceIndex)(orphan_blocks_max, blocks_max, worker_blocks_max)
