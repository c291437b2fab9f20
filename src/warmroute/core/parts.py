"""A prompt's ids, put together from parts that are known: the rendered messages of a conversation.

A text is cut at special tokens, and what lies between two of them is tokenized by itself. So of a part that holds
special tokens everything from its first to its last one has the same ids whatever stands around it; only what comes
before and behind these meets the neighbours' open ends, and is tokenized together with them.

Invariant: `join` of the parts of a text gives the ids of the whole text, however it was cut into parts; provided that
special tokens cannot overlap (`never_overlap`), so that no neighbour changes which ones a part holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec


class Part(msgspec.Struct, frozen=True, gc=False):
    """A piece of text. Ids are 32-bit integers of this machine."""

    head: str
    """What comes before the first special token: everything, if there is none."""
    ids: bytes | None
    """From the first special token to the last; None if there is none."""
    tail: str
    """What comes behind the last one."""
    closed: bytes | None
    """All ids, if the next part begins with a special token and so does this one, or is empty; None if it does not."""


def join(parts: Sequence[Part], seam: Callable[[str], bytes | None]) -> bytes | None:
    """The ids of the parts one after the other.

    `seam` gives those of the text where they meet, or None: then nothing is known of the whole.
    """
    closed = [part.closed for part in parts]
    if None not in closed:  # nearly always
        return b"".join(closed)  # type: ignore[arg-type]  # see above
    found: list[bytes | None] = []
    text = ""
    for part in parts:
        text += part.head
        if part.ids is not None:
            found += seam(text), part.ids
            text = part.tail
    found.append(seam(text))
    return None if None in found else b"".join(found)  # type: ignore[arg-type]  # see above


def never_overlap(specials: Iterable[str]) -> bool:
    """Whether no two of these can share characters of a text."""
    texts = set(specials)
    if "" in texts:
        return False
    beginnings: dict[str, set[str]] = {}
    for text in texts:
        for end in range(1, len(text)):
            beginnings.setdefault(text[:end], set()).add(text)
    if any(text[start:] in beginnings for text in texts for start in range(1, len(text))):
        return False
    return all(texts.isdisjoint(_strictly_within(text)) for text in texts)


def _strictly_within(text: str) -> set[str]:
    cuts = ((start, end) for start in range(len(text)) for end in range(start + 1, len(text) + 1))
    return {text[start:end] for start, end in cuts if end - start < len(text)}
