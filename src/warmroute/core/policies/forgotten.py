"""How much of what is computed had been computed before, and nobody holds any more: so short is room in the caches.

Prompts are remembered at marks (`in_use.py`): what was forgotten is known to within a third of the prompt, and never
taken for more than it is.

Invariant: `share` is from 0 to 1, and 0 as long as some worker holds what was asked before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from warmroute.core.policies.in_use import Mark
from warmroute.types import PrefixHash

OF_LATE: Final = 0.005
"""How much one request says of the share: some two hundred of late matter."""
REMEMBERED_MAX: Final = 100_000
"""Marks, in each of two generations: 5,000 long prompts or more, 20 MB or less. A mark that was not asked for during a
whole generation goes."""


class Forgotten:
    """What was asked of late, and how much of it was computed again."""

    def __init__(self) -> None:
        self._young: set[PrefixHash] = set()
        self._old: set[PrefixHash] = set()
        self._again = self._computed = 0.0

    @property
    def share(self) -> float:
        """Of what was computed of late, what had been asked before and nobody held."""
        return self._again / self._computed if self._again else 0.0

    def asked(self, marked: Sequence[Mark], blocks: int, best: int, held: int) -> None:
        """A prompt of so many blocks that can be cached; the best holder has `best` of them, who computes it `held`."""
        before, young = 0, self._young
        for mark, prefix in reversed(marked):
            if prefix in young:  # and so are its own beginnings
                before = before or mark
                break
            if not before and prefix in self._old:
                before = mark
            young.add(prefix)
        if len(young) > REMEMBERED_MAX:
            self._old, self._young = young, set()
        self._again += (max(0, min(before, blocks) - best) - self._again) * OF_LATE
        self._computed += (blocks - held - self._computed) * OF_LATE
