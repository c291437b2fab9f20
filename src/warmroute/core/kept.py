"""Token ids of text that was seen lately.

Two generations stand in for an order of use, so that finding costs one look-up and no bookkeeping: what is found in the
elder moves to the younger. Room is made by letting the elder go, one by one; when it is empty, the younger takes its
place. So whatever is used at least once in a generation stays, and nothing ever waits for thousands of texts to go.

Invariant: texts kept have at most `chars_max` characters together.
"""

from __future__ import annotations

from collections.abc import Sequence


class Kept:
    """Text -> ids, as 32-bit integers of this machine; the empty text has none and is always known."""

    def __init__(self, chars_max: int) -> None:
        self.chars = 0
        self._chars_max = chars_max
        self._young: dict[str, bytes] = {"": b""}
        self._old: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._young) - 1 + len(self._old)

    def __contains__(self, text: str) -> bool:
        return text in self._young or text in self._old

    def all(self, texts: Sequence[str]) -> list[bytes] | None:
        """The ids of all of them, if all are in use."""
        young = self._young
        try:
            return [young[text] for text in texts]
        except KeyError:
            return None

    def look(self, texts: Sequence[str]) -> tuple[dict[str, bytes], list[str]]:
        """The ids of those that are known, which are in use from now on, and those that are not, each once."""
        known: dict[str, bytes] = {}
        missing: dict[str, None] = {}
        for text in texts:
            ids = self._young.get(text)
            if ids is None and (ids := self._old.pop(text, None)) is not None:
                self._young[text] = ids
            if ids is None:
                missing[text] = None
            else:
                known[text] = ids
        return known, list(missing)

    def keep(self, text: str, ids: bytes) -> None:
        """Keep these; what was not in use for longest goes."""
        if text in self:
            return
        self._young[text] = ids
        self.chars += len(text)
        while self.chars > self._chars_max:
            if not self._old:
                self._old, self._young = self._young, {"": b""}
                del self._old[""]
            self.chars -= len(self._old.popitem()[0])
