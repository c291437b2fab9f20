"""The repository's recordings of a real vLLM, which name tokens and hashes by small numbers, as recordings to replay.

What they leave out of an event, its token ids, follows from the requests of its round: a chain of blocks is a piece of
one of them, behind the tokens that its parent stands for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recordings import CLEARED, Json, pub, request

from warmroute.core.wire.events import BlockRemoved, BlockStored, Event

DATA = Path(__file__).parents[1] / "data"


def converted(path: Path) -> Iterator[Json]:
    """The records of one file. Rounds follow each other; within a round, events come while its requests run."""
    head, *rounds = map(json.loads, path.read_text().splitlines())
    size = head["block_size"]
    yield {"k": "meta", "t": 0.0, "version": head["release"], "cache_config": {"block_size": str(size)}}
    prefixes: dict[int, tuple[int, ...]] = {}
    seq = number = 0
    for turn, recorded in enumerate(rounds, 1):
        t = 10.0 * turn
        if "reset" in recorded:
            yield {"k": "admin", "t": t, "path": "/reset_prefix_cache", "status": 200, "text": '{"success":true}'}
            continue
        asked = recorded["requests"]
        for offset, one in enumerate(asked):
            yield request(t + offset / 100, t + 9, number, one["prompt"], one["cached_tokens"])
            number += 1
        texts = [tuple(one["prompt"]) + tuple(one["completion"]) for one in asked]
        for batch in recorded["batches"]:
            t += 0.1
            yield pub(t, seq, *(_event(event, texts, prefixes, size) for event in batch))
            seq += 1


def _event(event: list[Any], texts: list[tuple[int, ...]], prefixes: dict[int, tuple[int, ...]], size: int) -> Event:
    if event[0] == "cleared":
        return CLEARED
    if event[0] == "removed":
        return BlockRemoved(block_hashes=tuple(event[1]))
    _, hashes, parent, tokens = event
    before = () if parent is None else prefixes[parent]
    text = next(text for text in texts if _fits(text, before, hashes, prefixes, size))
    for position, block in enumerate(hashes, 1):
        prefixes[block] = text[: len(before) + position * size]
    stored = text[len(before) : len(before) + tokens]
    return BlockStored(block_hashes=tuple(hashes), parent=parent, token_ids=stored, block_size=size)


def _fits(
    text: tuple[int, ...], before: tuple[int, ...], hashes: list[int], prefixes: dict[int, tuple[int, ...]], size: int
) -> bool:
    """Whether the blocks can be a piece of `text`: behind their parent's, and what is known of them is the same."""
    if text[: len(before)] != before or len(text) < len(before) + len(hashes) * size:
        return False
    return all(
        block not in prefixes or prefixes[block] == text[: len(before) + position * size]
        for position, block in enumerate(hashes, 1)
    )
