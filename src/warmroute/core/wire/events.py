"""What engines say about their KV caches, whatever their release's way to say it.

Dialects turn bytes into these; nothing above this package knows a dialect. Values are as published, checked for type
and length but not interpreted: what a hash means is the index's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import msgspec

from warmroute.types import BlockHash, Medium

ExtraKeys: TypeAlias = tuple[str | bytes, ...]
"""What else makes one block's content distinct, canonical and without the LoRA name: salt, multimodal item ids, ..."""


class BlockStored(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A chain of blocks that are now in the cache: each block's parent is the one before it.

    `token_ids` are the tokens of all blocks in order. For a full-attention group there are exactly
    `block_size * len(block_hashes)`. They are empty for an offload tier's placeholder, and cover more than the listed
    blocks for a group that keeps only part of the range (`by_hash` is then true): such blocks take their meaning from
    a full announcement of the same hash.
    """

    block_hashes: tuple[BlockHash, ...]
    parent: BlockHash | None
    token_ids: tuple[int, ...]
    block_size: int
    medium: Medium = Medium.GPU
    group: int = 0
    by_hash: bool = False
    """True if the token ids cannot be cut into these blocks; only the hashes say what they are."""
    sliding_window: int | None = None
    """Window in tokens if the group is a sliding-window one."""
    lora: str | None = None
    """The adapter's name, or `#<id>` from releases that publish only the engine's running number."""
    extra_keys: tuple[ExtraKeys, ...] = ()
    """One entry per block, or empty if no block has any."""


class BlockRemoved(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One copy of each of these blocks has left the medium."""

    block_hashes: tuple[BlockHash, ...]
    medium: Medium = Medium.GPU
    group: int = 0


class AllBlocksCleared(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The worker's cache is empty, in every medium."""


Event: TypeAlias = BlockStored | BlockRemoved | AllBlocksCleared


class RejectedEvent(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """An event that could not be decoded. It cost only itself: its neighbours in the batch are decoded."""

    position: int
    """Which event of the batch, from 0."""
    reason: str
    """A short stable word for metrics, e.g. `unknown_tag`, `missing_field`, `wrong_type`, `token_count`."""
    detail: str


class Batch(Protocol):
    """One published message, whichever decoder has read it: all that may be asked without looking at its events."""

    @property
    def ts(self) -> float:
        """Unix seconds of the engine's clock."""
        ...

    @property
    def rank(self) -> int:
        """Data-parallel rank as published."""
        ...

    @property
    def mark(self) -> int:
        """A number of 64 bits for the bytes it was read from: tells batches apart, equal for repetitions."""
        ...

    @property
    def rejected(self) -> Sequence[RejectedEvent]:
        """Events that could not be read."""
        ...

    @property
    def unknown_media(self) -> int:
        """How many events are on a medium that no dialect knows."""
        ...

    @property
    def has_clear(self) -> bool:
        """Whether one of its events is AllBlocksCleared."""
        ...

    @property
    def n_events(self) -> int:
        """How many events could be read."""
        ...


class EventBatch(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One published message: what one scheduler step changed."""

    ts: float
    """Unix seconds of the engine's clock."""
    rank: int
    """Data-parallel rank as published; the socket it came on is the truth, this is only compared with it."""
    events: tuple[Event, ...]
    rejected: tuple[RejectedEvent, ...] = ()
    unknown_media: int = 0
    """Events on a medium that no dialect knows, taken as STORAGE: the least that it can be worth."""
    mark: int = 0
    """A number of 64 bits for the payload's bytes."""

    @property
    def has_clear(self) -> bool:
        """Whether one of the events is AllBlocksCleared."""
        return any(isinstance(event, AllBlocksCleared) for event in self.events)

    @property
    def n_events(self) -> int:
        """How many events could be read."""
        return len(self.events)
