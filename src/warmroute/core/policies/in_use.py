"""Which beginnings of prompts are in use at a worker more than once: engines hold their blocks once.

Whoever adds up the prompts in flight counts each by itself. Where prompts begin alike is looked up at marks, two for
each doubling of their length: what is shared is known to within a third of it, and never taken for more than it is.

Invariant: what is shared depends on nothing but the prompts that are in use, in whatever order they came and went.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final, TypeAlias

from warmroute.types import PrefixHash, WorkerId

MARKS: Final = tuple(sorted({1, *(2**n for n in range(1, 20)), *(3 * 2**n for n in range(20))}))
"""Blocks."""

Mark: TypeAlias = tuple[int, PrefixHash]
"""So many blocks, and what they are."""


def marks(chain: Sequence[PrefixHash]) -> list[Mark]:
    """What a prompt is remembered by, from its beginning on."""
    return [(mark, chain[mark - 1]) for mark in MARKS[: bisect_right(MARKS, len(chain))]]


class InUse:
    """Prompts in use by worker, as far as they begin alike."""

    def __init__(self) -> None:
        self.shared: dict[WorkerId, int] = {}
        """Blocks that a sum over all prompts in use at the worker counts too often; only where there are any."""
        self._uses: dict[WorkerId, dict[PrefixHash, int]] = {}

    def begin(self, worker: WorkerId, marked: Sequence[Mark]) -> None:
        """A prompt is in use there from now on."""
        if not marked:
            return
        if (uses := self._uses.get(worker)) is None:
            uses = self._uses[worker] = {}
        shared = 0
        for mark, prefix in marked:
            if before := uses.get(prefix, 0):
                shared = mark
            uses[prefix] = before + 1
        if shared:
            self.shared[worker] = self.shared.get(worker, 0) + shared

    def end(self, worker: WorkerId, marked: Sequence[Mark]) -> None:
        """One that has begun is not any more."""
        if not marked:
            return
        uses, shared = self._uses[worker], 0
        for mark, prefix in marked:
            if left := uses[prefix] - 1:
                shared, uses[prefix] = mark, left
            else:
                del uses[prefix]
        if not uses:
            del self._uses[worker]
        if shared:
            self.shared[worker] -= shared
            if not self.shared[worker]:
                del self.shared[worker]
