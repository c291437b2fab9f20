"""The native index: `_native.Index` in the contract's words. It holds no state of its own.

Invariant: whatever is said to it and to `reference.ReferenceIndex`, their answers are equal (tests/contract).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

from warmroute import _native
from warmroute.core.index.contract import (
    ApplyReport,
    Columns,
    DumpEntry,
    IndexSizes,
    Overlap,
    WorkerSizes,
    apply_in_order,
)
from warmroute.core.wire.events import Event
from warmroute.errors import IndexCorruptionError
from warmroute.types import Medium, PrefixHash, WorkerId


class NativeIndex(_native.Index):
    """All workers' caches, by content; `contract.PrefixIndex` says what it promises.

    Beyond that, `add_batch` applies a natively decoded batch without making Python objects of its events, and
    `match_arrays` answers in arrays.
    """

    def apply(self, worker: WorkerId, events: Iterable[Event]) -> ApplyReport:
        """Apply one batch's events to `worker`, in order."""
        return apply_in_order(self, worker, events)

    def match(self, prefixes: Sequence[PrefixHash], block_size: int) -> list[Overlap]:
        """Which workers with this block size hold how many of the leading blocks; those with none are left out.

        `prefixes` may be a list or a buffer of unsigned 64-bit integers, which is read in place.
        """
        return [Overlap(*overlap) for overlap in self.match_tuples(prefixes, block_size)]

    def match_columns(self, prefixes: Sequence[PrefixHash], block_size: int) -> Columns:
        """What `match` gives, in columns: buffers of numbers."""
        found = self.match_arrays(prefixes, block_size)
        return cast("Sequence[WorkerId]", found.workers), found.blocks, found.by_medium

    def worker_sizes(self, worker: WorkerId) -> WorkerSizes:
        """What `worker` holds; zeros if it is unknown."""
        return WorkerSizes(*self.worker_size_tuple(worker))

    def sizes(self) -> IndexSizes:
        """What the index holds in all; `bytes` is exact but for what the allocator adds."""
        return IndexSizes(*self.size_tuple())

    def dump(self, worker: WorkerId | None = None) -> Iterator[DumpEntry]:
        """Every resolved block, of one worker or of all, parents before children; as it is now, whatever comes."""
        return iter([_entry(block) for block in self.dump_tuples(worker)])

    def check(self) -> None:
        """Verify every internal invariant. Raises IndexCorruptionError: a bug of ours, never an engine's."""
        problems = self.problems()
        if problems:
            raise IndexCorruptionError("; ".join(problems))


def _entry(block: _native.DumpedBlock) -> DumpEntry:
    worker, block_hash, prefix, parent, block_size, copies, groups = block
    return DumpEntry(
        worker,
        block_hash,
        prefix,
        parent,
        block_size,
        tuple((group, Medium(medium), count) for group, medium, count in copies),
        tuple((group, Medium(medium), size, window) for group, medium, size, window in groups),
    )
