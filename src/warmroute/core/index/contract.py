"""The index's contract: what any implementation promises, and the values it speaks in.

For every worker and request: reachable <= score <= held. `held` = leading blocks of the request that the worker's
events say it has; `reachable` = those of them whose ancestors have been there continuously. Nothing is ever credited
that was not announced. One suite (tests/contract) holds every implementation to this page.

How a worker's announcements are kept:

- A BlockHash gets its *meaning* (a PrefixHash) from an announcement with token ids: the parent's meaning, extended by
  the block's own tokens and extra keys. It keeps it while the worker holds a copy of it in any medium or group, or
  while blocks that name it as their parent are held.
- Announced without usable token ids (`by_hash`, or none at all), a hash is *unresolved* until it is announced with
  them; unresolved blocks count as nothing in a match. A hash that has its meaning needs no token ids.
- An unknown parent makes *orphans*: never a root. A hash that has its meaning is no orphan whatever its parent.
- Orphans and unresolved blocks are *parked*: bounded per worker, the longest parked dropped first. Removals and clears
  reach them like any other.
- Copies count, per (worker, group, medium, hash): two stores need two removals.
- The same hash announced with other content takes the new content: the engine's latest word holds. It is counted.

What a match counts, from what the groups were announced with:

- A group announced with a sliding window is a *sliding* group. Any other that was announced with usable token ids is a
  *full* group. Of groups announced otherwise nothing is known: they hold copies, but make no rule.
- A group's block size is the largest announced for it in its fastest medium (an offload tier may keep larger ones).
  Blocks smaller than the largest of their group and medium are `partial` and ignored.
- The overlap is the longest L such that every full group holds all blocks before L, and every sliding group holds the
  last ceil((window - 1) / block size) blocks before L (all of them, if there are fewer). Media do not matter to it.
- Only groups of the block size that was asked for take part, and a worker with full groups has only their sizes.

Over `blocks_max` copies, after each store, whole blocks are *evicted*, the `oldest_leaf` first: of all workers' blocks
that no held block names as its parent, the one stored longest ago; one that became a leaf because its child went comes
next. So chains lose their ends first, and the least recently extended chain first. Should there be no leaf (only an
engine that contradicts itself can name blocks in a circle), the worker with the most copies is cleared.

A worker with more than `worker_blocks_max` copies after a store has *outgrown* its limit: its own blocks go, in the
same order, before any other's do. Should it have no leaf, it is cleared.

What clears and drops take away is gone at once for whoever asks. Freeing the memory of a million blocks takes too long
for one call, though: `sweep` does it, some at a time, and so does every store. Until then `sizes` counts it in `nodes`
and `bytes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias

import msgspec

from warmroute.core.wire.events import AllBlocksCleared, BlockRemoved, BlockStored, Event
from warmroute.types import BlockHash, Medium, PrefixHash, WorkerId


class Overlap(msgspec.Struct, frozen=True, gc=False):
    """How much of a request's beginning one worker holds."""

    worker: WorkerId
    blocks: int
    """Leading blocks held, in whatever medium; by the window rule for workers with sliding-window groups."""
    by_medium: tuple[int, int, int]
    """The same blocks, each counted once at its fastest medium: GPU, CPU, STORAGE. They add up to `blocks`."""


class ApplyReport(msgspec.Struct, gc=False):
    """What applying events did, summed up; all are counts of copies. Anomalies have names and are never silent.

    Nothing gets lost: stored + orphaned + unresolved is what came in; removed + cleared + orphans_dropped + evicted +
    outgrown is what went out; the difference is held or parked now.
    """

    stored: int = 0
    """Copies added of blocks whose meaning is known at once."""
    removed: int = 0
    """Copies taken away, parked ones included."""
    cleared: int = 0
    """Copies taken away by clears, parked ones included."""
    unknown_removed: int = 0
    """Removals of blocks that were not held: no change."""
    orphaned: int = 0
    """Blocks parked because their parent is unknown."""
    adopted: int = 0
    """Parked blocks that got their meaning: their parent came, or token ids did."""
    orphans_dropped: int = 0
    """Parked blocks given up: the limit was reached."""
    unresolved: int = 0
    """Blocks announced by hash alone whose meaning is not known yet."""
    conflicts: int = 0
    """Hashes announced again with other content."""
    partial: int = 0
    """Blocks smaller than the group's block size, which cannot be matched: ignored."""
    evicted: int = 0
    """Copies dropped because the index reached its own limit."""
    outgrown: int = 0
    """Copies dropped because their worker reached its limit."""


class IndexSizes(msgspec.Struct, frozen=True, gc=False):
    """What the index holds now."""

    workers: int
    nodes: int
    """Distinct block contents (PrefixHashes) held by somebody or needed as an ancestor's meaning."""
    copies: int
    """Sum over workers, groups, media and hashes of the copies held whose meaning is known."""
    orphans: int
    unresolved: int
    bytes: int
    """Memory in use, estimated for the reference, exact for the native one."""


