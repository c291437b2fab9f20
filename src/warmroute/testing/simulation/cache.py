"""What one run of a model engine caches: blocks of a small tree of prompts, in GPU and host memory, with copies.

It tells the same stories as real engines, at the size at which every one of them happens within a minute: shared
prefixes, evictions before the store that needs the room, several copies of one block, offloaded copies announced with
or without tokens, resets that are announced with the next step only.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Literal, TypeAlias

from warmroute.core.hashing import prefix_hashes
from warmroute.core.wire.events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from warmroute.types import BlockHash, Medium, PrefixHash

Path: TypeAlias = tuple[int, ...]
"""Which branch a prompt takes at each depth: it is the prompt's blocks, one number each."""
Held: TypeAlias = dict[tuple[BlockHash, Medium], int]
"""Copies by hash and medium."""
HashForm: TypeAlias = Literal["int", "signed", "bytes"]

BLOCK_SIZE = 2
_DEPTH_MAX = 6
_BRANCHES = 3


def tokens_of(path: Path) -> list[int]:
    """The token ids of a prompt."""
    return [token for depth, branch in enumerate(path) for token in (depth, branch)]


@lru_cache(maxsize=4096)
def prefixes_of(path: Path) -> tuple[PrefixHash, ...]:
    """Our hashes of a prompt's blocks."""
    return tuple(prefix_hashes(tokens_of(path), BLOCK_SIZE))


class ModelCache:
    """At most `blocks_max` copies in GPU memory. `salt` decides the hashes; `offloads`: is there another medium.

    `held` is the truth after the last step; `paths` says what every hash means that was ever stored.
    """

    def __init__(self, blocks_max: int, salt: int, form: HashForm, *, offloads: bool) -> None:
        self.held: Held = {}
        self.paths: dict[BlockHash, Path] = {}
        self._blocks_max = blocks_max
        self._salt = salt
        self._form = form
        self._offloads = offloads
        self._recent: dict[BlockHash, None] = {}
        """What is in GPU memory, least recently used first."""
        self._copies = 0
        self._events: list[Event] = []

    def reset(self) -> None:
        """Forget everything; the engine says so with its next step."""
        self.held.clear()
        self._recent.clear()
        self._copies = 0
        self._events.append(AllBlocksCleared())

    def step(self, luck: random.Random) -> list[Event]:
        """One prompt is computed: what is published of it."""
        path = tuple([luck.randrange(_BRANCHES) for _ in range(luck.randint(1, _DEPTH_MAX))])
        hashes = [self._hash(path[: depth + 1]) for depth in range(len(path))]
        hits = next((n for n, name in enumerate(hashes) if name not in self._recent), len(hashes))
        if hits == len(hashes):  # As vLLM: the last block of an aligned prompt is computed again, into a second copy.
            hits -= 1
        self._make_room(len(hashes) - hits, set(hashes))
        self._store(path, hashes, hits, Medium.GPU)
        for name in hashes:
            self._recent[name] = self._recent.pop(name, None)
        if self._offloads and luck.random() < 0.3:
            self._offload(path, hashes, luck)
        events, self._events = self._events, []
        return events

    def _store(self, path: Path, hashes: list[BlockHash], first: int, medium: Medium, *, told: bool = True) -> None:
        for depth in range(first, len(path)):
            name = hashes[depth]
            self.held[name, medium] = self.held.get((name, medium), 0) + 1
            self.paths[name] = path[: depth + 1]
            self._copies += medium is Medium.GPU
        self._events.append(
            BlockStored(
                block_hashes=tuple(hashes[first:]),
                parent=hashes[first - 1] if first and told else None,
                token_ids=tuple(tokens_of(path)[first * BLOCK_SIZE :]) if told else (),
                block_size=BLOCK_SIZE,
                medium=medium,
            )
        )

    def _remove(self, name: BlockHash, medium: Medium) -> None:
        left = self.held[name, medium] - 1
        self.held[name, medium] = left
        if not left:
            del self.held[name, medium]
        if medium is Medium.GPU:
            self._copies -= 1
            if not left:
                del self._recent[name]
        self._events.append(BlockRemoved(block_hashes=(name,), medium=medium))

    def _make_room(self, wanted: int, kept: set[BlockHash]) -> None:
        while self._copies + wanted > self._blocks_max:
            victim = next((name for name in self._recent if name not in kept), None)
            if victim is None:
                return
            self._remove(victim, Medium.GPU)

    def _offload(self, path: Path, hashes: list[BlockHash], luck: random.Random) -> None:
        """Copy the prompt's last blocks to host memory, or take what lies there away."""
        there = [name for name, medium in self.held if medium is Medium.CPU]
        if len(there) > self._blocks_max // 2:
            for name in luck.sample(there, len(there) // 2):
                self._remove(name, Medium.CPU)
        first = luck.randrange(len(path))
        if all((name, Medium.CPU) not in self.held for name in hashes[first:]):
            self._store(path, hashes, first, Medium.CPU, told=luck.random() < 0.5)

    def _hash(self, path: Path) -> BlockHash:
        number = hash((self._salt, *path)) & (1 << 64) - 1
        if self._form == "bytes":
            return number.to_bytes(8, "big") * 4
        return number - (1 << 64) if self._form == "signed" and number >> 63 else number
