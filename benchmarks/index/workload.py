"""What every implementation is given: chains of blocks, from seeds. Standard library only."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

M64 = (1 << 64) - 1
BLOCK_SIZE = 16
VOCABULARY = range(128_000)


def splitmix(x: int) -> int:
    z = x = (x + 0x9E3779B97F4A7C15) & M64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
    return z ^ (z >> 31)


@dataclass(frozen=True, slots=True)
class Chain:
    """Blocks from the beginning of a prompt, said in all the ways that implementations want to hear it."""

    hashes: Sequence[int]
    """The engine's, of each block."""
    contents: Sequence[int]
    """A number for the content of each block alone: what some call its tokens hash."""
    tokens: Sequence[int]

    def salted(self, salt: int) -> Chain:
        """The same content as an engine names it whose hash seed is another."""
        mask = splitmix(salt + 1_000) if salt else 0
        return Chain([name ^ mask for name in self.hashes], self.contents, self.tokens)

    def pieces(self, blocks: int) -> Iterator[tuple[int, int]]:
        """Ranges of so many blocks each, one after another."""
        return ((start, min(start + blocks, len(self.hashes))) for start in range(0, len(self.hashes), blocks))


def token_ids(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(VOCABULARY, k=count)


def chain(seed: int, depth: int) -> Chain:
    start = seed * 1_000_003
    hashes = [splitmix(start + 2 * i) for i in range(depth)]
    contents = [splitmix(start + 2 * i + 1) for i in range(depth)]
    return Chain(hashes, contents, token_ids(depth * BLOCK_SIZE, seed))


@cache
def _content(number: int) -> tuple[int, list[int]]:
    return splitmix(number + 77_777), token_ids(BLOCK_SIZE, number)


def chain_of(numbers: Sequence[int]) -> Chain:
    """A chain whose blocks' contents are numbered, as traces have it."""
    hashes, before = [], 0
    for number in numbers:
        before = splitmix(before ^ splitmix(number + 1))
        hashes.append(before)
    blocks = [_content(number) for number in numbers]
    return Chain(hashes, [content for content, _ in blocks], [token for _, tokens in blocks for token in tokens])