class WorkerSizes(msgspec.Struct, frozen=True, gc=False):
    """What one worker holds now."""

    blocks: int
    """Distinct resolved block hashes held in any medium."""
    copies: int
    orphans: int
    unresolved: int
    block_sizes: tuple[int, ...]
    """Tokens per block, as learned from events: one per full-attention group, without repetition."""


class DumpEntry(msgspec.Struct, frozen=True, gc=False):
    """One resolved block of one worker in a dump: parents come before children, so a dump can be stored again."""

    worker: WorkerId
    block_hash: BlockHash
    prefix: PrefixHash
    parent: BlockHash | None
    block_size: int
    copies: tuple[tuple[int, Medium, int], ...]
    """(group, medium, copies), sorted; empty for a block that is kept only because a held block names it as parent."""
    groups: tuple[tuple[int, Medium, int, int | None], ...] = ()
    """(group, medium, block size, sliding window or None): all that is known of groups, on a worker's first entry."""


Columns: TypeAlias = tuple[Sequence[WorkerId], Sequence[int], Sequence[int]]
"""Overlaps as (worker, blocks, three per worker: blocks by medium)."""


class PrefixIndex(Protocol):
    """All workers' caches, by content. Not thread-safe: it belongs to one event loop."""

    def apply(self, worker: WorkerId, events: Iterable[Event]) -> ApplyReport:
        """Apply one batch's events to `worker`, in order. Never raises because of what the events say."""
        ...

    def store(self, worker: WorkerId, event: BlockStored, report: ApplyReport) -> None:
        """Apply one store, adding to `report`."""
        ...

    def remove(self, worker: WorkerId, event: BlockRemoved, report: ApplyReport) -> None:
        """Apply one removal, adding to `report`. An unknown hash among them does not keep the others."""
        ...

    def clear(self, worker: WorkerId, report: ApplyReport | None = None) -> None:
        """Forget every block of `worker` in every medium, orphans included; what its block size is stays known."""
        ...

    def drop(self, worker: WorkerId) -> None:
        """Forget `worker` altogether, its groups too. Unknown workers are no error."""
        ...

    def sweep(self, blocks: int) -> bool:
        """Free what clears and drops have left, about so many blocks of it; whether there is more."""
        ...

    def match(self, prefixes: Sequence[PrefixHash], block_size: int) -> list[Overlap]:
        """Which workers with this block size hold how many of the leading blocks; those with none are left out.

        `prefixes` is what `hashing.prefix_hashes` gives for the request and this block size. The result is not capped
        to len(prompt) - 1 tokens: that is the caller's, who knows the prompt.
        """
        ...

    def match_columns(self, prefixes: Sequence[PrefixHash], block_size: int) -> Columns:
        """What `match` gives, in columns: for the caller to whom an object per worker is too much."""
        ...

    def depth(self, worker: WorkerId, prefixes: Sequence[PrefixHash], block_size: int) -> int:
        """How many of the leading blocks `worker` holds, as `match` would say: 0 for who is left out of it."""
        ...

    def block_sizes(self) -> tuple[int, ...]:
        """Every block size that a worker uses, ascending: one `match` is due for each."""
        ...

    def prefix_sizes(self, worker: WorkerId) -> tuple[int, ...] | None:
        """Block sizes at which `worker` can use whatever leading part of a prompt it holds; None if none is known yet.

        Of a worker with sliding-window groups there is none: a part is of use only where the windows before its end
        are held too, so nothing can be said of blocks that it is only about to store.
        """
        ...

    def worker_sizes(self, worker: WorkerId) -> WorkerSizes:
        """What `worker` holds; zeros if it is unknown."""
        ...

    def sizes(self) -> IndexSizes:
        """What the index holds in all."""
        ...

    def dump(self, worker: WorkerId | None = None) -> Iterator[DumpEntry]:
        """Every resolved block, of one worker or of all, parents before children."""
        ...

    def restore(self, entries: Iterable[DumpEntry]) -> None:
        """Store what `dump` gave: afterwards every match is answered as the dumped index would have."""
        ...

    def check(self) -> None:
        """Verify every internal invariant. Raises IndexCorruptionError: a bug of ours, never an engine's."""
        ...


def apply_in_order(index: PrefixIndex, worker: WorkerId, events: Iterable[Event]) -> ApplyReport:
    """`PrefixIndex.apply`, by its own `store`, `remove` and `clear`."""
    report = ApplyReport()
    for event in events:
        match event:
            case BlockStored():
                index.store(worker, event, report)
            case BlockRemoved():
                index.remove(worker, event, report)
            case AllBlocksCleared():
                index.clear(worker, report)
    return report
