"""A paged prefix cache without the pages: who holds which block, and what is published of it.

The bookkeeping of vLLM's v1 block pool, told in its observable terms. A fixed number of physical blocks lies either
with sequences or in one free queue, and a free block keeps its content until it is needed for another one::

        taken from here                                                  put back here
    free: [uncached ... , least recently freed ........ most recently freed]
              ^ blocks without a hash go back to the front (0.24 and later)

Invariants: a block is free exactly if nobody refers to it; a block that has a hash is found under it, free or not; the
same hash may lie in several blocks, and each copy is announced and removed on its own. Block 0 is never used.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias


class Content(NamedTuple):
    """What else than tokens makes a sequence's blocks distinct, and what is published of it."""

    lora_name: str | None = None
    lora_id: int | None = None
    lora_source: str | None = None
    """What the adapter's blocks are told apart by: name and path, or the name alone before 0.31."""
    salt: str | None = None
    session_id: str | None = None

    def extra_keys(self, block: int) -> tuple[str, ...]:
        """The published extra keys of the sequence's block number `block`."""
        salt = self.salt if block == 0 else None
        return tuple(key for key in (self.lora_name, salt) if key)


PLAIN = Content()
"""The base model, nothing else."""


class Stored(NamedTuple):
    """A chain of blocks became full in one step of one sequence."""

    digests: tuple[bytes, ...]
    parent: bytes | None
    token_ids: tuple[int, ...]
    block_size: int
    first_block: int
    """Number of the first of these blocks in its sequence."""
    content: Content


class Removed(NamedTuple):
    """One copy of this block was taken for another content."""

    digest: bytes


class Cleared(NamedTuple):
    """Nothing is cached any more."""


CacheEvent: TypeAlias = Stored | Removed | Cleared


@dataclass(slots=True, eq=False)
class Pages:
    """One sequence as the cache sees it: its tokens, the hashes of its full blocks, and the blocks that hold it."""

    tokens: list[int]
    content: Content = PLAIN
    digests: list[bytes] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    cached: int = 0
    """How many of `blocks`, from the first, can be found by hash."""


class PagedCache:
    """`blocks` physical blocks of `block_size` tokens; `root` is the parent of every first block's hash."""

    def __init__(self, blocks: int, block_size: int, *, root: bytes = b"", reuse_uncached_first: bool = True) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self._root = root
        self._reuse_uncached_first = reuse_uncached_first
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, blocks))
        self._references = [0] * blocks
        self._digest: list[bytes | None] = [None] * blocks
        self._copies: dict[bytes, dict[int, None]] = {}
        self._events: list[CacheEvent] = []

    @property
    def used(self) -> int:
        """Blocks that sequences hold now."""
        return self.blocks - 1 - len(self._free)

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences hold now: 0 when idle, however much is cached."""
        return self.used / (self.blocks - 1)

    @property
    def cached_blocks(self) -> int:
        """Blocks that can be hit, every copy counted."""
        return sum(map(len, self._copies.values()))

    def match(self, pages: Pages) -> list[int]:
        """The blocks that hold the leading tokens. The last token never hits: its logits must be computed."""
        self._hash(pages)
        hits: list[int] = []
        for digest in pages.digests[: (len(pages.tokens) - 1) // self.block_size]:
            copies = self._copies.get(digest)
            if copies is None:
                break
            hits.append(next(iter(copies)))
        return hits

    def allocate(self, pages: Pages, hits: Sequence[int], tokens: int) -> bool:
        """Make `pages` hold its first `tokens` tokens, beginning with `hits` if it holds nothing yet.

        Full blocks are announced at once, as vLLM does when it schedules them. False, and nothing is changed, if there
        are not enough free blocks.
        """
        wanted = -(-tokens // self.block_size) - len(pages.blocks) - len(hits)
        if max(wanted, 0) + sum(self._references[block] == 0 for block in hits) > len(self._free):
            return False
        for block in hits:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1
        pages.blocks.extend(hits)
        pages.cached += len(hits)
        pages.blocks.extend(self._take() for _ in range(wanted))
        self._announce(pages, tokens // self.block_size)
        return True

    def free(self, pages: Pages) -> None:
        """Give back all blocks, the tail first, so that it is reused before what more prompts share."""
        for block in reversed(pages.blocks):
            self._references[block] -= 1
        freed = [block for block in reversed(pages.blocks) if self._references[block] == 0]
        uncached = [block for block in freed if self._reuse_uncached_first and self._digest[block] is None]
        for block in reversed(uncached):
            self._free[block] = None
            self._free.move_to_end(block, last=False)
        for block in freed:
            self._free.setdefault(block)
        pages.blocks.clear()
        pages.cached = 0

    def reset(self) -> bool:
        """Forget everything; False, and nothing is changed, while a sequence holds blocks."""
        if self.used:
            return False
        self._copies.clear()
        self._digest = [None] * self.blocks
        self._events.append(Cleared())
        return True

    def take_events(self) -> list[CacheEvent]:
        """What happened since the last call."""
        events, self._events = self._events, []
        return events

    def check(self) -> None:
        """Raise AssertionError if an invariant of this module does not hold."""
        free = {block for block in range(1, self.blocks) if self._references[block] == 0}
        assert free == set(self._free), "free queue and references disagree"  # noqa: S101
        found = {block: digest for digest, copies in self._copies.items() for block in copies}
        assert found == {block: digest for block, digest in enumerate(self._digest) if digest}, "hash map"  # noqa: S101

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        digest = self._digest[block]
        if digest is not None:
            copies = self._copies[digest]
            del copies[block]
            if not copies:
                del self._copies[digest]
            self._digest[block] = None
            self._events.append(Removed(digest))
        self._references[block] = 1
        return block

    def _announce(self, pages: Pages, full: int) -> None:
        first = pages.cached
        if full <= first:
            return
        self._hash(pages)
        digests = pages.digests[first:full]
        for block, digest in zip(pages.blocks[first:full], digests, strict=True):
            self._digest[block] = digest
            self._copies.setdefault(digest, {})[block] = None
        pages.cached = full
        parent = pages.digests[first - 1] if first else None
        tokens = tuple(pages.tokens[first * self.block_size : full * self.block_size])
        self._events.append(Stored(tuple(digests), parent, tokens, self.block_size, first, pages.content))

    def _hash(self, pages: Pages) -> None:
        size, content = self.block_size, pages.content
        for block in range(len(pages.digests), len(pages.tokens) // size):
            digest = hashlib.sha256(pages.digests[-1] if block else self._root)
            digest.update(array("Q", pages.tokens[block * size : (block + 1) * size]).tobytes())
            for key in (content.lora_source, content.salt if block == 0 else None):
                raw = (key or "").encode()
                digest.update(struct.pack("<Q", len(raw)) + raw)
            pages.digests.append(digest.digest())
