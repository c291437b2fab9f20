"""What is known of texts that were seen lately: their token ids.

Two generations stand in for an order of use, so that finding costs one look-up and no bookkeeping: what is found in the
elder moves to the younger. Room is made by letting the elder go, one by one; when it is empty, the younger takes its
place. So whatever is used at least once in a generation stays, and nothing ever waits for thousands of texts to go.

Invariant: texts kept have at most `chars_max` characters together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Generic, TypeVar

K = TypeVar("K", bound=Sized)
V = TypeVar("V")


class Kept(Generic[K, V]):
    """Text (or its bytes) -> what is known of it; `always` is known whatever was seen."""

    def __init__(self, chars_max: int, always: Mapping[K, V]) -> None:
        self.chars = 0
        self._chars_max = chars_max
        self._always = always
        self._young: dict[K, V] = dict(always)
        self._old: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._young) - len(self._always) + len(self._old)

    def __contains__(self, text: K) -> bool:
        return text in self._young or text in self._old

    def all(self, texts: Sequence[K]) -> list[V] | None:
        """What is known of all of them, if all are in use."""
        young = self._young
        try:
            return [young[text] for text in texts]
        except KeyError:
            return None

    def get(self, text: K) -> V | None:
        """What is known of it; it is in use from now on."""
        found = self._young.get(text)
        if found is None and (found := self._old.pop(text, None)) is not None:
            self._young[text] = found
        return found

    def look(self, texts: Sequence[K]) -> tuple[dict[K, V], list[K]]:
        """What is known of those that are known, which are in use from now on, and the others, each once."""
        known: dict[K, V] = {}
        missing: dict[K, None] = {}
        for text in texts:
            found = self.get(text)
            if found is None:
                missing[text] = None
            else:
                known[text] = found
        return known, list(missing)

    def keep(self, text: K, found: V) -> None:
        """Keep this; what was not in use for longest goes."""
        if text in self:
            return
        self._young[text] = found
        self.chars += len(text)
        while self.chars > self._chars_max:
            if not self._old:
                self._old, self._young = self._young, dict(self._always)
                for each in self._always:
                    del self._old[each]
            self.chars -= len(self._old.popitem()[0])
